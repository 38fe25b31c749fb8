//! Group commit: whatever has queued up while the last batch was committed becomes the next one.

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
    /// Runs it; whether its savepoint is kept.
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

/// Runs jobs in one transaction and answers their callers.
pub(crate) async fn batch(opened: &Opened, mut jobs: Vec<Box<dyn Job>>, committed: &watch::Sender<u64>) {
    let outcome = transact(opened, &mut jobs).await;
    if let Ok(true) = outcome {
        committed.send_modify(|n| *n += 1);
    }
    let outcome = outcome.map(|_| ());
    for job in jobs {
        job.answer(outcome.clone());
    }
}

/// Whether anything was written for the relay.
async fn transact(opened: &Opened, jobs: &mut [Box<dyn Job>]) -> Result<bool, StoreError> {
    let tx = Tx::begin(&opened.writer, &opened.path).await?;
    // Alone, a job needs no savepoint: the transaction is its own.
    if let [job] = jobs {
        return if attempt(job, &tx).await { tx.commit().await } else { tx.rollback().await.map(|()| false) };
    }
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
