//! Another identity for real: host name and interfaces in namespaces of the test's own, entropy in this kernel.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use roost_guest_agent::identity;
use roost_guest_agent::platform::System;
use roost_guest_agent::run::Cancel;
use roost_guest_agent::safe::{self, Context};
use roost_guest_proto::{ErrorCode, Identity, InterfaceIdentity, SafeCommand, Secret};
use serde_json::{Value, json};

/// Runs an ignored test of this file where the host's name, the network and the mounts are its own.
fn in_namespaces(test: &str) {
    enter(
        test,
        r#"mount -t tmpfs none /etc && mkdir /etc/ssh && echo root:x:0:0::/root:/bin/sh > /etc/passwd && echo 127.0.0.1 localhost > /etc/hosts || exit 99
        ip link add eth0 type veth peer name peer0 || exit 99; ip link set lo up; exec "$@""#,
    );
}

/// The same with this machine's /etc, whose changes go away with the test.
fn with_etc(test: &str) {
    let directory = tempfile::tempdir().unwrap();
    let script = r#"mount -t tmpfs none "$0" && mkdir "$0/upper" "$0/work" || exit 99
        mount -t overlay overlay -o "lowerdir=/etc,upperdir=$0/upper,workdir=$0/work" /etc || exit 99; exec "$@""#;
    enter_at(directory.path().to_str().unwrap(), test, script);
}

fn enter(test: &str, script: &str) {
    enter_at("sh", test, script);
}

fn enter_at(zero: &str, test: &str, script: &str) {
    let status = Command::new("unshare")
        .args(["--uts", "--net", "--mount", "--propagation", "private", "--", "sh", "-c", script, zero])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .status()
        .expect("unshare (util-linux)");
    match status.code() {
        Some(0) => {}
        Some(99) => eprintln!("skipped: no veth, tmpfs or overlay in a namespace here"),
        Some(1) if !rustix::process::geteuid().is_root() => eprintln!("skipped: namespaces need root"),
        code => panic!("{test}: {code:?}"),
    }
}

fn ip(arguments: &str) -> Value {
    let output = Command::new("ip").arg("-json").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

fn addresses() -> Vec<String> {
    let shown = ip("address show dev eth0");
    let all = shown[0]["addr_info"].as_array().unwrap().iter();
    all.filter(|it| it["scope"] == "global")
        .map(|it| format!("{}/{}", it["local"].as_str().unwrap(), it["prefixlen"]))
        .collect()
}

fn gateway() -> Option<String> {
    ip("route show default")[0]["gateway"].as_str().map(str::to_owned)
}

fn set(interface: InterfaceIdentity) -> Result<Value, roost_guest_proto::ErrorBody> {
    identity::apply(&Identity { interfaces: vec![interface], ..Identity::default() })
}

#[test]
fn interfaces_become_others() {
    in_namespaces("inside_interfaces");
}

#[test]
#[ignore = "needs namespaces: interfaces_become_others"]
fn inside_interfaces() {
    for line in [
        "link set eth0 address 52:54:00:00:00:01",
        "link set eth0 up",
        "link set peer0 up",
        "address add 10.0.0.2/24 dev eth0",
        "address add 10.0.0.3/24 dev eth0",
        "route add default via 10.0.0.1",
    ] {
        ip(line);
    }
    let full = InterfaceIdentity {
        current_mac: Some("52:54:00:00:00:01".into()),
        mac: Some("52:54:00:00:00:99".into()),
        addresses: vec!["10.9.0.2/16".into(), "fd00::2/64".into()],
        gateway: Some("10.9.0.1".into()),
        ..InterfaceIdentity::default()
    };
    for _ in 0..2 {
        set(full.clone()).expect("once, and once more");
        assert_eq!(ip("link show dev eth0")[0]["address"], "52:54:00:00:00:99");
        assert_eq!(addresses(), ["10.9.0.2/16", "fd00::2/64"]);
        assert_eq!(gateway().as_deref(), Some("10.9.0.1"));
    }
    // A clone's link is down until it is the new one.
    ip("link set peer0 down");
    let down = InterfaceIdentity {
        name: Some("eth0".into()),
        mac: Some("52:54:00:00:00:55".into()),
        addresses: vec!["10.8.0.2/16".into(), "fd01::2/64".into()],
        gateway: Some("10.8.0.1".into()),
        ..InterfaceIdentity::default()
    };
    set(down).unwrap();
    assert_eq!(
        (addresses(), gateway()),
        (vec!["10.8.0.2/16".to_owned(), "fd01::2/64".to_owned()], Some("10.8.0.1".to_owned()))
    );
    let v6 = InterfaceIdentity {
        name: Some("eth0".into()),
        addresses: vec!["fd02::2/64".into()],
        gateway: Some("fd02::1".into()),
        ..InterfaceIdentity::default()
    };
    set(v6).unwrap();
    assert_eq!((addresses(), gateway()), (vec!["fd02::2/64".to_owned()], None), "the old network is gone");
    assert_eq!(ip("-6 route show default")[0]["gateway"], "fd02::1");
    ip("link set peer0 up");
    set(InterfaceIdentity { name: Some("eth0".into()), current_mac: None, ..full }).unwrap();
    // Another MAC only: what else it has stays.
    let mac =
        InterfaceIdentity { name: Some("eth0".into()), mac: Some("52:54:00:00:00:07".into()), ..Default::default() };
    set(mac).unwrap();
    assert_eq!(ip("link show dev eth0")[0]["address"], "52:54:00:00:00:07");
    assert_eq!(addresses(), ["10.9.0.2/16", "fd00::2/64"]);
    assert_eq!(gateway().as_deref(), Some("10.9.0.1"));
    // Its link-local address is made of the new one.
    let shown = ip("-6 address show dev eth0");
    let link_local = shown[0]["addr_info"].as_array().unwrap().iter().find(|it| it["scope"] == "link");
    assert!(link_local.is_none_or(|it| it["local"].as_str().unwrap().ends_with("ff:fe00:7")), "{shown}");
    let error = set(InterfaceIdentity { name: Some("eth9".into()), ..InterfaceIdentity::default() }).unwrap_err();
    assert!(error.message.contains("eth0"), "{error}");
    let error = set(InterfaceIdentity { name: Some("lo".into()), ..InterfaceIdentity::default() }).unwrap_err();
    assert_eq!(error.code, ErrorCode::CommandFailed);

    let context = Context::new(System::default(), Cancel::new().unwrap(), Default::default());
    let command =
        SafeCommand { id: "1".into(), command_type: json!({"action": "NetworkInfo"}), params: None, timeout: None };
    let network = safe::run(&command, &context).data.unwrap();
    let eth0 = network["interfaces"].as_array().unwrap().iter().find(|it| it["name"] == "eth0").unwrap().clone();
    assert_eq!(
        (&eth0["mac"], &eth0["up"], &network["gateways"][0]),
        (&json!("52:54:00:00:00:07"), &json!(true), &json!("10.9.0.1"))
    );
    assert!(eth0["addresses"].as_array().unwrap().contains(&json!("fd00::2/64")));
}

#[test]
fn the_whole_identity() {
    in_namespaces("inside_whole");
}

#[test]
#[ignore = "needs namespaces: the_whole_identity"]
fn inside_whole() {
    std::fs::write("/etc/ssh/ssh_host_ed25519_key", "old").unwrap();
    let whole = Identity {
        entropy: Some(Secret::new(
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+P0BB".into(),
        )),
        hostname: Some("clone-7".into()),
        machine_id: Some("0123456789abcdef0123456789abcdef".into()),
        ssh_host_keys: true,
        ..Identity::default()
    };
    let steps = match identity::apply(&whole) {
        Ok(steps) => steps,
        // Where this test may not feed the kernel's pool, the rest is done all the same.
        Err(error) => {
            assert!(error.message.starts_with("entropy: /dev/urandom: CAP_SYS_ADMIN is needed"), "{error}");
            eprintln!("no entropy: {error}");
            error.details.unwrap()
        }
    };
    assert_eq!(steps["ssh_host_keys"]["replaced"], json!(["ed25519"]));
    assert_eq!(rustix::system::uname().nodename().to_str(), Ok("clone-7"));
    assert_eq!(std::fs::read_to_string("/etc/hostname").unwrap(), "clone-7\n");
    assert_eq!(std::fs::read_to_string("/etc/machine-id").unwrap(), "0123456789abcdef0123456789abcdef\n");
    assert!(std::fs::read_to_string("/etc/ssh/ssh_host_ed25519_key").unwrap().contains("PRIVATE KEY"));
}

#[test]
fn passwords_and_keys_of_users() {
    with_etc("inside_users");
}

#[test]
#[ignore = "needs a mount namespace: passwords_and_keys_of_users"]
fn inside_users() {
    let run = |command_type: Value| {
        let context = Context::new(System::default(), Cancel::new().unwrap(), Default::default());
        let response = safe::run(&SafeCommand { id: "1".into(), command_type, params: None, timeout: None }, &context);
        assert!(response.success, "{:?}\n{}", response.error, response.stderr);
        response.data.unwrap()
    };
    let append = |file: &str, line: &str| {
        let text = std::fs::read_to_string(file).unwrap();
        std::fs::write(file, format!("{text}{line}\n")).unwrap();
    };
    append("/etc/passwd", "roost-web:x:12345:12346::/etc/roost-home:/bin/sh");
    append("/etc/shadow", "roost-web:!:19000:0:99999:7:::");
    std::fs::create_dir("/etc/roost-home").unwrap();
    std::os::unix::fs::chown("/etc/roost-home", Some(12345), Some(12346)).unwrap();
    let hash = || {
        let shadow = std::fs::read_to_string("/etc/shadow").unwrap();
        shadow.lines().find_map(|line| line.strip_prefix("roost-web:")).unwrap().split(':').next().unwrap().to_owned()
    };
    run(json!({"action": "UserSetPassword", "user": "roost-web", "password": "correct horse: battery"}));
    assert!(hash().starts_with('$'), "{}", hash());
    run(json!({"action": "UserSetPassword", "user": "roost-web", "password": "$6$salt$0123456789", "encrypted": true}));
    assert_eq!(hash(), "$6$salt$0123456789");
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJH0bUk3lTAlOEoQh7fPZEsOd3rsSkbgqDYmnl5VQIFu x";
    let data = run(json!({"action": "SshKeyAdd", "user": "roost-web", "keys": [key]}));
    assert_eq!(data["keys"][0]["comment"], "x");
    for (path, mode) in [("/etc/roost-home/.ssh", 0o700), ("/etc/roost-home/.ssh/authorized_keys", 0o600)] {
        let stat = std::fs::metadata(path).unwrap();
        let (uid, gid, permissions) = (stat.uid(), stat.gid(), stat.mode() & 0o7777);
        assert_eq!((uid, gid, permissions), (12345, 12346, mode), "{path}: sshd takes no other");
    }
}
