//! From the outbox to watchers: one relay gives committed rows dense positions; a watcher's cursor
//! is a position, so that it resumes with no gap and no duplicate.

use std::sync::Arc;

use roost_model::{Invalid, ProjectId};
use roost_store::{Event, StoreError};

use crate::engine::{Engine, Inner};
use crate::error::EngineError;
use crate::seam::stopped;

/// Rows moved in one transaction.
const BATCH: usize = 1024;

/// A watcher's place in the stream of events.
#[derive(Debug)]
pub struct Watch {
    engine: Engine,
    project: ProjectId,
    position: u64,
}

impl Engine {
    /// Watches events after `position`; `None` begins with what happens next.
    pub async fn watch(&self, project: ProjectId, position: Option<u64>) -> Result<Watch, EngineError> {
        let last = *self.inner.position.borrow();
        let position = match position {
            None => last,
            Some(position) if position > last => {
                return Err(Invalid::new("from_position", position, "lies in the future")
                    .permit([format!("at most {last}")])
                    .into());
            }
            Some(position) => {
                let first: u64 = self
                    .inner
                    .store
                    .read(|tx| Box::pin(async move { tx.events().first_position().await }))
                    .await
                    .map_err(|e: StoreError| EngineError::Store(e))?;
                if position + 1 < first {
                    return Err(Invalid::new(
                        "from_position",
                        position,
                        "is older than what is kept: list again, then watch",
                    )
                    .permit([format!("{} or later", first - 1)])
                    .into());
                }
                position
            }
        };
        Ok(Watch { engine: self.clone(), project, position })
    }
}

impl Watch {
    /// The position of the last event that was given.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next events, in order; at least one. `None`: the engine is stopping.
    pub async fn next(&mut self) -> Result<Option<Vec<Event>>, EngineError> {
        let inner = Arc::clone(&self.engine.inner);
        let mut last = inner.position.subscribe();
        let mut stopping = inner.stopping.subscribe();
        loop {
            let (after, project) = (self.position, self.project);
            last.borrow_and_update();
            let events: Vec<Event> = inner
                .store
                .read(move |tx| Box::pin(async move { tx.events().after(after, project, BATCH).await }))
                .await
                .map_err(|e: StoreError| EngineError::Store(e))?;
            if let Some(newest) = events.last() {
                self.position = newest.position;
                return Ok(Some(events));
            }
            tokio::select! {
                biased;
                () = stopped(&mut stopping) => return Ok(None),
                changed = last.changed() => if changed.is_err() { return Ok(None) },
            }
        }
    }
}

/// Moves outbox rows to events whenever a commit has made some, until the engine stops.
pub(crate) async fn run(inner: Arc<Inner>) {
    let mut committed = inner.store.committed();
    let mut stopping = inner.stopping.subscribe();
    loop {
        committed.borrow_and_update();
        match relay_all(&inner).await {
            Ok(()) => {}
            Err(error) => tracing::warn!(error = %error, "events could not be relayed; they wait in the outbox"),
        }
        tokio::select! {
            biased;
            () = stopped(&mut stopping) => return,
            changed = committed.changed() => if changed.is_err() { return },
            // After a failure nothing may commit for long; what waits is tried again all the same.
            () = inner.seams.clock.sleep(inner.config.reconcile_period) => {}
        }
    }
}

async fn relay_all(inner: &Inner) -> Result<(), StoreError> {
    loop {
        let events: Vec<Event> =
            inner.store.write(|tx| Box::pin(async move { tx.outbox().relay(BATCH).await })).await?;
        let Some(newest) = events.last() else { return Ok(()) };
        inner.position.send_replace(newest.position);
        if events.len() < BATCH {
            return Ok(());
        }
    }
}

/// Forgets events, ended operations and idempotency keys that are past their time.
pub(crate) async fn prune(inner: &Inner) -> Result<(), StoreError> {
    let kept = inner.config.events_kept;
    let last = *inner.position.borrow();
    let before =
        inner.seams.clock.now().unix_ms() - i64::try_from(inner.config.history_kept.as_millis()).unwrap_or(i64::MAX);
    let before = roost_model::Timestamp::from_unix_ms(before);
    let due: bool = inner
        .store
        .read(move |tx| {
            Box::pin(async move {
                let first = tx.events().first_position().await?;
                let too_many = last.saturating_sub(first) > kept + kept / 10;
                Ok::<_, StoreError>(too_many || tx.operations().any_ended_before(before).await?)
            })
        })
        .await?;
    if !due {
        return Ok(());
    }
    inner
        .store
        .write(move |tx| {
            Box::pin(async move {
                tx.events().prune(kept).await?;
                tx.operations().prune(before, 10_000).await?;
                tx.idempotency().prune(before).await?;
                Ok::<_, StoreError>(())
            })
        })
        .await
}
