//! Names that people choose, and the names of backends.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Invalid;
use crate::id::looks_like_id;
use crate::text::checked_text;

/// A VM's name: 1–63 of `a-z A-Z 0-9 . _ -`, starting with a letter or digit, and never the shape
/// of an ID. The set is what is safe as a host name, a file name and an argument.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

impl FromStr for VmName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let shape = "1-63 letters, digits, '.', '_' or '-', starting with a letter or digit";
        let refuse = |problem: &str| Err(Invalid::new("name", text, problem).permit([shape]));
        if text.is_empty() || text.len() > 63 {
            return refuse("has the wrong length");
        }
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
            return refuse("has a character that a name may not have");
        }
        if !text.as_bytes()[0].is_ascii_alphanumeric() {
            return refuse("does not start with a letter or digit");
        }
        if looks_like_id(text) {
            return refuse("reads as an ID");
        }
        Ok(Self(text.to_owned()))
    }
}

/// The name of a configured backend: `qemu`, `sim`, ...
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackendName(String);

impl FromStr for BackendName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let fits = (1..=32).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid::new("backend", text, "is not a backend's name").permit(["1-32 of a-z, 0-9 and '-'"]))
        }
    }
}

checked_text!(VmName, BackendName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_smuggle_anything() {
        for bad in
            ["", "vm1,process=EVIL", "a b", "-x", ".", "..", "a/b", "x\n", "é", "018bcfe5-6800-7000-8000-000000000000"]
        {
            let refused = bad.parse::<VmName>().expect_err(bad);
            assert_eq!(refused.field, "name");
        }
        assert!("x".repeat(64).parse::<VmName>().is_err());
        for good in ["web", "web-1.prod_2", "0", "vm_web"] {
            assert_eq!(good.parse::<VmName>().unwrap().as_str(), good);
        }
    }
}
