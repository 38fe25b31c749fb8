//! Which VM has a channel follows the record; what happens on the channels goes back there as conditions.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use roost_engine::{Address, EngineError, Event, VmFilter};
use roost_guest_hub::{Attachment, Endpoint, HubEvent};
use roost_model::spec::{AbsolutePath, Agent, AgentChannel};
use roost_model::{Capability, ProjectId, Refusal, Vm, VmId};

use super::{Attached, Guests, HubEvents};

/// Whether an agent is at the other end.
const AGENT_CONNECTED: &str = "AgentConnected";
/// Whether the guest knows who it is now: after a restore or a fork it is told.
const GUEST_READY: &str = "GuestReady";
/// The longest text of a guest that goes on record.
const LONGEST_TEXT: usize = 256;

/// Attaches and detaches channels, until the engine stops.
pub(super) async fn follow_record(guests: Guests) {
    loop {
        match follow(&guests).await {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!(error = %error, "the record could not be followed for the guests' channels; starting over");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn follow(guests: &Guests) -> Result<(), EngineError> {
    let engine = guests.engine();
    let with_agents: BTreeSet<String> = engine
        .backends()
        .into_iter()
        .filter(|entry| entry.capabilities.as_ref().is_ok_and(|c| c.has(Capability::AgentChannel)))
        .map(|entry| entry.backend.name().to_string())
        .collect();
    // The place in the stream is taken before the list: nothing falls between them.
    let mut watch = engine.watch(ProjectId::DEFAULT, None).await?;
    for backend in &with_agents {
        let filter = VmFilter { backend: backend.parse().ok(), ..VmFilter::default() };
        let mut after = None;
        loop {
            let page = engine.vms(filter.clone(), after, 1000).await?;
            for vm in &page.vms {
                refresh(guests, vm).await?;
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
    }
    while let Some(events) = watch.next().await? {
        let concerned = |event: &Event| {
            let backend = event.data.get("backend").and_then(|name| name.as_str());
            event.vm.filter(|_| backend.is_some_and(|name| with_agents.contains(name)))
        };
        let changed: BTreeSet<VmId> = events.iter().filter_map(concerned).collect();
        for id in changed {
            match engine.vm(ProjectId::DEFAULT, Address::Id(id)).await {
                Ok(vm) => refresh(guests, &vm).await?,
                Err(EngineError::Refused(Refusal::VmNotFound(_))) => detach(guests, id),
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

pub(super) async fn refresh(guests: &Guests, vm: &Vm) -> Result<(), EngineError> {
    let Agent { channel, .. } = &vm.spec.agent;
    if !vm.observed.machine.is_up() || *channel == AgentChannel::Off {
        detach(guests, vm.id);
        return take_back(guests, vm, "NOT_RUNNING", "the VM does not run").await;
    }
    let now = Attached { launch: vm.observed.launch, generation: vm.generation, touched: Instant::now() };
    let before = guests.lock().get(&vm.id).copied();
    match before {
        Some(before) if before.launch == now.launch && before.generation == now.generation => return Ok(()),
        // Another machine: what was under way in the last one is lost.
        Some(before) if before.launch != now.launch => detach(guests, vm.id),
        _ => {}
    }
    let endpoint = match guests.engine().agent(vm).await {
        Ok(endpoint) => endpoint,
        Err(error) => {
            tracing::debug!(vm_id = %vm.id, error = %error, "the machine's channel is not to be had");
            return Ok(());
        }
    };
    let Some(socket) = endpoint.socket else {
        return take_back(guests, vm, "NO_CHANNEL", "the VM has no channel to an agent").await;
    };
    if before.is_none() {
        take_back(guests, vm, "CONNECTING", "nobody has answered yet").await?;
    }
    guests.lock().insert(vm.id, now);
    guests.hub.attach(attachment(vm, Endpoint::Unix(socket), endpoint.qemu_guest_agent));
    Ok(())
}

fn attachment(vm: &Vm, endpoint: Endpoint, qemu_guest_agent: Option<std::path::PathBuf>) -> Attachment {
    let Agent { channel: _, allow_exec, file_roots, exec_user, metrics_interval } = &vm.spec.agent;
    Attachment {
        vm: vm.id,
        endpoint,
        qemu_guest_agent,
        policy: Default::default(),
        allow_exec: *allow_exec,
        file_roots: file_roots.iter().map(AbsolutePath::to_string).collect(),
        exec_user: exec_user.as_ref().map(ToString::to_string),
        metrics_interval: *metrics_interval,
        epoch: 0,
        key: None,
    }
}

fn detach(guests: &Guests, vm: VmId) {
    if guests.lock().remove(&vm).is_some() {
        guests.hub.detach(vm);
    }
}

/// Takes back that an agent is connected, where the record says so.
async fn take_back(guests: &Guests, vm: &Vm, reason: &'static str, message: &'static str) -> Result<(), EngineError> {
    for kind in [AGENT_CONNECTED, GUEST_READY] {
        if vm.conditions.iter().any(|c| c.kind == kind && c.status) {
            guests.engine().set_condition(vm.id, kind, false, reason, message.to_owned()).await?;
        }
    }
    Ok(())
}

/// Puts what happens on the channels on record.
pub(super) async fn follow_hub(guests: Guests, mut events: HubEvents) {
    while let Some(event) = events.recv().await {
        let told = match event {
            HubEvent::Connected { vm, status } => {
                let flavour = status.flavour.map(|flavour| flavour.to_string()).unwrap_or_default();
                let message = shown(format!("{flavour} {}", status.version).trim());
                guests.engine().set_condition(vm, AGENT_CONNECTED, true, "CONNECTED", message).await
            }
            HubEvent::Ready { vm, epoch } => {
                guests.engine().set_condition(vm, GUEST_READY, true, "READY", format!("in epoch {epoch}")).await
            }
            HubEvent::Lost { vm, why } => lost(&guests, vm, "LOST", why).await,
            HubEvent::Refused { vm, why } => lost(&guests, vm, "REFUSED", why).await,
        };
        if let Err(error) = told {
            tracing::warn!(error = %error, "what happened on a guest's channel was not recorded");
        }
    }
}

async fn lost(guests: &Guests, vm: VmId, reason: &'static str, why: String) -> Result<(), EngineError> {
    // One that is detached has said so, or is gone.
    if !guests.lock().contains_key(&vm) {
        return Ok(());
    }
    guests.engine().set_condition(vm, AGENT_CONNECTED, false, reason, shown(&why)).await?;
    guests.engine().set_condition(vm, GUEST_READY, false, reason, shown(&why)).await
}

/// A text that a guest may have a hand in.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(LONGEST_TEXT).collect()
}
