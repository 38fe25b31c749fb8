//! A mutation answers when its operation is done, or at the caller's deadline with the operation as
//! it is then; with `async`, at once.

use std::time::Duration;

use connectrpc::{ConnectError, RequestContext};
use roost_api::from_proto::{Common, LONGEST_WAIT};
use roost_engine::{Accepted, Engine};
use roost_model::{Operation, Status, Vm};

use super::failure::told;

/// How long a call waits that says nothing.
const DEFAULT_WAIT: Duration = Duration::from_secs(600);
/// What is left of a caller's deadline for the answer's way back.
const FOR_THE_WAY_BACK: Duration = Duration::from_millis(200);

/// The operation as it is when the wait is over, with its VM where that still exists. Who waited for
/// one that came to nothing gets its error; who did not finds it in the operation.
pub(super) async fn until_done(
    engine: &Engine,
    context: &RequestContext,
    accepted: Accepted,
    common: &Common,
) -> Result<(Operation, Option<Vm>), ConnectError> {
    if common.asynchronous {
        return Ok((accepted.operation, accepted.vm));
    }
    let at_most = at_most(context, common.wait);
    let (operation, vm) = engine.wait_for(accepted, at_most).await.map_err(|e| told(&e))?;
    match operation.status {
        Status::Failed | Status::Cancelled => Err(roost_api::status::failed(&operation)),
        Status::Pending | Status::Running | Status::Succeeded => Ok((operation, vm)),
    }
}

/// How long a call may wait: what it asks for, within its deadline.
pub(super) fn at_most(context: &RequestContext, asked: Option<Duration>) -> Duration {
    let asked = asked.unwrap_or(DEFAULT_WAIT).min(LONGEST_WAIT);
    match context.time_remaining() {
        Some(left) => asked.min(left.saturating_sub(FOR_THE_WAY_BACK)),
        None => asked,
    }
}
