//! The record of host resources: written before a thing is made, removed after it is gone.

use std::sync::Mutex;

use async_trait::async_trait;
use roost_model::{Resource, ResourceKind};
use thiserror::Error;

/// The record of one VM's resources. The engine backs it by the database.
#[async_trait]
pub trait Journal: Send + Sync {
    /// Records the resource, or replaces the one of the same kind and key. Durable on return.
    async fn record(&self, resource: Resource) -> Result<(), JournalError>;

    /// Forgets it. Durable on return or a little later: what is gone does no harm in the record.
    async fn forget(&self, kind: ResourceKind, key: &str) -> Result<(), JournalError>;
}

/// The record could not be written. Nothing may be made then.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the record of host resources could not be written: {0}")]
pub struct JournalError(pub String);

impl From<JournalError> for crate::BackendError {
    fn from(e: JournalError) -> Self {
        crate::BackendError::transient("STORE_UNAVAILABLE", e.to_string())
    }
}

/// A journal in memory, for a backend's own tests: it outlives the backend as the database would.
#[derive(Debug, Default)]
pub struct MemoryJournal(Mutex<Vec<Resource>>);

impl MemoryJournal {
    /// Everything recorded.
    pub fn resources(&self) -> Vec<Resource> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Resource>> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}

#[async_trait]
impl Journal for MemoryJournal {
    async fn record(&self, resource: Resource) -> Result<(), JournalError> {
        let mut all = self.lock();
        all.retain(|r| (r.kind, &r.key) != (resource.kind, &resource.key));
        all.push(resource);
        Ok(())
    }

    async fn forget(&self, kind: ResourceKind, key: &str) -> Result<(), JournalError> {
        self.lock().retain(|r| (r.kind, r.key.as_str()) != (kind, key));
        Ok(())
    }
}
