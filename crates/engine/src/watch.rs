//! Watching what is committed: a watcher's cursor is an event's position, so that it resumes with no gap
//! and no duplicate.

use std::sync::Arc;

use roost_model::{Invalid, ProjectId};
use roost_store::{Event, StoreError};

use crate::engine::{Engine, Inner};
use crate::error::EngineError;
use crate::executions;
use crate::seam::stopped;

/// Events given at a time.
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
        let last = *self.inner.store.position().borrow();
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
                    .read_one(|tx| Box::pin(async move { tx.events().first_position().await }))
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
        let mut last = inner.store.position();
        let mut stopping = inner.stopping.subscribe();
        loop {
            let (after, project) = (self.position, self.project);
            last.borrow_and_update();
            let events: Vec<Event> = inner
                .store
                .read_one(move |tx| Box::pin(async move { tx.events().after(after, project, BATCH).await }))
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

/// Forgets events, ended operations and idempotency keys that are past their time.
pub(crate) async fn prune(inner: &Inner) -> Result<(), StoreError> {
    let kept = inner.config.events_kept;
    let last = *inner.store.position().borrow();
    let before =
        inner.seams.clock.now().unix_ms() - i64::try_from(inner.config.history_kept.as_millis()).unwrap_or(i64::MAX);
    let before = roost_model::Timestamp::from_unix_ms(before);
    let due: bool = inner
        .store
        .read(move |tx| {
            Box::pin(async move {
                let first = tx.events().first_position().await?;
                let too_many = last.saturating_sub(first) > kept + kept / 10;
                Ok::<_, StoreError>(
                    too_many
                        || tx.operations().any_ended_before(before).await?
                        || executions::any_ended_before(tx, before).await?,
                )
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
                executions::prune(tx, before).await?;
                Ok::<_, StoreError>(())
            })
        })
        .await
}
