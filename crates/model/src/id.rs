//! Identifiers: `<noun>_<uuidv7>`, one type per noun, so that one is never taken for another.
//!
//! The text form carries the noun; wire fields that the first API spelled as bare UUIDs (`vm_id`)
//! use [`VmId::uuid`]. Parsing accepts both forms, so that either can be pasted anywhere.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::Invalid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $noun:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Uuid);

        impl $name {
            /// The noun in front of the UUID.
            pub const NOUN: &'static str = $noun;

            /// Wraps a UUID made elsewhere (by the engine's `Rng`, or read from a row).
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// A time-ordered ID from a Unix time in milliseconds and 10 random bytes.
            pub fn from_parts(unix_ms: u64, random: [u8; 10]) -> Self {
                Self(uuid::Builder::from_unix_timestamp_millis(unix_ms, &random).into_uuid())
            }

            /// The bare UUID.
            pub const fn uuid(&self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($noun, "_{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                let bare = text.strip_prefix(concat!($noun, "_")).unwrap_or(text);
                // Only the hyphenated form: 32 bare hex digits could be somebody's name.
                if bare.len() == 36 && let Ok(uuid) = Uuid::try_parse(bare) {
                    return Ok(Self(uuid));
                }
                Err(Invalid::new("id", text, concat!("is not an ID of the form ", $noun, "_<uuid>")))
            }
        }

        impl TryFrom<String> for $name {
            type Error = Invalid;

            fn try_from(text: String) -> Result<Self, Invalid> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    };
}

id!(
    /// A virtual machine, for as long as its record exists.
    VmId, "vm"
);
id!(
    /// One accepted request that changes something.
    OperationId, "op"
);
id!(
    /// One start of a VM's process: the nonce that its records and its process share.
    LaunchId, "launch"
);
id!(
    /// One thing done inside a guest.
    ExecutionId, "exec"
);
id!(
    /// Several commands inside a guest, one after the other.
    JobId, "job"
);
id!(
    /// A host that runs VMs.
    NodeId, "node"
);
id!(
    /// A tenant. Every row belongs to one.
    ProjectId, "project"
);

impl ProjectId {
    /// The project of an installation that has made no other.
    pub const DEFAULT: ProjectId = ProjectId(Uuid::nil());
}

/// Whether the text reads as an ID of any noun; names may not.
pub fn looks_like_id(text: &str) -> bool {
    let bare = match text.split_once('_') {
        Some(("vm" | "op" | "exec" | "job" | "launch" | "node" | "project" | "img" | "vol" | "net" | "snap", rest)) => {
            rest
        }
        _ => text,
    };
    bare.len() == 36 && Uuid::try_parse(bare).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_and_bare_uuid_is_accepted() {
        let id = VmId::from_parts(1_700_000_000_000, [7; 10]);
        assert!(id.to_string().starts_with("vm_018bcfe5-6800-7"));
        assert_eq!(id.to_string().parse::<VmId>().unwrap(), id);
        assert_eq!(id.uuid().to_string().parse::<VmId>().unwrap(), id);
    }

    #[test]
    fn an_id_of_another_noun_is_refused() {
        let op = OperationId::from_parts(1, [0; 10]);
        assert!(op.to_string().parse::<VmId>().is_err());
        assert!(looks_like_id(&op.to_string()));
        assert!(!looks_like_id("vm_web"));
    }
}
