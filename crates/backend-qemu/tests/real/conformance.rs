//! The obligations of every backend, on real QEMU.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use roost_backend::conformance::{Act, GuestKind, Harness, Scale, Subject, run_all};
use roost_backend::{Backend, Definition, EventSender};
use roost_backend_qemu::QemuBackend;
use roost_model::spec::MachineType;
use roost_model::{ResourceKind, VmId};
use uuid::Uuid;

use crate::support::{Host, Serial, micro_on, processes_in};

struct Real {
    host: Host,
    machine: MachineType,
    deaf: Mutex<BTreeSet<VmId>>,
}

impl Real {
    fn new(machine: MachineType) -> Self {
        let host = Host::with(|config| {
            config.machine = machine;
            // A press is tried again within the suite's short grace.
            config.limits.press = Duration::from_millis(200);
        });
        Self { host, machine, deaf: Mutex::default() }
    }

    fn run_dir(&self, vm: VmId) -> PathBuf {
        self.host.config.run_dir.join(vm.uuid().to_string())
    }

    fn serial(&self, vm: &Subject) -> Serial {
        Serial::connect(&self.run_dir(vm.definition.id).join("console.sock"))
    }
}

#[async_trait]
impl Harness for Real {
    async fn backend(&self, events: EventSender) -> Box<dyn Backend> {
        Box::new(QemuBackend::new(self.host.config.clone(), events).unwrap())
    }

    fn definition(&self, guest: GuestKind) -> Definition {
        let id = VmId::from_uuid(Uuid::now_v7());
        if guest == GuestKind::Deaf {
            self.deaf.lock().unwrap().insert(id);
        }
        Definition { id, name: "conforms".parse().unwrap(), spec: micro_on(self.machine) }
    }

    async fn guest_up(&self, vm: &Subject) -> Result<(), String> {
        let mut serial = self.serial(vm);
        serial.until("tick ");
        if self.deaf.lock().unwrap().contains(&vm.definition.id) {
            serial.send(b"d");
            serial.until("deaf");
        }
        Ok(())
    }

    fn can(&self, _act: Act) -> bool {
        true
    }

    async fn act(&self, act: Act, vm: &Subject) -> Result<(), String> {
        let key = match act {
            Act::PowerOff => b"q",
            Act::Panic => b"p",
            Act::Reset => b"r",
            Act::Kill => {
                let process = vm.resources.iter().find(|r| r.kind == ResourceKind::Process).ok_or("no process")?;
                let pid = process.detail["vmm"]["pid"].as_i64().ok_or("no process number")?;
                let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
                return rustix::process::kill_process(pid, rustix::process::Signal::KILL).map_err(|e| e.to_string());
            }
        };
        let mut serial = self.serial(vm);
        serial.until("tick ");
        serial.send(key);
        if act == Act::Reset {
            serial.until("boot");
        }
        Ok(())
    }

    async fn leftovers(&self, vm: VmId) -> Vec<String> {
        let run_dir = self.run_dir(vm);
        let mut left = processes_in(&run_dir);
        let volume = self.host.config.state_dir.join("volumes").join(vm.uuid().to_string());
        left.extend([run_dir, volume].into_iter().filter(|path| path.exists()).map(|path| path.display().to_string()));
        left
    }

    fn scale(&self) -> Scale {
        Scale { patience: Duration::from_secs(60), short_grace: Duration::from_millis(700), cuts: 16, crowd: 8 }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn q35_keeps_every_obligation() {
    let report = run_all(&Real::new(MachineType::Q35)).await;
    println!("{report}");
    report.assert_kept();
    assert_eq!(report.skipped, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn microvm_keeps_every_obligation() {
    let report = run_all(&Real::new(MachineType::Microvm)).await;
    println!("{report}");
    report.assert_kept();
    assert_eq!(report.skipped, []);
}
