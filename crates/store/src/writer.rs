//! Group commit: whatever has queued up while the last batch was committed becomes the next one.
//!
//! ```text
//!   queue --> batch: BEGIN, closure after closure, events, COMMIT --> answers
//!               | a closure failed that had written something
//!               +--> ROLLBACK, then the same batch once more with a savepoint for each
//! ```
//!
//! A savepoint costs two trips to the database for each closure, and nearly none of them fails: so the
//! first try does without. A closure has no effects elsewhere and may run again.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::StoreError;
use crate::sqlite::Opened;
use crate::tx::Tx;

/// Closures in one batch at most.
const MOST_IN_A_BATCH: usize = 256;

/// One closure on its way through the writer.
pub(crate) trait Job: Send {
    /// Runs it; whether what it wrote is kept. May be called again after a rollback.
    fn run<'a>(&'a mut self, tx: &'a Tx) -> BoxFuture<'a, bool>;

    /// Answers its caller, now that the batch is committed or lost.
    fn answer(self: Box<Self>, committed: Result<(), StoreError>);
}

/// A closure with its caller.
pub(crate) struct Closure<F, T, E> {
    pub(crate) run: F,
    pub(crate) result: Option<Result<T, E>>,
    pub(crate) reply: oneshot::Sender<Result<T, E>>,
}

impl<F, T, E> Job for Closure<F, T, E>
where
    F: for<'a> Fn(&'a Tx) -> BoxFuture<'a, Result<T, E>> + Send + Sync,
    T: Send,
    E: From<StoreError> + Send,
{
    fn run<'a>(&'a mut self, tx: &'a Tx) -> BoxFuture<'a, bool> {
        self.result = None;
        Box::pin(async move {
            let result = (self.run)(tx).await;
            let keep = result.is_ok();
            self.result = Some(result);
            keep
        })
    }

    fn answer(self: Box<Self>, committed: Result<(), StoreError>) {
        let answer = match (self.result, committed) {
            // A refusal stands whatever becomes of the batch: it wrote nothing.
            (Some(Err(refused)), _) => Err(refused),
            (Some(Ok(value)), Ok(())) => Ok(value),
            (Some(Ok(_)), Err(lost)) => Err(lost.into()),
            (None, Err(lost)) => Err(lost.into()),
            (None, Ok(())) => Err(StoreError::Unavailable("the closure broke off".to_owned()).into()),
        };
        // Who does not wait any more has dropped its end.
        let _gone = self.reply.send(answer);
    }
}

/// Runs until every sender is gone.
pub(crate) async fn run(
    opened: Opened,
    mut queue: mpsc::UnboundedReceiver<Box<dyn Job>>,
    committed: Arc<watch::Sender<u64>>,
) {
    let mut jobs = Vec::new();
    while queue.recv_many(&mut jobs, MOST_IN_A_BATCH).await > 0 {
        batch(&opened, std::mem::take(&mut jobs), &committed).await;
    }
}

/// Runs jobs in one transaction, says at which position the events now end, and answers the jobs'
/// callers.
pub(crate) async fn batch(opened: &Opened, mut jobs: Vec<Box<dyn Job>>, committed: &watch::Sender<u64>) {
    let outcome = transact(opened, &mut jobs).await;
    if let Ok(Some(position)) = outcome {
        committed.send_replace(position);
    }
    let outcome = outcome.map(drop);
    for job in jobs {
        job.answer(outcome.clone());
    }
}

/// The position of the last event, if there are new ones.
async fn transact(opened: &Opened, jobs: &mut [Box<dyn Job>]) -> Result<Option<u64>, StoreError> {
    let tx = Tx::begin(&opened.writer, &opened.path).await?;
    let alone = jobs.len() == 1;
    for job in &mut *jobs {
        if attempt(job, &tx).await {
            tx.kept();
        } else if tx.is_changed() {
            tx.rollback().await?;
            return if alone { Ok(None) } else { transact_one_by_one(opened, jobs).await };
        }
    }
    tx.commit().await
}

/// The same with a savepoint for each, so that one that fails takes back only what it wrote.
async fn transact_one_by_one(opened: &Opened, jobs: &mut [Box<dyn Job>]) -> Result<Option<u64>, StoreError> {
    let tx = Tx::begin(&opened.writer, &opened.path).await?;
    tx.save().await?;
    for job in jobs {
        if attempt(job, &tx).await { tx.keep().await? } else { tx.undo().await? }
    }
    tx.commit().await
}

/// Whether what the job wrote is to be kept.
async fn attempt(job: &mut Box<dyn Job>, tx: &Tx) -> bool {
    // A panic is our bug; it must not take everybody else's writes with it.
    AssertUnwindSafe(job.run(tx)).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!("a closure panicked inside a transaction");
        false
    })
}
