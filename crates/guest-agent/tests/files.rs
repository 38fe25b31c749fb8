//! Files to and from the guest, over the real agent.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Instant;

use roost_guest_proto::{Channel, ErrorCode, FileInfo, FileKind};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::{Guest, Peer};

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn start() -> (Guest, Peer, tempfile::TempDir) {
    let root = tempfile::tempdir().unwrap();
    let (guest, mut peer) = Guest::start(&[]);
    peer.hello(json!({"policy": {"file_roots": [root.path()]}}));
    (guest, peer, root)
}

fn push(peer: &mut Peer, more: Value, bytes: &[u8]) -> roost_guest_proto::Response {
    let mut request = json!({"type": "FilePush", "id": "push", "stream": 9});
    for (name, value) in more.as_object().unwrap() {
        request[name] = value.clone();
    }
    peer.credit.clear();
    peer.send(&request);
    peer.data_all(9, bytes);
    peer.end(9);
    peer.response("push")
}

fn pull(peer: &mut Peer, more: Value) -> (roost_guest_proto::Response, Vec<u8>) {
    let mut request = json!({"type": "FilePull", "id": "pull", "stream": 8});
    for (name, value) in more.as_object().unwrap() {
        request[name] = value.clone();
    }
    peer.data.remove(&(8, Channel::Input));
    peer.send(&request);
    let response = peer.response("pull");
    (response, peer.data.remove(&(8, Channel::Input)).unwrap_or_default())
}

#[test]
fn a_hundred_megabytes_both_ways() {
    let (_guest, mut peer, root) = start();
    let bytes: Vec<u8> = (0..100_000_000u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect();
    let hash = sha256(&bytes);
    let path = root.path().join("big");
    let started = Instant::now();
    let response = push(&mut peer, json!({"path": path, "size": bytes.len(), "sha256": hash, "mode": 0o640}), &bytes);
    assert!(response.success, "{response:?}");
    eprintln!("pushed in {:?}", started.elapsed());
    assert_eq!(response.data.unwrap()["sha256"], hash.as_str());
    assert!(std::fs::read(&path).unwrap() == bytes);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
    let started = Instant::now();
    let (response, pulled) = pull(&mut peer, json!({"path": path, "sha256": true}));
    eprintln!("pulled in {:?}", started.elapsed());
    assert!(response.success && pulled == bytes, "{response:?}");
    assert_eq!(response.data.unwrap()["sha256"], hash.as_str());
    // Without hashes, by the kernel's shorter way.
    let response = push(&mut peer, json!({"path": path, "size": bytes.len()}), &bytes);
    assert!(response.success && response.data.unwrap().get("sha256").is_none());
    assert!(std::fs::read(&path).unwrap() == bytes);
    let (response, pulled) = pull(&mut peer, json!({"path": path}));
    assert!(response.success && pulled == bytes);
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1, "nothing of the agent's is left beside it");
}

#[test]
fn resuming() {
    let (guest, mut peer, root) = start();
    let bytes: Vec<u8> = (0..1_000_000u32).map(|at| (at % 253) as u8).collect();
    let path = root.path().join("sub/file");
    peer.send(&json!({"type": "FilePush", "id": "1", "stream": 1, "path": path, "parents": true}));
    peer.data(1, &bytes[..200_000]);
    let part = || {
        let entry = std::fs::read_dir(root.path().join("sub")).ok()?.next()?.ok()?;
        Some(entry.metadata().ok()?.len())
    };
    support::wait_for("what was sent is written", || part() == Some(200_000));
    // The host goes away in the middle, and comes back.
    drop(peer);
    let mut peer = guest.meet();
    peer.hello(json!({"session": "again", "policy": {"file_roots": [root.path()]}}));
    let mut response = push(&mut peer, json!({"path": path, "resume_at": 1}), b"");
    while response.error.as_ref().is_some_and(|error| error.code == ErrorCode::ResourceLimit) {
        response = push(&mut peer, json!({"path": path, "resume_at": 1}), b"");
    }
    assert_eq!(response.error.unwrap().details.unwrap()["bytes"], 200_000);
    assert!(!path.exists());
    let response = push(
        &mut peer,
        json!({"path": path, "resume_at": 200_000, "size": bytes.len(), "sha256": sha256(&bytes)}),
        &bytes[200_000..],
    );
    assert!(response.success, "{response:?}");
    assert!(std::fs::read(&path).unwrap() == bytes);
    // And the other way.
    let (response, pulled) = pull(&mut peer, json!({"path": path, "offset": 999_990, "sha256": true}));
    assert_eq!(pulled, bytes[999_990..]);
    let data = response.data.unwrap();
    assert_eq!(
        (data["sha256"].as_str(), data["file_sha256"].as_str()),
        (Some(&*sha256(&pulled)), Some(&*sha256(&bytes)))
    );
    let (_, pulled) = pull(&mut peer, json!({"path": path, "offset": 10, "length": 5}));
    assert_eq!(pulled, bytes[10..15]);
}

#[test]
fn what_is_not_whole_takes_no_place() {
    let (_guest, mut peer, root) = start();
    let path = root.path().join("file");
    std::fs::write(&path, "old").unwrap();
    let wrong = [
        json!({"path": path, "sha256": "0".repeat(64)}),
        json!({"path": path, "size": 5}),
        json!({"path": path, "size": 2}),
    ];
    for more in wrong {
        let response = push(&mut peer, more, b"new");
        assert_eq!(response.error.unwrap().code, ErrorCode::InvalidMessage);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
    }
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    assert!(push(&mut peer, json!({"path": path}), b"new").success);
    assert_eq!(std::fs::read(&path).unwrap(), b"new");
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600, "the mode of the file that was replaced");
}

#[test]
fn nothing_outside_of_the_roots() {
    let (_guest, mut peer, root) = start();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "x").unwrap();
    symlink(outside.path(), root.path().join("link")).unwrap();
    for path in ["/etc/passwd", "relative", "/"] {
        let (response, bytes) = pull(&mut peer, json!({"path": path}));
        assert!(!response.success && bytes.is_empty(), "{path}");
    }
    let (response, bytes) = pull(&mut peer, json!({"path": root.path().join("link/secret")}));
    assert_eq!((response.error.unwrap().code, bytes.len()), (ErrorCode::PermissionDenied, 0));
    let response = push(&mut peer, json!({"path": root.path().join("link/new")}), b"x");
    assert_eq!(response.error.unwrap().code, ErrorCode::PermissionDenied);
    let response = push(&mut peer, json!({"path": root.path().join("a/../../x")}), b"x");
    assert_eq!(response.error.unwrap().code, ErrorCode::InvalidMessage);
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    // Without roots there are no files at all.
    peer.write(&vec![b'\n'; 65_548]);
    peer.encoder.reset();
    peer.decoder.use_lines();
    peer.hello(json!({"session": "without"}));
    let response = peer.ask(&json!({"type": "FileStat", "id": "s", "path": root.path()}));
    assert_eq!(response.error.unwrap().code, ErrorCode::PermissionDenied);
}

#[test]
fn what_a_path_is() {
    let (_guest, mut peer, root) = start();
    std::fs::write(root.path().join("file"), "hello").unwrap();
    symlink("file", root.path().join("link")).unwrap();
    let mut stat = |name: &str| -> FileInfo {
        let response = peer
            .ask(&json!({"type": "FileStat", "id": "s", "path": root.path().join(name), "sha256": true, "list": true}));
        serde_json::from_value(response.data.unwrap_or_else(|| panic!("{:?}", response.error))).unwrap()
    };
    let file = stat("file");
    assert_eq!((file.kind, file.size, file.sha256), (FileKind::File, 5, Some(sha256(b"hello"))));
    let link = stat("link");
    assert_eq!((link.kind, link.target.as_deref()), (FileKind::Symlink, Some("file")));
    let directory = stat("");
    assert_eq!((directory.kind, directory.entries.unwrap()), (FileKind::Directory, vec!["file".into(), "link".into()]));
    let response = peer.ask(&json!({"type": "FileStat", "id": "s", "path": root.path().join("none")}));
    assert_eq!(response.error.unwrap().code, ErrorCode::NotFound);
}

#[test]
fn trees_both_ways() {
    let (_guest, mut peer, root) = start();
    let from = root.path().join("from");
    std::fs::create_dir_all(from.join("a/b")).unwrap();
    std::fs::write(from.join("a/b/file"), vec![7u8; 300_000]).unwrap();
    std::fs::write(from.join("empty"), "").unwrap();
    symlink("a/b/file", from.join("link")).unwrap();
    std::fs::set_permissions(from.join("a"), PermissionsExt::from_mode(0o750)).unwrap();
    std::fs::set_permissions(from.join("empty"), PermissionsExt::from_mode(0o444)).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
    let (response, tree) = pull(&mut peer, json!({"path": from, "tree": true, "sha256": true}));
    let data = response.data.unwrap();
    assert_eq!(
        (&data["entries"], &data["skipped"], data["sha256"].as_str()),
        (&json!(5), &json!(1), Some(&*sha256(&tree)))
    );
    let to = root.path().join("x/to");
    for _ in 0..2 {
        let response =
            push(&mut peer, json!({"path": to, "tree": true, "parents": true, "sha256": sha256(&tree)}), &tree);
        assert!(response.success, "{response:?}");
        assert_eq!(std::fs::read(to.join("a/b/file")).unwrap(), vec![7u8; 300_000]);
        assert_eq!(std::fs::read_link(to.join("link")).unwrap().to_str(), Some("a/b/file"));
        assert_eq!(std::fs::metadata(to.join("a")).unwrap().mode() & 0o777, 0o750);
        let (one, other) =
            (std::fs::metadata(from.join("empty")).unwrap(), std::fs::metadata(to.join("empty")).unwrap());
        assert_eq!((one.mode(), one.mtime(), one.len()), (other.mode(), other.mtime(), other.len()));
    }
    // A tree that would write through a link of its own.
    let mut evil = Vec::new();
    for entry in [
        json!({"path": "way", "kind": "symlink", "mode": 0o777, "target": root.path()}),
        json!({"path": "way/out", "kind": "file", "mode": 0o644, "size": 1}),
    ] {
        let text = entry.to_string();
        evil.extend_from_slice(&(text.len() as u32).to_le_bytes());
        evil.extend_from_slice(text.as_bytes());
    }
    evil.push(b'!');
    let response = push(&mut peer, json!({"path": to, "tree": true}), &evil);
    assert!(!response.success && !root.path().join("out").exists(), "{response:?}");
    let response = push(&mut peer, json!({"path": to, "tree": true}), &tree[..tree.len() / 2]);
    assert_eq!(response.error.unwrap().code, ErrorCode::InvalidMessage);
}
