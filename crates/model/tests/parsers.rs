//! Whatever people type: no parser panics, and what one accepts it writes and reads again as the same.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::fmt::{Debug, Display};
use std::str::FromStr;
use std::time::Duration;

use proptest::prelude::*;
use roost_model::error::Invalid;
use roost_model::id::looks_like_id;
use roost_model::operation::Goal;
use roost_model::spec::{
    AbsolutePath, Accelerator, Bus, CpuFeature, CpuModel, Device, DiskFormat, KernelArgs, MacAddress, MachineType,
    Protocol, RestartMode,
};
use roost_model::{
    BackendName, Bytes, ExitCause, LaunchId, NodeId, OperationId, OperationKind, Power, Priority, ProjectId,
    ResourceKind, Status, Timestamp, VmId, VmName, VmState,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Text that may come close to something that is accepted.
fn texts() -> impl Strategy<Value = String> {
    prop_oneof![
        2 => any::<String>(),
        1 => ".*",
        2 => "[a-zA-Z0-9._-]{0,70}",
        2 => "/?[a-z./\\\\:,= \\n\\u{0}é-]{0,40}",
        2 => "[0-9]{0,22} ?(KiB|MiB|GiB|TiB|KB|MB|GB|TB|B|kib|X)?",
        2 => "([0-9a-fA-F]{1,2}[:-]){0,7}[0-9a-fA-F]{0,2}",
        2 => "[0-9]{1,5}-[0-9]{1,2}-[0-9]{1,2}[Tt ][0-9]{1,2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{0,9})?(Z|[+-][0-9]{2}:?[0-9]{2})?",
        2 => "(vm|op|launch|node|project|x)?_?[0-9a-fA-F]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        1 => "(running|stopped|paused|q35|microvm|on-failure|vm:create|tcp|raw|virtio|kvm|critical|Running| q35)",
    ]
}

/// A refusal names the text, cut and escaped; what is accepted round-trips, as text and as it is stored.
fn check<T>(text: &str)
where
    T: FromStr<Err = Invalid> + Display + PartialEq + Debug + Serialize + DeserializeOwned,
{
    match text.parse::<T>() {
        Ok(value) => {
            assert_eq!(value.to_string().parse::<T>().as_ref(), Ok(&value), "{text:?}");
            let stored = serde_json::to_string(&value).unwrap();
            assert_eq!(serde_json::from_str::<T>(&stored).unwrap(), value, "{text:?} is stored as {stored}");
        }
        Err(invalid) => check_refusal(&invalid, text),
    }
}

fn check_refusal(invalid: &Invalid, text: &str) {
    assert!(!invalid.field.is_empty() && !invalid.problem.is_empty());
    assert!(invalid.value.chars().count() <= 128);
    assert!(text.starts_with(invalid.value.trim_end_matches('…')), "{text:?} is shown as {:?}", invalid.value);
    assert!(!invalid.to_string().chars().any(char::is_control), "{invalid} shows control characters");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_refused_or_round_trips(text in texts()) {
        check::<VmName>(&text);
        check::<BackendName>(&text);
        check::<Bytes>(&text);
        check::<AbsolutePath>(&text);
        check::<KernelArgs>(&text);
        check::<MacAddress>(&text);
        check::<Timestamp>(&text);
        check::<CpuModel>(&text);
        check::<CpuFeature>(&text);
        check::<VmId>(&text);
        check::<OperationId>(&text);
        check::<LaunchId>(&text);
        check::<NodeId>(&text);
        check::<ProjectId>(&text);
        check::<Power>(&text);
        check::<ExitCause>(&text);
        check::<VmState>(&text);
        check::<Status>(&text);
        check::<Priority>(&text);
        check::<ResourceKind>(&text);
        check::<RestartMode>(&text);
        check::<MachineType>(&text);
        check::<Accelerator>(&text);
        check::<Bus>(&text);
        check::<DiskFormat>(&text);
        check::<Device>(&text);
        check::<Protocol>(&text);
        if let Ok(kind) = text.parse::<OperationKind>() {
            prop_assert_eq!(kind.as_str(), text);
        }
    }

    #[test]
    fn a_name_is_safe_as_a_file_a_host_and_an_argument(text in texts()) {
        if let Ok(name) = text.parse::<VmName>() {
            let name = name.as_str();
            prop_assert_eq!(name, &text);
            prop_assert!(name.len() <= 63 && !name.starts_with(['-', '.', '_']) && !looks_like_id(name));
            prop_assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)));
        }
    }

    #[test]
    fn a_path_is_absolute_and_steps_nowhere(text in texts()) {
        if let Ok(path) = text.parse::<AbsolutePath>() {
            prop_assert_eq!(path.as_str(), &text);
            let parts: Vec<_> = path.as_path().components().collect();
            prop_assert!(path.as_path().is_absolute() && !parts.contains(&std::path::Component::ParentDir));
        }
    }

    #[test]
    fn every_size_is_written_so_that_it_is_read(bytes in any::<u64>(), shift in 0..64u32) {
        let size = Bytes::new(bytes >> shift << shift);
        prop_assert_eq!(size.to_string().parse::<Bytes>(), Ok(size));
    }

    #[test]
    fn every_time_that_has_a_text_is_read_again(ms in -62_135_596_800_000i64..=253_402_207_200_000) {
        let time = Timestamp::from_unix_ms(ms);
        prop_assert_eq!(time.to_string().parse::<Timestamp>(), Ok(time));
    }

    #[test]
    fn times_far_away_do_no_harm(ms in any::<i64>(), by in any::<u64>(), other in any::<i64>()) {
        let (time, other) = (Timestamp::from_unix_ms(ms), Timestamp::from_unix_ms(other));
        prop_assert!(!time.to_string().is_empty());
        prop_assert!(time.after(Duration::from_millis(by)) >= time);
        prop_assert_eq!(time.since(other).is_zero(), time <= other);
    }

    #[test]
    fn every_unicast_address_round_trips(bytes in any::<[u8; 6]>()) {
        let text = bytes.map(|b| format!("{b:02x}")).join(":");
        let fits = bytes[0] & 1 == 0 && bytes != [0; 6];
        match text.parse::<MacAddress>() {
            Ok(mac) => { prop_assert!(fits); prop_assert_eq!(mac.to_string(), text); }
            Err(_) => prop_assert!(!fits),
        }
    }

    #[test]
    fn every_id_round_trips_in_both_forms(ms in 0..1u64 << 48, random in any::<[u8; 10]>()) {
        let id = VmId::from_parts(ms, random);
        prop_assert_eq!(id.to_string().parse::<VmId>(), Ok(id));
        prop_assert_eq!(id.uuid().to_string().parse::<VmId>(), Ok(id));
        prop_assert!(looks_like_id(&id.to_string()) && id.to_string().parse::<VmName>().is_err());
        prop_assert!(id.to_string().parse::<OperationId>().is_err());
    }

    #[test]
    fn whatever_is_stored_as_a_goal_is_read_or_refused(text in "\\{\"kind\":\"[a-z]{0,9}\"(,\"(power|grace_ms|x)\":(\"running\"|[0-9]{1,21}|null))?\\}") {
        if let Ok(goal) = serde_json::from_str::<Goal>(&text) {
            let stored = serde_json::to_string(&goal).unwrap();
            prop_assert_eq!(serde_json::from_str::<Goal>(&stored).unwrap(), goal);
        }
    }
}
