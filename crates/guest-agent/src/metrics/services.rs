//! The services and how they are: what the action `ServiceList` tells, cut to what a frame holds.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use roost_guest_proto::metrics::Group;
use roost_guest_proto::results::Service;

use super::{Failure, Notes, printable};
use crate::platform::{System, service_manager};
use crate::run::Cancel;
use crate::safe::Context;

/// In a frame.
const MAX_SERVICES: usize = 512;
const MAX_NAME: usize = 128;
const MAX_WORD: usize = 32;

/// For all that is asked of the service manager. The frame waits for it.
const TIME: Duration = Duration::from_secs(5);

/// In the order of their names. None at all where nothing that is known manages services.
pub(super) fn collect(system: &System, notes: &mut Notes) -> Result<Vec<Service>, Failure> {
    if service_manager(system).is_none() {
        return Ok(Vec::new());
    }
    let cancel = Cancel::new().map_err(|source| Failure::System { what: "cannot run a program", source })?;
    // Listing writes nothing, so it does not matter what is frozen.
    let context = Context::new(system.clone(), cancel, Arc::new(AtomicBool::new(false))).within(TIME);
    let told = crate::platform::services(&context);
    let (told, _) = told.map_err(|failure| Failure::Other(failure.error().message.clone()))?;
    let mut services = told.services;
    if services.len() > MAX_SERVICES {
        // Those that do something before those that lie there.
        services.sort_by_key(|service| service.state == "inactive");
        services.truncate(MAX_SERVICES);
        services.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        notes.say(Group::Services, None, &format!("more than {MAX_SERVICES} services: inactive ones are left out"));
    }
    for service in &mut services {
        service.name = printable(&service.name, MAX_NAME);
        service.description = printable(&service.description, MAX_NAME);
        service.state = printable(&service.state, MAX_WORD);
        service.sub_state = service.sub_state.as_deref().map(|word| printable(word, MAX_WORD));
    }
    Ok(services)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::tests::write_openrc;

    #[test]
    fn there_is_a_limit_and_what_does_something_is_within_it() {
        let root = tempfile::tempdir().unwrap();
        let states = (0..600).map(|n| format!("s{n:03} = {}\n", if n < 500 { "stopped" } else { "started" }));
        write_openrc(root.path(), &states.collect::<String>());
        let mut notes = Notes::default();
        let services = collect(&System::at(root.path()), &mut notes).unwrap();
        assert_eq!((services.len(), notes.errors.len()), (MAX_SERVICES, 1));
        assert_eq!(services.iter().filter(|service| service.state == "active").count(), 100);
        assert!(services.is_sorted_by_key(|service| &service.name));
    }

    #[test]
    fn what_is_shown_is_printable_and_bounded() {
        let root = tempfile::tempdir().unwrap();
        write_openrc(root.path(), &format!("\x1b[2J{} = {}\n", "x".repeat(500), "y".repeat(500)));
        let services = collect(&System::at(root.path()), &mut Notes::default()).unwrap();
        assert!(services[0].name.starts_with("?[2Jx") && services[0].name.len() == MAX_NAME, "{services:?}");
        assert!(services[0].state.len() <= MAX_WORD);
    }

    #[test]
    fn a_guest_without_a_manager_has_no_services_and_one_that_fails_says_so() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(collect(&System::at(root.path()), &mut Notes::default()).unwrap(), []);
        write_openrc(root.path(), "");
        std::fs::write(root.path().join("sbin/rc-status"), "#!/bin/sh\necho broken >&2\nexit 3\n").unwrap();
        assert!(collect(&System::at(root.path()), &mut Notes::default()).is_err());
    }
}
