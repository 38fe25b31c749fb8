//! What is installed in a VM's guest as part of its creation.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Invalid;
use crate::text::checked_text;

/// One thing to install, through the guest agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// What it is called in progress and errors; the name of its package unless Roost knows better.
    pub name: ToolName,
    /// The version of its package; `None`: whatever the guest's package manager takes.
    pub version: Option<ToolVersion>,
    /// A shell script that installs it, in place of a package. It must succeed when run again.
    pub script: Option<String>,
}

/// A tool's name, which is a package's name as a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ToolName(String);

/// A package's version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ToolVersion(String);

/// The name that stands for [`DEFAULT_SET`].
pub const DEFAULT: &str = "default";

/// What a machine to develop on has.
pub const DEFAULT_SET: [&str; 4] = ["git", "nodejs", "bun", "claude-code"];

/// A longer script belongs into an image.
const LONGEST_SCRIPT: usize = 64 * 1024;

impl Tool {
    /// Whether it is installed by running something, and not as a package.
    fn runs_programs(&self) -> bool {
        self.script.is_some() || matches!(self.name.as_str(), DEFAULT | "bun" | "claude-code")
    }

    pub(super) fn check(&self, allow_exec: bool) -> Result<(), Invalid> {
        if self.runs_programs() && !allow_exec {
            return Err(Invalid::new("name", &self.name, "is installed by running programs in the guest")
                .permit(["agent.allow_exec, or tools that are packages"]));
        }
        let Some(script) = &self.script else { return Ok(()) };
        if self.version.is_some() {
            return Err(Invalid::new("version", "", "says nothing beside a script").permit(["a script or a version"]));
        }
        if script.is_empty() || script.len() > LONGEST_SCRIPT || script.contains('\0') {
            return Err(Invalid::new("script", script.len(), "is empty, too long or has a NUL")
                .permit(["1 to 65536 bytes without NUL"]));
        }
        Ok(())
    }
}

checked_text!(ToolName, ToolVersion);

impl FromStr for ToolName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        short("name", text, b"+-._").map(Self)
    }
}

impl FromStr for ToolVersion {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        short("version", text, b"+-._:~").map(Self)
    }
}

fn short(field: &str, text: &str, signs: &[u8]) -> Result<String, Invalid> {
    let fits = (1..=128).contains(&text.len())
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || signs.contains(&b));
    if fits {
        return Ok(text.to_owned());
    }
    let signs = String::from_utf8_lossy(signs);
    Err(Invalid::new(field, text, "has the wrong form")
        .permit([format!("1-128 letters, digits or {signs}, starting with a letter or digit")]))
}
