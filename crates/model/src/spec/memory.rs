//! Memory: how much, and what it is made of on the host.

use serde::{Deserialize, Serialize};

use crate::capability::Capability;
use crate::error::Invalid;
use crate::units::Bytes;

const LEAST: Bytes = Bytes::from_mib(8);
const MOST: Bytes = Bytes::from_mib(16 << 20);

/// Memory of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Size at boot; whole MiB.
    pub size: Bytes,
    /// Room for hot-plug; equal to `size` when there is none.
    pub max_size: Bytes,
    /// What it is made of.
    pub backing: Backing,
    /// Whether the host may merge equal pages.
    pub merge: bool,
}

/// What guest memory is made of on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backing {
    /// Private anonymous pages.
    #[default]
    Anonymous,
    /// A memory file that another process can map (virtiofs, vhost-user).
    Shared,
    /// Huge pages of the given size.
    Hugepages {
        /// 2 MiB or 1 GiB.
        page_size: Bytes,
    },
}

impl Memory {
    /// Anonymous memory of a fixed size.
    pub fn fixed(size: Bytes) -> Self {
        Self { size, max_size: size, backing: Backing::Anonymous, merge: false }
    }

    pub(crate) fn check(&self) -> Result<(), Invalid> {
        if !(LEAST..=MOST).contains(&self.size) {
            return Err(Invalid::new("size_bytes", self.size, "is out of range").permit([format!("{LEAST} to {MOST}")]));
        }
        if !self.size.get().is_multiple_of(1 << 20) {
            return Err(Invalid::new("size_bytes", self.size, "is not a whole number of MiB"));
        }
        if !(self.size..=MOST).contains(&self.max_size) || !self.max_size.get().is_multiple_of(1 << 20) {
            return Err(Invalid::new("max_size_bytes", self.max_size, "is out of range")
                .permit([format!("{} (size_bytes) to {MOST}, whole MiB", self.size)]));
        }
        if let Backing::Hugepages { page_size } = self.backing {
            if ![Bytes::from_mib(2), Bytes::from_mib(1024)].contains(&page_size) {
                return Err(Invalid::new("backing.hugepage_size_bytes", page_size, "is not a huge page's size")
                    .permit(["2MiB", "1GiB"]));
            }
            if !self.size.get().is_multiple_of(page_size.get()) {
                return Err(Invalid::new("size_bytes", self.size, "is not a whole number of huge pages")
                    .permit([format!("a multiple of {page_size}")]));
            }
        }
        if self.merge && self.backing != Backing::Anonymous {
            return Err(Invalid::new("backing.merge", true, "needs anonymous memory"));
        }
        Ok(())
    }

    pub(crate) fn needs(&self) -> Vec<Capability> {
        let mut needs = Vec::new();
        if self.max_size > self.size {
            needs.push(Capability::MemoryHotplug);
        }
        match self.backing {
            Backing::Anonymous if self.merge => needs.push(Capability::MemoryMerge),
            Backing::Anonymous => {}
            Backing::Shared => needs.push(Capability::SharedMemory),
            Backing::Hugepages { .. } => needs.push(Capability::Hugepages),
        }
        needs
    }
}
