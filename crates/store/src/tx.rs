//! One transaction, as table code sees it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use sea_orm::{DatabaseConnection, DatabaseTransaction, DbErr, TransactionTrait};

use crate::error::{StoreError, leaves_the_transaction};
use crate::sql::execute;
use crate::table::{events, idempotency, nodes, operations, outbox, resources, vms};

/// A transaction. Its accessors give one view per table.
#[derive(Debug)]
pub struct Tx {
    db: DatabaseTransaction,
    /// Whether rows for the relay were written since the savepoint.
    pushed: AtomicBool,
    /// Whether some were before it.
    kept_pushed: AtomicBool,
    /// Why the database may have rolled it back by itself. A statement after that would be on its own
    /// and durable at once, so none is run.
    lost: OnceLock<StoreError>,
    path: Arc<Path>,
}

impl Tx {
    pub(crate) async fn begin(db: &DatabaseConnection, path: &Arc<Path>) -> Result<Self, StoreError> {
        let db = db.begin().await.map_err(|e| StoreError::from(e).in_file(path))?;
        let (pushed, kept_pushed) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Self { db, pushed, kept_pushed, lost: OnceLock::new(), path: Arc::clone(path) })
    }

    pub(crate) fn db(&self) -> &DatabaseTransaction {
        &self.db
    }

    /// Sets the savepoint that `undo` goes back to.
    pub(crate) async fn save(&self) -> Result<(), StoreError> {
        execute(self, "SAVEPOINT closure", vec![]).await.map(|_| ())
    }

    /// Keeps what was written since the savepoint, and sets the next: one trip to the database.
    pub(crate) async fn keep(&self) -> Result<(), StoreError> {
        execute(self, "RELEASE closure; SAVEPOINT closure", vec![]).await?;
        self.kept_pushed.fetch_or(self.pushed.swap(false, Ordering::Relaxed), Ordering::Relaxed);
        Ok(())
    }

    /// Takes back what was written since the savepoint, which stays.
    pub(crate) async fn undo(&self) -> Result<(), StoreError> {
        execute(self, "ROLLBACK TO closure", vec![]).await?;
        self.pushed.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Commits; whether rows for the relay are among what is committed.
    pub(crate) async fn commit(self) -> Result<bool, StoreError> {
        self.check()?;
        self.db.commit().await.map_err(|e| StoreError::from(e).in_file(&self.path))?;
        Ok(self.pushed.into_inner() || self.kept_pushed.into_inner())
    }

    pub(crate) async fn rollback(self) -> Result<(), StoreError> {
        self.check()?;
        self.db.rollback().await.map_err(|e| StoreError::from(e).in_file(&self.path))
    }

    /// Fails when the transaction is lost.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        self.lost.get().map_or(Ok(()), |lost| Err(lost.clone()))
    }

    /// Takes note of a statement's error.
    pub(crate) fn failed(&self, error: DbErr) -> StoreError {
        let leaves = leaves_the_transaction(&error);
        let error = StoreError::from(error).in_file(&self.path);
        if !leaves {
            self.lost.get_or_init(|| error.clone());
        }
        error
    }

    pub(crate) fn mark_pushed(&self) {
        self.pushed.store(true, Ordering::Relaxed);
    }

    /// VMs.
    pub fn vms(&self) -> vms::Vms<'_> {
        vms::Vms(self)
    }

    /// Operations.
    pub fn operations(&self) -> operations::Operations<'_> {
        operations::Operations(self)
    }

    /// Host resources.
    pub fn resources(&self) -> resources::Resources<'_> {
        resources::Resources(self)
    }

    /// Events that wait for their position.
    pub fn outbox(&self) -> outbox::Outbox<'_> {
        outbox::Outbox(self)
    }

    /// Events with positions.
    pub fn events(&self) -> events::Events<'_> {
        events::Events(self)
    }

    /// Idempotency keys.
    pub fn idempotency(&self) -> idempotency::Idempotency<'_> {
        idempotency::Idempotency(self)
    }

    /// Nodes.
    pub fn nodes(&self) -> nodes::Nodes<'_> {
        nodes::Nodes(self)
    }
}
