//! From a request to its record: admission and ONE transaction, nothing else. What comes back is
//! durable.

use std::sync::Arc;

use roost_model::admit::{Verdict, admit, admit_spec, admit_update, check_version};
use roost_model::operation::{Goal, OperationError};
use roost_model::state::Observed;
use roost_model::vm::Restarts;
use roost_model::{
    BackendName, Invalid, LaunchId, Operation, OperationId, Power, Priority, ProjectId, Refusal, Status, Timestamp, Vm,
    VmId, VmName, VmSpec,
};
use roost_store::{IdempotencyRecord, StoreError, Tx};
use sha2::{Digest, Sha256};

use crate::commit;
use crate::engine::{Engine, Inner};
use crate::error::EngineError;
use crate::query::Address;
use crate::seam::new_id;
use crate::waiters::Place;

/// A request for a new VM.
#[derive(Debug, Clone)]
pub struct CreateVm {
    /// The tenant.
    pub project: ProjectId,
    /// Chosen by the caller, or made here.
    pub id: Option<VmId>,
    /// Chosen by the caller, or `vm-` and the end of the ID.
    pub name: Option<VmName>,
    /// `None`: the default backend.
    pub backend: Option<BackendName>,
    /// What it is to be.
    pub spec: VmSpec,
    /// Whether it is started right away.
    pub start: bool,
    /// Who goes first.
    pub priority: Priority,
    /// The same key and request again answer with the same operation.
    pub idempotency_key: Option<String>,
}

/// A request to bring a VM somewhere.
#[derive(Debug, Clone)]
pub struct RequestVm {
    /// The tenant.
    pub project: ProjectId,
    /// Which VM.
    pub vm: Address,
    /// Where to.
    pub goal: Goal,
    /// Who goes first.
    pub priority: Priority,
    /// The version that the caller saw.
    pub resource_version: Option<u64>,
    /// The same key and request again answer with the same operation.
    pub idempotency_key: Option<String>,
}

/// A request to change a VM's spec.
#[derive(Debug, Clone)]
pub struct UpdateVm {
    /// The tenant.
    pub project: ProjectId,
    /// Which VM.
    pub vm: Address,
    /// What it is to be.
    pub spec: VmSpec,
    /// The version that the caller saw.
    pub resource_version: Option<u64>,
    /// The same key and request again answer with the same operation.
    pub idempotency_key: Option<String>,
}

/// A request that is recorded, and with that durable.
#[derive(Debug)]
pub struct Accepted {
    /// The VM as the request left it; `None` when it is gone already.
    pub vm: Option<Vm>,
    /// The VM's ID.
    pub vm_id: VmId,
    /// What carries the request out.
    pub operation: Operation,
    /// Where to wait for its end, unless it was on record before.
    pub(crate) place: Option<Place>,
}

/// An idempotency key with the digest of the request that it stands for.
#[derive(Debug, Clone)]
struct Key {
    project: ProjectId,
    key: String,
    digest: [u8; 32],
}

/// What a transaction that accepts a request made of it.
struct Recorded {
    accepted: Accepted,
    /// Operations that the request has ended.
    ended: Vec<Operation>,
}

impl Accepted {
    /// Takes the place, if it is one for this operation: a repeated request got an older one's.
    fn wait_at(&mut self, place: Place) {
        self.place = Some(place).filter(|place| place.id() == self.operation.id);
    }
}

impl Engine {
    /// Records a new VM and the operation that makes it.
    pub async fn create_vm(&self, request: CreateVm) -> Result<Accepted, EngineError> {
        let mut accepted = self.create_vms(vec![request]).await?;
        Ok(accepted.pop().expect("one request has one answer"))
    }

    /// Records several new VMs in one transaction: all of them, or none. At most 1000.
    pub async fn create_vms(&self, requests: Vec<CreateVm>) -> Result<Vec<Accepted>, EngineError> {
        let inner = &self.inner;
        inner.check_running()?;
        if requests.is_empty() || requests.len() > 1000 {
            return Err(Invalid::new("vms", requests.len(), "has the wrong length").permit(["1 to 1000"]).into());
        }
        let now = inner.seams.clock.now();
        let mut drafts = Vec::with_capacity(requests.len());
        for request in requests {
            drafts.push(inner.draft(request, now).await?);
        }
        let places: Vec<Place> = drafts.iter().map(|(_, operation, _)| inner.waiters.register(operation.id)).collect();
        let drafts = Arc::new(drafts);
        let names = Arc::clone(&drafts);
        let recorded: Result<Vec<Accepted>, EngineError> = inner
            .store
            .write(move |tx| {
                let drafts = Arc::clone(&drafts);
                Box::pin(async move {
                    let mut all = Vec::with_capacity(drafts.len());
                    for (vm, operation, key) in drafts.iter() {
                        all.push(insert_vm(tx, vm, operation, key.as_ref(), now).await?);
                    }
                    Ok(all)
                })
            })
            .await;
        let mut recorded = match recorded {
            Err(EngineError::Store(StoreError::Unique { .. })) => Err(inner.whose_name(&names).await?.into()),
            other => other,
        }?;
        for (accepted, place) in recorded.iter_mut().zip(places) {
            accepted.wait_at(place);
            inner.seams.dispatch.wake(accepted.vm_id);
        }
        Ok(recorded)
    }

    /// Records what is wanted of a VM and the operation that brings it about.
    pub async fn request(&self, request: RequestVm) -> Result<Accepted, EngineError> {
        let inner = &self.inner;
        inner.check_running()?;
        let now = inner.seams.clock.now();
        let id = new_id!(OperationId, inner.seams);
        let key = Key::of(
            request.project,
            request.idempotency_key.as_deref(),
            &[&request.vm.to_string(), &format!("{:?}", request.goal)],
        )?;
        let request = Arc::new(request);
        let place = inner.waiters.register(id);
        let recorded = inner
            .store
            .write(move |tx| {
                let (request, key) = (Arc::clone(&request), key.clone());
                Box::pin(async move {
                    if let Some(known) = replay(tx, key.as_ref()).await? {
                        return Ok(Recorded { accepted: known, ended: Vec::new() });
                    }
                    let vm = find(tx, request.project, &request.vm).await?;
                    check_version(&vm, request.resource_version)?;
                    let operation = Operation::new(id, vm.project, vm.id, request.goal.clone(), request.priority, now);
                    take_up(tx, vm, operation, key.as_ref(), now).await
                })
            })
            .await;
        inner.announce(recorded, place)
    }

    /// Records a new spec.
    pub async fn update_vm(&self, request: UpdateVm) -> Result<Accepted, EngineError> {
        let inner = &self.inner;
        inner.check_running()?;
        let backend = {
            let (project, address) = (request.project, request.vm.clone());
            let found: Result<Vm, EngineError> = inner
                .store
                .read(move |tx| {
                    let address = address.clone();
                    Box::pin(async move { find(tx, project, &address).await })
                })
                .await;
            found?.backend
        };
        inner.refreshed_backend(&backend).await?;
        inner.with_candidates(|all| admit_spec(&request.spec, &backend, all))?;
        let now = inner.seams.clock.now();
        let id = new_id!(OperationId, inner.seams);
        let spec_text = serde_json::to_string(&request.spec).expect("a spec has a stored form");
        let key = Key::of(
            request.project,
            request.idempotency_key.as_deref(),
            &["update", &request.vm.to_string(), &spec_text],
        )?;
        let request = Arc::new(request);
        let place = inner.waiters.register(id);
        let recorded = inner
            .store
            .write(move |tx| {
                let (request, key) = (Arc::clone(&request), key.clone());
                Box::pin(async move {
                    if let Some(known) = replay(tx, key.as_ref()).await? {
                        return Ok(Recorded { accepted: known, ended: Vec::new() });
                    }
                    let mut vm = find(tx, request.project, &request.vm).await?;
                    check_version(&vm, request.resource_version)?;
                    if !vm.desired.deleted {
                        admit_update(&vm, &request.spec)?;
                        vm.set_spec(&request.spec);
                        // Another spec is another chance.
                        vm.failure = None;
                    }
                    let operation = Operation::new(id, vm.project, vm.id, Goal::Update, Priority::Default, now);
                    take_up(tx, vm, operation, key.as_ref(), now).await
                })
            })
            .await;
        inner.announce(recorded, place)
    }

    /// Ends an operation before its time. What is pending ends at once; what runs is stopped where
    /// it is and what it left half-done is cleared away. Cancelling a create deletes the VM.
    pub async fn cancel(&self, project: ProjectId, id: OperationId) -> Result<Operation, EngineError> {
        let inner = &self.inner;
        inner.check_running()?;
        let now = inner.seams.clock.now();
        let delete_id = new_id!(OperationId, inner.seams);
        let recorded: Result<(Operation, Vec<Operation>), EngineError> = inner
            .store
            .write(move |tx| {
                Box::pin(async move {
                    let found = tx.operations().get(id).await?.filter(|o| o.project == project);
                    let operation = found.ok_or_else(|| Refusal::OperationNotFound(id.to_string()))?;
                    cancel(tx, operation, delete_id, now).await
                })
            })
            .await;
        let (operation, ended) = recorded?;
        for ended in &ended {
            inner.waiters.end(ended, None);
        }
        inner.seams.dispatch.wake(operation.vm);
        Ok(operation)
    }
}

impl Inner {
    fn check_running(&self) -> Result<(), EngineError> {
        if self.is_stopping() { Err(EngineError::Stopping) } else { Ok(()) }
    }

    /// What a create request becomes, if it may.
    async fn draft(&self, request: CreateVm, now: Timestamp) -> Result<(Vm, Operation, Option<Key>), EngineError> {
        let backend = request.backend.unwrap_or_else(|| self.config.default_backend.clone());
        self.refreshed_backend(&backend).await?;
        self.with_candidates(|all| admit_spec(&request.spec, &backend, all))?;
        let spec_text = serde_json::to_string(&request.spec).expect("a spec has a stored form");
        let key = Key::of(
            request.project,
            request.idempotency_key.as_deref(),
            &[
                "create",
                &request.id.map(|id| id.to_string()).unwrap_or_default(),
                request.name.as_ref().map_or("", VmName::as_str),
                backend.as_str(),
                &spec_text,
                if request.start { "start" } else { "" },
            ],
        )?;
        let id = request.id.unwrap_or_else(|| new_id!(VmId, self.seams));
        let name = match request.name {
            Some(name) => name,
            // The random end of the ID: the front of IDs made in one millisecond is alike.
            None => format!("vm-{}", &id.uuid().simple().to_string()[20..]).parse()?,
        };
        let power = if request.start { Power::Running } else { Power::Stopped };
        let vm = Vm {
            id,
            project: request.project,
            name,
            backend,
            spec: request.spec,
            generation: 1,
            desired: roost_model::Desired { power, deleted: false },
            observed: Observed::absent(now),
            failure: None,
            restarts: Restarts::default(),
            accelerator: None,
            conditions: Vec::new(),
            resource_version: 1,
            created_at: now,
            updated_at: now,
            started_at: None,
        };
        let operation = Operation::new(
            new_id!(OperationId, self.seams),
            request.project,
            id,
            Goal::Create { power },
            request.priority,
            now,
        );
        Ok((vm, operation, key))
    }

    /// Which of the drafts clashes with what exists; or, when it has gone meanwhile, that one did.
    async fn whose_name(&self, drafts: &[(Vm, Operation, Option<Key>)]) -> Result<Refusal, StoreError> {
        for (i, (draft, ..)) in drafts.iter().enumerate() {
            if let Some((twin, ..)) = drafts[..i].iter().find(|(other, ..)| other.name == draft.name) {
                return Ok(Refusal::NameTaken { name: draft.name.to_string(), vm_id: twin.id });
            }
            let (project, name, id) = (draft.project, draft.name.clone(), draft.id);
            let (by_name, by_id) = self
                .store
                .read(move |tx| {
                    let name = name.clone();
                    Box::pin(async move {
                        Ok::<_, StoreError>((tx.vms().by_name(project, &name).await?, tx.vms().get(id).await?))
                    })
                })
                .await?;
            if let Some(other) = by_name {
                return Ok(Refusal::NameTaken { name: draft.name.to_string(), vm_id: other.id });
            }
            if by_id.is_some() {
                return Ok(Refusal::IdTaken(draft.id));
            }
        }
        let draft = &drafts[0].0;
        Ok(Refusal::NameTaken { name: draft.name.to_string(), vm_id: draft.id })
    }

    /// Tells waiters and the VM's actor of what was recorded.
    fn announce(&self, recorded: Result<Recorded, EngineError>, place: Place) -> Result<Accepted, EngineError> {
        let Recorded { mut accepted, ended } = recorded?;
        accepted.wait_at(place);
        for operation in &ended {
            self.waiters.end(operation, None);
        }
        self.seams.dispatch.wake(accepted.vm_id);
        Ok(accepted)
    }

    /// Records an operation that nobody asked for: a restart by policy, the end of a time to live.
    /// Not if the decision is out of date: a request that came in since the record was read outranks it.
    pub(crate) async fn record_own(&self, seen: &Vm, goal: Goal) -> Result<(), StoreError> {
        let now = self.seams.clock.now();
        let deletes = matches!(goal, Goal::Delete { .. });
        let id = new_id!(OperationId, self.seams);
        let operation = Operation::new(id, seen.project, seen.id, goal, Priority::Default, now);
        let version = seen.resource_version;
        self.store
            .write(move |tx| {
                let operation = operation.clone();
                Box::pin(async move {
                    if !commit::is_as_seen(tx, operation.vm, version).await? {
                        return Ok(());
                    }
                    commit::change_vm(tx, operation.vm, Some(id), now, |vm| {
                        vm.desired.deleted |= deletes;
                        vm.restarts.due = None;
                    })
                    .await?;
                    tx.operations().insert(&operation).await?;
                    commit::push_operation(tx, &operation, now);
                    Ok(())
                })
            })
            .await
    }
}

impl Key {
    fn of(project: ProjectId, key: Option<&str>, parts: &[&str]) -> Result<Option<Key>, Invalid> {
        let Some(key) = key.filter(|k| !k.is_empty()) else { return Ok(None) };
        if key.len() > 255 || key.chars().any(char::is_control) {
            return Err(
                Invalid::new("idempotency_key", key, "is not a key").permit(["1-255 bytes without control characters"])
            );
        }
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        }
        Ok(Some(Key { project, key: key.to_owned(), digest: hash.finalize().into() }))
    }
}

async fn insert_vm(
    tx: &Tx,
    vm: &Vm,
    operation: &Operation,
    key: Option<&Key>,
    now: Timestamp,
) -> Result<Accepted, EngineError> {
    if let Some(known) = replay(tx, key).await? {
        return Ok(known);
    }
    tx.vms().insert(vm).await?;
    tx.operations().insert(operation).await?;
    commit::push_vm(tx, "vm.created", vm, Some(operation.id), now);
    remember(tx, key, operation, now).await?;
    Ok(Accepted { vm: Some(vm.clone()), vm_id: vm.id, operation: operation.clone(), place: None })
}

/// Admits the operation and records it with the VM's new desired state.
async fn take_up(
    tx: &Tx,
    mut vm: Vm,
    mut operation: Operation,
    key: Option<&Key>,
    now: Timestamp,
) -> Result<Recorded, EngineError> {
    let open = tx.operations().open_of(vm.id).await?;
    let deleting = open.iter().find(|o| matches!(o.goal, Goal::Delete { .. }));
    let verdict = admit(&operation.goal, &vm, deleting.map(|o| o.id))?;
    if let (Verdict::AlreadySo, Some(deleting)) = (verdict, deleting) {
        remember(tx, key, deleting, now).await?;
        let accepted = Accepted { vm_id: vm.id, vm: Some(vm), operation: deleting.clone(), place: None };
        return Ok(Recorded { accepted, ended: Vec::new() });
    }
    let ended = end_overtaken(tx, &operation.goal, &open, now).await?;
    match verdict {
        // Somebody else may still be on the way to where this request wants to go: then it follows them.
        Verdict::AlreadySo if open.is_empty() => {
            operation.finish(Status::Succeeded, None, now);
        }
        Verdict::AlreadySo => {}
        Verdict::Accept(desired) => {
            let boots = matches!(operation.goal, Goal::Boot);
            let new = vm.clone();
            let changed = commit::change_vm(tx, vm.id, Some(operation.id), now, |stored| {
                stored.set_spec(&new.spec);
                stored.desired = desired;
                stored.failure = if boots { None } else { new.failure.clone() };
                if boots {
                    stored.restarts = Restarts { in_row: 0, due: None, ..stored.restarts };
                }
            })
            .await?;
            vm = changed.ok_or_else(|| Refusal::VmNotFound(vm.id.to_string()))?;
        }
    }
    tx.operations().insert(&operation).await?;
    commit::push_operation(tx, &operation, now);
    remember(tx, key, &operation, now).await?;
    Ok(Recorded { accepted: Accepted { vm_id: vm.id, vm: Some(vm), operation, place: None }, ended })
}

/// Ends the open operations that the goal makes pointless.
async fn end_overtaken(tx: &Tx, goal: &Goal, open: &[Operation], now: Timestamp) -> Result<Vec<Operation>, StoreError> {
    let mut ended = Vec::new();
    for operation in open.iter().filter(|o| goal.overtakes(&o.goal)) {
        let why = OperationError {
            reason: "OVERTAKEN".to_owned(),
            message: format!("overtaken by a {}", goal.kind()),
            hint: String::new(),
            field: String::new(),
        };
        ended.extend(commit::finish(tx, operation, Status::Cancelled, Some(&why), now).await?);
    }
    Ok(ended)
}

async fn cancel(
    tx: &Tx,
    mut operation: Operation,
    delete_id: OperationId,
    now: Timestamp,
) -> Result<(Operation, Vec<Operation>), EngineError> {
    if operation.status.is_final() {
        return Err(Refusal::OperationEnded(operation.id).into());
    }
    match &operation.goal {
        Goal::Delete { .. } => {
            let why = "a delete runs to its end";
            Err(Refusal::NotCancellable { id: operation.id, why }.into())
        }
        Goal::Create { .. } => {
            let delete = Goal::Delete { grace_ms: None };
            let open = tx.operations().open_of(operation.vm).await?;
            let ended = end_overtaken(tx, &delete, &open, now).await?;
            let removal = Operation::new(delete_id, operation.project, operation.vm, delete, operation.priority, now);
            commit::change_vm(tx, operation.vm, Some(delete_id), now, |vm| vm.desired.deleted = true).await?;
            tx.operations().insert(&removal).await?;
            commit::push_operation(tx, &removal, now);
            let cancelled = ended.iter().find(|o| o.id == operation.id).cloned().unwrap_or(operation);
            Ok((cancelled, ended))
        }
        _ if operation.status == Status::Pending => {
            let id = operation.id;
            let ended = commit::finish(tx, &operation, Status::Cancelled, None, now).await?;
            // What is wanted falls back to what is there, unless somebody else is still on the way.
            if tx.operations().open_of(operation.vm).await?.is_empty() {
                commit::change_vm(tx, operation.vm, Some(id), now, |vm| vm.desired.power = vm.settled_power()).await?;
            }
            let cancelled = ended.clone().unwrap_or(operation);
            Ok((cancelled, ended.into_iter().collect()))
        }
        _ => {
            operation.cancel_requested = true;
            tx.operations().update(&operation).await?;
            commit::push_operation(tx, &operation, now);
            Ok((operation, Vec::new()))
        }
    }
}

/// The VM of an address, in its project.
pub(crate) async fn find(tx: &Tx, project: ProjectId, address: &Address) -> Result<Vm, EngineError> {
    let found = match address {
        Address::Id(id) => tx.vms().get(*id).await?.filter(|vm| vm.project == project),
        Address::Name(name) => tx.vms().by_name(project, name).await?,
    };
    found.ok_or_else(|| Refusal::VmNotFound(address.to_string()).into())
}

/// The answer that the key's first request got.
async fn replay(tx: &Tx, key: Option<&Key>) -> Result<Option<Accepted>, EngineError> {
    let Some(key) = key else { return Ok(None) };
    let Some(known) = tx.idempotency().get(key.project, &key.key).await? else { return Ok(None) };
    if known.digest != key.digest {
        return Err(Refusal::KeyReused { key: key.key.clone() }.into());
    }
    let Some(operation) = tx.operations().get(known.operation).await? else { return Ok(None) };
    Ok(Some(Accepted { vm: tx.vms().get(known.vm).await?, vm_id: known.vm, operation, place: None }))
}

async fn remember(tx: &Tx, key: Option<&Key>, operation: &Operation, now: Timestamp) -> Result<(), StoreError> {
    let Some(key) = key else { return Ok(()) };
    let record = IdempotencyRecord {
        key: key.key.clone(),
        digest: key.digest,
        operation: operation.id,
        vm: operation.vm,
        created_at: now,
    };
    tx.idempotency().insert(key.project, &record).await
}

/// A launch's ID, made here so that every ID comes from the same seam.
pub(crate) fn new_launch(inner: &Inner) -> LaunchId {
    new_id!(LaunchId, inner.seams)
}
