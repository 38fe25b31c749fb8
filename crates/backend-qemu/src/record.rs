//! What a launch leaves in the journal, so that another daemon finds its machine again.
//!
//! One resource holds both processes: a launch costs two durable writes, one before anything is
//! made and one before anything runs. Fields are only ever added: a daemon reads the records of the
//! one before it.

use std::path::PathBuf;

use roost_host::process::ProcessIdent;
use roost_model::{LaunchId, Resource, ResourceKind};
use serde::{Deserialize, Serialize};

/// The key of a launch's resource.
pub(crate) const LAUNCH_KEY: &str = "vmm";

/// The detail of a launch's resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LaunchRecord {
    /// The directory of its sockets, made for it alone.
    pub(crate) run_dir: PathBuf,
    /// QEMU. `None`: it was about to be started.
    #[serde(default)]
    pub(crate) vmm: Option<ProcessIdent>,
    /// The keeper of its serial line. `None`: there is none, or it was about to be started.
    #[serde(default)]
    pub(crate) console: Option<ProcessIdent>,
    /// How its guest's instructions run, and why.
    #[serde(default)]
    pub(crate) accelerator: String,
    /// The versioned machine type.
    #[serde(default)]
    pub(crate) machine: String,
}

impl LaunchRecord {
    /// The resource that carries it.
    pub(crate) fn resource(&self, launch: LaunchId) -> Resource {
        Resource {
            kind: ResourceKind::Process,
            key: LAUNCH_KEY.to_owned(),
            launch: Some(launch),
            detail: serde_json::to_value(self).expect("text and numbers have a JSON form"),
        }
    }

    /// The launch among a VM's resources. An unreadable one is an error: it may be a machine that runs.
    pub(crate) fn find(resources: &[Resource]) -> Option<(LaunchId, Result<Self, serde_json::Error>)> {
        resources.iter().find_map(|resource| match (resource.kind, resource.launch) {
            (ResourceKind::Process, Some(launch)) if resource.key == LAUNCH_KEY => {
                Some((launch, serde_json::from_value(resource.detail.clone())))
            }
            _ => None,
        })
    }
}

/// The VM's own directory, as a resource that lives as long as the VM.
pub(crate) fn directory(path: &std::path::Path) -> Resource {
    Resource {
        kind: ResourceKind::Directory,
        key: path.display().to_string(),
        launch: None,
        detail: serde_json::Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the first version wrote it. A change that breaks this loses running guests at an upgrade.
    const STORED: &str = r#"{
        "kind": "process", "key": "vmm", "launch": "launch_018bcfe5-6800-7000-8000-000000000000",
        "detail": {
            "run_dir": "/run/user/1000/roost/018bcfe5-6800-7000-8000-000000000001",
            "vmm": {"pid": 4711, "start_time_ticks": 123456, "boot_id": "6f3a4d0e-0000-4000-8000-000000000000"},
            "console": {"pid": 4712, "start_time_ticks": 123456, "boot_id": "6f3a4d0e-0000-4000-8000-000000000000"},
            "accelerator": "tcg: there is no /dev/kvm", "machine": "pc-q35-10.0"
        }
    }"#;

    #[test]
    fn stored_records_are_read() {
        let resource: Resource = serde_json::from_str(STORED).unwrap();
        let (launch, record) = LaunchRecord::find(std::slice::from_ref(&resource)).unwrap();
        let record = record.unwrap();
        assert_eq!(record.vmm.as_ref().unwrap().pid, 4711);
        assert_eq!(record.resource(launch), resource);
    }

    #[test]
    fn a_record_of_a_later_version_is_read_as_far_as_it_is_known() {
        let mut resource: Resource = serde_json::from_str(STORED).unwrap();
        resource.detail["agent"] = serde_json::json!({"cid": 7});
        resource.detail.as_object_mut().unwrap().remove("machine");
        let (_, record) = LaunchRecord::find(&[resource]).unwrap();
        assert_eq!(record.unwrap().machine, "");
    }
}
