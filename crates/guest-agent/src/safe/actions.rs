//! From an action to what carries it out.

use roost_guest_proto::results::{Cleanup, HostnameResult, Network, Packages, Processes, Services};
use roost_guest_proto::{CleanupTarget, ErrorBody, SafeAction, UserName};
use serde_json::json;

use super::lists::{Page, capped, page};
use super::{Context, Failure, Outcome, health, not_supported};
use crate::platform::{self, KeyChange, Power};

/// The most keys in one action.
const MAX_KEYS: usize = 100;

/// How old what is cleaned away is, in days, where the action does not say.
const CLEANUP_DAYS: u32 = 10;

pub(super) fn carry_out(action: &SafeAction, context: &Context) -> Result<Outcome, Failure> {
    match action {
        SafeAction::ServiceList {} => {
            let (services, finished) = platform::services(context)?;
            let Page { items, total, truncated } = page(services.services, None, None);
            Ok(Outcome::data(&Services { services: items, total, truncated, ..services }).ran(finished))
        }
        SafeAction::ServiceControl { service, operation } => {
            let (service, finished) = platform::control_service(context, service, *operation)?;
            Ok(Outcome::data(&service).ran(finished))
        }
        SafeAction::PackageList { offset, limit } => {
            let (manager, all, finished) = platform::packages(context)?;
            Ok(Outcome::data(&packages(manager, page(all, *offset, *limit))).ran(finished))
        }
        SafeAction::PackageSearch { query, limit } => {
            let (manager, all, finished) = platform::search_packages(context, query)?;
            Ok(Outcome::data(&packages(manager, page(all, None, *limit))).ran(finished))
        }
        SafeAction::PackageInstall { package, version, refresh } => {
            let (change, finished) = platform::install_package(context, package, version.as_ref(), *refresh)?;
            Ok(Outcome::data(&change).ran(finished))
        }
        SafeAction::PackageRemove { package } => {
            let (change, finished) = platform::remove_package(context, package)?;
            Ok(Outcome::data(&change).ran(finished))
        }
        SafeAction::PackageUpdate { package } => {
            let (change, finished) = platform::update_packages(context, package.as_ref())?;
            Ok(Outcome::data(&change).ran(finished))
        }
        SafeAction::ProcessList { limit } => Ok(processes(platform::processes(context, capped(*limit))?)),
        SafeAction::ProcessTop { limit, sort_by } => {
            let limit = limit.map_or(10, |limit| capped(Some(limit)));
            Ok(processes(platform::top_processes(context, sort_by.unwrap_or_default(), limit)?))
        }
        SafeAction::ProcessKill { pid, force, start_time } => {
            Ok(Outcome::data(&platform::kill_process(context, *pid, force.unwrap_or(false), *start_time)?))
        }
        SafeAction::SystemInfo {} => Ok(Outcome::data(&platform::system_info(&context.system))),
        SafeAction::OsInfo {} => Ok(Outcome::data(&platform::os_info(&context.system))),
        SafeAction::RunHealthCheck { check_name } => Ok(health::run_check(context, *check_name)),
        SafeAction::RunAllHealthChecks {} => health::run_all_checks(context),
        SafeAction::CheckDiskSpace { warning_threshold, critical_threshold } => {
            health::check_disk_space(context, *warning_threshold, *critical_threshold)
        }
        SafeAction::DiskCleanup { drive, targets, older_than_days } => {
            clean(context, drive.as_deref(), targets, *older_than_days)
        }
        SafeAction::HostnameGet {} => {
            Ok(Outcome::data(&HostnameResult { hostname: platform::hostname(), previous: None }))
        }
        SafeAction::HostnameSet { hostname } => {
            let previous = platform::set_hostname(&context.system, hostname)?;
            Ok(Outcome::data(&HostnameResult { hostname: hostname.to_string(), previous: Some(previous) }))
        }
        SafeAction::NetworkInfo {} => match platform::network(&context.system) {
            Ok(network) => {
                let Page { items, truncated, .. } = page(network.interfaces, None, None);
                Ok(Outcome::data(&Network { interfaces: items, truncated, ..network }))
            }
            Err(error) => Err(not_supported(format!("NetworkInfo: rtnetlink: {error}"))),
        },
        SafeAction::UserSetPassword { user, password, encrypted } => {
            let finished = platform::set_password(context, user, password, encrypted.unwrap_or(false))?;
            Ok(Outcome::data(&json!({ "user": user.as_str() })).ran(finished))
        }
        SafeAction::SshKeyList { user } => keys(context, user, KeyChange::List),
        SafeAction::SshKeyAdd { user, keys: added } => keys(context, user, KeyChange::Add(added)),
        SafeAction::SshKeyRemove { user, keys: removed } => keys(context, user, KeyChange::Remove(removed)),
        SafeAction::TimeSync { time_ms } => {
            let (synced, finished) = platform::sync_clock(context, *time_ms)?;
            Ok(Outcome::data(&synced).ran(finished))
        }
        SafeAction::Shutdown { force } => power(context, Power::Off, *force),
        SafeAction::Reboot { force } => power(context, Power::Reboot, *force),
        SafeAction::Diagnose {} => {
            Ok(Outcome::data(&crate::diagnose::diagnose(&context.system, &crate::diagnose::Options::default())))
        }
        SafeAction::CheckWindowsUpdates {} | SafeAction::GetUpdateHistory { .. } | SafeAction::GetPendingUpdates {} => {
            Err(windows_only(action, "Windows Update", "PackageUpdate"))
        }
        SafeAction::CheckWindowsDefender {}
        | SafeAction::GetDefenderStatus {}
        | SafeAction::RunDefenderQuickScan {}
        | SafeAction::GetThreatHistory {} => Err(windows_only(action, "Windows Defender", "RunAllHealthChecks")),
        SafeAction::GetInstalledApplicationsWMI {}
        | SafeAction::CheckApplicationUpdates {}
        | SafeAction::GetApplicationDetails { .. } => Err(windows_only(action, "WMI", "PackageList and PackageSearch")),
    }
}

fn packages(manager: &str, page: Page<roost_guest_proto::results::Package>) -> Packages {
    let Page { items, total, truncated } = page;
    Packages { manager: manager.to_owned(), packages: items, total, truncated }
}

fn processes((shown, total): (Vec<roost_guest_proto::results::Process>, usize)) -> Outcome {
    let Page { items, .. } = page(shown, None, None);
    Outcome::data(&Processes { truncated: items.len() < total, processes: items, total })
}

fn clean(
    context: &Context,
    drive: Option<&str>,
    targets: &[CleanupTarget],
    days: Option<u32>,
) -> Result<Outcome, Failure> {
    if targets.is_empty() {
        let permitted: Vec<_> = CleanupTarget::ALL.iter().map(|target| target.as_str()).collect();
        let message = format!("targets: none; permitted: some of {}", permitted.join(", "));
        return Err(ErrorBody::field("targets", message).into());
    }
    let days = days.unwrap_or(CLEANUP_DAYS);
    if !(1..=3650).contains(&days) {
        let message = format!("older_than_days: {days}; permitted: 1 to 3650");
        return Err(ErrorBody::field("older_than_days", message).into());
    }
    let device = drive.map(|drive| platform::drive_device(&context.system, drive)).transpose()?;
    let (mut cleanup, mut ran) = (Cleanup::default(), None);
    for target in CleanupTarget::ALL.iter().filter(|target| targets.contains(target)) {
        let (cleaned, finished) = platform::clean(context, *target, device, days)?;
        cleanup.freed_bytes = cleanup.freed_bytes.saturating_add(cleaned.freed_bytes);
        cleanup.targets.push(cleaned);
        ran = finished.or(ran);
    }
    Ok(Outcome::data(&cleanup).ran(ran))
}

fn keys(context: &Context, user: &UserName, change: KeyChange<'_>) -> Result<Outcome, Failure> {
    if let KeyChange::Add(keys) | KeyChange::Remove(keys) = change
        && !(1..=MAX_KEYS).contains(&keys.len())
    {
        let message = format!("keys: {}; permitted: 1 to {MAX_KEYS}", keys.len());
        return Err(ErrorBody::field("keys", message).into());
    }
    Ok(Outcome::data(&platform::ssh_keys(&context.system, user, change)?))
}

fn power(context: &Context, power: Power, force: Option<bool>) -> Result<Outcome, Failure> {
    let (data, finished) = platform::power(context, power, force.unwrap_or(false))?;
    Ok(Outcome::data(&data).ran(finished))
}

fn windows_only(action: &SafeAction, what: &str, instead: &str) -> Failure {
    not_supported(format!("{}: this guest is Linux and has no {what}; {instead} may do", action.name()))
}
