//! The texts that an action takes over to a program or a file: closed alphabets, so that none is ever an option,
//! a path, a pattern or a second word.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::{Deserialize, Serialize};

/// Why a text is not what its field permits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not permitted: {permitted}")]
pub struct NameError {
    value: String,
    permitted: &'static str,
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident: $check:ident, $permitted:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// What a text has to be.
            pub const PERMITTED: &'static str = $permitted;

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                match $check(&text) {
                    true => Ok(Self(text)),
                    false => Err(NameError { value: text.chars().take(64).collect(), permitted: Self::PERMITTED }),
                }
            }
        }

        impl std::str::FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    )*};
}

names! {
    /// A service: `ssh`, `ssh.service`, `getty@tty1`.
    ServiceName: is_service, "1 to 200 of A-Z a-z 0-9 . _ @ : + \\ -, a letter, digit or _ first";
    /// A package: `git`, `libc6:i386`, `g++`, `NetworkManager`.
    PackageName: is_package, "1 to 200 of A-Z a-z 0-9 + . _ -, a letter or digit first and no - last, and after it perhaps : and an architecture";
    /// A package's version, as the guest's own packages write it.
    PackageVersion: is_version, "1 to 128 of A-Z a-z 0-9 . + ~ : ^ _ -, a letter or digit first";
    /// What to look for among packages.
    SearchQuery: is_query, "1 to 128 of A-Z a-z 0-9 + . _ -, a letter or digit first";
    /// A user.
    UserName: is_user, "1 to 32 of a-z A-Z 0-9 _ . -, a letter or _ first, and perhaps a $ last";
    /// A host name.
    Hostname: is_hostname, "1 to 64 of a-z A-Z 0-9 - and dots; each label of 1 to 63 begins and ends with a letter or digit";
    /// A public key, as a line of authorized_keys has it, without options: `ssh-ed25519 AAAA... a comment`.
    SshKey: is_ssh_key, "one line: a known type, the key in base64 and perhaps a comment of printable ASCII; no options";
}

fn all(text: &str, max: usize, first: impl Fn(u8) -> bool, rest: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= max && bytes.first().copied().is_some_and(first) && bytes.iter().copied().all(rest)
}

fn is_service(text: &str) -> bool {
    let first = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    all(text, 200, first, |byte| byte.is_ascii_alphanumeric() || b"._@:+\\-".contains(&byte))
}

fn is_package(text: &str) -> bool {
    let (name, architecture) = match text.split_once(':') {
        Some((name, architecture)) => (name, Some(architecture)),
        None => (text, None),
    };
    let alphanumeric = |byte: u8| byte.is_ascii_alphanumeric();
    // To apt-get, `name-` is: remove it.
    all(name, 200, alphanumeric, |byte| alphanumeric(byte) || b"+._-".contains(&byte))
        && !name.ends_with('-')
        && architecture.is_none_or(|it| all(it, 32, alphanumeric, |byte| alphanumeric(byte) || byte == b'_'))
}

fn is_version(text: &str) -> bool {
    all(
        text,
        128,
        |byte| byte.is_ascii_alphanumeric(),
        |byte| byte.is_ascii_alphanumeric() || b".+~:^_-".contains(&byte),
    )
}

fn is_query(text: &str) -> bool {
    all(text, 128, |byte| byte.is_ascii_alphanumeric(), |byte| byte.is_ascii_alphanumeric() || b"+._-".contains(&byte))
}

fn is_user(text: &str) -> bool {
    let name = text.strip_suffix('$').unwrap_or(text);
    let first = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    text.len() <= 32 && all(name, 32, first, |byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

fn is_hostname(text: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_alphanumeric();
    let label =
        |label: &str| all(label, 63, alphanumeric, |byte| alphanumeric(byte) || byte == b'-') && !label.ends_with('-');
    text.len() <= 64 && text.split('.').all(label)
}

/// The types that OpenSSH knows.
const KEY_TYPES: &[&str] = &[
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

fn is_ssh_key(text: &str) -> bool {
    if text.len() > 16 * 1024 || !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return false;
    }
    let mut words = text.splitn(3, ' ');
    let (Some(kind), Some(key)) = (words.next(), words.next()) else { return false };
    KEY_TYPES.contains(&kind) && blob(key).is_some_and(|blob| names_its_type(&blob, kind))
}

fn blob(key: &str) -> Option<Vec<u8>> {
    STANDARD.decode(key).or_else(|_| STANDARD_NO_PAD.decode(key)).ok()
}

/// RFC 4253, 6.6: the blob begins with its type as a string, and something comes behind it.
fn names_its_type(blob: &[u8], kind: &str) -> bool {
    let (Some(length), Some(rest)) = (blob.first_chunk::<4>(), blob.get(4..)) else { return false };
    u32::from_be_bytes(*length) as usize == kind.len() && rest.len() > kind.len() && rest.starts_with(kind.as_bytes())
}

impl SshKey {
    /// `ssh-ed25519`, ...
    pub fn kind(&self) -> &str {
        self.0.split(' ').next().unwrap_or_default()
    }

    /// The key as it stands in base64.
    pub fn key(&self) -> &str {
        self.0.split(' ').nth(1).unwrap_or_default()
    }

    /// The key as bytes (RFC 4253, 6.6).
    pub fn blob(&self) -> Vec<u8> {
        blob(self.key()).unwrap_or_default()
    }

    /// What stands behind the key.
    pub fn comment(&self) -> &str {
        self.0.splitn(3, ' ').nth(2).unwrap_or_default().trim()
    }
}
