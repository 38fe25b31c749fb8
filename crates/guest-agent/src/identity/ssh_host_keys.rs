//! New SSH host keys, of the kinds that are there. Each old one is replaced when its successor is complete, so that at
//! no time there is none.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use roost_guest_proto::{ErrorBody, ErrorCode};
use serde_json::{Value, json};

use crate::platform::{self, System};
use crate::run::{Cancel, Program};

const DIRECTORY: &str = "/etc/ssh";

/// The kinds that ssh-keygen makes. A key of another kind is one that nobody uses any more.
const KINDS: &[&str] = &["ed25519", "ecdsa", "rsa"];

/// An emulated CPU takes its time to find an RSA key.
const TIME: Duration = Duration::from_secs(120);

pub(super) fn replace(system: &System) -> Result<Value, ErrorBody> {
    let there: Vec<_> =
        KINDS.iter().map(|kind| (*kind, key_file(system, kind))).filter(|(_, key)| key.exists()).collect();
    if there.is_empty() {
        return Ok(json!({ "replaced": [], "server": "none" }));
    }
    if !system.has("ssh-keygen") {
        let message = format!("{DIRECTORY} has host keys, and there is no ssh-keygen to make others");
        return Err(ErrorBody::new(ErrorCode::NotSupported, message));
    }
    let cancel = Cancel::new().map_err(|error| ErrorBody::new(ErrorCode::ResourceLimit, error.to_string()))?;
    let mut replaced = Vec::new();
    for (kind, key) in there {
        generate(system, kind, &key, &cancel)?;
        replaced.push(kind);
    }
    Ok(json!({ "replaced": replaced, "server": reload(system, &cancel) }))
}

fn key_file(system: &System, kind: &str) -> PathBuf {
    system.file(DIRECTORY).join(format!("ssh_host_{kind}_key"))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

fn generate(system: &System, kind: &str, key: &Path, cancel: &Cancel) -> Result<(), ErrorBody> {
    let failure = |why: String| ErrorBody::new(ErrorCode::CommandFailed, format!("{}: {why}", key.display()));
    let new = with_suffix(key, ".roost-new");
    // It asks before it writes over one, and nobody would answer.
    for left in [new.clone(), with_suffix(&new, ".pub")] {
        match std::fs::remove_file(left) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failure(error.to_string())),
            _ => {}
        }
    }
    let comment = format!("root@{}", platform::hostname());
    let argv = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", &comment, "-f"].map(OsString::from);
    let program = system.program(argv.into_iter().chain([new.clone().into_os_string()])).time(TIME);
    let finished = program.run(system.path(), cancel).map_err(|error| failure(error.to_string()))?;
    if !finished.succeeded() {
        let said = String::from_utf8_lossy(&finished.stderr).chars().take(256).collect::<String>();
        return Err(failure(format!("ssh-keygen failed: {}", said.trim())));
    }
    let put = || {
        std::fs::File::open(&new)?.sync_all()?;
        std::fs::rename(&new, key)?;
        std::fs::rename(with_suffix(&new, ".pub"), with_suffix(key, ".pub"))?;
        std::fs::File::open(system.file(DIRECTORY))?.sync_all()
    };
    put().map_err(|error: io::Error| failure(error.to_string()))
}

/// A server that runs has read the old ones. It is asked to begin anew, and connections that there are stay.
fn reload(system: &System, cancel: &Cancel) -> String {
    let run = |argv: &[&str]| {
        let program: Program = system.program(argv).time(Duration::from_secs(20));
        program.run(system.path(), cancel).is_ok_and(|finished| finished.succeeded())
    };
    let told = match platform::service_manager(system) {
        Some("systemd") => ["ssh.service", "sshd.service"].into_iter().find(|unit| {
            // The first tells whether it is there: to the second, one that is not running is no error.
            run(&["systemctl", "is-active", "--quiet", unit])
                && run(&["systemctl", "--no-ask-password", "try-reload-or-restart", "--", unit])
        }),
        Some("openrc") => ["sshd"].into_iter().find(|service| run(&["rc-service", "--ifstarted", service, "restart"])),
        _ => None,
    };
    told.unwrap_or("not told").to_owned()
}
