//! What agents have found, as messages. It is a guest's word: what does not fit is an error, never a panic.

use std::time::{SystemTime, UNIX_EPOCH};

use buffa_types::google::protobuf::{Struct, Timestamp, Value as WireValue};
use connectrpc::{ConnectError, ErrorCode};
use roost_api::vmm::v1;
use roost_api::{status, to_proto};
use roost_guest_hub::proto::results::{Package, Packages, Process, Processes, Service, Services};
use serde::de::DeserializeOwned;
use serde_json::Value;

pub(super) fn services(data: Value) -> Result<Vec<v1::GuestServiceUnit>, ConnectError> {
    let one = |service: Service| v1::GuestServiceUnit {
        name: service.name,
        state: service.state,
        enabled: service.enabled,
        description: service.description,
        ..Default::default()
    };
    Ok(read::<Services>(data)?.services.into_iter().map(one).collect())
}

pub(super) fn packages(data: Value) -> Result<Vec<v1::GuestPackage>, ConnectError> {
    let one = |package: Package| v1::GuestPackage {
        name: package.name,
        version: package.version.unwrap_or_default(),
        description: package.description,
        ..Default::default()
    };
    Ok(read::<Packages>(data)?.packages.into_iter().map(one).collect())
}

pub(super) fn processes(data: Value) -> Result<Vec<v1::GuestProcess>, ConnectError> {
    let one = |process: Process| v1::GuestProcess {
        pid: process.pid,
        name: process.name,
        user: process.user,
        cpu_percent: process.cpu,
        memory_bytes: process.memory_kb.saturating_mul(1024),
        state: process.state,
        command: process.command,
        ..Default::default()
    };
    Ok(read::<Processes>(data)?.processes.into_iter().map(one).collect())
}

/// An object.
pub(super) fn structure(data: Value) -> Result<Struct, ConnectError> {
    read(data)
}

/// Anything.
pub(super) fn value(data: Value) -> Result<WireValue, ConnectError> {
    read(data)
}

pub(super) fn instant(at: SystemTime) -> Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    to_proto::timestamp(roost_model::Timestamp::from_unix_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX)))
}

pub(super) fn read<T: DeserializeOwned>(data: Value) -> Result<T, ConnectError> {
    serde_json::from_value(data).map_err(|error| {
        let message = format!("the guest's answer has another form than it should: {error}");
        status::error(
            ErrorCode::FailedPrecondition,
            "GUEST_PROTOCOL",
            message,
            "its agent is faulty, or newer than the daemon",
        )
    })
}
