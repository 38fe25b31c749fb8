//! From the wire to the domain: every request is parsed once, here, into types that hold only what
//! makes sense. An error names the field's path, its value, and what is permitted.
//!
//! Owns the meaning of fields that are not given. Every message is taken apart field by field, so
//! that a new field breaks the build until it is dealt with; a field that this build does not know
//! is refused, never dropped: what a caller asked for is done as a whole or not at all.

pub mod guest;
mod spec;

use std::collections::BTreeMap;
use std::time::Duration;

use buffa::{EnumValue, Enumeration, UnknownFields};
use roost_model::operation::Goal;
use roost_model::{BackendName, Invalid, OperationId, Power, Priority, Status, VmId, VmName, VmSpec, VmState};

pub use spec::spec;

use crate::vmm::v1;

/// How long a guest may take to shut down when the request does not say.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(30);
/// The longest that a call may be asked to wait.
pub const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// How many VMs one bulk request may create.
pub const MOST_VMS: usize = 1000;
/// How many items a page has when the request does not say.
pub const DEFAULT_PAGE: usize = 100;
/// How many items a page has at most.
pub const LARGEST_PAGE: usize = 1000;
/// How many pairs a filter may ask for: as many as a VM may have.
const MOST_PAIRS: usize = 64;
/// The longest prefix of a name: a name.
const LONGEST_PREFIX: usize = 63;

/// What requests that change something have in common.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Common {
    /// The caller's key for a safe repetition.
    pub idempotency_key: Option<String>,
    /// Answer as soon as the request is recorded.
    pub asynchronous: bool,
    /// How long the answer may take; `None`: as the server likes.
    pub wait: Option<Duration>,
    /// Who goes first.
    pub priority: Priority,
    /// Refuse if the VM has changed since.
    pub resource_version: Option<u64>,
}

/// A VM to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Create {
    /// The caller's own ID.
    pub id: Option<VmId>,
    /// `None`: one is made.
    pub name: Option<VmName>,
    /// `None`: the daemon's default.
    pub backend: Option<BackendName>,
    /// What it is to be; checked.
    pub spec: VmSpec,
    /// Boot it right away.
    pub start: bool,
    /// The rest.
    pub common: Common,
}

/// VMs to be made, all or none.
#[derive(Debug, Clone, PartialEq)]
pub struct BulkCreate {
    /// In the order of the request.
    pub vms: Vec<Create>,
    /// The rest; its key stands for the whole request.
    pub common: Common,
}

/// Something to be done with a VM.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Its ID or name, as the caller wrote it; never empty.
    pub vm: String,
    /// What.
    pub goal: Goal,
    /// The rest.
    pub common: Common,
}

/// A VM's new configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// Its ID or name, as the caller wrote it; never empty.
    pub vm: String,
    /// All of it; checked.
    pub spec: VmSpec,
    /// The rest.
    pub common: Common,
}

/// Which VMs, and which page of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VmQuery {
    /// Any of these; empty: all.
    pub states: Vec<VmState>,
    /// All of these must match.
    pub metadata: BTreeMap<String, String>,
    /// Of this backend only.
    pub backend: Option<BackendName>,
    /// With names that begin so.
    pub name_prefix: Option<String>,
    /// What follows this one.
    pub after: Option<VmId>,
    /// 1 to [`LARGEST_PAGE`].
    pub page_size: usize,
}

/// What is to be watched.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Watched {
    /// What follows this position; `None`: what happens from now on.
    pub from_position: Option<u64>,
    /// Only these, by ID or name, at most [`MOST_VMS`]; empty: all.
    pub vms: Vec<String>,
    /// The VMs as they are first.
    pub snapshot: bool,
}

/// Which operations, and which page of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OperationQuery {
    /// Of this VM only: its ID or name, as the caller wrote it.
    pub vm: Option<String>,
    /// Any of these; empty: all.
    pub statuses: Vec<Status>,
    /// What follows this one.
    pub after: Option<OperationId>,
    /// 1 to [`LARGEST_PAGE`].
    pub page_size: usize,
}

/// Reads a `CreateVm` request.
pub fn create(request: v1::CreateVmRequest) -> Result<Create, Invalid> {
    let v1::CreateVmRequest {
        vm_id,
        config,
        name,
        backend,
        start,
        idempotency_key,
        r#async,
        wait_seconds,
        priority,
        __buffa_unknown_fields: unknown,
    } = request;
    no_unknown(&unknown)?;
    Ok(Create {
        id: given(vm_id).map(|id| id.parse().map_err(|e: Invalid| e.at("vm_id"))).transpose()?,
        name: given(name).map(|n| n.parse()).transpose()?,
        backend: given(backend).map(|b| b.parse()).transpose()?,
        spec: config_of(config)?,
        start,
        common: common(idempotency_key, r#async, wait_seconds, priority, 0)?,
    })
}

/// Reads a `BulkCreateVms` request.
pub fn bulk_create(request: v1::BulkCreateVmsRequest) -> Result<BulkCreate, Invalid> {
    let v1::BulkCreateVmsRequest { vms, idempotency_key, r#async, wait_seconds, __buffa_unknown_fields: unknown } =
        request;
    no_unknown(&unknown)?;
    if vms.is_empty() || vms.len() > MOST_VMS {
        return Err(Invalid::new("vms", vms.len(), "has the wrong length").permit([format!("1 to {MOST_VMS} VMs")]));
    }
    let common = common(idempotency_key, r#async, wait_seconds, EnumValue::default(), 0)?;
    let mut read = Vec::with_capacity(vms.len());
    for (i, vm) in vms.into_iter().enumerate() {
        let at = format!("vms[{i}]");
        let vm = create(vm).map_err(|e| e.under(&at))?;
        if let (Some(_), Some(key)) = (&common.idempotency_key, &vm.common.idempotency_key) {
            return Err(Invalid::new("idempotency_key", key, "is given here and for the whole request").under(&at));
        }
        read.push(vm);
    }
    Ok(BulkCreate { vms: read, common })
}

/// Reads an `UpdateVm` request.
pub fn update(request: v1::UpdateVmRequest) -> Result<Update, Invalid> {
    let v1::UpdateVmRequest {
        vm_id,
        config,
        idempotency_key,
        r#async,
        wait_seconds,
        priority,
        resource_version,
        __buffa_unknown_fields: unknown,
    } = request;
    no_unknown(&unknown)?;
    Ok(Update {
        vm: address(vm_id)?,
        spec: config_of(config)?,
        common: common(idempotency_key, r#async, wait_seconds, priority, resource_version)?,
    })
}

/// A request that names a VM and says how to go about it.
macro_rules! with_grace {
    ($(#[$doc:meta])* $function:ident, $message:ident, $goal:ident) => {
        $(#[$doc])*
        pub fn $function(request: v1::$message) -> Result<Request, Invalid> {
            let v1::$message {
                vm_id,
                force,
                timeout_seconds,
                idempotency_key,
                r#async,
                wait_seconds,
                priority,
                resource_version,
                __buffa_unknown_fields: unknown,
            } = request;
            no_unknown(&unknown)?;
            Ok(Request {
                vm: address(vm_id)?,
                goal: Goal::$goal { grace_ms: grace(force, timeout_seconds)? },
                common: common(idempotency_key, r#async, wait_seconds, priority, resource_version)?,
            })
        }
    };
}

/// A request that only names a VM.
macro_rules! plain {
    ($(#[$doc:meta])* $function:ident, $message:ident, $goal:ident) => {
        $(#[$doc])*
        pub fn $function(request: v1::$message) -> Result<Request, Invalid> {
            let v1::$message {
                vm_id,
                idempotency_key,
                r#async,
                wait_seconds,
                priority,
                resource_version,
                __buffa_unknown_fields: unknown,
            } = request;
            no_unknown(&unknown)?;
            Ok(Request {
                vm: address(vm_id)?,
                goal: Goal::$goal,
                common: common(idempotency_key, r#async, wait_seconds, priority, resource_version)?,
            })
        }
    };
}

with_grace!(
    /// Reads a `DeleteVm` request.
    delete, DeleteVmRequest, Delete
);
with_grace!(
    /// Reads a `ShutdownVm` request.
    shutdown, ShutdownVmRequest, Shutdown
);
with_grace!(
    /// Reads a `RebootVm` request.
    reboot, RebootVmRequest, Reboot
);
plain!(
    /// Reads a `BootVm` request.
    boot, BootVmRequest, Boot
);
plain!(
    /// Reads a `PauseVm` request.
    pause, PauseVmRequest, Pause
);
plain!(
    /// Reads a `ResumeVm` request.
    resume, ResumeVmRequest, Resume
);

impl Create {
    /// What it asks for, as an operation's goal.
    pub fn goal(&self) -> Goal {
        Goal::Create { power: if self.start { Power::Running } else { Power::Stopped } }
    }
}

/// Reads a `ListVms` request.
pub fn list_vms(request: v1::ListVmsRequest) -> Result<VmQuery, Invalid> {
    let v1::ListVmsRequest {
        states,
        page_size: size,
        page_token,
        metadata,
        backend,
        name_prefix,
        __buffa_unknown_fields: unknown,
    } = request;
    no_unknown(&unknown)?;
    if metadata.len() > MOST_PAIRS {
        let permitted = [format!("at most {MOST_PAIRS}")];
        return Err(Invalid::new("metadata", metadata.len(), "has too many entries").permit(permitted));
    }
    if name_prefix.len() > LONGEST_PREFIX {
        let permitted = [format!("at most {LONGEST_PREFIX} characters")];
        return Err(Invalid::new("name_prefix", name_prefix, "is too long").permit(permitted));
    }
    Ok(VmQuery {
        states: each(&states, "states", state)?,
        metadata,
        backend: given(backend).map(|b| b.parse()).transpose()?,
        name_prefix: given(name_prefix),
        after: after(page_token)?,
        page_size: page_size(size)?,
    })
}

/// Reads a `WatchVms` request.
pub fn watch(request: v1::WatchVmsRequest) -> Result<Watched, Invalid> {
    let v1::WatchVmsRequest { from_position, vm_ids, snapshot, __buffa_unknown_fields: unknown } = request;
    no_unknown(&unknown)?;
    if vm_ids.len() > MOST_VMS {
        let permitted = [format!("at most {MOST_VMS}; none: all")];
        return Err(Invalid::new("vm_ids", vm_ids.len(), "has too many entries").permit(permitted));
    }
    Ok(Watched { from_position, vms: vm_ids, snapshot })
}

/// Reads a `ListOperations` request.
pub fn list_operations(request: v1::ListOperationsRequest) -> Result<OperationQuery, Invalid> {
    let v1::ListOperationsRequest { vm_id, statuses, page_size: size, page_token, __buffa_unknown_fields: unknown } =
        request;
    no_unknown(&unknown)?;
    Ok(OperationQuery {
        vm: given(vm_id),
        statuses: each(&statuses, "statuses", operation_status)?,
        after: after(page_token)?,
        page_size: page_size(size)?,
    })
}

/// Reads an operation's ID.
pub fn operation_id(text: &str) -> Result<OperationId, Invalid> {
    text.parse().map_err(|e: Invalid| e.at("operation_id").permit(["op_<uuid>"]))
}

/// Reads a VM's ID or name; only its absence is an error here.
pub fn address(vm_id: String) -> Result<String, Invalid> {
    given(vm_id).ok_or_else(|| Invalid::new("vm_id", "", "is missing").permit(["a VM's ID or name"]))
}

/// Reads a state.
pub fn state(state: EnumValue<v1::VmState>) -> Result<VmState, Invalid> {
    use v1::VmState as W;
    match state.as_known() {
        Some(W::VM_STATE_CREATED) => Ok(VmState::Created),
        Some(W::VM_STATE_RUNNING) => Ok(VmState::Running),
        Some(W::VM_STATE_PAUSED) => Ok(VmState::Paused),
        Some(W::VM_STATE_SHUTDOWN) => Ok(VmState::Shutdown),
        Some(W::VM_STATE_CRASHED) => Ok(VmState::Crashed),
        Some(W::VM_STATE_FAILED) => Ok(VmState::Failed),
        Some(W::VM_STATE_UNSPECIFIED) | None => Err(not_a_word(state)),
    }
}

/// Reads an operation's status.
pub fn operation_status(status: EnumValue<v1::OperationStatus>) -> Result<Status, Invalid> {
    use v1::OperationStatus as W;
    match status.as_known() {
        Some(W::OPERATION_STATUS_PENDING) => Ok(Status::Pending),
        Some(W::OPERATION_STATUS_RUNNING) => Ok(Status::Running),
        Some(W::OPERATION_STATUS_SUCCEEDED) => Ok(Status::Succeeded),
        Some(W::OPERATION_STATUS_FAILED) => Ok(Status::Failed),
        Some(W::OPERATION_STATUS_CANCELLED) => Ok(Status::Cancelled),
        Some(W::OPERATION_STATUS_UNSPECIFIED) | None => Err(not_a_word(status)),
    }
}

fn config_of(config: impl Into<Option<v1::VmConfig>>) -> Result<VmSpec, Invalid> {
    let config = config.into().ok_or_else(|| Invalid::new("config", "", "is missing"))?;
    spec(config).map_err(|e| e.under("config"))
}

fn common(
    idempotency_key: String,
    asynchronous: bool,
    wait_seconds: u32,
    priority: EnumValue<v1::Priority>,
    resource_version: u64,
) -> Result<Common, Invalid> {
    if idempotency_key.len() > 255 || idempotency_key.chars().any(char::is_control) {
        return Err(Invalid::new("idempotency_key", idempotency_key, "is not a key")
            .permit(["1-255 bytes without control characters"]));
    }
    let wait = Duration::from_secs(u64::from(wait_seconds));
    if wait > LONGEST_WAIT {
        return Err(Invalid::new("wait_seconds", wait_seconds, "is too long")
            .permit([format!("at most {}", LONGEST_WAIT.as_secs())]));
    }
    let priority = match priority.as_known() {
        Some(v1::Priority::PRIORITY_UNSPECIFIED | v1::Priority::PRIORITY_DEFAULT) => Priority::Default,
        Some(v1::Priority::PRIORITY_CRITICAL) => Priority::Critical,
        Some(v1::Priority::PRIORITY_HIGH) => Priority::High,
        Some(v1::Priority::PRIORITY_LOW) => Priority::Low,
        None => return Err(not_a_word(priority).at("priority")),
    };
    Ok(Common {
        idempotency_key: given(idempotency_key),
        asynchronous,
        wait: (!wait.is_zero()).then_some(wait),
        priority,
        resource_version: (resource_version != 0).then_some(resource_version),
    })
}

fn grace(force: bool, timeout_seconds: u32) -> Result<Option<u64>, Invalid> {
    match (force, timeout_seconds) {
        (true, 0) => Ok(None),
        (true, _) => Err(Invalid::new("timeout_seconds", timeout_seconds, "says nothing when force is set")),
        (false, 0) => Ok(Some(DEFAULT_GRACE.as_millis() as u64)),
        (false, seconds) => Ok(Some(u64::from(seconds) * 1000)),
    }
}

/// Proto3 does not tell an empty string from an absent one.
fn given(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn page_size(size: i32) -> Result<usize, Invalid> {
    match usize::try_from(size) {
        Ok(0) => Ok(DEFAULT_PAGE),
        Ok(size) => Ok(size.min(LARGEST_PAGE)),
        Err(_) => Err(Invalid::new("page_size", size, "is negative").permit([format!("1 to {LARGEST_PAGE}")])),
    }
}

/// A page token is the ID of the last item that was given.
fn after<T: std::str::FromStr>(page_token: String) -> Result<Option<T>, Invalid> {
    let refuse = |token: &str| {
        Invalid::new("page_token", token, "is not a page token").permit(["a previous answer's next_page_token"])
    };
    given(page_token).map(|token| token.parse().map_err(|_| refuse(&token))).transpose()
}

/// Each of these words once, so that a list is no longer than the language.
fn each<E: Enumeration + 'static, T: PartialEq>(
    words: &[EnumValue<E>],
    field: &str,
    read: impl Fn(EnumValue<E>) -> Result<T, Invalid>,
) -> Result<Vec<T>, Invalid> {
    let mut all = Vec::new();
    for (i, word) in words.iter().enumerate() {
        let word = read(*word).map_err(|e| e.at(&format!("{field}[{i}]")))?;
        if !all.contains(&word) {
            all.push(word);
        }
    }
    Ok(all)
}

fn not_a_word<E: Enumeration + 'static>(value: EnumValue<E>) -> Invalid {
    let words = E::values().iter().filter(|v| v.to_i32() != 0).map(|v| v.proto_name().to_owned());
    Invalid::new("", value.to_i32(), "is not one of the permitted words").permit(words)
}

fn no_unknown(unknown: &UnknownFields) -> Result<(), Invalid> {
    match unknown.iter().next() {
        None => Ok(()),
        Some(field) => Err(Invalid::new(
            "",
            format!("field number {}", field.number),
            "is not known to this daemon: is the client newer than it?",
        )),
    }
}

#[cfg(test)]
mod tests;
