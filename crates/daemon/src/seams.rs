//! The engine's seams on the real world: tokio, the system's clocks and its random numbers.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use rand::RngCore;
use roost_engine::{Clock, Guests, LocalDispatch, Rng, Seams, Spawner};
use roost_model::Timestamp;

/// The seams of a daemon that is one process.
pub(crate) fn real(guests: Arc<dyn Guests>) -> Seams {
    Seams {
        clock: Arc::new(SystemClock),
        rng: Arc::new(SystemRng),
        spawner: Arc::new(TokioSpawner),
        dispatch: Arc::new(LocalDispatch::default()),
        guests,
        ids: Arc::default(),
    }
}

#[derive(Debug)]
struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_unix_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

#[derive(Debug)]
struct SystemRng;

impl Rng for SystemRng {
    fn fill(&self, buffer: &mut [u8]) {
        rand::rng().fill_bytes(buffer);
    }
}

#[derive(Debug)]
struct TokioSpawner;

impl Spawner for TokioSpawner {
    fn spawn(&self, future: BoxFuture<'static, ()>) {
        tokio::spawn(future);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use roost_model::VmId;

    use super::*;

    #[test]
    fn ids_made_at_once_by_many_are_all_different() {
        let make = || {
            let seams = real(Arc::new(crate::guests::Guests::new().0));
            let ids = (0..12_500).map(move |_| {
                let mut random = [0; 10];
                seams.rng.fill(&mut random);
                VmId::from_parts(seams.clock.now().unix_ms().unsigned_abs(), random)
            });
            ids.collect::<Vec<_>>()
        };
        let threads: Vec<_> = (0..8).map(|_| std::thread::spawn(make)).collect();
        let all: BTreeSet<VmId> = threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
        assert_eq!(all.len(), 100_000);
    }
}
