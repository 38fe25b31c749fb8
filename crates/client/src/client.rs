//! The connection, and one method for each RPC.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use buffa::EnumValue;
use connectrpc::ConnectError;
use connectrpc::client::{CallOptions, ClientConfig, Http2Connection, SharedHttp2Connection};
use roost_api::vmm::v1::*;

use crate::console::Console;
use crate::error::Error;
use crate::stream::{ConsoleLog, Watch};

/// How long an answer may take that needs no guest.
const READ_DEADLINE: Duration = Duration::from_secs(30);
/// How often a connection with calls in flight is asked whether it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How long one call waits for an operation: a long wait is many calls, so that no limit of a server is met.
const WAIT_PART: Duration = Duration::from_secs(60);
/// How many calls may wait for the connection.
const CALLS_IN_LINE: usize = 1024;
/// The longest message taken from the daemon.
const MOST_BYTES: usize = 64 << 20;

/// The daemon's API. Cheap to clone; clones share one connection.
#[derive(Clone)]
pub struct Client {
    socket: Arc<Path>,
    vms: VmServiceClient<SharedHttp2Connection>,
    pub(crate) guests: GuestServiceClient<SharedHttp2Connection>,
    operations: OperationServiceClient<SharedHttp2Connection>,
    system: SystemServiceClient<SharedHttp2Connection>,
}

/// What a request that changes a VM is answered with.
#[derive(Debug, Clone, PartialEq)]
pub struct Changed {
    /// The VM's bare UUID.
    pub vm_id: String,
    /// Its state when the answer was written.
    pub state: EnumValue<VmState>,
    /// The operation: ended, or still under way if the call was `async` or ran out of time.
    pub operation: Operation,
}

impl Client {
    /// A client of the daemon at this socket. The connection is made by the first call; must be
    /// called within a tokio runtime.
    pub fn connect_unix(socket: impl AsRef<Path>) -> Self {
        let socket: Arc<Path> = socket.as_ref().into();
        // On a Unix socket nobody looks at the authority.
        let authority = http::Uri::from_static("http://localhost");
        let connection = Http2Connection::builder()
            .establishment_timeout(READ_DEADLINE)
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .lazy_unix(socket.to_path_buf(), authority.clone())
            .shared(CALLS_IN_LINE);
        let config = ClientConfig::new(authority).with_default_max_message_size(MOST_BYTES);
        Self {
            socket,
            vms: VmServiceClient::new(connection.clone(), config.clone()),
            guests: GuestServiceClient::new(connection.clone(), config.clone()),
            operations: OperationServiceClient::new(connection.clone(), config.clone()),
            system: SystemServiceClient::new(connection, config),
        }
    }

    /// The socket that this client talks to.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits until the daemon answers, for so long at most; then the last error.
    pub async fn wait_ready(&self, at_most: Duration) -> Result<GetVersionResponse, Error> {
        // A socket that appears sends no event; the first tries come quickly, the later ones seldom.
        const LONGEST_PAUSE: Duration = Duration::from_millis(100);
        let end = Instant::now() + at_most;
        let mut pause = Duration::from_millis(2);
        loop {
            let error = match self.version().await {
                Ok(version) => return Ok(version),
                Err(error) => error,
            };
            if error.code() != connectrpc::ErrorCode::Unavailable || Instant::now() + pause >= end {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Creates a VM.
    pub async fn create_vm(&self, request: CreateVmRequest) -> Result<Changed, Error> {
        let answer = self.answer(self.vms.create_vm(request)).await?.into_owned();
        Ok(Changed { vm_id: answer.vm_id, state: answer.state, operation: operation(answer.operation)? })
    }

    /// Creates many VMs, or none; in the order of the request.
    pub async fn bulk_create_vms(&self, request: BulkCreateVmsRequest) -> Result<Vec<Changed>, Error> {
        let answer = self.answer(self.vms.bulk_create_vms(request)).await?.into_owned();
        let changed = answer
            .vms
            .into_iter()
            .map(|vm| Ok(Changed { vm_id: vm.vm_id, state: vm.state, operation: operation(vm.operation)? }));
        changed.collect()
    }

    /// Deletes a VM.
    pub async fn delete_vm(&self, request: DeleteVmRequest) -> Result<Changed, Error> {
        let answer = self.answer(self.vms.delete_vm(request)).await?.into_owned();
        Ok(Changed { vm_id: answer.vm_id, state: answer.state, operation: operation(answer.operation)? })
    }

    /// Starts a VM.
    pub async fn boot_vm(&self, request: BootVmRequest) -> Result<Changed, Error> {
        let answer = self.answer(self.vms.boot_vm(request)).await?.into_owned();
        Ok(Changed { vm_id: answer.vm_id, state: answer.state, operation: operation(answer.operation)? })
    }

    /// Stops a VM.
    pub async fn shutdown_vm(&self, request: ShutdownVmRequest) -> Result<Changed, Error> {
        let answer = self.answer(self.vms.shutdown_vm(request)).await?.into_owned();
        Ok(Changed { vm_id: answer.vm_id, state: answer.state, operation: operation(answer.operation)? })
    }

    /// Pauses a VM.
    pub async fn pause_vm(&self, request: PauseVmRequest) -> Result<Changed, Error> {
        let answer = self.answer(self.vms.pause_vm(request)).await?.into_owned();
        Ok(Changed { vm_id: answer.vm_id, state: answer.state, operation: operation(answer.operation)? })
    }

    /// Resumes a VM.
    pub async fn resume_vm(&self, request: ResumeVmRequest) -> Result<Changed, Error> {
        let answer = self.answer(self.vms.resume_vm(request)).await?.into_owned();
        Ok(Changed { vm_id: answer.vm_id, state: answer.state, operation: operation(answer.operation)? })
    }

    /// Reboots a VM.
    pub async fn reboot_vm(&self, request: RebootVmRequest) -> Result<Changed, Error> {
        let answer = self.answer(self.vms.reboot_vm(request)).await?.into_owned();
        Ok(Changed { vm_id: answer.vm_id, state: answer.state, operation: operation(answer.operation)? })
    }

    /// Replaces a VM's configuration.
    pub async fn update_vm(&self, request: UpdateVmRequest) -> Result<Changed, Error> {
        let answer = self.answer(self.vms.update_vm(request)).await?.into_owned();
        Ok(Changed { vm_id: answer.vm_id, state: answer.state, operation: operation(answer.operation)? })
    }

    /// One VM, by ID or name, with its backend's counters.
    pub async fn get_vm_info(&self, vm: &str) -> Result<GetVmInfoResponse, Error> {
        let request = GetVmInfoRequest { vm_id: vm.to_owned(), ..Default::default() };
        Ok(self.answer(self.vms.get_vm_info_with_options(request, reading())).await?.into_owned())
    }

    /// A page of VMs.
    pub async fn list_vms(&self, request: ListVmsRequest) -> Result<ListVmsResponse, Error> {
        Ok(self.answer(self.vms.list_vms_with_options(request, reading())).await?.into_owned())
    }

    /// Every VM that matches, page by page.
    pub async fn list_all_vms(&self, mut request: ListVmsRequest) -> Result<Vec<Vm>, Error> {
        let mut vms = Vec::new();
        loop {
            let page = self.list_vms(request.clone()).await?;
            vms.extend(page.vms);
            if page.next_page_token.is_empty() {
                return Ok(vms);
            }
            request.page_token = page.next_page_token;
        }
    }

    /// Events as they are committed.
    pub async fn watch_vms(&self, request: WatchVmsRequest) -> Result<Watch, Error> {
        let stream = self.answer(self.vms.watch_vms(request)).await?;
        Ok(Watch { stream, socket: Arc::clone(&self.socket) })
    }

    /// The end of the serial console's log, and what follows if the request says so.
    pub async fn console_log(&self, request: GetConsoleLogRequest) -> Result<ConsoleLog, Error> {
        let stream = self.answer(self.vms.get_console_log(request)).await?;
        Ok(ConsoleLog { stream, socket: Arc::clone(&self.socket) })
    }

    /// Attaches to a VM's serial console. A refusal is told by the first read.
    pub async fn attach_console(&self, vm: &str) -> Result<Console, Error> {
        let stream = self.answer(self.vms.attach_console()).await?;
        Console::attach(stream, vm, Arc::clone(&self.socket)).await
    }

    /// One operation.
    pub async fn get_operation(&self, id: &str) -> Result<Operation, Error> {
        let request = GetOperationRequest { operation_id: id.to_owned(), ..Default::default() };
        let call = self.operations.get_operation_with_options(request, reading());
        operation(self.answer(call).await?.into_owned().operation)
    }

    /// A page of operations.
    pub async fn list_operations(&self, request: ListOperationsRequest) -> Result<ListOperationsResponse, Error> {
        Ok(self.answer(self.operations.list_operations_with_options(request, reading())).await?.into_owned())
    }

    /// Waits for an operation's end, for so long at most; then the operation as it is.
    pub async fn wait_operation(&self, id: &str, at_most: Duration) -> Result<Operation, Error> {
        let wait = async {
            loop {
                let request = WaitOperationRequest {
                    operation_id: id.to_owned(),
                    timeout_seconds: WAIT_PART.as_secs() as u32,
                    ..Default::default()
                };
                let answer = self.answer(self.operations.wait_operation(request)).await?.into_owned();
                let operation = operation(answer.operation)?;
                if has_ended(&operation) {
                    return Ok(operation);
                }
            }
        };
        match tokio::time::timeout(at_most, wait).await {
            Ok(ended) => ended,
            Err(_) => self.get_operation(id).await,
        }
    }

    /// Asks for an operation's end.
    pub async fn cancel_operation(&self, id: &str) -> Result<Operation, Error> {
        let request = CancelOperationRequest { operation_id: id.to_owned(), ..Default::default() };
        operation(self.answer(self.operations.cancel_operation(request)).await?.into_owned().operation)
    }

    /// The daemon's version.
    pub async fn version(&self) -> Result<GetVersionResponse, Error> {
        let request = GetVersionRequest::default();
        Ok(self.answer(self.system.get_version_with_options(request, reading())).await?.into_owned())
    }

    /// The daemon's backends.
    pub async fn list_backends(&self) -> Result<Vec<BackendDescription>, Error> {
        let request = ListBackendsRequest::default();
        Ok(self.answer(self.system.list_backends_with_options(request, reading())).await?.into_owned().backends)
    }

    /// What the daemon finds on its host.
    pub async fn doctor(&self) -> Result<Vec<Finding>, Error> {
        let call = self.system.doctor_with_options(DoctorRequest::default(), reading());
        Ok(self.answer(call).await?.into_owned().findings)
    }

    pub(crate) fn shared_socket(&self) -> Arc<Path> {
        Arc::clone(&self.socket)
    }

    pub(crate) async fn answer<T>(&self, call: impl Future<Output = Result<T, ConnectError>>) -> Result<T, Error> {
        call.await.map_err(|e| Error::from_call(&e, &self.socket))
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// Whether nothing follows for this operation. A status that this client does not know is not an end.
pub fn has_ended(operation: &Operation) -> bool {
    use OperationStatus as S;
    matches!(operation.status.as_known(), Some(s) if s == S::Succeeded || s == S::Failed || s == S::Cancelled)
}

fn operation(field: impl Into<Option<Operation>>) -> Result<Operation, Error> {
    field.into().ok_or_else(|| Error::Call {
        code: connectrpc::ErrorCode::Internal,
        message: "the daemon's answer lacks its operation".to_owned(),
        detail: None,
        operation: None,
    })
}

fn reading() -> CallOptions {
    CallOptions::default().with_timeout(READ_DEADLINE)
}
