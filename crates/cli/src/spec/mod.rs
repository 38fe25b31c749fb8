//! What a VM is to be, from flags and from files.

pub(crate) mod disk;
pub(crate) mod file;
pub(crate) mod flags;
pub(crate) mod network;
