//! A server of the whole API surface on a Unix socket, assembled as the daemon assembles it, with
//! the smallest services that show how a call gets through.
// Each test file uses its part; a handler that names its answer's type promises more than it must.
#![allow(dead_code, unreachable_pub, refining_impl_trait)]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::routing::get;
use connectrpc::{
    ConnectError, ConnectRpcService, DeadlinePolicy, InboundStream, Limits, RequestContext, Response, ServiceRequest,
    ServiceResult, ServiceStream,
};
use futures::StreamExt;
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use roost_api::vmm::v1::*;
use roost_api::{AnyAuthority, status};
use roost_model::Invalid;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tower::ServiceExt;

/// The longest message that the server takes.
pub const MOST_BYTES: usize = 1 << 20;
/// How long a call may take whose client sets no deadline.
pub const DEFAULT_DEADLINE: Duration = Duration::from_millis(300);

/// Who is on the other end of the socket.
#[derive(Debug, Clone, Copy)]
struct Peer {
    uid: u32,
}

/// A running server. Dropping it stops it.
pub struct TestServer {
    pub socket: PathBuf,
    stop: watch::Sender<bool>,
    watches: watch::Receiver<usize>,
    connections: Arc<AtomicUsize>,
    dir: tempfile::TempDir,
}

/// Counts a watch for as long as its stream is there.
struct Counted(watch::Sender<usize>);

impl Counted {
    fn new(watches: &watch::Sender<usize>) -> Self {
        watches.send_modify(|n| *n += 1);
        Self(watches.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

impl TestServer {
    pub fn start() -> Self {
        Self::start_in(tempfile::tempdir().expect("a directory for the socket"))
    }

    fn start_in(dir: tempfile::TempDir) -> Self {
        let socket = dir.path().join("api.sock");
        let listener = UnixListener::bind(&socket).expect("the socket can be bound");
        let (stop, stopped) = watch::channel(false);
        let (sender, watches) = watch::channel(0);
        let connections = Arc::new(AtomicUsize::new(0));
        tokio::spawn(serve(listener, app(sender), stopped, Arc::clone(&connections)));
        Self { socket, stop, watches, connections, dir }
    }

    /// How many connections it has taken.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// How many watches are open.
    pub fn watches(&self) -> usize {
        *self.watches.borrow()
    }

    /// Waits until so many watches are open.
    pub async fn until_watches(&self, count: usize) {
        let mut watches = self.watches.clone();
        let there = watches.wait_for(|n| *n == count);
        tokio::time::timeout(Duration::from_secs(10), there).await.expect("in time").expect("the server runs");
    }

    /// Stops it, and starts another one at the same path.
    pub async fn restart(self) -> Self {
        self.stop.send_replace(true);
        self.stop.closed().await;
        std::fs::remove_file(&self.socket).expect("the socket was there");
        Self::start_in(self.dir)
    }
}

/// Connect, gRPC, gRPC-Web, health, reflection and plain HTTP behind one door.
fn app(watches: watch::Sender<usize>) -> axum::Router {
    let router = connectrpc::Router::new()
        .add_service(Arc::new(Vms { watches }))
        .add_service(Arc::new(Operations))
        .add_service(Arc::new(System));
    let (router, _health) = connectrpc_health::install_static(
        router,
        [VM_SERVICE_SERVICE_NAME, OPERATION_SERVICE_SERVICE_NAME, SYSTEM_SERVICE_SERVICE_NAME],
    );
    let reflector = connectrpc_reflection::Reflector::from_descriptor_set_bytes(roost_api::DESCRIPTOR_SET)
        .expect("the descriptor set was made by this build");
    let router = connectrpc_reflection::install(router, reflector);
    let rpc = ConnectRpcService::new(router)
        .with_limits(Limits::default().with_max_request_body_size(MOST_BYTES).with_max_message_size(MOST_BYTES))
        .with_deadline_policy(
            DeadlinePolicy::new()
                .with_min(Duration::from_millis(5))
                .with_max(Duration::from_secs(3600))
                .with_default_timeout(DEFAULT_DEADLINE),
        )
        .with_interceptor(roost_api::StrictJson);
    axum::Router::new().route("/_/health", get(|| async { "ok" })).fallback_service(rpc)
}

async fn serve(
    listener: UnixListener,
    app: axum::Router,
    mut stopped: watch::Receiver<bool>,
    connections: Arc<AtomicUsize>,
) {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
    http.http2().timer(TokioTimer::new()).keep_alive_interval(Duration::from_secs(60)).max_concurrent_streams(256);
    let graceful = GracefulShutdown::new();
    loop {
        let (stream, _) = tokio::select! {
            _ = stopped.wait_for(|s| *s) => break,
            accepted = listener.accept() => accepted.expect("a test's socket accepts"),
        };
        connections.fetch_add(1, Ordering::SeqCst);
        let peer = Peer { uid: stream.peer_cred().expect("a Unix socket knows its peer").uid() };
        let app = app.clone();
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer);
            app.clone().oneshot(request)
        });
        let connection =
            http.serve_connection_with_upgrades(TokioIo::new(AnyAuthority::new(stream)), service).into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // A peer that goes away in mid-call is no news.
            let _ = connection.await;
        });
    }
    tokio::select! {
        () = graceful.shutdown() => {}
        () = tokio::time::sleep(Duration::from_secs(1)) => {}
    }
}

struct Vms {
    watches: watch::Sender<usize>,
}

struct Operations;
struct System;

fn refused(field: &str, value: &str) -> ConnectError {
    status::invalid(&Invalid::new(field, value, "is refused").permit(["something else"]))
}

fn done(vm_id: &str) -> Operation {
    Operation {
        id: "op_1".to_owned(),
        vm_id: vm_id.to_owned(),
        status: OperationStatus::Succeeded.into(),
        ..Default::default()
    }
}

/// An operation that does not end.
fn endless() -> Operation {
    Operation { id: "op_endless".to_owned(), status: OperationStatus::Running.into(), ..Default::default() }
}

/// An operation that failed.
fn doomed() -> roost_model::Operation {
    use roost_model::operation::{Goal, OperationError};
    use roost_model::{OperationId, Power, Priority, ProjectId, Status, Timestamp, VmId};
    let now = Timestamp::from_unix_ms(1_700_000_000_123);
    let (id, vm) = (OperationId::from_parts(1, [1; 10]), VmId::from_parts(1, [2; 10]));
    let goal = Goal::Create { power: Power::Running };
    let mut operation = roost_model::Operation::new(id, ProjectId::DEFAULT, vm, goal, Priority::Default, now);
    let error = OperationError {
        reason: "KERNEL_UNREADABLE".to_owned(),
        message: "/boot/vmlinuz: permission denied".to_owned(),
        hint: "make it readable".to_owned(),
        field: "config.boot.kernel_path".to_owned(),
    };
    operation.finish(Status::Failed, Some(error), now);
    operation
}

macro_rules! mutation {
    ($method:ident, $request:ident, $response:ident, $state:expr) => {
        async fn $method(
            &self,
            _ctx: RequestContext,
            request: ServiceRequest<'_, $request>,
        ) -> ServiceResult<$response> {
            Response::ok($response {
                vm_id: request.vm_id.to_owned(),
                state: $state.into(),
                operation: done(request.vm_id).into(),
                ..Default::default()
            })
        }
    };
}

impl VmService for Vms {
    async fn create_vm(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, CreateVmRequest>,
    ) -> ServiceResult<CreateVmResponse> {
        let request = request.to_owned_message();
        match request.name.as_str() {
            "bad" => return Err(refused("name", "bad")),
            "doomed" => return Err(status::failed(&doomed())),
            _ => {}
        }
        Response::ok(CreateVmResponse {
            vm_id: request.name.clone(),
            state: VmState::Created.into(),
            operation: done(&request.name).into(),
            ..Default::default()
        })
    }

    mutation!(delete_vm, DeleteVmRequest, DeleteVmResponse, VmState::Shutdown);
    mutation!(boot_vm, BootVmRequest, BootVmResponse, VmState::Running);
    mutation!(shutdown_vm, ShutdownVmRequest, ShutdownVmResponse, VmState::Shutdown);
    mutation!(pause_vm, PauseVmRequest, PauseVmResponse, VmState::Paused);
    mutation!(resume_vm, ResumeVmRequest, ResumeVmResponse, VmState::Running);
    mutation!(reboot_vm, RebootVmRequest, RebootVmResponse, VmState::Running);
    mutation!(update_vm, UpdateVmRequest, UpdateVmResponse, VmState::Created);

    /// Tells the peer's uid, and hangs for a VM of the name `hang`.
    async fn get_vm_info(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, GetVmInfoRequest>,
    ) -> ServiceResult<GetVmInfoResponse> {
        if request.vm_id == "hang" {
            std::future::pending::<()>().await;
        }
        let peer = ctx.extensions().get::<Peer>().expect("every connection has a peer");
        Response::ok(GetVmInfoResponse {
            vm_id: request.vm_id.to_owned(),
            backend_info: [("uid".to_owned(), peer.uid.to_string())].into(),
            ..Default::default()
        })
    }

    async fn list_vms(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, ListVmsRequest>,
    ) -> ServiceResult<ListVmsResponse> {
        Response::ok(ListVmsResponse::default())
    }

    async fn bulk_create_vms(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, BulkCreateVmsRequest>,
    ) -> ServiceResult<BulkCreateVmsResponse> {
        let vms = request.vms.iter().map(|vm| CreateVmResponse {
            vm_id: vm.name.to_owned(),
            operation: done(vm.name).into(),
            ..Default::default()
        });
        Response::ok(BulkCreateVmsResponse { vms: vms.collect(), ..Default::default() })
    }

    /// Three events, one more when the deadline of calls is long over, and then none for ever; or an
    /// error after the first, from position 13.
    async fn watch_vms(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, WatchVmsRequest>,
    ) -> ServiceResult<ServiceStream<WatchVmsResponse>> {
        let from = request.from_position.unwrap_or(0);
        let counted = Counted::new(&self.watches);
        let event = move |n| {
            let event = Event { position: from + n, kind: "vm.state".to_owned(), ..Default::default() };
            Ok(WatchVmsResponse { event: event.into(), ..Default::default() })
        };
        let events = futures::stream::iter((1..=3).map(move |n| match (from, n) {
            (13, 2) => Err(refused("from_position", "13")),
            _ => event(n),
        }));
        let late = futures::stream::once(async move {
            tokio::time::sleep(2 * DEFAULT_DEADLINE).await;
            event(4)
        });
        let stream = events.chain(late).chain(futures::stream::pending());
        Response::stream_ok(stream.inspect(move |_| {
            let _ = &counted;
        }))
    }

    async fn get_console_log(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, GetConsoleLogRequest>,
    ) -> ServiceResult<ServiceStream<GetConsoleLogResponse>> {
        Response::stream_ok(futures::stream::iter(
            [b"one\n".to_vec(), b"two\n".to_vec()].map(|data| Ok(GetConsoleLogResponse { data, ..Default::default() })),
        ))
    }

    /// Greets, and then gives back in capitals what it is sent.
    async fn attach_console(
        &self,
        _ctx: RequestContext,
        mut requests: InboundStream<AttachConsoleRequest>,
    ) -> ServiceResult<ServiceStream<AttachConsoleResponse>> {
        let first = requests.next().await.ok_or_else(|| refused("vm_id", ""))??;
        if first.vm_id().is_empty() {
            return Err(refused("vm_id", ""));
        }
        let say = |data: Vec<u8>| AttachConsoleResponse { data, ..Default::default() };
        let greeting = say(format!("this is {}\n", first.vm_id()).into_bytes());
        let echo = requests.map(move |r| r.map(|r| say(r.data().to_ascii_uppercase())));
        Response::stream_ok(futures::stream::iter([Ok(greeting)]).chain(echo))
    }
}

impl OperationService for Operations {
    async fn get_operation(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, GetOperationRequest>,
    ) -> ServiceResult<GetOperationResponse> {
        match request.operation_id {
            "op_endless" => Response::ok(GetOperationResponse { operation: endless().into(), ..Default::default() }),
            id => Err(ConnectError::not_found(format!("there is no operation {id:?}"))),
        }
    }

    async fn list_operations(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, ListOperationsRequest>,
    ) -> ServiceResult<ListOperationsResponse> {
        Response::ok(ListOperationsResponse::default())
    }

    async fn wait_operation(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, WaitOperationRequest>,
    ) -> ServiceResult<WaitOperationResponse> {
        if request.operation_id == "op_endless" {
            std::future::pending::<()>().await;
        }
        Response::ok(WaitOperationResponse { operation: done("vm").into(), ..Default::default() })
    }

    async fn cancel_operation(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, CancelOperationRequest>,
    ) -> ServiceResult<CancelOperationResponse> {
        Response::ok(CancelOperationResponse { operation: done("vm").into(), ..Default::default() })
    }
}

impl SystemService for System {
    async fn get_version(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, GetVersionRequest>,
    ) -> ServiceResult<GetVersionResponse> {
        Response::ok(GetVersionResponse { version: "0.0.0-test".to_owned(), ..Default::default() })
    }

    async fn list_backends(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, ListBackendsRequest>,
    ) -> ServiceResult<ListBackendsResponse> {
        Response::ok(ListBackendsResponse::default())
    }

    async fn doctor(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, DoctorRequest>,
    ) -> ServiceResult<DoctorResponse> {
        Response::ok(DoctorResponse::default())
    }
}
