//! The simulated backend keeps the obligations of every backend, in process and hosted.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod support;

use std::sync::Arc;

use async_trait::async_trait;
use roost_backend::conformance::{Act, GuestKind, Harness, Subject, run_all};
use roost_backend::{Backend, Definition, EventSender};
use roost_backend_sim::{HostControl, SimBackend, SimConfig, SimHost, TokioClock};
use roost_model::VmId;
use support::{HostProcess, control, definition};

/// A host in this process.
struct InProcess {
    host: Arc<SimHost>,
    config: SimConfig,
}

/// A host in a process of its own.
struct Hosted {
    host: HostProcess,
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

#[async_trait]
impl Harness for Hosted {
    async fn backend(&self, events: EventSender) -> Box<dyn Backend> {
        Box::new(SimBackend::hosted(self.host.socket(), self.config.clone(), events))
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
        let mut host = HostControl::connect(&self.host.socket()).await.map_err(|e| e.to_string())?;
        host.control(vm.definition.id, control(act)).await.map_err(|e| e.to_string())
    }

    async fn leftovers(&self, vm: VmId) -> Vec<String> {
        let mut host = HostControl::connect(&self.host.socket()).await.unwrap();
        host.leftovers(vm).await.unwrap()
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

#[tokio::test]
async fn hosted() {
    let report = run_all(&Hosted { host: HostProcess::start(&[]), config: SimConfig::default() }).await;
    println!("{report}");
    report.assert_kept();
    assert_eq!(report.skipped, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn hosted_and_talkative() {
    let config = SimConfig { report_asked_ends: true, ..SimConfig::default() };
    run_all(&Hosted { host: HostProcess::start(&[]), config }).await.assert_kept();
}
