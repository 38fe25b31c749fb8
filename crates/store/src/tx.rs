//! One transaction, as table code sees it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, ExecResult, QueryResult, Statement,
    TransactionTrait,
};

use crate::error::{StoreError, leaves_the_transaction};
use crate::sql::execute;
use crate::table::events::NewEvent;
use crate::table::{events, executions, idempotency, jobs, nodes, operations, resources, vms};

/// A transaction. Its accessors give one view per table.
#[derive(Debug)]
pub struct Tx {
    db: Db,
    pushed: Mutex<Pushed>,
    /// Whether a statement that changes something was run since what is kept.
    changed: AtomicBool,
    /// Why the database may have rolled it back by itself. A statement after that would be on its own
    /// and durable at once, so none is run.
    lost: OnceLock<StoreError>,
    path: Arc<Path>,
}

/// Where statements go.
#[derive(Debug)]
enum Db {
    Transaction(DatabaseTransaction),
    /// One statement is a snapshot of its own: it goes without a transaction around it.
    Once(DatabaseConnection, AtomicBool),
}

/// Events on their way to the commit, which gives them their positions.
#[derive(Debug, Default)]
struct Pushed {
    events: Vec<NewEvent>,
    /// So many of them are of closures that ended well.
    kept: usize,
}

impl Tx {
    pub(crate) async fn begin(db: &DatabaseConnection, path: &Arc<Path>) -> Result<Self, StoreError> {
        let db = db.begin().await.map_err(|e| StoreError::from(e).in_file(path))?;
        Ok(Self::on(Db::Transaction(db), path))
    }

    /// For a single query, which costs one trip to the database instead of three.
    pub(crate) fn once(db: &DatabaseConnection, path: &Arc<Path>) -> Self {
        Self::on(Db::Once(db.clone(), AtomicBool::new(false)), path)
    }

    fn on(db: Db, path: &Arc<Path>) -> Self {
        let (pushed, changed) = (Mutex::default(), AtomicBool::new(false));
        Self { db, pushed, changed, lost: OnceLock::new(), path: Arc::clone(path) }
    }

    pub(crate) async fn execute(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        match &self.db {
            Db::Transaction(db) => db.execute_raw(statement).await,
            Db::Once(..) => Err(DbErr::Custom("a read of one query writes".to_owned())),
        }
    }

    pub(crate) async fn query_all(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        match &self.db {
            Db::Transaction(db) => db.query_all_raw(statement).await,
            Db::Once(db, used) => first(used, db)?.query_all_raw(statement).await,
        }
    }

    pub(crate) async fn query_one(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        match &self.db {
            Db::Transaction(db) => db.query_one_raw(statement).await,
            Db::Once(db, used) => first(used, db)?.query_one_raw(statement).await,
        }
    }

    pub(crate) fn backend(&self) -> DbBackend {
        match &self.db {
            Db::Transaction(db) => db.get_database_backend(),
            Db::Once(db, _) => db.get_database_backend(),
        }
    }

    /// Sets the savepoint that `undo` goes back to.
    pub(crate) async fn save(&self) -> Result<(), StoreError> {
        execute(self, "SAVEPOINT closure", vec![]).await.map(|_| ())
    }

    /// Keeps what was written since the savepoint, and sets the next: one trip to the database.
    pub(crate) async fn keep(&self) -> Result<(), StoreError> {
        execute(self, "RELEASE closure; SAVEPOINT closure", vec![]).await?;
        self.kept();
        Ok(())
    }

    /// Takes back what was written since the savepoint, which stays.
    pub(crate) async fn undo(&self) -> Result<(), StoreError> {
        execute(self, "ROLLBACK TO closure", vec![]).await?;
        self.changed.store(false, Ordering::Relaxed);
        let mut pushed = self.pushed();
        let kept = pushed.kept;
        pushed.events.truncate(kept);
        Ok(())
    }

    /// What was written so far is to stay.
    pub(crate) fn kept(&self) {
        self.changed.store(false, Ordering::Relaxed);
        let mut pushed = self.pushed();
        pushed.kept = pushed.events.len();
    }

    /// Whether anything may have been written beyond what is kept.
    pub(crate) fn is_changed(&self) -> bool {
        let pushed = self.pushed();
        self.changed.load(Ordering::Relaxed) || pushed.events.len() > pushed.kept
    }

    /// Takes note of a statement that changes something.
    pub(crate) fn changes(&self) {
        self.changed.store(true, Ordering::Relaxed);
    }

    /// Adds an event to those that the commit will tell of.
    pub(crate) fn push(&self, event: NewEvent) {
        self.pushed().events.push(event);
    }

    /// Commits; the position of the last event, if there are new ones.
    pub(crate) async fn commit(self) -> Result<Option<u64>, StoreError> {
        let events = std::mem::take(&mut self.pushed().events);
        let last = if events.is_empty() { None } else { Some(self.events().append(&events).await?) };
        self.check()?;
        if let Db::Transaction(db) = self.db {
            db.commit().await.map_err(|e| StoreError::from(e).in_file(&self.path))?;
        }
        Ok(last)
    }

    pub(crate) async fn rollback(self) -> Result<(), StoreError> {
        self.check()?;
        match self.db {
            Db::Transaction(db) => db.rollback().await.map_err(|e| StoreError::from(e).in_file(&self.path)),
            Db::Once(..) => Ok(()),
        }
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

    fn pushed(&self) -> MutexGuard<'_, Pushed> {
        // A closure that panics while it pushes leaves a whole event or none.
        self.pushed.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Events with positions.
    pub fn events(&self) -> events::Events<'_> {
        events::Events(self)
    }

    /// Executions.
    pub fn executions(&self) -> executions::Executions<'_> {
        executions::Executions(self)
    }

    /// Jobs.
    pub fn jobs(&self) -> jobs::Jobs<'_> {
        jobs::Jobs(self)
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

/// The connection, for the one query that it is lent for.
fn first<'a>(used: &AtomicBool, db: &'a DatabaseConnection) -> Result<&'a DatabaseConnection, DbErr> {
    if used.swap(true, Ordering::Relaxed) {
        return Err(DbErr::Custom("a read of one query makes a second".to_owned()));
    }
    Ok(db)
}
