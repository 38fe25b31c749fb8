//! The simulated backend keeps the obligations of every backend.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use roost_backend::conformance::{Act, GuestKind, Harness, Subject, run_all};
use roost_backend::{Backend, Definition, EventSender};
use roost_backend_sim::{Control, SimBackend, SimConfig, SimHost, TokioClock};
use roost_model::spec::{Boot, Memory};
use roost_model::{Bytes, VmId, VmSpec};

/// A host in this process.
struct InProcess {
    host: Arc<SimHost>,
    config: SimConfig,
}

#[async_trait]
impl Harness for InProcess {
    async fn backend(&self, events: EventSender) -> Box<dyn Backend> {
        Box::new(SimBackend::on(Arc::clone(&self.host), self.config.clone(), events))
    }

    fn definition(&self, guest: GuestKind) -> Definition {
        definition(guest)
    }

    async fn guest_up(&self, _vm: &Subject) -> Result<(), String> {
        Ok(())
    }

    fn can(&self, _act: Act) -> bool {
        true
    }

    async fn act(&self, act: Act, vm: &Subject) -> Result<(), String> {
        self.host.control(vm.definition.id, control(act)).map_err(|e| e.to_string())
    }

    async fn leftovers(&self, vm: VmId) -> Vec<String> {
        self.host.leftovers(vm)
    }
}

#[tokio::test]
async fn in_process() {
    let host = SimHost::new(Arc::new(TokioClock::default()));
    let report = run_all(&InProcess { host: Arc::clone(&host), config: SimConfig::default() }).await;
    println!("{report}");
    report.assert_kept();
    assert_eq!(report.skipped, []);
    assert!(host.is_empty());
}

/// Some hypervisors tell of ends that were asked for as well.
#[tokio::test]
async fn in_process_and_talkative() {
    let host = SimHost::new(Arc::new(TokioClock::default()));
    let config = SimConfig { report_asked_ends: true, ..SimConfig::default() };
    run_all(&InProcess { host, config }).await.assert_kept();
}

fn control(act: Act) -> Control {
    match act {
        Act::PowerOff => Control::PowerOff,
        Act::Panic => Control::Panic,
        Act::Reset => Control::Reset,
        Act::Kill => Control::Kill,
    }
}

fn definition(guest: GuestKind) -> Definition {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut random = [0; 10];
    random[..4].copy_from_slice(&n.to_be_bytes());
    random[4..8].copy_from_slice(&std::process::id().to_be_bytes());
    let kernel_args = match guest {
        GuestKind::Plain => "quiet",
        GuestKind::Deaf => "quiet sim.deaf",
    };
    let boot = Boot {
        kernel_path: Some("/boot/vmlinuz".parse().unwrap()),
        kernel_args: kernel_args.parse().unwrap(),
        ..Boot::default()
    };
    Definition {
        id: VmId::from_parts(1, random),
        name: format!("conformance-{n}").parse().unwrap(),
        spec: VmSpec::minimal(Memory::fixed(Bytes::from_mib(64)), boot),
    }
}
