use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use roost_guest_proto::{InterfaceIdentity, Secret};

use super::*;

struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for directory in ["etc/ssh", "var/lib/dbus", "var/lib/systemd"] {
            std::fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        Self(root)
    }

    fn system(&self) -> System {
        System::new(self.0.path(), vec![PathBuf::from("/usr/bin"), PathBuf::from("/bin")])
    }

    fn read(&self, path: &str) -> String {
        String::from_utf8_lossy(&std::fs::read(self.0.path().join(path)).unwrap()).into_owned()
    }

    fn write(&self, path: &str, text: &str) {
        std::fs::write(self.0.path().join(path), text).unwrap();
    }
}

const ID: &str = "0123456789ABCDEF0123456789abcdef";

#[test]
fn names_and_seeds() {
    let root = Root::new();
    root.write("etc/machine-id", "old\n");
    root.write("var/lib/systemd/random-seed", "the template's");
    symlink("/etc/machine-id", root.0.path().join("var/lib/dbus/machine-id")).unwrap();
    let identity = Identity {
        entropy: Some(Secret::new("MDEyMzQ1Njc4OWFiY2RlZg==".to_owned())),
        hostname: Some("clone-1".to_owned()),
        machine_id: Some(ID.to_owned()),
        ..Identity::default()
    };
    let data = apply_to(&root.system(), &identity).unwrap();
    assert_eq!(root.read("etc/machine-id"), format!("{}\n", ID.to_lowercase()));
    assert_eq!(root.read("etc/hostname"), "clone-1\n");
    assert!(!root.read("var/lib/systemd/random-seed").contains("template"));
    assert_eq!(std::fs::metadata(root.0.path().join("var/lib/systemd/random-seed")).unwrap().len(), 512);
    assert_eq!(data["entropy"]["bytes"], 16);
    assert_eq!(data["machine_id"]["files"], json!(["/etc/machine-id"]), "the link stays one");
    assert!(data.get("ssh_host_keys").is_none(), "what was not asked for was not done: {data}");
}

#[test]
fn host_keys_are_replaced_by_their_kind() {
    let root = Root::new();
    let data = apply_to(&root.system(), &Identity { ssh_host_keys: true, ..Identity::default() }).unwrap();
    assert_eq!(data["ssh_host_keys"]["replaced"], json!([]), "where there are none, none are made");
    for kind in ["ed25519", "ecdsa"] {
        root.write(&format!("etc/ssh/ssh_host_{kind}_key"), "old");
        root.write(&format!("etc/ssh/ssh_host_{kind}_key.pub"), "old");
    }
    root.write("etc/ssh/ssh_host_ed25519_key.roost-new", "an agent that was killed has left this");
    let data = apply_to(&root.system(), &Identity { ssh_host_keys: true, ..Identity::default() }).unwrap();
    assert_eq!(data["ssh_host_keys"], json!({ "replaced": ["ed25519", "ecdsa"], "server": "not told" }));
    let first = root.read("etc/ssh/ssh_host_ed25519_key");
    assert!(first.contains("PRIVATE KEY") && root.read("etc/ssh/ssh_host_ed25519_key.pub").starts_with("ssh-ed25519 "));
    assert_eq!(std::fs::metadata(root.0.path().join("etc/ssh/ssh_host_ecdsa_key")).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(std::fs::read_dir(root.0.path().join("etc/ssh")).unwrap().count(), 4, "nothing is left over");
    apply_to(&root.system(), &Identity { ssh_host_keys: true, ..Identity::default() }).unwrap();
    assert_ne!(root.read("etc/ssh/ssh_host_ed25519_key"), first);
}

#[test]
fn without_ssh_keygen_it_fails_and_the_rest_is_done() {
    let root = Root::new();
    root.write("etc/ssh/ssh_host_rsa_key", "old");
    let system = System::new(root.0.path(), Vec::new());
    let identity = Identity { ssh_host_keys: true, hostname: Some("clone-2".to_owned()), ..Identity::default() };
    let error = apply_to(&system, &identity).unwrap_err();
    assert!(error.message.starts_with("ssh_host_keys: ") && error.message.contains("no ssh-keygen"), "{error}");
    assert!(error.details.unwrap()["hostname"].get("previous").is_some());
    assert_eq!(root.read("etc/hostname"), "clone-2\n");
    assert_eq!(root.read("etc/ssh/ssh_host_rsa_key"), "old");
}

#[test]
fn a_wrong_field_is_refused_before_anything_is_done() {
    let wrong = [
        Identity { entropy: Some(Secret::new("c2hvcnQ=".to_owned())), ..Identity::default() },
        Identity { entropy: Some(Secret::new("no base64!".to_owned())), ..Identity::default() },
        Identity { machine_id: Some("0".repeat(32)), ..Identity::default() },
        Identity { machine_id: Some("xyz".to_owned()), ..Identity::default() },
        Identity { interfaces: vec![InterfaceIdentity::default(); 65], ..Identity::default() },
        Identity { interfaces: vec![InterfaceIdentity::default()], ..Identity::default() },
    ];
    for wrong in wrong {
        let root = Root::new();
        let identity = Identity { hostname: Some("clone-3".to_owned()), ..wrong };
        assert_eq!(apply_to(&root.system(), &identity).unwrap_err().code, ErrorCode::InvalidMessage);
        assert!(!Path::exists(&root.0.path().join("etc/hostname")));
    }
    let root = Root::new();
    let identity = Identity { hostname: Some("a\nruncmd:".to_owned()), ..Identity::default() };
    assert_eq!(apply_to(&root.system(), &identity).unwrap_err().details.unwrap()["field"], "hostname");
}
