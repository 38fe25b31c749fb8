//! A real Linux guest: what the micro guest cannot show. Its drivers find every device, its network
//! reaches nothing of the host but what is forwarded, its panic is told apart.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use roost_backend::Backend;
use roost_model::plan::Stop;
use roost_model::spec::{Boot, Bus, Device, Disk, DiskFormat, Forward, MachineType, Memory, Nic, NicKind, Protocol};
use roost_model::{Bytes, ExitCause, VmSpec};

use crate::support::{DEADLINE, Host, Serial, new_launch};

pub(crate) fn linux_on(machine: MachineType) -> VmSpec {
    let guest = xtask::tiny_guest().unwrap();
    let args = match machine {
        MachineType::Q35 => xtask::KERNEL_ARGS.to_owned(),
        MachineType::Microvm => xtask::microvm_kernel_args(),
    };
    let boot = Boot {
        kernel_path: Some(guest.kernel.to_str().unwrap().parse().unwrap()),
        initrd_path: Some(guest.initrd.to_str().unwrap().parse().unwrap()),
        kernel_args: args.parse().unwrap(),
        boot_order: Vec::new(),
    };
    VmSpec { machine: Some(machine), ..VmSpec::minimal(Memory::fixed(Bytes::from_mib(192)), boot) }
}

fn disk(host: &Host, id: &str, bus: Bus, mib: u64) -> Disk {
    let path = host.dir.path().join(format!("{id}.raw"));
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(mib << 20).unwrap();
    Disk {
        id: id.to_owned(),
        path: path.to_str().unwrap().parse().unwrap(),
        read_only: false,
        is_root_device: false,
        bus,
        format: DiskFormat::Raw,
        device: Device::Disk,
    }
}

/// A port of the host that is free at this moment.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Runs a line in the guest's shell and returns what it says.
pub(crate) fn shell(serial: &mut Serial, line: &str) -> String {
    serial.send(format!("{line}; echo END-OF-\"$?\"\n").as_bytes());
    // The echo of the line has quotes between its words; the answer has not.
    serial.up_to("END-OF-0")
}

#[tokio::test(flavor = "multi_thread")]
async fn linux_on_either_machine() {
    for machine in [MachineType::Q35, MachineType::Microvm] {
        let mut host = Host::new();
        let secret = TcpListener::bind("127.0.0.1:0").unwrap();
        secret.set_nonblocking(true).unwrap();
        let secret_port = secret.local_addr().unwrap().port();
        let forwarded = free_port();
        let mut spec = linux_on(machine);
        spec.storage = vec![
            disk(&host, "first", Bus::Virtio, 3),
            disk(&host, "second", Bus::Virtio, 5),
            disk(&host, "third", Bus::Scsi, 7),
        ];
        let forward = Forward {
            protocol: Protocol::Tcp,
            host_address: [127, 0, 0, 1].into(),
            host_port: forwarded,
            guest_port: 8080,
        };
        let kind = NicKind::User { port_forwards: vec![forward] };
        spec.network = vec![Nic { id: "eth0".to_owned(), mac_address: None, kind }];
        let vm = host.create(spec).await;
        let launch = new_launch();
        host.backend.boot(&vm, launch, host.journal(&vm)).await.unwrap();
        let mut serial = host.serial(&vm).await;
        serial.until(xtask::GUEST_UP);
        // What is typed before the prompt is lost.
        serial.until("root@tiny");

        // Disks in their order, by their sizes (in sectors) and by their IDs.
        let sizes = shell(&mut serial, "cat /sys/block/vda/size /sys/block/vdb/size /sys/block/vd?/serial");
        assert!(sizes.contains("6144\r\n10240\r\n"), "{sizes}");
        assert!(sizes.contains("first") && sizes.contains("second"), "{sizes}");
        let scsi = shell(&mut serial, "modprobe virtio_scsi; modprobe sd_mod; sleep 1; cat /sys/block/sda/size");
        assert!(scsi.contains("14336"), "{scsi}");
        shell(&mut serial, "dd if=/dev/zero of=/dev/vdb bs=1M count=2 conv=fsync");
        let metrics = host.backend.info(vm.id).await.unwrap().metrics.unwrap();
        assert!(metrics.disks[1].write_bytes >= 2 << 20, "{metrics:?}");
        assert_eq!(metrics.disks[0].write_bytes, 0, "{metrics:?}");

        // 10.0.2.2 is the host's loopback, and closed; what is forwarded comes in.
        let address = shell(
            &mut serial,
            "i=0; until ip addr show eth0 | grep 10.0.2; do sleep 1; i=$((i+1)); [ $i -lt 20 ] || break; done",
        );
        assert!(address.contains("10.0.2.15"), "{address}");
        let probe = format!(
            "for a in 10.0.2.2 10.0.2.3 127.0.0.1; do nc -w 2 $a {secret_port} </dev/null && echo REACHED; done; true"
        );
        let probed = shell(&mut serial, &probe);
        assert!(!probed.contains("\nREACHED"), "{probed}");
        assert!(secret.accept().is_err(), "the guest reached the host");
        shell(&mut serial, "mkdir -p /tmp/www; echo from the guest >/tmp/www/index.html; httpd -p 8080 -h /tmp/www");
        assert!(fetch(forwarded).contains("from the guest"));

        // Paused, nothing answers; adopted by the next daemon, it goes on.
        host.backend.pause(vm.id).await.unwrap();
        host.restart();
        host.backend.adopt(vec![host.adoptee(&vm, Some(launch))]).await.remove(0).unwrap();
        host.backend.resume(vm.id).await.unwrap();
        assert!(fetch(forwarded).contains("from the guest"));

        // One ends by a panic, the other as it is asked to.
        match machine {
            MachineType::Q35 => {
                serial.send(b"echo c >/proc/sysrq-trigger\n");
                host.ended(&vm, launch, ExitCause::Panic).await;
            }
            MachineType::Microvm => {
                let cause = host.backend.shutdown(vm.id, Stop::Graceful(DEADLINE)).await.unwrap();
                assert_eq!(cause, ExitCause::PowerOff);
            }
        }
        host.delete(&vm).await;
        host.assert_nothing_left();
    }
}

/// What a web server says, once it is there.
fn fetch(port: u16) -> String {
    let by = Instant::now() + DEADLINE;
    loop {
        let asked = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        match asked() {
            Ok(text) if !text.is_empty() => return text,
            other => assert!(Instant::now() < by, "{other:?}"),
        }
    }
}

/// Firmware starts from a disk, and says on the serial line what it finds.
#[tokio::test(flavor = "multi_thread")]
async fn firmware_boots_the_root_disk_and_nothing_that_is_not_listed() {
    for machine in [MachineType::Q35, MachineType::Microvm] {
        let mut host = Host::new();
        let mut spec = linux_on(machine);
        spec.boot = Boot::default();
        let root = Disk { is_root_device: true, ..disk(&host, "root", Bus::Virtio, 1) };
        // A boot sector that says so on the first serial port, and stops.
        let mut sector = [0u8; 512];
        let text = b"ROOT DISK BOOTED\r\n";
        let code = [
            0xbe, 0x00, 0x7d, // mov si, 0x7d00
            0xba, 0xf8, 0x03, // mov dx, 0x3f8
            0x2e, 0xac, // lodsb cs:
            0x84, 0xc0, // test al, al
            0x74, 0x03, // jz end
            0xee, // out dx, al
            0xeb, 0xf7, // jmp lodsb
            0xf4, 0xeb, 0xfd, // hlt, for ever
        ];
        sector[..code.len()].copy_from_slice(&code);
        sector[0x100..0x100 + text.len()].copy_from_slice(text);
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        let mut image = vec![0; 1 << 20];
        image[..512].copy_from_slice(&sector);
        std::fs::write(root.path.as_path(), image).unwrap();
        spec.storage = vec![disk(&host, "data", Bus::Virtio, 1), root];
        let vm = host.create(spec).await;
        host.backend.boot(&vm, new_launch(), host.journal(&vm)).await.unwrap();
        let mut serial = host.serial(&vm).await;
        serial.until("ROOT DISK BOOTED");
        host.delete(&vm).await;
        host.assert_nothing_left();
    }
}
