//! `vmm.v1.VmService`.

// The concrete stream and message types are what this module wants to say.
#![allow(refining_impl_trait)]

use std::sync::Arc;

use connectrpc::{ConnectError, InboundStream, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream};
use futures::StreamExt;
use roost_api::vmm::v1;
use roost_api::{from_proto, status, to_proto};
use roost_backend::{Info, Metrics};
use roost_console_keeper::Since;
use roost_engine::{Accepted, Address, CreateVm, Event, RequestVm, UpdateVm, VmFilter, VmInfo, Watch};
use roost_model::{Operation, OperationId, ProjectId, Vm, VmId};

use super::console;
use super::failure::told;
use super::wait::{at_most, until_done};
use crate::wiring::Daemon;

/// The service.
pub(super) struct Vms(pub(super) Arc<Daemon>);

/// What every mutation answers: the seed's fields and the operation.
macro_rules! answer {
    ($response:ident, $vm_id:expr, $operation:expr, $vm:expr) => {
        v1::$response {
            vm_id: $vm_id.uuid().to_string(),
            state: $vm.as_ref().map_or(v1::VmState::VM_STATE_UNSPECIFIED, |vm| to_proto::state(vm.state())).into(),
            operation: to_proto::operation(&$operation).into(),
            ..Default::default()
        }
    };
}

/// An RPC that asks for something to be done with a VM.
macro_rules! request {
    ($self:ident, $context:ident, $request:ident, $read:ident, $response:ident) => {{
        let request = from_proto::$read($request.to_owned_message()).map_err(|e| status::invalid(&e))?;
        let (vm_id, operation, vm) = $self.act(&$context, request).await?;
        Response::ok(answer!($response, vm_id, operation, vm))
    }};
}

impl v1::VmService for Vms {
    async fn create_vm(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, v1::CreateVmRequest>,
    ) -> ServiceResult<v1::CreateVmResponse> {
        let create = from_proto::create(request.to_owned_message()).map_err(|e| status::invalid(&e))?;
        let common = create.common.clone();
        let accepted = self.0.engine.create_vm(wish(create)).await.map_err(|e| told(&e))?;
        let vm_id = accepted.vm_id;
        let (operation, vm) = until_done(&self.0.engine, &context, accepted, &common).await?;
        Response::ok(answer!(CreateVmResponse, vm_id, operation, vm))
    }

    async fn bulk_create_vms(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, v1::BulkCreateVmsRequest>,
    ) -> ServiceResult<v1::BulkCreateVmsResponse> {
        let request = from_proto::bulk_create(request.to_owned_message()).map_err(|e| status::invalid(&e))?;
        let key = request.common.idempotency_key.clone();
        let wishes = request.vms.into_iter().enumerate().map(|(i, mut create)| {
            if let Some(key) = &key {
                create.common.idempotency_key = Some(format!("{key}#{i}"));
            }
            wish(create)
        });
        let accepted = self.0.engine.create_vms(wishes.collect()).await.map_err(|e| told(&e))?;
        let end = tokio::time::Instant::now() + at_most(&context, request.common.wait);
        let mut vms = Vec::with_capacity(accepted.len());
        for one in accepted {
            let (mut operation, mut vm) = (one.operation, one.vm);
            if !request.common.asynchronous {
                // One that fails among many is told by its operation, not by failing the whole call.
                let left = end.saturating_duration_since(tokio::time::Instant::now());
                let waited = self.0.engine.wait(ProjectId::DEFAULT, operation.id, left).await;
                (operation, vm) = waited.map_err(|e| told(&e))?;
            }
            vms.push(answer!(CreateVmResponse, one.vm_id, operation, vm));
        }
        Response::ok(v1::BulkCreateVmsResponse { vms, ..Default::default() })
    }

    async fn delete_vm(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, v1::DeleteVmRequest>,
    ) -> ServiceResult<v1::DeleteVmResponse> {
        request!(self, context, request, delete, DeleteVmResponse)
    }

    async fn boot_vm(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, v1::BootVmRequest>,
    ) -> ServiceResult<v1::BootVmResponse> {
        request!(self, context, request, boot, BootVmResponse)
    }

    async fn shutdown_vm(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, v1::ShutdownVmRequest>,
    ) -> ServiceResult<v1::ShutdownVmResponse> {
        request!(self, context, request, shutdown, ShutdownVmResponse)
    }

    async fn pause_vm(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, v1::PauseVmRequest>,
    ) -> ServiceResult<v1::PauseVmResponse> {
        request!(self, context, request, pause, PauseVmResponse)
    }

    async fn resume_vm(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, v1::ResumeVmRequest>,
    ) -> ServiceResult<v1::ResumeVmResponse> {
        request!(self, context, request, resume, ResumeVmResponse)
    }

    async fn reboot_vm(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, v1::RebootVmRequest>,
    ) -> ServiceResult<v1::RebootVmResponse> {
        request!(self, context, request, reboot, RebootVmResponse)
    }

    async fn update_vm(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, v1::UpdateVmRequest>,
    ) -> ServiceResult<v1::UpdateVmResponse> {
        let update = from_proto::update(request.to_owned_message()).map_err(|e| status::invalid(&e))?;
        let common = update.common.clone();
        let request = UpdateVm {
            project: ProjectId::DEFAULT,
            vm: Address::parse(&update.vm).map_err(|e| status::refusal(&e))?,
            spec: update.spec,
            resource_version: update.common.resource_version,
            idempotency_key: update.common.idempotency_key,
        };
        let accepted = self.0.engine.update_vm(request).await.map_err(|e| told(&e))?;
        let vm_id = accepted.vm_id;
        let (operation, vm) = until_done(&self.0.engine, &context, accepted, &common).await?;
        Response::ok(answer!(UpdateVmResponse, vm_id, operation, vm))
    }

    async fn get_vm_info(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, v1::GetVmInfoRequest>,
    ) -> ServiceResult<v1::GetVmInfoResponse> {
        let address = from_proto::address(request.vm_id.to_owned()).map_err(|e| status::invalid(&e))?;
        let address = Address::parse(&address).map_err(|e| status::refusal(&e))?;
        let info = self.0.engine.vm_info(ProjectId::DEFAULT, address).await.map_err(|e| told(&e))?;
        Response::ok(info_of(info))
    }

    async fn list_vms(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, v1::ListVmsRequest>,
    ) -> ServiceResult<v1::ListVmsResponse> {
        let query = from_proto::list_vms(request.to_owned_message()).map_err(|e| status::invalid(&e))?;
        let filter = VmFilter {
            project: Some(ProjectId::DEFAULT),
            states: query.states,
            backend: query.backend,
            name_prefix: query.name_prefix,
            metadata: query.metadata,
            ids: Vec::new(),
        };
        let page = self.0.engine.vms(filter, query.after, query.page_size).await.map_err(|e| told(&e))?;
        Response::ok(v1::ListVmsResponse {
            vms: page.vms.iter().map(|vm| to_proto::vm(vm, &[])).collect(),
            next_page_token: page.next.map(|id| id.to_string()).unwrap_or_default(),
            total_size: page.total,
            ..Default::default()
        })
    }

    async fn watch_vms(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, v1::WatchVmsRequest>,
    ) -> ServiceResult<ServiceStream<v1::WatchVmsResponse>> {
        let request = from_proto::watch(request.to_owned_message()).map_err(|e| status::invalid(&e))?;
        let mut only = Vec::with_capacity(request.vms.len());
        for text in &request.vms {
            let address = Address::parse(text).map_err(|e| status::refusal(&e))?;
            only.push(self.0.engine.vm(ProjectId::DEFAULT, address).await.map_err(|e| told(&e))?.id);
        }
        // The place in the stream is taken before the snapshot: nothing falls between them.
        let watch = self.0.engine.watch(ProjectId::DEFAULT, request.from_position).await.map_err(|e| told(&e))?;
        let mut first = Vec::new();
        if request.snapshot {
            first = self.snapshot(watch.position(), &only).await?;
        }
        let live = futures::stream::unfold(Some((Arc::clone(&self.0), watch, only)), |state| async move {
            let (daemon, mut watch, only) = state?;
            match next_events(&daemon, &mut watch, &only).await {
                Ok(None) => None,
                Ok(Some(events)) => Some((futures::stream::iter(events), Some((daemon, watch, only)))),
                Err(error) => Some((futures::stream::iter(vec![Err(error)]), None)),
            }
        });
        Response::stream_ok(futures::stream::iter(first.into_iter().map(Ok)).chain(live.flatten()))
    }

    async fn get_console_log(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, v1::GetConsoleLogRequest>,
    ) -> ServiceResult<ServiceStream<v1::GetConsoleLogResponse>> {
        let request = request.to_owned_message();
        let address = Address::parse(&request.vm_id).map_err(|e| status::refusal(&e))?;
        let since = if request.since_start { Since::Start } else { Since::Ever };
        let stream = console::log(&self.0.engine, address, request.tail_bytes, request.follow, since).await?;
        Response::stream_ok(
            stream.map(|data| data.map(|data| v1::GetConsoleLogResponse { data, ..Default::default() })),
        )
    }

    async fn attach_console(
        &self,
        _context: RequestContext,
        requests: InboundStream<v1::AttachConsoleRequest>,
    ) -> ServiceResult<ServiceStream<v1::AttachConsoleResponse>> {
        let stream = console::attach(&self.0, requests).await?;
        Response::stream_ok(
            stream.map(|data| data.map(|data| v1::AttachConsoleResponse { data, ..Default::default() })),
        )
    }
}

impl Vms {
    async fn act(
        &self,
        context: &RequestContext,
        request: from_proto::Request,
    ) -> Result<(VmId, Operation, Option<Vm>), ConnectError> {
        let common = request.common;
        let wish = RequestVm {
            project: ProjectId::DEFAULT,
            vm: Address::parse(&request.vm).map_err(|e| status::refusal(&e))?,
            goal: request.goal,
            priority: common.priority,
            resource_version: common.resource_version,
            idempotency_key: common.idempotency_key.clone(),
        };
        let accepted: Accepted = self.0.engine.request(wish).await.map_err(|e| told(&e))?;
        let vm_id = accepted.vm_id;
        let (operation, vm) = until_done(&self.0.engine, context, accepted, &common).await?;
        Ok((vm_id, operation, vm))
    }

    async fn snapshot(&self, position: u64, only: &[VmId]) -> Result<Vec<v1::WatchVmsResponse>, ConnectError> {
        let mut responses = Vec::new();
        let mut after = None;
        loop {
            let filter = VmFilter { project: Some(ProjectId::DEFAULT), ids: only.to_vec(), ..VmFilter::default() };
            let page = self.0.engine.vms(filter, after, 1000).await.map_err(|e| told(&e))?;
            responses.extend(page.vms.iter().map(|vm| {
                let event = v1::Event {
                    position,
                    time: to_proto::timestamp(vm.updated_at).into(),
                    kind: "snapshot".to_owned(),
                    vm_id: vm.id.uuid().to_string(),
                    vm: to_proto::vm(vm, &[]).into(),
                    ..Default::default()
                };
                v1::WatchVmsResponse { event: event.into(), ..Default::default() }
            }));
            after = page.next;
            if after.is_none() {
                let synced = v1::Event { position, kind: "synced".to_owned(), ..Default::default() };
                responses.push(v1::WatchVmsResponse { event: synced.into(), ..Default::default() });
                return Ok(responses);
            }
        }
    }
}

fn wish(create: from_proto::Create) -> CreateVm {
    let from_proto::Create { id, name, backend, spec, start, common } = create;
    CreateVm {
        project: ProjectId::DEFAULT,
        id,
        name,
        backend,
        spec,
        start,
        priority: common.priority,
        idempotency_key: common.idempotency_key,
    }
}

fn info_of(info: VmInfo) -> v1::GetVmInfoResponse {
    let VmInfo { vm, operations, live } = info;
    let open: Vec<OperationId> = operations.iter().map(|o| o.id).collect();
    let (metrics, details) = live.map(|Info { metrics, details, .. }| (metrics, details)).unwrap_or_default();
    v1::GetVmInfoResponse {
        vm_id: vm.id.uuid().to_string(),
        config: to_proto::spec(&vm.spec).into(),
        state: to_proto::state(vm.state()).into(),
        metrics: metrics.map(metrics_of).into(),
        backend_info: details,
        vm: to_proto::vm(&vm, &open).into(),
        ..Default::default()
    }
}

fn metrics_of(metrics: Metrics) -> v1::VmMetrics {
    let Metrics { cpu_time_ns, memory_rss_bytes, uptime_ms, disks, nics } = metrics;
    let disk = |d: roost_backend::DiskMetrics| v1::DiskMetrics {
        id: d.id,
        read_bytes: d.read_bytes,
        write_bytes: d.write_bytes,
        read_ops: d.read_ops,
        write_ops: d.write_ops,
        ..Default::default()
    };
    let nic = |n: roost_backend::NicMetrics| v1::NetworkMetrics {
        id: n.id,
        rx_bytes: n.rx_bytes,
        tx_bytes: n.tx_bytes,
        rx_packets: n.rx_packets,
        tx_packets: n.tx_packets,
        ..Default::default()
    };
    v1::VmMetrics {
        cpu_time_ns,
        memory_rss_bytes,
        uptime_ms,
        disks: disks.into_iter().map(disk).collect(),
        networks: nics.into_iter().map(nic).collect(),
        ..Default::default()
    }
}

type Events = Vec<Result<v1::WatchVmsResponse, ConnectError>>;

/// The next events that concern the watcher, each with its VM and operation as they are now.
async fn next_events(daemon: &Daemon, watch: &mut Watch, only: &[VmId]) -> Result<Option<Events>, ConnectError> {
    loop {
        let Some(events) = watch.next().await.map_err(|e| told(&e))? else { return Ok(None) };
        let wanted = events.into_iter().filter(|e| only.is_empty() || e.vm.is_some_and(|vm| only.contains(&vm)));
        let mut responses = Vec::new();
        for event in wanted {
            let event = filled(daemon, event).await;
            responses.push(Ok(v1::WatchVmsResponse { event: event.into(), ..Default::default() }));
        }
        if !responses.is_empty() {
            return Ok(Some(responses));
        }
    }
}

async fn filled(daemon: &Daemon, event: Event) -> v1::Event {
    let mut filled = v1::Event {
        position: event.position,
        time: to_proto::timestamp(event.at).into(),
        kind: event.kind,
        vm_id: event.vm.map(|vm| vm.uuid().to_string()).unwrap_or_default(),
        ..Default::default()
    };
    if let Some(vm) = event.vm
        && let Ok(vm) = daemon.engine.vm(event.project, Address::Id(vm)).await
    {
        filled.vm = to_proto::vm(&vm, &[]).into();
    }
    if let Some(operation) = event.operation
        && let Ok(operation) = daemon.engine.operation(event.project, operation).await
    {
        filled.operation = to_proto::operation(&operation).into();
    }
    filled
}
