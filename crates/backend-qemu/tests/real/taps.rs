//! Machines on TAPs, in a network namespace of their own: this binary again, started inside of one.

use std::process::Command;

use roost_backend::Backend;
use roost_model::VmSpec;
use roost_model::spec::{MachineType, Nic, NicKind};

use crate::linux::{linux_on, shell};
use crate::support::{Host, micro_on, new_launch};

/// Set for the run inside.
const INSIDE: &str = "ROOST_TEST_IN_NAMESPACE";

#[test]
fn taps_in_a_namespace() {
    // /sys shows the namespace in which it was mounted.
    let made = "mount -t sysfs none /sys && ip tuntap add tap0 mode tap && ip tuntap add many mode tap multi_queue && ip link set tap0 up && ip addr add 192.0.2.1/24 dev tap0";
    let script = format!(r#"{made} || exit 77; exec "$0" --exact taps::inside --nocapture"#);
    let status = Command::new("unshare")
        .args(["--net", "--mount", "sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .env(INSIDE, "1")
        .status();
    match status {
        Ok(status) if status.success() => {}
        // unshare itself answers 1 where it may not.
        Ok(status) if matches!(status.code(), Some(77 | 1)) && !rustix::process::geteuid().is_root() => {
            eprintln!("not tried: making a network namespace with TAPs in it needs root");
        }
        Ok(status) => panic!("inside of the namespace: {status}"),
        Err(error) => eprintln!("not tried: {error}"),
    }
}

/// Not a test of its own: the part that runs inside.
#[test]
fn inside() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    tokio::runtime::Runtime::new().unwrap().block_on(machines_on_taps());
}

fn on(device: &str, machine: MachineType) -> VmSpec {
    VmSpec { network: vec![nic(device)], ..micro_on(machine) }
}

fn nic(device: &str) -> Nic {
    Nic { id: "eth0".to_owned(), mac_address: None, kind: NicKind::Tap { device: device.to_owned() } }
}

async fn machines_on_taps() {
    let mut host = Host::new();
    for (device, machine) in [("tap0", MachineType::Q35), ("many", MachineType::Q35), ("tap0", MachineType::Microvm)] {
        let vm = host.create(on(device, machine)).await;
        let (_launch, _serial) = host.boot(&vm).await;
        let metrics = host.backend.info(vm.id).await.unwrap().metrics.unwrap();
        assert_eq!(metrics.nics.iter().map(|nic| nic.id.as_str()).collect::<Vec<_>>(), ["eth0"]);

        // A second machine cannot have it, and says why.
        if device == "tap0" {
            let second = host.create(on(device, machine)).await;
            let error = host.backend.boot(&second, new_launch(), host.journal(&second)).await.unwrap_err();
            assert_eq!((error.reason, error.is_transient()), ("TAP_IN_USE", true), "{error}");
            host.delete(&second).await;
        }
        host.delete(&vm).await;
        host.assert_nothing_left();
    }
    // Frames go both ways, and are counted from the guest's point of view.
    let vm = host.create(VmSpec { network: vec![nic("tap0")], ..linux_on(MachineType::Q35) }).await;
    host.backend.boot(&vm, new_launch(), host.journal(&vm)).await.unwrap();
    let mut serial = host.serial(&vm).await;
    serial.until(xtask::GUEST_UP);
    serial.until("root@tiny");
    shell(&mut serial, "ip addr add 192.0.2.2/24 dev eth0");
    let pinged = shell(&mut serial, "ping -c 3 -s 1000 192.0.2.1");
    assert!(pinged.contains(" 0% packet loss"), "{pinged}");
    let nic = host.backend.info(vm.id).await.unwrap().metrics.unwrap().nics.remove(0);
    assert!(nic.rx_packets >= 3 && nic.tx_packets >= 3 && nic.rx_bytes > 3000 && nic.tx_bytes > 3000, "{nic:?}");
    host.delete(&vm).await;

    // It was there before, and it is there afterwards.
    let interfaces = std::fs::read_to_string("/proc/net/dev").unwrap();
    assert!(interfaces.contains("tap0") && interfaces.contains("many"), "{interfaces}");

    let vm = host.create(on("lo", MachineType::Q35)).await;
    let error = host.backend.boot(&vm, new_launch(), host.journal(&vm)).await.unwrap_err();
    assert_eq!(error.reason, "TAP_NOT_FOUND", "{error}");
    host.delete(&vm).await;
    host.assert_nothing_left();
}
