//! VMs in which nothing was done for longer than they may be idle are stopped or deleted.

use std::time::{Duration, Instant, SystemTime};

use roost_engine::{Address, EngineError, RequestVm};
use roost_model::operation::Goal;
use roost_model::spec::IdleAction;
use roost_model::{Priority, ProjectId, Timestamp, VmId};

use super::Guests;

/// How often they are looked at; the least that a VM may be idle is ten seconds.
const PERIOD: Duration = Duration::from_secs(5);

/// Looks at every attached VM, until the engine stops.
pub(super) async fn watch(guests: Guests) {
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let attached: Vec<VmId> = guests.lock().keys().copied().collect();
        for vm in attached {
            match look(&guests, vm).await {
                Err(EngineError::Stopping) => return,
                Err(error) => {
                    tracing::debug!(vm_id = %vm, error = %error, "an idle VM could not be ended; trying again")
                }
                Ok(()) => {}
            }
        }
    }
}

async fn look(guests: &Guests, id: VmId) -> Result<(), EngineError> {
    let engine = guests.engine();
    let vm = engine.vm(ProjectId::DEFAULT, Address::Id(id)).await?;
    if vm.spec.idle.is_none() {
        return Ok(());
    }
    let Some(active) = last_active(guests, id) else { return Ok(()) };
    let (now, active) = (timestamp(Instant::now()), timestamp(active));
    let Some(action) = vm.idle_for_too_long(active, now) else { return Ok(()) };
    let grace_ms = u64::try_from(engine.config().shutdown_grace.as_millis()).ok();
    let goal = match action {
        IdleAction::Stop => Goal::Shutdown { grace_ms },
        IdleAction::Delete => Goal::Delete { grace_ms },
    };
    tracing::info!(vm_id = %id, action = %action, "idle for longer than it may be");
    let wish = RequestVm {
        project: vm.project,
        vm: Address::Id(id),
        goal,
        priority: Priority::Default,
        // Whoever has asked for something since the record was read has made it busy.
        resource_version: Some(vm.resource_version),
        idempotency_key: None,
    };
    engine.request(wish).await.map(|_accepted| ())
}

/// When something was last done in it: by command, copy or console, or when the daemon took it up.
fn last_active(guests: &Guests, vm: VmId) -> Option<Instant> {
    let touched = guests.lock().get(&vm)?.touched;
    Some(guests.hub.last_activity(vm).map_or(touched, |active| active.max(touched)))
}

fn timestamp(at: Instant) -> Timestamp {
    let then = SystemTime::now().checked_sub(at.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH);
    let since = then.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
