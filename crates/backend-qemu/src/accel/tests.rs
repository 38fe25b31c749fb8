use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::args::tests::probe;

fn facts(device: Device, modules: KvmModules, virtualisation: bool) -> Facts {
    Facts { device, modules, virtualisation }
}

#[test]
fn what_speaks_against_kvm_is_told_in_words() {
    let none = KvmModules::default();
    let intel = KvmModules { intel: true, ..none };
    let pvm = KvmModules { pvm: true, ..none };
    let denied = || Device::Refused(io::Error::from_raw_os_error(13));
    for (facts, expected) in [
        (facts(Device::Missing, intel, true), Some("there is no /dev/kvm")),
        (facts(denied(), intel, true), Some("/dev/kvm does not open: Permission denied")),
        (facts(Device::Opens, pvm, true), Some("/dev/kvm runs no stock kernel (kvm_pvm)")),
        (facts(Device::Opens, none, false), Some("/dev/kvm is there, but neither kvm_intel")),
        // Built in, so that the module does not show.
        (facts(Device::Opens, none, true), None),
        (facts(Device::Opens, intel, false), None),
    ] {
        let verdict = against(&facts, &probe());
        match (verdict, expected) {
            (None, None) => {}
            (Some(verdict), Some(reason)) if !verdict.works && verdict.reason.starts_with(reason) => {}
            other => panic!("{facts:?}: {other:?}"),
        }
    }
    let without = Probe { accelerators: BTreeSet::from(["tcg".to_owned()]), ..probe() };
    assert!(against(&facts(Device::Opens, intel, true), &without).is_some());
}

#[test]
fn a_demand_is_met_or_refused_and_auto_takes_the_best() {
    let works = Verdict { works: true, reason: "fast".to_owned(), hint: String::new() };
    let fails = Verdict { works: false, reason: "no /dev/kvm".to_owned(), hint: "plug it in".to_owned() };
    use Accelerator::{Auto, Kvm, Tcg};
    let chosen = |wish, config, verdict| choose(wish, config, &probe(), verdict).map(|choice| choice.to_string());
    assert_eq!(chosen(Auto, Auto, &works).unwrap(), "kvm: fast");
    assert_eq!(chosen(Auto, Auto, &fails).unwrap(), "tcg: no /dev/kvm");
    assert_eq!(chosen(Auto, Tcg, &works).unwrap(), "tcg: demanded by the configuration");
    assert_eq!(chosen(Tcg, Kvm, &works).unwrap(), "tcg: demanded by the VM's spec");
    assert_eq!(chosen(Kvm, Tcg, &works).unwrap(), "kvm: demanded by the VM's spec");
    for (wish, config) in [(Kvm, Auto), (Auto, Kvm)] {
        let refused = chosen(wish, config, &fails).unwrap_err();
        assert_eq!((refused.reason, refused.hint.as_str()), ("KVM_UNAVAILABLE", "plug it in"));
        assert!(refused.message.contains("no /dev/kvm"), "{refused}");
    }
    let no_tcg = Probe { accelerators: BTreeSet::new(), machines: BTreeMap::new(), ..probe() };
    assert_eq!(choose(Tcg, Auto, &no_tcg, &works).unwrap_err().reason, "TCG_UNAVAILABLE");
}

/// A host's QEMU, and a place for its cache.
async fn tools() -> (tempfile::TempDir, QemuConfig, Exits, Probe) {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let config = QemuConfig::new(at("run"), at("state"), at("cache"), "/bin/true".into());
    let exits = Exits::start().unwrap();
    let binary = Binary::find(&config.binary).expect("QEMU is installed");
    let probe = Probe::of(binary, &config, &exits).await.unwrap();
    (dir, config, exits, probe)
}

#[tokio::test]
async fn the_trial_ends_by_itself_where_instructions_run() {
    let (_dir, config, exits, probe) = tools().await;
    let verdict = run_trial("tcg", "max", &probe, &config, &exits).await;
    assert!(verdict.works, "{}", verdict.reason);
}

#[tokio::test]
async fn the_trial_of_what_does_not_work_says_so_in_time() {
    let (_dir, mut config, exits, probe) = tools().await;
    let broken = run_trial("tcg", "nonsense", &probe, &config, &exits).await;
    assert!(!broken.works && broken.reason.contains("nonsense"), "{}", broken.reason);
    config.limits.trial = std::time::Duration::from_millis(1);
    let slow = run_trial("tcg", "max", &probe, &config, &exits).await;
    assert!(!slow.works && slow.reason.contains("too slow"), "{}", slow.reason);
}

#[tokio::test]
async fn the_verdict_on_this_host_comes_in_time_and_has_a_reason() {
    let (_dir, config, exits, probe) = tools().await;
    let begun = std::time::Instant::now();
    let verdict = verdict(&probe, &config, &exits).await;
    assert!(begun.elapsed() < std::time::Duration::from_secs(6));
    assert!(!verdict.reason.is_empty());
}
