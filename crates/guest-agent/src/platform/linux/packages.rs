//! Packages, as the guest's package manager has them.
//!
//! Each manager's file knows its arguments and its output; the order of things (are the lists known, what was there
//! before, what is there now) is the same for all, and here.

mod apk;
mod apt;
mod dnf;
mod pacman;
mod rpm;
mod zypper;

use std::collections::HashMap;

use roost_guest_proto::results::{Package, PackageChange};
use roost_guest_proto::{ErrorCode, PackageName, PackageVersion, SearchQuery};

use crate::platform::System;
use crate::run::Finished;
use crate::safe::{Context, Failure, not_supported};

/// The most that a manager's list is read of.
const MAX_OUTPUT: usize = 4 << 20;

/// How long a manager may take to put what it has begun in order.
const GRACE: std::time::Duration = std::time::Duration::from_secs(30);

/// The longest description that is passed on.
const MAX_DESCRIPTION: usize = 200;

type Ran<T> = Result<(T, Option<Finished>), Failure>;

/// What a package manager can be asked. All of it blocks, and none of it asks back.
trait Manager {
    fn name(&self) -> &'static str;
    /// What is installed.
    fn list(&self, context: &Context) -> Ran<Vec<Package>>;
    /// What the lists of its sources have, as far as they are fetched, whether it is installed or not.
    fn search(&self, context: &Context, query: &SearchQuery) -> Ran<Vec<Package>>;
    /// The version that is installed.
    fn installed(&self, context: &Context, package: &PackageName) -> Result<Option<String>, Failure>;
    /// Whether the lists have exactly this name: no pattern, and no similar one.
    fn knows(&self, context: &Context, package: &PackageName) -> Result<bool, Failure>;
    /// Fetches the lists.
    fn refresh(&self, context: &Context) -> Result<Finished, Failure>;
    fn install(
        &self,
        context: &Context,
        package: &PackageName,
        version: Option<&PackageVersion>,
    ) -> Result<Finished, Failure>;
    /// Whether an installation failed because the lists are too old.
    fn is_stale(&self, failed: &Finished) -> bool;
    fn remove(&self, context: &Context, package: &PackageName) -> Result<Finished, Failure>;
    /// One, or all.
    fn update(&self, context: &Context, package: Option<&PackageName>) -> Result<Finished, Failure>;
}

/// By its own data, because a program of another system's manager may be installed beside it.
fn detect(system: &System) -> Option<&'static dyn Manager> {
    let there = |path: &str, programs: &[&str]| system.file(path).exists() && programs.iter().all(|it| system.has(it));
    if there("/var/lib/dpkg", &["apt-get", "apt-cache", "dpkg-query"]) {
        Some(&apt::Apt)
    } else if apk::database(system).is_some() && system.has("apk") {
        Some(&apk::Apk)
    } else if there("/var/lib/pacman", &["pacman"]) {
        Some(&pacman::Pacman)
    } else if there("/etc/zypp", &["zypper", "rpm"]) {
        Some(&zypper::Zypper)
    } else if system.has("rpm") && dnf::program(system).is_some() {
        Some(&dnf::Dnf)
    } else {
        None
    }
}

fn manager(system: &System) -> Result<&'static dyn Manager, Failure> {
    detect(system).ok_or_else(|| not_supported("packages: this guest has none of apt, dnf, apk, zypper, pacman"))
}

/// Which one the guest has.
pub(crate) fn package_manager(system: &System) -> Option<&'static str> {
    detect(system).map(Manager::name)
}

/// What is installed, by name, and who says so.
pub(crate) fn packages(context: &Context) -> Result<(&'static str, Vec<Package>, Option<Finished>), Failure> {
    let manager = manager(&context.system)?;
    let (packages, finished) = manager.list(context)?;
    Ok((manager.name(), in_order(packages), finished))
}

/// What there is to install.
pub(crate) fn search_packages(
    context: &Context,
    query: &SearchQuery,
) -> Result<(&'static str, Vec<Package>, Option<Finished>), Failure> {
    let manager = manager(&context.system)?;
    let (mut packages, finished) = manager.search(context, query)?;
    let (installed, _) = manager.list(context)?;
    let versions: HashMap<_, _> = installed.into_iter().map(|package| (package.name, package.version)).collect();
    for package in &mut packages {
        if let Some(version) = versions.get(&package.name) {
            package.installed = true;
            package.version = package.version.take().or_else(|| version.clone());
        }
    }
    Ok((manager.name(), in_order(packages), finished))
}

fn in_order(mut packages: Vec<Package>) -> Vec<Package> {
    packages.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    for package in &mut packages {
        if package.description.len() > MAX_DESCRIPTION {
            package.description = package.description.chars().take(MAX_DESCRIPTION).collect();
        }
    }
    packages
}

/// Installs a package. The lists are fetched if `refresh` says so; or, where it says nothing, if they do not have it.
pub(crate) fn install_package(
    context: &Context,
    package: &PackageName,
    version: Option<&PackageVersion>,
    refresh: Option<bool>,
) -> Result<(PackageChange, Finished), Failure> {
    let manager = manager(&context.system)?;
    let mut fresh = false;
    if refresh == Some(true) {
        manager.refresh(context)?;
        fresh = true;
    }
    if !manager.knows(context, package)? {
        let unknown = || Failure::new(ErrorCode::NotFound, format!("package: {} knows no {package:?}", manager.name()));
        if fresh || refresh == Some(false) {
            return Err(unknown());
        }
        manager.refresh(context)?;
        fresh = true;
        if !manager.knows(context, package)? {
            return Err(unknown());
        }
    }
    let previous_version = manager.installed(context, package)?;
    let finished = match manager.install(context, package, version) {
        Err(failure) if !fresh && refresh.is_none() && failure.finished().is_some_and(|it| manager.is_stale(it)) => {
            manager.refresh(context)?;
            manager.install(context, package, version)?
        }
        finished => finished?,
    };
    changed(manager, context, Some(package), previous_version, finished)
}

/// Removes a package and what needs it. One that is not there is not there afterwards.
pub(crate) fn remove_package(
    context: &Context,
    package: &PackageName,
) -> Result<(PackageChange, Option<Finished>), Failure> {
    let manager = manager(&context.system)?;
    let Some(previous) = manager.installed(context, package)? else {
        let change = PackageChange {
            manager: manager.name().to_owned(),
            package: Some(package.to_string()),
            ..Default::default()
        };
        return Ok((change, None));
    };
    let finished = manager.remove(context, package)?;
    let (change, finished) = changed(manager, context, Some(package), Some(previous), finished)?;
    Ok((change, Some(finished)))
}

/// Fetches the lists, and brings one package or all to the newest version.
pub(crate) fn update_packages(
    context: &Context,
    package: Option<&PackageName>,
) -> Result<(PackageChange, Finished), Failure> {
    let manager = manager(&context.system)?;
    let previous = match package {
        None => None,
        Some(package) => Some(
            manager
                .installed(context, package)?
                .ok_or_else(|| Failure::new(ErrorCode::NotFound, format!("package: {package:?} is not installed")))?,
        ),
    };
    manager.refresh(context)?;
    let finished = manager.update(context, package)?;
    changed(manager, context, package, previous, finished)
}

fn changed(
    manager: &dyn Manager,
    context: &Context,
    package: Option<&PackageName>,
    previous_version: Option<String>,
    finished: Finished,
) -> Result<(PackageChange, Finished), Failure> {
    let version = package.map(|package| manager.installed(context, package)).transpose()?.flatten();
    let change = PackageChange {
        manager: manager.name().to_owned(),
        package: package.map(ToString::to_string),
        // All of them: it is not looked at which.
        changed: package.is_none() || version != previous_version,
        version,
        previous_version,
    };
    Ok((change, finished))
}

/// The name without an architecture.
fn bare(package: &PackageName) -> &str {
    package.as_str().split(':').next().unwrap_or_default()
}

/// A package, or a version of it.
fn spec(package: &PackageName, separator: char, version: Option<&PackageVersion>) -> String {
    version.map_or_else(|| package.to_string(), |version| format!("{package}{separator}{version}"))
}

fn text(value: &str) -> Option<String> {
    (!value.is_empty() && value != "(none)").then(|| value.to_owned())
}
