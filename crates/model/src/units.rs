//! Sizes in bytes, written the way people write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Invalid;

const UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// A number of bytes. Text: `512MiB`, `2GiB`, `10GB`, or a plain number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(u64);

impl Bytes {
    /// A plain number of bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// A number of MiB.
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    /// The number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Whole MiB, rounded down.
    pub const fn mib(self) -> u64 {
        self.0 >> 20
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = |shift: u32| self.0 != 0 && self.0.is_multiple_of(1u64 << shift);
        match self.0 {
            n if exact(40) => write!(f, "{}TiB", n >> 40),
            n if exact(30) => write!(f, "{}GiB", n >> 30),
            n if exact(20) => write!(f, "{}MiB", n >> 20),
            n if exact(10) => write!(f, "{}KiB", n >> 10),
            n => write!(f, "{n}B"),
        }
    }
}

impl FromStr for Bytes {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refuse = |problem: &str| {
            Invalid::new("size", text, problem).permit(["a whole number with KiB, MiB, GiB, TiB, KB, MB, GB, TB or B"])
        };
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let (number, unit) = (digits.trim(), &text[digits.len()..]);
        let number: u64 = number.parse().map_err(|_| refuse("is not a size"))?;
        let factor = match unit {
            "" => 1,
            unit => UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(|| refuse("has an unknown unit"))?.1,
        };
        number.checked_mul(factor).map(Self).ok_or_else(|| refuse("is too large"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        assert_eq!("256MiB".parse::<Bytes>().unwrap(), Bytes::from_mib(256));
        assert_eq!("1 GiB".parse::<Bytes>().unwrap(), Bytes::from_mib(1024));
        assert_eq!("1000".parse::<Bytes>().unwrap().to_string(), "1000B");
        for bad in ["", "-1", "1.5GiB", "9e9", "12XiB", "99999999999TiB", "MiB"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
    }
}
