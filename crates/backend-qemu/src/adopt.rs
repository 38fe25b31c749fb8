//! Finding machines again by what was recorded of them.
//!
//! ```text
//!   no launch recorded ──────────────────────> as the VM's directory says: defined or absent
//!   its process is gone ─────────────────────> ended: by us if that is marked, else killed; its files linger
//!   it lives ──> asked over its control socket ──> running, paused, or ended with its cause
//!                  └── no answer in time ────> an error; watched all the same, asked again later
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use roost_backend::{Adoptee, BackendError, EventSender};
use roost_model::observe::Report;
use roost_model::{ExitCause, LaunchId, Machine as Observed};

use crate::clear::open;
use crate::config::{Limits, QEMU_LOG, QMP_SOCKET};
use crate::ending;
use crate::exits::Exits;
use crate::machine::{Identity, Machine, Processes, connect};
use crate::qmp::QmpError;
use crate::record::LaunchRecord;

/// How long a QEMU that closed its control connection may take to end.
const LAST_GASP: Duration = Duration::from_secs(1);

/// What was found of one VM.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) report: Result<Report, BackendError>,
    /// Its machine, if its process lives.
    pub(crate) machine: Option<Arc<Machine>>,
}

impl Found {
    fn nothing(machine: Observed, launch: Option<LaunchId>) -> Self {
        Self { report: Ok(Report { machine, launch }), machine: None }
    }

    fn error(error: BackendError) -> Self {
        Self { report: Err(error), machine: None }
    }
}

/// Looks for one VM, whose own directory is `state_dir` if there is one.
pub(crate) async fn find(
    adoptee: Adoptee,
    state_dir: &Path,
    exits: &Exits,
    events: &EventSender,
    limits: &Limits,
) -> Found {
    let vm = adoptee.definition.id;
    let has_files = state_dir.is_dir();
    let (launch, record) = match LaunchRecord::find(&adoptee.resources) {
        None => return never_or_no_more(adoptee.launch, has_files, false),
        Some((_, Err(error))) => {
            let message = format!("the record of {vm}'s launch cannot be read: {error}");
            return Found::error(BackendError::permanent("RECORD_UNREADABLE", message));
        }
        Some((launch, Ok(record))) => (launch, record),
    };
    if record.vmm.is_none() {
        // The children never left their gates: of this launch nothing ran.
        let earlier = adoptee.launch.filter(|earlier| *earlier != launch);
        return never_or_no_more(earlier, has_files, true);
    }
    let (vmm, console) = match (open(record.vmm.as_ref()), open(record.console.as_ref())) {
        (Ok(Some(vmm)), Ok(console)) => (vmm, console),
        (Ok(None), _) => return Found::nothing(ended(&record.run_dir), Some(launch)),
        (Err(error), _) | (_, Err(error)) => return Found::error(error),
    };
    // Watched before it is asked: no end falls in between.
    let mut exited = match exits.watch(&vmm) {
        Ok(exited) => exited,
        Err(error) => return Found::error(error),
    };
    if let Some(console) = &console {
        // Collected, if it is our child; nobody waits for it.
        drop(exits.watch(console));
    }
    let greeting = connect(&record.run_dir.join(QMP_SOCKET), limits.adopt).await;
    let identity = Identity {
        definition: Arc::new(adoptee.definition),
        launch,
        accelerator: record.accelerator,
        machine: record.machine,
        run_dir: record.run_dir,
        log: state_dir.join(QEMU_LOG),
    };
    let (greeting, silent) = match greeting {
        Ok(greeting) => (Some(greeting), None),
        Err(error @ QmpError::Timeout { .. }) => (None, Some(error)),
        // A QEMU that hangs up is ending as a rule: so this may be the end of a kill, found half-way.
        Err(error) => match tokio::time::timeout(LAST_GASP, &mut exited).await {
            Ok(_ended) => return Found::nothing(ended(&identity.run_dir), Some(launch)),
            Err(_still_there) => (None, Some(error)),
        },
    };
    let machine = Machine::found(identity, Processes { vmm, console }, greeting, exited, events.clone());
    let report = match silent {
        None => Ok(Report { machine: machine.observed(), launch: Some(launch) }),
        Some(error) => {
            let pid = machine.processes.vmm.ident().pid;
            let message = format!("the machine's process {pid} is there, but: {error}");
            Err(BackendError::transient("QMP_TIMEOUT", message)
                .hint("it may be stopped or overloaded; it is asked again"))
        }
    };
    Found { report, machine: Some(machine) }
}

/// A machine whose process is gone, and with it whatever it knew of its end.
fn ended(run_dir: &Path) -> Observed {
    Observed::Ended { cause: ending::unseen(run_dir), lingering: true }
}

/// Nothing runs. What ran once has ended, and the engine knows better why.
fn never_or_no_more(launch: Option<LaunchId>, has_files: bool, lingering: bool) -> Found {
    let machine = match launch {
        _ if !has_files => Observed::Absent,
        Some(_) => Observed::Ended { cause: ExitCause::Killed, lingering },
        None => Observed::Defined,
    };
    Found::nothing(machine, if machine == Observed::Absent { None } else { launch })
}
