//! A TAP of the user's, in a network namespace of the test's own.
//!
//! The part that runs in there is this very binary, started by `unshare` with [`INSIDE`] set.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use roost_host::launch::find_program;
use roost_host::tap::{TapError, open_tap};

const INSIDE: &str = "ROOST_TEST_INSIDE_NETNS";

#[test]
fn an_existing_tap_is_opened_and_left() {
    let Some(unshare) = find_program("unshare".as_ref()) else {
        eprintln!("not tried: no unshare");
        return;
    };
    let tun = fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    if let Err(error) = tun {
        eprintln!("not tried: /dev/net/tun does not open: {error}");
        return;
    }
    if find_program("ip".as_ref()).is_none() {
        eprintln!("not tried: no ip");
        return;
    }
    let mut namespaces = vec!["--net", "--mount"];
    if !rustix::process::geteuid().is_root() {
        namespaces.extend(["--user", "--map-root-user"]);
    }
    let possible = Command::new(&unshare).args(&namespaces).arg("true").status().unwrap().success();
    if !possible {
        eprintln!("not tried: no namespaces for this user");
        return;
    }
    // A fresh /sys, or the interfaces shown in it are those of the host.
    let script = r#"mount -t sysfs none /sys && exec "$0" inside_the_namespace --exact --nocapture"#;
    let output = Command::new(unshare)
        .args(&namespaces)
        .args(["sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("INSIDE DONE"), "{text}");
}

/// Not a test of its own.
#[test]
fn inside_the_namespace() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    let ip = |args: &str| {
        let status = Command::new("ip").args(args.split(' ')).status().unwrap();
        assert!(status.success(), "ip {args}");
    };
    ip("tuntap add roost0 mode tap");
    ip("tuntap add roost1 mode tap multi_queue");
    ip("tuntap add roost2 mode tun");

    let index = || fs::read_to_string("/sys/class/net/roost0/ifindex").unwrap();
    let before = index();
    let tap = open_tap("roost0").unwrap();
    assert!(matches!(open_tap("roost0"), Err(TapError::Busy { .. })));
    drop(tap);
    let tap = open_tap("roost0").unwrap();
    let flags = fs::read_to_string("/sys/class/net/roost0/tun_flags").unwrap();
    let flags = i32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap();
    let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    assert_eq!(flags & wanted, wanted, "{flags:#x}");
    drop(tap);
    assert_eq!(index(), before, "it is the same interface, and it stays");

    // One queue each.
    let _queues = (open_tap("roost1").unwrap(), open_tap("roost1").unwrap());
    assert!(matches!(open_tap("roost2"), Err(TapError::NotATap { .. })));
    assert!(matches!(open_tap("roost9"), Err(TapError::NotFound { .. })));
    assert!(!Path::new("/sys/class/net/roost9").exists());
    println!("INSIDE DONE");
}
