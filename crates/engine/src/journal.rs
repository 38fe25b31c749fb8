//! The record of host resources, backed by the store.

use async_trait::async_trait;
use roost_backend::{Journal, JournalError};
use roost_model::{Resource, ResourceKind, VmId};
use roost_store::{Store, StoreError};

/// One VM's journal.
pub(crate) struct StoreJournal {
    pub(crate) store: Store,
    pub(crate) vm: VmId,
}

#[async_trait]
impl Journal for StoreJournal {
    async fn record(&self, resource: Resource) -> Result<(), JournalError> {
        let vm = self.vm;
        let recorded: Result<(), StoreError> = self
            .store
            .write(move |tx| {
                let resource = resource.clone();
                Box::pin(async move { tx.resources().record(vm, &resource).await })
            })
            .await;
        recorded.map_err(|e| JournalError(e.to_string()))
    }

    async fn forget(&self, kind: ResourceKind, key: &str) -> Result<(), JournalError> {
        let (vm, key) = (self.vm, key.to_owned());
        let forgotten: Result<(), StoreError> = self
            .store
            .write(move |tx| {
                let key = key.clone();
                Box::pin(async move { tx.resources().forget(vm, kind, &key).await })
            })
            .await;
        forgotten.map_err(|e| JournalError(e.to_string()))
    }
}
