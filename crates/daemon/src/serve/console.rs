//! The serial console on the wire: the kept log, followed or not, and a live line in both directions.

use std::io;
use std::path::{Path, PathBuf};

use super::failure::told;
use connectrpc::{ConnectError, ErrorCode, InboundStream};
use futures::{Stream, StreamExt};
use roost_api::status;
use roost_api::vmm::v1;
use roost_console_keeper::{Follower, Since};
use roost_engine::{Address, Engine, Watch};
use roost_host::sockets::connect_unix;
use roost_model::{Invalid, ProjectId, Vm, VmId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::wiring::Daemon;

/// How much of the log a caller gets that does not say.
const DEFAULT_TAIL: u64 = 64 << 10;
/// The most of it that anybody gets at once.
const MOST_TAIL: u64 = 16 << 20;
/// The largest message of a stream.
const CHUNK: usize = 64 << 10;

type Bytes = Result<Vec<u8>, ConnectError>;

/// The end of the log, and what is added to it when the caller follows.
pub(super) async fn log(
    engine: &Engine,
    address: Address,
    tail_bytes: u64,
    follow: bool,
    since: Since,
) -> Result<impl Stream<Item = Bytes> + Send + use<>, ConnectError> {
    let tail = if tail_bytes == 0 { DEFAULT_TAIL } else { tail_bytes.min(MOST_TAIL) };
    // Before the log is looked at: a machine that starts in between is noticed.
    let watch = engine.watch(ProjectId::DEFAULT, None).await.map_err(|e| told(&e))?;
    let (vm, endpoint) = engine.console(ProjectId::DEFAULT, address).await.map_err(|e| told(&e))?;
    let (send, receive) = mpsc::channel(4);
    let (follower, first) =
        begin(&endpoint.log_dir, usize::try_from(tail).unwrap_or(usize::MAX), since).map_err(|e| unreadable(&e))?;
    let reader = LogReader { engine: engine.clone(), vm: vm.id, log_dir: endpoint.log_dir, follower, watch, send };
    tokio::spawn(async move {
        for chunk in first.chunks(CHUNK) {
            if reader.send.send(Ok(chunk.to_vec())).await.is_err() {
                return;
            }
        }
        if follow {
            reader.follow().await;
        }
    });
    Ok(ReceiverStream::new(receive))
}

/// A live line: the first message names the VM, and every message may carry keystrokes.
pub(super) async fn attach(
    Daemon { engine, guests, .. }: &Daemon,
    mut requests: InboundStream<v1::AttachConsoleRequest>,
) -> Result<impl Stream<Item = Bytes> + Send + use<>, ConnectError> {
    let first = requests.next().await.ok_or_else(|| {
        status::invalid(
            &Invalid::new("vm_id", "", "is missing: there is no message").permit(["a first message that names the VM"]),
        )
    })??;
    let first = first.to_owned_message();
    let address = Address::parse(&first.vm_id).map_err(|e| status::refusal(&e))?;
    let (vm, endpoint) = engine.console(ProjectId::DEFAULT, address).await.map_err(|e| told(&e))?;
    let socket = endpoint.socket.ok_or_else(|| nobody(&vm))?;
    let (from_guest, to_guest) = connect(&socket).map_err(|e| unreachable_console(&e))?.into_split();
    let (send, receive) = mpsc::channel(16);
    let (guests, vm) = (guests.clone(), vm.id);
    tokio::spawn(async move {
        // Whichever side ends first ends the line.
        tokio::select! {
            () = pump_out(from_guest, send) => {}
            () = pump_in(requests, first.data.to_vec(), to_guest, || guests.touch(vm)) => {}
        }
    });
    Ok(ReceiverStream::new(receive))
}

async fn pump_out(mut from_guest: OwnedReadHalf, send: mpsc::Sender<Bytes>) {
    let mut chunk = vec![0; CHUNK];
    loop {
        match from_guest.read(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(got) => {
                if send.send(Ok(chunk[..got].to_vec())).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// `touched` hears of every message: there is somebody.
async fn pump_in(
    mut requests: InboundStream<v1::AttachConsoleRequest>,
    first: Vec<u8>,
    mut to_guest: OwnedWriteHalf,
    touched: impl Fn(),
) {
    touched();
    if to_guest.write_all(&first).await.is_err() {
        return;
    }
    while let Some(Ok(request)) = requests.next().await {
        touched();
        if to_guest.write_all(&request.to_owned_message().data).await.is_err() {
            return;
        }
    }
}

/// Reads a log onward. The keeper's socket says when there is more: it writes to the log first.
struct LogReader {
    engine: Engine,
    vm: VmId,
    log_dir: PathBuf,
    follower: Option<Follower>,
    watch: Watch,
    send: mpsc::Sender<Bytes>,
}

impl LogReader {
    async fn follow(mut self) {
        loop {
            let endpoint = match self.engine.console(ProjectId::DEFAULT, Address::Id(self.vm)).await {
                Ok((_, endpoint)) => endpoint,
                // It is deleted: the log has said all it will.
                Err(_) => return,
            };
            if let Some(line) = endpoint.socket.as_deref().and_then(|s| connect(s).ok())
                && self.while_up(line).await.is_break()
            {
                return;
            }
            if self.send_new().await.is_break() {
                return;
            }
            // Until something happens to the VM.
            loop {
                let next = tokio::select! {
                    () = self.send.closed() => return,
                    next = self.watch.next() => next,
                };
                match next {
                    Ok(Some(events)) if events.iter().any(|e| e.vm == Some(self.vm)) => break,
                    Ok(Some(_)) => {}
                    Ok(None) => return,
                    Err(error) => {
                        let _gone = self.send.send(Err(told(&error))).await;
                        return;
                    }
                }
            }
        }
    }

    async fn while_up(&mut self, mut line: UnixStream) -> std::ops::ControlFlow<()> {
        let mut ignored = vec![0; CHUNK];
        loop {
            self.send_new().await?;
            tokio::select! {
                () = self.send.closed() => return std::ops::ControlFlow::Break(()),
                got = line.read(&mut ignored) => if !matches!(got, Ok(n) if n > 0) {
                    return std::ops::ControlFlow::Continue(());
                }
            }
        }
    }

    async fn send_new(&mut self) -> std::ops::ControlFlow<()> {
        loop {
            let new = match self.read_new() {
                Ok(new) if new.is_empty() => return std::ops::ControlFlow::Continue(()),
                Ok(new) => Ok(new),
                Err(error) => Err(unreadable(&error)),
            };
            let over = new.is_err();
            if self.send.send(new).await.is_err() || over {
                return std::ops::ControlFlow::Break(());
            }
        }
    }

    fn read_new(&mut self) -> io::Result<Vec<u8>> {
        if self.follower.is_none() {
            let (follower, first) = begin(&self.log_dir, usize::MAX, Since::Ever)?;
            self.follower = follower;
            return Ok(first);
        }
        self.follower.as_mut().map_or_else(|| Ok(Vec::new()), |f| f.read_new(CHUNK))
    }
}

/// A VM that has not run has no log directory yet.
fn begin(dir: &Path, tail: usize, since: Since) -> io::Result<(Option<Follower>, Vec<u8>)> {
    match Follower::start(dir, tail.min(usize::try_from(MOST_TAIL).unwrap_or(usize::MAX)), since) {
        Ok((follower, tail)) => Ok((Some(follower), tail)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok((None, Vec::new())),
        Err(e) => Err(e),
    }
}

fn connect(socket: &Path) -> io::Result<UnixStream> {
    let stream = connect_unix(socket).map_err(io::Error::other)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// Why there is nobody to attach to.
fn nobody(vm: &Vm) -> ConnectError {
    let code = ErrorCode::FailedPrecondition;
    if !vm.spec.console.enabled {
        let message = format!("VM {} has no console: its config.console.enabled is false", vm.name);
        return status::error(code, "NO_CONSOLE", message, "enable it, then start the VM anew");
    }
    if vm.observed.machine.is_up() {
        let message = format!("VM {} has no console: backend {} holds none for it", vm.name, vm.backend);
        return status::error(code, "NO_CONSOLE", message, "");
    }
    let message = format!("VM {} does not run ({}): its console has nobody behind it", vm.name, vm.state());
    status::error(code, "WRONG_STATE", message, &format!("start it first with roost vm start {}", vm.name))
}

fn unreadable(error: &io::Error) -> ConnectError {
    let message = format!("the console log cannot be read: {error}");
    status::error(ErrorCode::Internal, "CONSOLE_LOG_UNREADABLE", message, "the daemon's log says more")
}

fn unreachable_console(error: &io::Error) -> ConnectError {
    let message = format!("the console cannot be reached: {error}");
    status::error(ErrorCode::Unavailable, "CONSOLE_UNREACHABLE", message, "try again; the VM may be ending")
}
