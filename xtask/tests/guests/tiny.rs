//! The tiny guest comes up, has its drivers, and ends in each of the ways that a VM can, on both machines.

use crate::qemu::Qemu;

/// A machine, and the suffix of its virtio devices.
const Q35: (&str, &str) = ("q35", "pci");
const MICROVM: (&str, &str) = ("microvm,acpi=on", "device");

fn boot((machine, bus): (&str, &str)) -> Qemu {
    let guest = xtask::tiny_guest().unwrap();
    let on_microvm = (machine, bus) == MICROVM;
    let kernel_args = if on_microvm { xtask::microvm_kernel_args() } else { xtask::KERNEL_ARGS.to_owned() };
    let device = |kind: &str| format!("{kind}-{bus}");
    let args = [
        ["-initrd", guest.initrd.to_str().unwrap()],
        ["-append", &kernel_args],
        ["-device", "pvpanic"],
        ["-netdev", "user,id=net,restrict=on"],
        ["-device", &format!("{},netdev=net", device("virtio-net"))],
        ["-device", &device("virtio-rng")],
    ];
    let mut qemu = Qemu::start(machine, "256M", &guest.kernel, args.as_flattened());
    is_up(&mut qemu);
    qemu
}

fn is_up(qemu: &mut Qemu) {
    qemu.expect_text(xtask::GUEST_UP);
    qemu.expect_text("root@tiny:~# ");
}

/// Everything but the power button, in two boots.
fn works_and_panics(machine: (&str, &str)) {
    let mut qemu = boot(machine);
    qemu.shell("for m in $(cat /etc/roost/modules); do grep -q \"^$m \" /proc/modules || exit; done");
    qemu.shell("until ip -4 addr show eth0 | grep -q 'inet 10.0.2.15/24'; do usleep 20000; done");
    assert!(qemu.shell("cat /sys/class/misc/hw_random/rng_current").contains("virtio_rng"));

    qemu.type_text("reboot -f\n");
    assert_eq!(qemu.expect_event("RESET")["reason"], "guest-reset");
    is_up(&mut qemu);

    qemu.type_text("echo c >/proc/sysrq-trigger\n");
    qemu.expect_event("GUEST_PANICKED");
}

/// Its handler runs `poweroff`.
fn powers_off_when_the_button_is_pressed(machine: (&str, &str)) {
    let mut qemu = boot(machine);
    qemu.command("system_powerdown");
    assert_eq!(qemu.expect_event("SHUTDOWN")["reason"], "guest-shutdown");
}

#[test]
fn on_q35_it_has_its_drivers_and_an_address_comes_back_after_a_reset_and_reports_a_panic() {
    works_and_panics(Q35);
}

#[test]
fn on_microvm_it_has_its_drivers_and_an_address_comes_back_after_a_reset_and_reports_a_panic() {
    works_and_panics(MICROVM);
}

#[test]
fn on_q35_it_powers_off_when_the_button_is_pressed() {
    powers_off_when_the_button_is_pressed(Q35);
}

#[test]
fn on_microvm_it_powers_off_when_the_button_is_pressed() {
    powers_off_when_the_button_is_pressed(MICROVM);
}
