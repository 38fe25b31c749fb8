//! `vmm.v1.GuestService`.

// The concrete stream and message types are what this module wants to say.
#![allow(refining_impl_trait)]

mod exec;
mod failure;
mod files;
mod typed;

use std::sync::Arc;
use std::time::Duration;

use connectrpc::{ConnectError, InboundStream, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream};
use futures::StreamExt;
use roost_api::vmm::v1;
use roost_api::{from_proto, status, to_proto};
use roost_engine::{Address, ExecutionFilter};
use roost_guest_hub::proto::{Freeze, Request, Thaw};
use roost_guest_hub::{Flavour, MetricsPoint, MetricsSample, Status};
use roost_model::{Invalid, ProjectId, Vm};
use serde_json::{Value, json};

use self::failure::told;
use self::typed::{instant, structure};
use super::failure::told as told_by_engine;
use crate::guests::joined;
use crate::wiring::Daemon;

/// How long a question to an agent may take that somebody looks at.
const LOOK: Duration = Duration::from_secs(30);
/// How long an agent is waited for that has sent no metrics yet.
const FIRST_METRICS: Duration = Duration::from_secs(5);
/// How long the installation of a package may take when the request does not say.
const PACKAGE: Duration = Duration::from_secs(600);
/// How long a freeze lasts at most when the request does not say, and the longest that it may.
const FREEZE: u32 = 60;
const LONGEST_FREEZE: u32 = 600;

/// The service.
pub(super) struct GuestCalls(pub(super) Arc<Daemon>);

impl v1::GuestService for GuestCalls {
    async fn get_guest_info(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, v1::GetGuestInfoRequest>,
    ) -> ServiceResult<v1::GetGuestInfoResponse> {
        let vm = self.vm(request.vm_id.to_owned()).await?;
        let hub = &self.0.guests.hub;
        let agent = match hub.status(vm.id) {
            Some(status) => agent_of(&status),
            None => {
                v1::GuestAgent { reason: "the VM does not run, or has no channel".to_owned(), ..Default::default() }
            }
        };
        let mut system = None;
        if agent.connected {
            let asked = json!({ "action": "SystemInfo" });
            let answer = self.0.guests.ask_action(vm.id, asked, Duration::from_secs(5)).await;
            system = answer.ok().and_then(|response| response.data).map(structure).transpose()?;
        }
        Response::ok(v1::GetGuestInfoResponse {
            vm_id: vm.id.uuid().to_string(),
            agent: agent.into(),
            system: system.into(),
            ..Default::default()
        })
    }

    async fn run(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, v1::RunRequest>,
    ) -> ServiceResult<v1::RunResponse> {
        let run = from_proto::guest::run(request.to_owned_message()).map_err(|e| status::invalid(&e))?;
        let vm = self.vm(run.vm).await?;
        let (begun, work) = self.0.guests.run(&vm, None, run.command, run.stdin).await.map_err(|e| told(&e))?;
        let execution = if run.asynchronous { begun } else { joined(work).await.map_err(|e| told(&e))? };
        Response::ok(v1::RunResponse { execution: to_proto::execution(&execution).into(), ..Default::default() })
    }

    async fn exec(
        &self,
        _context: RequestContext,
        requests: InboundStream<v1::ExecRequest>,
    ) -> ServiceResult<ServiceStream<v1::ExecResponse>> {
        Response::stream_ok(exec::exec(self, requests).await?)
    }

    async fn get_execution(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, v1::GetExecutionRequest>,
    ) -> ServiceResult<v1::GetExecutionResponse> {
        let id = from_proto::guest::execution_id(request.execution_id).map_err(|e| status::invalid(&e))?;
        let execution = self.0.engine.execution(ProjectId::DEFAULT, id).await.map_err(|e| told_by_engine(&e))?;
        let execution = to_proto::execution(&execution).into();
        Response::ok(v1::GetExecutionResponse { execution, ..Default::default() })
    }

    async fn list_executions(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, v1::ListExecutionsRequest>,
    ) -> ServiceResult<v1::ListExecutionsResponse> {
        let query = from_proto::guest::list_executions(request.to_owned_message()).map_err(|e| status::invalid(&e))?;
        let vm = match query.vm {
            Some(vm) => Some(self.vm(vm).await?.id),
            None => None,
        };
        let filter = ExecutionFilter {
            project: Some(ProjectId::DEFAULT),
            vm,
            job: query.job,
            kinds: query.kinds,
            statuses: query.statuses,
        };
        let page = self.0.engine.executions(filter, query.after, query.page_size).await;
        let page = page.map_err(|e| told_by_engine(&e))?;
        Response::ok(v1::ListExecutionsResponse {
            executions: page.executions.iter().map(to_proto::execution).collect(),
            next_page_token: page.next.map(|id| id.to_string()).unwrap_or_default(),
            ..Default::default()
        })
    }

    async fn create_job(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, v1::CreateJobRequest>,
    ) -> ServiceResult<v1::CreateJobResponse> {
        let new = from_proto::guest::new_job(request.to_owned_message()).map_err(|e| status::invalid(&e))?;
        let vm = self.vm(new.vm.clone()).await?;
        let job = self.0.guests.start_job(vm, new).await.map_err(|e| told(&e))?;
        Response::ok(v1::CreateJobResponse { job: to_proto::job(&job).into(), ..Default::default() })
    }

    async fn get_job(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, v1::GetJobRequest>,
    ) -> ServiceResult<v1::GetJobResponse> {
        let id = from_proto::guest::job_id(request.job_id).map_err(|e| status::invalid(&e))?;
        let job = self.0.engine.job(ProjectId::DEFAULT, id).await.map_err(|e| told_by_engine(&e))?;
        Response::ok(v1::GetJobResponse { job: to_proto::job(&job).into(), ..Default::default() })
    }

    async fn list_jobs(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, v1::ListJobsRequest>,
    ) -> ServiceResult<v1::ListJobsResponse> {
        let query = from_proto::guest::list_jobs(request.to_owned_message()).map_err(|e| status::invalid(&e))?;
        let vm = self.vm(query.vm).await?;
        let page = self.0.engine.jobs(ProjectId::DEFAULT, vm.id, query.after, query.page_size).await;
        let (jobs, next) = page.map_err(|e| told_by_engine(&e))?;
        Response::ok(v1::ListJobsResponse {
            jobs: jobs.iter().map(to_proto::job).collect(),
            next_page_token: next.map(|id| id.to_string()).unwrap_or_default(),
            ..Default::default()
        })
    }

    async fn push_file(
        &self,
        _context: RequestContext,
        requests: InboundStream<v1::PushFileRequest>,
    ) -> ServiceResult<v1::PushFileResponse> {
        Response::ok(files::push(self, requests).await?)
    }

    async fn pull_file(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, v1::PullFileRequest>,
    ) -> ServiceResult<ServiceStream<v1::PullFileResponse>> {
        Response::stream_ok(files::pull(self, request.to_owned_message()).await?)
    }

    async fn stat_file(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, v1::StatFileRequest>,
    ) -> ServiceResult<v1::StatFileResponse> {
        Response::ok(files::stat(self, request.to_owned_message()).await?)
    }

    async fn get_metrics(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, v1::GetMetricsRequest>,
    ) -> ServiceResult<v1::GetMetricsResponse> {
        let history = request.history;
        let vm = self.vm(request.vm_id.to_owned()).await?;
        let hub = &self.0.guests.hub;
        let sample = match hub.metrics(vm.id) {
            Some(sample) => Some(sample),
            // It has sent none yet: it is asked for some.
            None => match hub.watch_metrics(vm.id, Vec::new(), Duration::from_secs(1)).await {
                Ok(mut watch) => tokio::time::timeout(FIRST_METRICS, watch.next()).await.ok().flatten(),
                Err(_) => None,
            },
        };
        let metrics = sample.map(|sample| sample_of(&sample)).transpose()?;
        let points = if history { hub.metrics_history(vm.id) } else { Vec::new() };
        Response::ok(v1::GetMetricsResponse {
            metrics: metrics.into(),
            history: points.iter().map(point_of).collect(),
            ..Default::default()
        })
    }

    async fn watch_metrics(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, v1::WatchMetricsRequest>,
    ) -> ServiceResult<ServiceStream<v1::WatchMetricsResponse>> {
        let request = request.to_owned_message();
        let seconds = request.interval_seconds.max(1);
        if seconds > 3600 {
            let invalid = Invalid::new("interval_seconds", seconds, "is out of range").permit(["1 to 3600"]);
            return Err(status::invalid(&invalid));
        }
        let vm = self.vm(request.vm_id).await?;
        let interval = Duration::from_secs(seconds.into());
        let watch = self.0.guests.hub.watch_metrics(vm.id, request.groups, interval).await;
        let watch = watch.map_err(|e| told(&e.into()))?;
        Response::stream_ok(watch.into_stream().map(|sample| {
            let metrics = sample_of(&sample)?.into();
            Ok(v1::WatchMetricsResponse { metrics, ..Default::default() })
        }))
    }

    async fn list_services(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, v1::ListServicesRequest>,
    ) -> ServiceResult<v1::ListServicesResponse> {
        let data = self.look(request.vm_id.to_owned(), json!({ "action": "ServiceList" })).await?;
        Response::ok(v1::ListServicesResponse { services: typed::services(data)?, ..Default::default() })
    }

    async fn control_service(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, v1::ControlServiceRequest>,
    ) -> ServiceResult<v1::ControlServiceResponse> {
        let request = request.to_owned_message();
        let action = json!({
            "action": "ServiceControl",
            "service": request.service,
            "operation": request.operation,
        });
        let (execution, _data) = self.act(request.vm_id, action, 0, LOOK * 3).await?;
        Response::ok(v1::ControlServiceResponse { execution: execution.into(), ..Default::default() })
    }

    async fn list_packages(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, v1::ListPackagesRequest>,
    ) -> ServiceResult<v1::ListPackagesResponse> {
        let request = request.to_owned_message();
        let action = if request.query.is_empty() {
            json!({ "action": "PackageList" })
        } else {
            json!({ "action": "PackageSearch", "query": request.query })
        };
        let data = self.look(request.vm_id, action).await?;
        Response::ok(v1::ListPackagesResponse { packages: typed::packages(data)?, ..Default::default() })
    }

    async fn change_package(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, v1::ChangePackageRequest>,
    ) -> ServiceResult<v1::ChangePackageResponse> {
        let request = request.to_owned_message();
        let name = match request.operation.as_str() {
            "install" => "PackageInstall",
            "remove" => "PackageRemove",
            "update" => "PackageUpdate",
            other => {
                let invalid = Invalid::new("operation", other, "is not one of the permitted words");
                return Err(status::invalid(&invalid.permit(["install", "remove", "update"])));
            }
        };
        let mut action = json!({ "action": name, "package": request.package });
        if !request.version.is_empty() {
            action["version"] = request.version.into();
        }
        let (execution, _data) = self.act(request.vm_id, action, request.timeout_seconds, PACKAGE).await?;
        Response::ok(v1::ChangePackageResponse { execution: execution.into(), ..Default::default() })
    }

    async fn list_processes(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, v1::ListProcessesRequest>,
    ) -> ServiceResult<v1::ListProcessesResponse> {
        let request = request.to_owned_message();
        let limit = if request.limit == 0 { 100 } else { request.limit };
        let mut action = json!({ "action": "ProcessTop", "limit": limit });
        if !request.sort_by.is_empty() {
            action["sort_by"] = request.sort_by.into();
        }
        let data = self.look(request.vm_id, action).await?;
        Response::ok(v1::ListProcessesResponse { processes: typed::processes(data)?, ..Default::default() })
    }

    async fn kill_process(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, v1::KillProcessRequest>,
    ) -> ServiceResult<v1::KillProcessResponse> {
        let request = request.to_owned_message();
        let action = json!({ "action": "ProcessKill", "pid": request.pid, "force": request.force });
        let (execution, _data) = self.act(request.vm_id, action, 0, LOOK).await?;
        Response::ok(v1::KillProcessResponse { execution: execution.into(), ..Default::default() })
    }

    async fn run_action(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, v1::RunActionRequest>,
    ) -> ServiceResult<v1::RunActionResponse> {
        let request = request.to_owned_message();
        let mut action = match request.params.into_option() {
            Some(params) => serde_json::to_value(params).map_err(|e| ConnectError::internal(e.to_string()))?,
            None => json!({}),
        };
        if action.get("action").is_some() {
            let invalid = Invalid::new("params.action", "", "says nothing here").permit(["the field action"]);
            return Err(status::invalid(&invalid));
        }
        action["action"] = request.action.into();
        let (execution, data) = self.act(request.vm_id, action, request.timeout_seconds, LOOK).await?;
        Response::ok(v1::RunActionResponse {
            execution: execution.into(),
            data: data.map(typed::value).transpose()?.into(),
            ..Default::default()
        })
    }

    async fn freeze(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, v1::FreezeRequest>,
    ) -> ServiceResult<v1::FreezeResponse> {
        let request = request.to_owned_message();
        let seconds = if request.timeout_seconds == 0 { FREEZE } else { request.timeout_seconds };
        if seconds > LONGEST_FREEZE {
            let invalid = Invalid::new("timeout_seconds", seconds, "is too long");
            return Err(status::invalid(&invalid.permit([format!("1 to {LONGEST_FREEZE}")])));
        }
        let timeout_ms = u64::from(seconds) * 1000;
        let freeze = Request::Freeze(Freeze { id: String::new(), timeout_ms, paths: request.paths });
        let details = self.ask(request.vm_id, "Freeze", freeze).await?;
        Response::ok(v1::FreezeResponse { details: details.into(), ..Default::default() })
    }

    async fn thaw(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, v1::ThawRequest>,
    ) -> ServiceResult<v1::ThawResponse> {
        let thaw = Request::Thaw(Thaw { id: String::new() });
        let details = self.ask(request.vm_id.to_owned(), "Thaw", thaw).await?;
        Response::ok(v1::ThawResponse { details: details.into(), ..Default::default() })
    }
}

impl GuestCalls {
    /// The VM that a caller names.
    async fn vm(&self, vm_id: String) -> Result<Vm, ConnectError> {
        let address = from_proto::address(vm_id).map_err(|e| status::invalid(&e))?;
        let address = Address::parse(&address).map_err(|e| status::refusal(&e))?;
        self.0.engine.vm(ProjectId::DEFAULT, address).await.map_err(|e| told_by_engine(&e))
    }

    /// What a typed action that only looks has found.
    async fn look(&self, vm_id: String, action: Value) -> Result<Value, ConnectError> {
        let vm = self.vm(vm_id).await?;
        let answer = self.0.guests.ask_action(vm.id, action, LOOK).await;
        failure::data(answer.map_err(|e| told(&e.into()))?)
    }

    /// A typed action with its record, and what it has found.
    async fn act(
        &self,
        vm_id: String,
        action: Value,
        timeout_seconds: u32,
        default: Duration,
    ) -> Result<(v1::Execution, Option<Value>), ConnectError> {
        let timeout = from_proto::guest::timeout(timeout_seconds, default).map_err(|e| status::invalid(&e))?;
        let vm = self.vm(vm_id).await?;
        let (execution, response) = self.0.guests.action(&vm, action, timeout).await.map_err(|e| told(&e))?;
        Ok((to_proto::execution(&execution), response.data))
    }

    /// Another request to the agent, with its record.
    async fn ask(
        &self,
        vm_id: String,
        name: &str,
        request: Request,
    ) -> Result<Option<buffa_types::google::protobuf::Struct>, ConnectError> {
        let vm = self.vm(vm_id).await?;
        let (_execution, response) = self.0.guests.request(&vm, name, request, LOOK).await.map_err(|e| told(&e))?;
        match failure::data(response)? {
            Value::Null => Ok(None),
            data => structure(data).map(Some),
        }
    }
}

fn agent_of(status: &Status) -> v1::GuestAgent {
    let kind = match status.flavour {
        Some(Flavour::Roost) => v1::AgentKind::AGENT_KIND_ROOST,
        Some(Flavour::Seed) => v1::AgentKind::AGENT_KIND_LINES,
        Some(Flavour::Legacy) => v1::AgentKind::AGENT_KIND_LEGACY_VSOCK,
        Some(Flavour::QemuGuestAgent) => v1::AgentKind::AGENT_KIND_QEMU_GUEST_AGENT,
        None => v1::AgentKind::AGENT_KIND_UNSPECIFIED,
    };
    let dropped = status.dropped;
    v1::GuestAgent {
        connected: status.connected,
        kind: kind.into(),
        version: status.version.clone(),
        platform: status.platform.clone(),
        capabilities: status.capabilities.clone(),
        since: instant(status.since).into(),
        epoch: status.epoch.unwrap_or_default(),
        sealed: status.sealed,
        dropped_messages: dropped.long + dropped.messages + dropped.frames + dropped.replies,
        reason: status.why.clone().unwrap_or_default(),
        ..Default::default()
    }
}

fn sample_of(sample: &MetricsSample) -> Result<v1::MetricsSample, ConnectError> {
    let mut data = sample.data().map_err(|e| {
        status::error(
            connectrpc::ErrorCode::FailedPrecondition,
            "GUEST_PROTOCOL",
            format!("the metrics are none: {e}"),
            "",
        )
    })?;
    let system = data.get_mut("system").map(Value::take).unwrap_or(data);
    let time = instant(sample.received).into();
    Ok(v1::MetricsSample { time, system: structure(system)?.into(), ..Default::default() })
}

fn point_of(point: &MetricsPoint) -> v1::MetricsPoint {
    v1::MetricsPoint {
        time: instant(point.at).into(),
        cpu_percent: point.cpu_percent.into(),
        memory_used_bytes: point.memory_used_bytes,
        disk_read_bytes_per_second: point.disk_read_bytes_per_second as f64,
        disk_write_bytes_per_second: point.disk_written_bytes_per_second as f64,
        network_receive_bytes_per_second: point.network_received_bytes_per_second as f64,
        network_send_bytes_per_second: point.network_sent_bytes_per_second as f64,
        ..Default::default()
    }
}
