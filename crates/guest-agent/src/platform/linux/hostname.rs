//! The host's name: in the kernel, in /etc/hostname, and where /etc/hosts gives the old one an address.

use std::io;

use roost_guest_proto::{ErrorBody, ErrorCode, Hostname};

use super::facts::{hostname, read_text};
use super::files::replace;
use crate::platform::System;

/// Sets it. The one before.
pub(crate) fn set_hostname(system: &System, name: &Hostname) -> Result<String, ErrorBody> {
    let failure = |what: &str, error: io::Error| {
        let code = match error.kind() {
            io::ErrorKind::PermissionDenied => ErrorCode::PermissionDenied,
            _ => ErrorCode::CommandFailed,
        };
        ErrorBody::new(code, format!("hostname: {what}: {error}"))
    };
    let previous = hostname();
    if system.is_live() {
        rustix::system::sethostname(name.as_str().as_bytes()).map_err(|error| failure("the kernel", error.into()))?;
    }
    let file = system.file("/etc/hostname");
    replace(&file, format!("{name}\n").as_bytes(), 0o644).map_err(|error| failure("/etc/hostname", error))?;
    if let Ok(hosts) = read_text(system, "/etc/hosts") {
        let renamed = rename_in_hosts(&hosts, &previous, name.as_str());
        if renamed != hosts {
            let file = system.file("/etc/hosts");
            replace(&file, renamed.as_bytes(), 0o644).map_err(|error| failure("/etc/hosts", error))?;
        }
    }
    Ok(previous)
}

/// Gives the old name's place to the new one, in the lines for addresses of the loopback (Debian's 127.0.1.1 among them).
fn rename_in_hosts(hosts: &str, old: &str, new: &str) -> String {
    let short = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    let (old_short, new_short) = (short(old), short(new));
    let rename = |line: &str| {
        let (entry, comment) = line.split_at(line.find('#').unwrap_or(line.len()));
        let mut words = entry.split_whitespace();
        let address = words.next().unwrap_or_default();
        let names: Vec<_> = words.collect();
        let ours = |name: &&str| *name != "localhost" && (*name == old || *name == old_short);
        if !(address.starts_with("127.") || address == "::1") || !names.iter().any(ours) {
            return line.to_owned();
        }
        let mut renamed: Vec<&str> = Vec::new();
        for name in names {
            // `old.example old` becomes `new.example new`, or `new` once.
            let name = match name {
                "localhost" => name,
                name if name == old => new,
                name if name == old_short => &new_short,
                name => name,
            };
            if !renamed.contains(&name) {
                renamed.push(name);
            }
        }
        let gap = if comment.is_empty() { "" } else { " " };
        format!("{address}\t{}{gap}{comment}", renamed.join(" "))
    };
    let mut text: String = hosts.lines().map(rename).collect::<Vec<_>>().join("\n");
    if hosts.ends_with('\n') {
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        let hosts =
            "127.0.0.1 localhost\n127.0.1.1\told.example.org old # us\n10.0.0.1 old\n::1 localhost ip6-localhost\n";
        let renamed = rename_in_hosts(hosts, "old.example.org", "new.example.net");
        assert_eq!(
            renamed,
            "127.0.0.1 localhost\n127.0.1.1\tnew.example.net new # us\n10.0.0.1 old\n::1 localhost ip6-localhost\n"
        );
        assert_eq!(rename_in_hosts("127.0.0.1 localhost", "localhost", "x"), "127.0.0.1 localhost");
        assert_eq!(rename_in_hosts("127.0.1.1 old older", "old", "a"), "127.0.1.1\ta older");
    }

    #[test]
    fn the_files() {
        let root = tempfile::tempdir().unwrap();
        let system = System::new(root.path(), Vec::new());
        std::fs::create_dir(root.path().join("etc")).unwrap();
        let old = hostname();
        std::fs::write(root.path().join("etc/hosts"), format!("127.0.1.1 {old}\n")).unwrap();
        assert_eq!(set_hostname(&system, &"web-1".parse().unwrap()).unwrap(), old);
        assert_eq!(std::fs::read_to_string(root.path().join("etc/hostname")).unwrap(), "web-1\n");
        assert_eq!(std::fs::read_to_string(root.path().join("etc/hosts")).unwrap(), "127.0.1.1\tweb-1\n");
        assert_eq!(hostname(), old, "a directory is not this machine");
    }
}
