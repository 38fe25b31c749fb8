//! VMs as tests want them.

use std::path::Path;

use roost_client::v1;

/// A VM of the simulator.
pub fn sim(name: &str) -> v1::CreateVmRequest {
    v1::CreateVmRequest { backend: "sim".to_owned(), ..kernel_vm(name, Path::new("/boot/vmlinuz"), 32) }
}

/// A real machine with the guest that is up in a tenth of a second: it obeys the power button, and
/// on its serial line `q` powers off, `r` resets, `p` panics, `d` makes it deaf.
pub fn micro(name: &str) -> v1::CreateVmRequest {
    micro_on(name, "q35")
}

/// The same on a machine type.
pub fn micro_on(name: &str, machine: &str) -> v1::CreateVmRequest {
    let kernel = xtask::micro_guest().expect("gcc builds the guest");
    let mut request = kernel_vm(name, &kernel, 32);
    request.config.get_or_insert_default().machine = machine.to_owned();
    request
}

/// A real machine with the small Linux guest.
pub fn tiny(name: &str) -> v1::CreateVmRequest {
    let guest = xtask::tiny_guest().expect("the guest image can be made");
    let mut request = kernel_vm(name, &guest.kernel, 192);
    let boot = request.config.get_or_insert_default().boot.get_or_insert_default();
    boot.initrd_path = guest.initrd.to_str().expect("the cache's path is Unicode").to_owned();
    boot.kernel_args = xtask::KERNEL_ARGS.to_owned();
    request
}

fn kernel_vm(name: &str, kernel: &Path, mib: i64) -> v1::CreateVmRequest {
    let kernel_path = kernel.to_str().expect("the cache's path is Unicode").to_owned();
    v1::CreateVmRequest {
        name: name.to_owned(),
        config: v1::VmConfig {
            cpu: v1::CpuConfig { vcpu_count: 1, ..Default::default() }.into(),
            memory: v1::MemoryConfig { size_bytes: mib << 20, ..Default::default() }.into(),
            boot: v1::BootConfig { kernel_path, ..Default::default() }.into(),
            console: v1::ConsoleConfig { enabled: true, ..Default::default() }.into(),
            ..Default::default()
        }
        .into(),
        ..Default::default()
    }
}
