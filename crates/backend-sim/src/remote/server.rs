//! The host's end: serves sessions until it is idle for long enough, or for ever.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use roost_backend::events;
use thiserror::Error;
use tokio::io::BufReader;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, Id, JoinSet};
use uuid::Uuid;

use super::frame::{FrameError, Frames, FromHost, ToHost, VERSION, flush, push};
use crate::clock::TokioClock;
use crate::host::{SessionId, SimHost};
use crate::request::{HostError, Reply};

/// What a host process is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostOptions {
    /// Where it listens.
    pub socket: PathBuf,
    /// It ends when it has had neither a machine nor a client for so long. `None`: never.
    pub exit_when_idle: Option<Duration>,
}

/// A host process could not serve.
#[derive(Debug, Error)]
pub enum ServeError {
    /// Another one serves this socket.
    #[error("{} is served by another roost-simhost", .0.display())]
    Served(PathBuf),
    /// The socket could not be made.
    #[error("cannot listen on {}", .0.display())]
    Listen(PathBuf, #[source] io::Error),
    /// Connections can no longer be taken.
    #[error("cannot take connections")]
    Accept(#[source] io::Error),
}

type Waiting = Pin<Box<dyn Future<Output = Result<Reply, HostError>> + Send>>;

/// Serves until idle. `ready` is called once clients can connect.
pub async fn serve(options: &HostOptions, ready: impl FnOnce()) -> Result<(), ServeError> {
    let place = Place::take(&options.socket)?;
    let listen = |e| ServeError::Listen(options.socket.clone(), e);
    let listener = UnixListener::bind(&options.socket).map_err(listen)?;
    fs::set_permissions(&options.socket, fs::Permissions::from_mode(0o600)).map_err(listen)?;
    ready();
    let host = SimHost::new(Arc::new(TokioClock::default()));
    let id: Arc<str> = Uuid::now_v7().to_string().into();
    let connections = watch::Sender::new(0u64);
    let mut sessions = JoinSet::new();
    let idle = idle(&host, connections.subscribe(), options.exit_when_idle);
    tokio::pin!(idle);
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.map_err(ServeError::Accept)?;
                let (host, id) = (Arc::clone(&host), Arc::clone(&id));
                let counted = Counted::new(connections.clone());
                sessions.spawn(async move {
                    if let Err(error) = session(stream, host, &id).await {
                        eprintln!("roost-simhost: a client was hung up on: {error}");
                    }
                    drop(counted);
                });
            }
            Some(_) = sessions.join_next() => {}
            () = &mut idle => {
                drop(place);
                return Ok(());
            }
        }
    }
}

/// One connection, from its hello to its end.
async fn session(mut stream: UnixStream, host: Arc<SimHost>, id: &str) -> Result<(), FrameError> {
    let peer = stream.peer_cred()?.uid();
    let own = rustix::process::geteuid().as_raw();
    if peer != own && peer != 0 {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("it runs as user {peer}")).into());
    }
    let (read, mut write) = stream.split();
    let mut frames = Frames::new(BufReader::new(read));
    let mut out = Vec::new();
    push(&mut out, &FromHost::Hello { version: VERSION, host: id.to_owned() });
    flush(&mut write, &mut out).await?;
    let Some(ToHost::Hello { version: VERSION, report_asked_ends }) = frames.next().await? else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "its hello is of another version").into());
    };
    let (tx, mut told) = events();
    let session = Session { id: host.open_session(tx, report_asked_ends), host };
    let mut waiting: JoinSet<Result<Reply, HostError>> = JoinSet::new();
    let (mut handles, mut ids): (BTreeMap<u64, AbortHandle>, BTreeMap<Id, u64>) = Default::default();
    loop {
        tokio::select! {
            // Answers and events go out before more is taken in.
            biased;
            Some(event) = told.recv() => push(&mut out, &FromHost::Told { event: event.into() }),
            Some(ended) = waiting.join_next_with_id() => {
                let (task, result) = match ended {
                    Ok(answered) => answered,
                    Err(cancelled) => (cancelled.id(), Err(HostError::Gone { why: "cancelled".to_owned() })),
                };
                let id = ids.remove(&task).expect("every task was listed when it was made");
                handles.remove(&id);
                push(&mut out, &FromHost::Answer { id, result });
            }
            frame = frames.next() => match frame? {
                None => return Ok(()),
                Some(ToHost::Hello { .. }) => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "it said hello twice").into());
                }
                Some(ToHost::Cancel { id }) => {
                    // Its answer still comes: either what it came to, or that it was cancelled.
                    if let Some(handle) = handles.get(&id) {
                        handle.abort();
                    }
                }
                Some(ToHost::Ask { id, request }) => {
                    let host = Arc::clone(&session.host);
                    let of = session.id;
                    let mut carried_out: Waiting = Box::pin(async move { host.execute(of, request).await });
                    // Begun here, so that requests are begun in order; only those that wait become tasks.
                    match carried_out.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                        Poll::Ready(result) => push(&mut out, &FromHost::Answer { id, result }),
                        Poll::Pending => {
                            let handle = waiting.spawn(carried_out);
                            ids.insert(handle.id(), id);
                            handles.insert(id, handle);
                        }
                    }
                }
            },
        }
        flush(&mut write, &mut out).await?;
    }
}

/// Resolves when there was neither a machine nor a client for so long.
#[expect(clippy::disallowed_methods, reason = "a process of its own, in real time")]
async fn idle(host: &SimHost, mut connections: watch::Receiver<u64>, limit: Option<Duration>) {
    let Some(limit) = limit else { return std::future::pending().await };
    loop {
        let _ = connections.wait_for(|n| *n == 0).await;
        // Machines come and go only by what clients ask for: looking once is enough.
        let quiet = host.machines() == 0;
        tokio::select! {
            () = tokio::time::sleep(limit), if quiet => return,
            _ = connections.changed() => {}
        }
    }
}

struct Session {
    id: SessionId,
    host: Arc<SimHost>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.host.close_session(self.id);
    }
}

/// A connection as it is counted.
struct Counted(watch::Sender<u64>);

impl Counted {
    fn new(connections: watch::Sender<u64>) -> Self {
        connections.send_modify(|n| *n += 1);
        Self(connections)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

/// The socket's place in the file system, held by a lock beside it: one host at a time.
struct Place {
    socket: PathBuf,
    _lock: File,
}

impl Place {
    fn take(socket: &Path) -> Result<Self, ServeError> {
        let listen = |e| ServeError::Listen(socket.to_owned(), e);
        let mut lock_path = socket.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock = File::options().create(true).truncate(false).write(true).open(lock_path).map_err(listen)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ServeError::Served(socket.to_owned())),
            Err(TryLockError::Error(error)) => return Err(listen(error)),
        }
        // Whoever left a socket here is gone, or would hold the lock.
        match fs::remove_file(socket) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(listen(e)),
        }
        Ok(Self { socket: socket.to_owned(), _lock: lock })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Best effort: the next host removes what is left.
        let _ = fs::remove_file(&self.socket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::Guest;
    use crate::request::Request;
    use roost_model::{LaunchId, VmId};
    use tokio::time::timeout;

    #[tokio::test(start_paused = true)]
    async fn a_host_is_idle_without_machines_and_clients_only() {
        let (hour, limit) = (Duration::from_secs(3600), Some(Duration::from_secs(1)));
        let host = SimHost::new(Arc::new(TokioClock::default()));
        let connections = watch::Sender::new(0);
        let idles = async |limit| timeout(hour, idle(&host, connections.subscribe(), limit)).await.is_ok();
        assert!(idles(limit).await);
        assert!(!idles(None).await, "it has no limit");

        let connected = Counted::new(connections.clone());
        assert!(!idles(limit).await, "a client is there");
        let (vm, launch) = (VmId::from_parts(1, [1; 10]), LaunchId::from_parts(1, [1; 10]));
        let session = host.open_session(events().0, false);
        host.execute(session, Request::Define { vm, guest: Guest::default() }).await.unwrap();
        host.execute(session, Request::Prepare { vm, launch }).await.unwrap();
        host.execute(session, Request::Release { vm, launch }).await.unwrap();
        host.close_session(session);
        drop(connected);
        assert!(!idles(limit).await, "a machine is there");
        host.guest_power_off(vm).unwrap();
        assert!(!idles(limit).await, "its end is still to be told");
        host.execute(session, Request::Clear { vm, recorded: true }).await.unwrap();
        assert!(idles(limit).await);
    }
}
