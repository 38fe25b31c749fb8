//! Linux: what `/proc` and `/sys` say, file systems, and netlink.
//!
//! Each file reads one group. A parser is a function over bytes that cannot fail but by finding nothing; what reads
//! the kernel's files is beside it.

mod cpu;
mod disk_io;
mod files;
mod memory;
mod mounts;
mod network;
mod pids;
mod ports;
mod pressure;
mod processes;
mod sensors;
mod sockets;
mod system;
mod text;
mod usage;

use std::time::Duration;

use roost_guest_proto::metrics::{
    CpuMetrics, DiskMetrics, HostInfo, MemoryMetrics, NetworkMetrics, OsMetrics, PortInfo, Pressure, ProcessInfo,
};

use super::interval::Shortage;
use super::{Config, Failure, Notes};
use files::Files;

/// Where each group comes from, with what it remembers.
#[derive(Debug)]
pub(super) struct Sources {
    files: Files,
    cpu: cpu::Cpu,
    disk_io: disk_io::DiskIoRates,
    usage: usage::Usages,
    network: network::Network,
    processes: processes::Processes,
    ports: ports::Ports,
}

impl Sources {
    pub(super) fn new(config: &Config) -> Self {
        let files = Files::new(config.root.clone());
        let mut sources = Self {
            cpu: cpu::Cpu::default(),
            disk_io: disk_io::DiskIoRates::default(),
            usage: usage::Usages::new(Duration::from_millis(config.mount_timeout_ms)),
            network: network::Network::default(),
            processes: processes::Processes::new(config.processes),
            ports: ports::Ports::new(&files),
            files,
        };
        // Whatever fails now fails again in the frame that it matters for, and is told there.
        sources.cpu.begin(&mut sources.files);
        sources.disk_io.begin(&mut sources.files);
        sources.network.begin(&mut sources.files);
        sources
    }

    pub(super) fn cpu(&mut self) -> Result<CpuMetrics, Failure> {
        self.cpu.collect(&mut self.files)
    }

    pub(super) fn memory(&mut self) -> Result<MemoryMetrics, Failure> {
        memory::collect(&mut self.files)
    }

    pub(super) fn disk(&mut self, notes: &mut Notes) -> Result<DiskMetrics, Failure> {
        let usage_stats = self.usage.collect(mounts::read(&mut self.files)?, notes);
        let (io_stats, devices) = self.disk_io.collect(&mut self.files)?;
        Ok(DiskMetrics { usage_stats, io_stats, devices })
    }

    pub(super) fn network(&mut self, notes: &mut Notes) -> Result<NetworkMetrics, Failure> {
        self.network.collect(&mut self.files, notes)
    }

    pub(super) fn system(&mut self) -> Result<OsMetrics, Failure> {
        system::collect(&mut self.files)
    }

    pub(super) fn pressure(&mut self) -> Result<Option<Pressure>, Failure> {
        pressure::collect(&mut self.files)
    }

    pub(super) fn processes(&mut self, notes: &mut Notes) -> Result<Vec<ProcessInfo>, Failure> {
        self.processes.collect(&mut self.files, notes)
    }

    pub(super) fn ports(&mut self, notes: &mut Notes) -> Result<Vec<PortInfo>, Failure> {
        self.ports.collect(&mut self.files, notes)
    }

    pub(super) fn host(&mut self, service_manager: Option<&str>) -> Result<HostInfo, Failure> {
        system::host(&mut self.files, service_manager)
    }

    /// What the interval depends on. What cannot be read tells nothing.
    pub(super) fn shortage(&mut self) -> Shortage {
        let stall = pressure::memory(&mut self.files).ok().flatten();
        let memory = memory::collect(&mut self.files).ok().filter(|memory| memory.total_kb > 0);
        Shortage {
            available_percent: memory.map(|memory| 100.0 * memory.available_kb as f64 / memory.total_kb as f64),
            some_stalled: stall.map(|stall| stall.some),
            all_stalled: stall.map(|stall| stall.full),
        }
    }

    /// Gives back the memory that only this collection needed.
    pub(super) fn shrink(&mut self) {
        self.files.shrink();
    }
}
