//! machine-id(5): what a system is to its own services. systemd-networkd derives its DHCP identifier from it, so two
//! clones with the same one get the same address.

use roost_guest_proto::{ErrorBody, ErrorCode};
use serde_json::{Value, json};

use crate::platform::{self, System};

pub(super) struct MachineId(String);

impl MachineId {
    pub(super) fn parse(text: &str) -> Result<Self, ErrorBody> {
        let id = text.to_ascii_lowercase();
        let hex = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        if hex && id.bytes().any(|byte| byte != b'0') {
            return Ok(Self(id));
        }
        let shown: String = text.chars().take(64).collect();
        Err(ErrorBody::field(
            "machine_id",
            format!("machine_id: {shown:?}; permitted: 32 hexadecimal digits, not all 0"),
        ))
    }

    pub(super) fn apply(&self, system: &System) -> Result<Value, ErrorBody> {
        let mut written = Vec::new();
        for path in ["/etc/machine-id", "/var/lib/dbus/machine-id"] {
            let file = system.file(path);
            // D-Bus's is a link to the other one, or a copy, or not there.
            let copy = std::fs::symlink_metadata(&file).is_ok_and(|it| it.is_file());
            if path == "/etc/machine-id" || copy {
                platform::replace(&file, format!("{}\n", self.0).as_bytes(), 0o444)
                    .map_err(|error| ErrorBody::new(ErrorCode::CommandFailed, format!("{path}: {error}")))?;
                written.push(path);
            }
        }
        Ok(json!({ "files": written }))
    }
}
