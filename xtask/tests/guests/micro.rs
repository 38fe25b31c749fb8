//! The micro guest does what its README says, on both machines.

use crate::qemu::Qemu;

const MACHINES: [&str; 2] = ["q35", "microvm,acpi=on"];

fn boot(machine: &str, args: &[&str]) -> Qemu {
    let mut qemu = Qemu::start(machine, "32M", &xtask::micro_guest().unwrap(), args);
    qemu.expect_text("boot\r\n");
    qemu
}

#[test]
fn it_ticks_and_keeps_count_over_a_pause() {
    for machine in MACHINES {
        let mut qemu = boot(machine, &[]);
        qemu.expect_text("tick 1\r\n");
        qemu.expect_text("tick 2\r\n");
        qemu.command("stop");
        qemu.expect_event("STOP");
        qemu.command("cont");
        qemu.expect_event("RESUME");
        assert_eq!(qemu.expect_text("tick 3\r\n"), "", "on {machine}");
    }
}

#[test]
fn it_powers_off_on_demand() {
    for machine in MACHINES {
        let mut qemu = boot(machine, &[]);
        qemu.type_text("q");
        assert_eq!(qemu.expect_event("SHUTDOWN")["reason"], "guest-shutdown", "on {machine}");
    }
}

#[test]
fn it_powers_off_when_the_button_is_pressed() {
    for machine in MACHINES {
        let mut qemu = boot(machine, &[]);
        qemu.command("system_powerdown");
        qemu.expect_event("POWERDOWN");
        qemu.expect_text("power button\r\n");
        assert_eq!(qemu.expect_event("SHUTDOWN")["reason"], "guest-shutdown", "on {machine}");
    }
}

#[test]
fn deaf_it_ignores_the_button_until_it_hears_again() {
    for machine in MACHINES {
        let mut qemu = boot(machine, &[]);
        qemu.type_text("d");
        qemu.expect_text("deaf\r\n");
        qemu.command("system_powerdown");
        qemu.expect_text("power button ignored\r\n");
        qemu.expect_text("tick ");
        qemu.type_text("d");
        qemu.expect_text("hears\r\n");
        qemu.command("system_powerdown");
        assert_eq!(qemu.expect_event("SHUTDOWN")["reason"], "guest-shutdown", "on {machine}");
    }
}

#[test]
fn a_reset_starts_it_again() {
    for machine in MACHINES {
        let mut qemu = boot(machine, &[]);
        qemu.expect_text("tick 2\r\n");
        qemu.type_text("r");
        assert_eq!(qemu.expect_event("RESET")["reason"], "guest-reset", "on {machine}");
        qemu.expect_text("boot\r\n");
        qemu.expect_text("tick 1\r\n");
    }
}

#[test]
fn a_panic_is_reported_where_there_is_a_device_for_it() {
    for machine in MACHINES {
        let mut qemu = boot(machine, &["-device", "pvpanic"]);
        qemu.type_text("p");
        qemu.expect_event("GUEST_PANICKED");

        let mut qemu = boot(machine, &[]);
        qemu.type_text("p");
        qemu.expect_text("no pvpanic\r\n");
        qemu.expect_text("tick ");
    }
}
