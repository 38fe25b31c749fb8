//! One transaction, as table code sees it.

use std::sync::atomic::{AtomicBool, Ordering};

use sea_orm::DatabaseTransaction;

use crate::table::{events, idempotency, nodes, operations, outbox, resources, vms};

/// A transaction. Its accessors give one view per table.
#[derive(Debug)]
pub struct Tx {
    pub(crate) db: DatabaseTransaction,
    /// Whether rows for the relay were written.
    pushed: AtomicBool,
}

impl Tx {
    pub(crate) fn new(db: DatabaseTransaction) -> Self {
        Self { db, pushed: AtomicBool::new(false) }
    }

    pub(crate) fn mark_pushed(&self) {
        self.pushed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_pushed(&self) -> bool {
        self.pushed.load(Ordering::Relaxed)
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
