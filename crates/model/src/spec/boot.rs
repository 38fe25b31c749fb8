//! What a VM starts from, and the text that paths and kernel arguments may be.

use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Invalid;
use crate::text::checked_text;

/// What the VM starts from: a kernel given from outside, or firmware and a disk.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// A kernel image (bzImage or PVH ELF).
    pub kernel_path: Option<AbsolutePath>,
    /// Its initial RAM disk.
    pub initrd_path: Option<AbsolutePath>,
    /// Its command line: one argument of the hypervisor, never split.
    pub kernel_args: KernelArgs,
    /// IDs of disks and NICs that firmware tries, in order. Empty: the root device, then the rest.
    pub boot_order: Vec<String>,
}

/// An absolute path of a file on the host. Never a URL, a protocol or an option string.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AbsolutePath(String);

/// A kernel command line: at most 2047 bytes, no control characters.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KernelArgs(String);

impl AbsolutePath {
    /// The path.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl KernelArgs {
    /// Whether nothing was given.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for AbsolutePath {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refuse = |problem: &str| Err(Invalid::new("path", text, problem).permit(["an absolute path on the host"]));
        if !text.starts_with('/') {
            return refuse("is not an absolute path");
        }
        if text.len() > 4095 {
            return refuse("is too long");
        }
        if text.chars().any(char::is_control) {
            return refuse("has a control character");
        }
        if text.split('/').any(|part| part == "..") {
            return refuse("steps out with '..'");
        }
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for KernelArgs {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        // COMMAND_LINE_SIZE of x86 Linux is 2048 with the terminator (arch/x86/include/asm/setup.h).
        if text.len() > 2047 {
            return Err(Invalid::new("kernel_args", text, "is too long").permit(["at most 2047 bytes"]));
        }
        if text.chars().any(char::is_control) {
            return Err(Invalid::new("kernel_args", text, "has a control character"));
        }
        Ok(Self(text.to_owned()))
    }
}

checked_text!(AbsolutePath, KernelArgs);
