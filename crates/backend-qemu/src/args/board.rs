//! The board and what is on every board: identity, CPUs, memory, what is booted, control, serial line.

use roost_backend::{BackendError, Definition};
use roost_model::Bytes;
use roost_model::spec::{Backing, Bus, MachineType};
use serde_json::json;

use super::places::{Places, Role};
use super::{Args, Plan, QMP_FD, SERIAL_FD, unsupported};
use crate::probe::SANDBOX;

/// The pvpanic port that every operating system knows (`docs/specs/pvpanic.rst`).
const PVPANIC_PORT: u16 = 0x505;
/// Memory that can be plugged in comes in at most so many pieces.
const MEMORY_SLOTS: u32 = 16;

/// Who it is, and nothing that was not asked for.
pub(super) fn identity(vm: &Definition, args: &mut Args) {
    // A name has no commas (`VmName`); doubled all the same, as this is an option string.
    args.value("-name", format!("guest={}", vm.name.as_str().replace(',', ",,")));
    args.value("-uuid", vm.id.uuid().to_string());
    args.flag("-nodefaults");
    args.flag("-no-user-config");
    args.value("-display", "none");
    args.value("-msg", "timestamp=on");
}

pub(super) fn machine(vm: &Definition, plan: &Plan<'_>, args: &mut Args) -> Result<(), BackendError> {
    let machine = plan.probe.machine(plan.machine)?;
    let spec = &vm.spec;
    let on = |truth: bool| if truth { "on" } else { "off" };
    // The guest's memory stays out of core dumps of the host.
    let mut options =
        vec![("memory-backend", "ram0"), ("dump-guest-core", "off"), ("mem-merge", on(spec.memory.merge))];
    match plan.machine {
        MachineType::Q35 => {
            options.extend([("usb", "off"), ("vmport", "off")]);
            options.push(("sata", on(spec.storage.iter().any(|disk| disk.bus == Bus::Sata))));
        }
        // PIT and RTC: without them a stock kernel finds no clock to measure the others by.
        MachineType::Microvm => {
            options.extend([
                ("acpi", "on"),
                ("pit", "on"),
                ("pic", "on"),
                ("rtc", "on"),
                ("isa-serial", "on"),
                ("ioapic2", "on"),
            ]);
        }
    }
    // Firmware talks on the serial line when there is no screen: worth having where it is what boots.
    if spec.boot.kernel_path.is_none() && spec.console.enabled {
        options.push(("graphics", "off"));
    }
    let mut text = machine.name.clone();
    for (key, value) in options {
        if machine.properties.contains(key) {
            text.push_str(&format!(",{key}={value}"));
        }
    }
    args.value("-machine", text);
    args.value("-accel", plan.accelerator.name());
    if plan.machine == MachineType::Microvm && plan.probe.has("device:virtio-mmio") {
        // virtio 1 instead of what came before it.
        args.value("-global", "virtio-mmio.force-legacy=off");
    }
    Ok(())
}

/// Whether a microvm is given a second IO-APIC, for more devices.
pub(super) fn has_second_ioapic(plan: &Plan<'_>) -> bool {
    plan.probe.machine(plan.machine).is_ok_and(|machine| machine.properties.contains("ioapic2"))
}

pub(super) fn processors(vm: &Definition, plan: &Plan<'_>, args: &mut Args) -> Result<(), BackendError> {
    let cpu = &vm.spec.cpu;
    let machine = plan.probe.machine(plan.machine)?;
    if cpu.max_vcpu_count > machine.max_cpus {
        let permitted = format!("at most {}", machine.max_cpus);
        return Err(unsupported(
            "cpu.max_vcpu_count",
            cpu.max_vcpu_count,
            "the machine cannot have so many",
            &permitted,
        ));
    }
    if plan.machine == MachineType::Microvm && cpu.max_vcpu_count > cpu.vcpu_count {
        let permitted = format!("{} (vcpu_count), or machine q35", cpu.vcpu_count);
        return Err(unsupported("cpu.max_vcpu_count", cpu.max_vcpu_count, "microvm has no CPU hot-plug", &permitted));
    }
    let mut model = match &cpu.model {
        Some(model) if !plan.probe.cpu_models.contains(model.as_str()) => {
            let message = format!("cpu.model {model}: this QEMU does not know it");
            return Err(BackendError::permanent("CPU_MODEL_UNKNOWN", message)
                .hint("leave cpu.model out for the fastest one, or choose from `qemu-system-x86_64 -cpu help`"));
        }
        Some(model) if model.as_str() == "host" && !plan.accelerator.kvm => {
            let message = format!("cpu.model host needs KVM, and this VM runs with {}", plan.accelerator);
            return Err(
                BackendError::permanent("CPU_MODEL_UNKNOWN", message).hint("leave cpu.model out, or set it to max")
            );
        }
        Some(model) => model.to_string(),
        None if plan.accelerator.kvm => "host".to_owned(),
        None => "max".to_owned(),
    };
    for (feature, on) in &cpu.features {
        model.push_str(&format!(",{feature}={}", if *on { "on" } else { "off" }));
    }
    args.value("-cpu", model);
    let mut shape = format!("cpus={},maxcpus={}", cpu.vcpu_count, cpu.max_vcpu_count);
    if let Some(t) = cpu.topology {
        shape.push_str(&format!(",sockets={},cores={},threads={}", t.sockets, t.cores_per_socket, t.threads_per_core));
    }
    args.value("-smp", shape);
    Ok(())
}

pub(super) fn memory(vm: &Definition, plan: &Plan<'_>, args: &mut Args) -> Result<(), BackendError> {
    let memory = &vm.spec.memory;
    let size = memory.size.get();
    let mut object = json!({ "id": "ram0", "size": size, "merge": memory.merge, "dump": false });
    match memory.backing {
        Backing::Anonymous => object["qom-type"] = "memory-backend-ram".into(),
        Backing::Shared => {
            object["qom-type"] = "memory-backend-memfd".into();
            object["share"] = true.into();
        }
        Backing::Hugepages { page_size } => {
            object["qom-type"] = "memory-backend-memfd".into();
            object["share"] = true.into();
            object["hugetlb"] = true.into();
            object["hugetlbsize"] = page_size.get().into();
            // A lack of pages shows at the start and not as a SIGBUS later.
            object["prealloc"] = true.into();
        }
    }
    args.json("-object", &object);
    let mut text = format!("size={}M", memory.size.mib());
    if memory.max_size > memory.size {
        if plan.machine == MachineType::Microvm {
            return Err(no_memory_plug(memory.max_size, memory.size));
        }
        text.push_str(&format!(",slots={MEMORY_SLOTS},maxmem={}M", memory.max_size.mib()));
    }
    args.value("-m", text);
    Ok(())
}

fn no_memory_plug(max: Bytes, size: Bytes) -> BackendError {
    unsupported(
        "memory.max_size_bytes",
        max,
        "microvm has no memory hot-plug",
        &format!("{size} (size_bytes), or machine q35"),
    )
}

pub(super) fn boot(vm: &Definition, plan: &Plan<'_>, args: &mut Args) -> Result<(), BackendError> {
    let boot = &vm.spec.boot;
    if let Some(kernel) = &boot.kernel_path {
        args.value("-kernel", kernel.as_path());
        if let Some(initrd) = &boot.initrd_path {
            args.value("-initrd", initrd.as_path());
        }
        if !boot.kernel_args.is_empty() {
            args.value("-append", boot.kernel_args.as_str());
        }
    } else if plan.machine == MachineType::Microvm {
        let Some(firmware) = &plan.probe.microvm_firmware else {
            let problem = "this QEMU has no firmware that starts a microvm from a disk";
            return Err(unsupported("boot", "from a disk", problem, "boot.kernel_path, or machine q35"));
        };
        args.value("-bios", firmware);
    }
    // Nothing but what is listed is booted from.
    args.value("-boot", "menu=off,strict=on");
    Ok(())
}

pub(super) fn control(plan: &Plan<'_>, args: &mut Args) {
    // It waits with the cause of its end until that has been recorded.
    args.value("-action", "reboot=reset,shutdown=pause,panic=pause");
    args.value("-chardev", format!("socket,id=qmp,fd={QMP_FD},server=on,wait=off"));
    args.value("-mon", "chardev=qmp,mode=control");
    if plan.probe.sandbox {
        args.value("-sandbox", SANDBOX);
    }
}

pub(super) fn serial(vm: &Definition, args: &mut Args) {
    if vm.spec.console.enabled {
        args.value("-chardev", format!("socket,id=serial0,fd={SERIAL_FD}"));
        args.value("-serial", "chardev:serial0");
    } else {
        args.value("-serial", "none");
    }
}

/// What every machine gets: random numbers, and a port at which a guest says that it panicked.
pub(super) fn standard_devices(plan: &Plan<'_>, places: &mut Places, args: &mut Args) -> Result<(), BackendError> {
    if plan.probe.has("object:rng-builtin") {
        args.json("-object", &json!({ "qom-type": "rng-builtin", "id": "rng0" }));
        let mut device = places.virtio("rng", Role::Random)?;
        device["id"] = "roost-rng".into();
        device["rng"] = "rng0".into();
        // 64 KiB a second: a guest that asks for more costs the host CPU time.
        device["max-bytes"] = 65_536.into();
        device["period"] = 1000.into();
        args.json("-device", &device);
    }
    if plan.probe.has("device:pvpanic") {
        args.json("-device", &json!({ "driver": "pvpanic", "ioport": PVPANIC_PORT }));
    }
    Ok(())
}
