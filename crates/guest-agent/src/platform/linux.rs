//! Linux.

mod accounts;
mod cleanup;
mod clock;
mod facts;
mod files;
mod findings;
mod hostname;
mod mounts;
pub(crate) mod netlink;
mod network;
mod packages;
mod passwords;
mod power;
mod processes;
mod services;
mod ssh_keys;
mod sys;

pub(crate) use cleanup::{clean, drive_device};
pub(crate) use clock::{set_clock, sync_clock};
pub(crate) use facts::{cpus, hostname, load_average, memory, os_info, system_info};
pub(crate) use files::replace;
pub(crate) use findings::findings;
pub(crate) use hostname::set_hostname;
pub(crate) use mounts::{Mount, mounts};
pub(crate) use network::{InterfacePlan, network};
pub(crate) use packages::{
    install_package, package_manager, packages, remove_package, search_packages, update_packages,
};
pub(crate) use passwords::set_password;
pub(crate) use power::{Power, power};
pub(crate) use processes::{kill_process, process_states, processes, top_processes};
pub(crate) use services::{control_service, failed_services, service_manager, services};
pub(crate) use ssh_keys::{KeyChange, ssh_keys};
pub(crate) use sys::{MAX_ENTROPY, add_entropy, freeze, ignore_termination, reseed, thaw};
