//! Clearing away what launches left, by their records: also those that nobody here ever saw.

use std::path::Path;
use std::time::Duration;

use roost_backend::{BackendError, Journal};
use roost_host::fault::{self, Point};
use roost_host::process::{Process, ProcessIdent, Signal};
use roost_model::{Resource, ResourceKind};

use crate::config::Limits;
use crate::launch::{remove_dir, remove_run_dir};
use crate::machine::kill;
use crate::record::LaunchRecord;

/// How long a keeper is given to hand its clients the rest once QEMU is gone; it takes two seconds
/// at the most by itself.
const KEEPER: Duration = Duration::from_secs(3);

/// Ends the processes of every recorded launch, removes its files, forgets it.
pub(crate) async fn launches(
    resources: &[Resource],
    uuid: &str,
    limits: &Limits,
    journal: &dyn Journal,
) -> Result<(), BackendError> {
    for resource in resources.iter().filter(|resource| resource.launch.is_some()) {
        fault::point(Point::ClearBegun);
        if resource.kind == ResourceKind::Process {
            let record: LaunchRecord = serde_json::from_value(resource.detail.clone()).map_err(|e| {
                BackendError::permanent(
                    "RECORD_UNREADABLE",
                    format!("the record of {uuid}'s launch cannot be read: {e}"),
                )
                .hint("a later version may have written it; its processes are left as they are")
            })?;
            if let Some(vmm) = open(record.vmm.as_ref())? {
                end(&vmm, limits).await?;
            }
            if let Some(console) = open(record.console.as_ref())?
                && !wait_gone(&console, KEEPER).await?
            {
                kill(&console).await?;
            }
            fault::point(Point::ClearEnded);
            // Only ever a directory of this VM, whatever a record says.
            if record.run_dir.file_name().is_some_and(|name| name == uuid) {
                remove_run_dir(&record.run_dir).await?;
            }
            fault::point(Point::ClearDirRemoved);
        }
        journal.forget(resource.kind, &resource.key).await?;
        fault::point(Point::ClearForgotten);
    }
    Ok(())
}

/// Removes what lives as long as the VM, and forgets it.
pub(crate) async fn belongings(resources: &[Resource], uuid: &str, journal: &dyn Journal) -> Result<(), BackendError> {
    for resource in resources.iter().filter(|resource| resource.launch.is_none()) {
        let path = Path::new(&resource.key);
        if resource.kind == ResourceKind::Directory && path.file_name().is_some_and(|name| name == uuid) {
            remove_dir(path.to_owned()).await?;
        }
        fault::point(Point::RemoveDirRemoved);
        journal.forget(resource.kind, &resource.key).await?;
        fault::point(Point::RemoveForgotten);
    }
    Ok(())
}

/// Ends a QEMU with which nobody is connected: the same wish as `quit`, then a kill.
async fn end(vmm: &Process, limits: &Limits) -> Result<(), BackendError> {
    vmm.signal(Signal::TERM).map_err(|e| crate::host_error("KILL_FAILED", &e))?;
    if wait_gone(vmm, limits.quit).await? {
        return Ok(());
    }
    kill(vmm).await
}

async fn wait_gone(process: &Process, limit: Duration) -> Result<bool, BackendError> {
    process.wait_gone(limit).await.map_err(|e| crate::host_error("KILL_FAILED", &e))
}

/// The process that was recorded, if it is still there.
pub(crate) fn open(ident: Option<&ProcessIdent>) -> Result<Option<Process>, BackendError> {
    match ident {
        Some(ident) => Process::open(ident).map_err(|e| crate::host_error("HOST_PROCESS", &e)),
        None => Ok(None),
    }
}
