//! The API in front of the engine: ConnectRPC, gRPC and gRPC-Web on one Unix socket, with health and
//! reflection. Authenticates, decodes, answers; decides nothing.

mod console;
mod failure;
mod guest;
mod listener;
mod operation;
mod system;
mod vm;
mod wait;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use connectrpc::{ConnectRpcService, DeadlinePolicy, Limits, Router};
use roost_api::from_proto::LONGEST_WAIT;
use roost_api::vmm::v1::{
    GUEST_SERVICE_SERVICE_NAME, OPERATION_SERVICE_SERVICE_NAME, SYSTEM_SERVICE_SERVICE_NAME, VM_SERVICE_SERVICE_NAME,
};

pub(crate) use listener::{Listener, serve};

use crate::wiring::Daemon;

/// The largest message that a client may send.
const MOST_MESSAGE_BYTES: usize = 4 << 20;
/// What a call may take beyond the longest wait that it may ask for.
const BEYOND_A_WAIT: Duration = Duration::from_secs(100);

/// Every service on one router.
pub(crate) fn router(daemon: &Arc<Daemon>) -> anyhow::Result<axum::Router> {
    let router = Router::new()
        .add_service(Arc::new(vm::Vms(Arc::clone(daemon))))
        .add_service(Arc::new(guest::GuestCalls(Arc::clone(daemon))))
        .add_service(Arc::new(operation::Operations(Arc::clone(daemon))))
        .add_service(Arc::new(system::System(Arc::clone(daemon))));
    let services = [
        VM_SERVICE_SERVICE_NAME,
        GUEST_SERVICE_SERVICE_NAME,
        OPERATION_SERVICE_SERVICE_NAME,
        SYSTEM_SERVICE_SERVICE_NAME,
    ];
    let (router, _health) = connectrpc_health::install_static(router, services);
    let reflector = connectrpc_reflection::Reflector::from_descriptor_set_bytes(roost_api::DESCRIPTOR_SET)
        .context("the API's own descriptors cannot be read")?;
    let router = connectrpc_reflection::install(router, reflector);
    let longest = LONGEST_WAIT + BEYOND_A_WAIT;
    let service = ConnectRpcService::new(router)
        .with_limits(
            Limits::default().with_max_request_body_size(MOST_MESSAGE_BYTES).with_max_message_size(MOST_MESSAGE_BYTES),
        )
        .with_deadline_policy(DeadlinePolicy::new().with_max(longest).with_default_timeout(longest))
        .with_interceptor(roost_api::StrictJson);
    Ok(axum::Router::new().fallback_service(service))
}
