//! The backend's end: pipelines requests, and comes back when the connection or the host was lost.
//!
//! ```text
//!   connecting --hello, re-adoption--> connected --the connection broke--> connecting
//!       |                                                                     |
//!       +-- nobody listens: the host is dead, and so are its machines; start another if it is known how
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::future::try_join_all;
use roost_backend::{Event, EventSender, Happened};
use roost_model::state::Machine;
use roost_model::{ExitCause, LaunchId, VmId};
use tokio::io::{AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::BATCH;
use super::frame::{FrameError, Frames, FromHost, ToHost, VERSION, flush, push};
use crate::clock::SimClock;
use crate::guest::Guest;
use crate::request::{Found, HostError, Reply, Request, Sought};

/// How long a request waits for a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// How long after a failure the next connection is tried; it doubles up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// Requests that wait are sent together up to this size.
const FLUSH_BYTES: usize = 64 << 10;
/// A host process that was started from here ends when it has had neither a machine nor a client for so long.
const IDLE_SECONDS: u64 = 60;

/// A session with a host process. Its task ends when this is dropped.
#[derive(Debug)]
pub(crate) struct RemoteLink {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// How to reach a host process, and what to do when there is none.
#[derive(Debug)]
pub(crate) struct RemoteOptions {
    pub(crate) socket: PathBuf,
    pub(crate) binary: Option<PathBuf>,
    pub(crate) report_asked_ends: bool,
    pub(crate) clock: Arc<dyn SimClock>,
}

#[derive(Debug)]
struct Shared {
    options: RemoteOptions,
    events: EventSender,
    state: Mutex<State>,
    connected: watch::Sender<Connected>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Connected {
    Yes,
    /// Not, for this reason.
    Not(String),
    /// Never again: the backend is dead or dropped.
    Severed,
}

#[derive(Debug, Default)]
struct State {
    outgoing: Option<mpsc::UnboundedSender<ToHost>>,
    waiting: BTreeMap<u64, Waiting>,
    next: u64,
    known: BTreeMap<VmId, Known>,
}

/// An answer that is still to come.
#[derive(Debug)]
struct Waiting {
    note: Note,
    /// `None`: whoever asked does not wait any more. What the answer says is taken note of all the same.
    asker: Option<oneshot::Sender<Result<Reply, HostError>>>,
}

/// What this session knows of a VM: enough to ask another host about it.
#[derive(Debug)]
struct Known {
    guest: Guest,
    launch: Option<LaunchId>,
    /// The end of this launch was told, or needs no telling.
    ended: bool,
}

/// A request under way; dropped before its answer, it tells the host that nobody waits.
struct Asked {
    shared: Arc<Shared>,
    id: u64,
    answer: oneshot::Receiver<Result<Reply, HostError>>,
}

impl RemoteLink {
    /// Begins to connect.
    #[expect(clippy::disallowed_methods, reason = "a connection needs a task; it ends with the link")]
    pub(crate) fn new(options: RemoteOptions, events: EventSender) -> Self {
        let shared = Arc::new(Shared {
            options,
            events,
            state: Mutex::default(),
            connected: watch::Sender::new(Connected::Not("not connected yet".to_owned())),
        });
        let task = tokio::spawn(keep_connected(Arc::clone(&shared)));
        Self { shared, task }
    }

    pub(crate) async fn ask(&self, request: Request) -> Result<Reply, HostError> {
        self.shared.ready().await?;
        match request {
            Request::Adopt { vms } => Ok(Reply::Found { found: self.shared.adopt(vms).await? }),
            other => self.shared.ask(other).await,
        }
    }

    /// Sends a request whose answer does not matter.
    pub(crate) fn post(&self, request: Request) {
        drop(self.shared.begin(request));
    }

    pub(crate) fn sever(&self) {
        self.task.abort();
        self.shared.connected.send_replace(Connected::Severed);
        self.shared.lost("the backend is dead");
    }
}

impl Drop for RemoteLink {
    fn drop(&mut self) {
        self.sever();
    }
}

/// Connects for as long as the session lasts.
async fn keep_connected(shared: Arc<Shared>) {
    let mut children: Vec<Child> = Vec::new();
    let mut pause = RETRY.0;
    loop {
        let mut at_once = false;
        children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        let why = match UnixStream::connect(&shared.options.socket).await {
            Ok(stream) => {
                let ended = serve(&shared, stream).await;
                at_once = matches!(*shared.connected.borrow(), Connected::Yes);
                match ended {
                    Ok(()) => "the host hung up".to_owned(),
                    Err(error) => error.to_string(),
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {
                // A listening socket closes with its process, and the machines are in that process.
                shared.host_is_dead();
                match &shared.options.binary {
                    None => format!("nobody listens at {}", shared.options.socket.display()),
                    Some(binary) => match start(&shared, binary).await {
                        Ok((child, ready)) => {
                            children.push(child);
                            at_once = ready;
                            "the host was started just now".to_owned()
                        }
                        Err(error) => format!("cannot start {}: {error}", binary.display()),
                    },
                }
            }
            Err(error) => format!("cannot connect to {}: {error}", shared.options.socket.display()),
        };
        shared.lost(&why);
        shared.connected.send_replace(Connected::Not(why));
        if at_once {
            pause = RETRY.0;
        } else {
            shared.options.clock.sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }
}

/// One connection, from its hello to its end.
async fn serve(shared: &Arc<Shared>, stream: UnixStream) -> Result<(), FrameError> {
    let peer = stream.peer_cred()?.uid();
    let own = rustix::process::geteuid().as_raw();
    if peer != own && peer != 0 {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("the host runs as user {peer}")).into());
    }
    let (read, mut write) = stream.into_split();
    let mut frames = Frames::new(BufReader::new(read));
    let mut out = Vec::new();
    push(&mut out, &ToHost::Hello { version: VERSION, report_asked_ends: shared.options.report_asked_ends });
    flush(&mut write, &mut out).await?;
    match frames.next().await? {
        Some(FromHost::Hello { version: VERSION, .. }) => {}
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "the host is of another version").into()),
    }
    let (tx, outgoing) = mpsc::unbounded_channel();
    shared.state().outgoing = Some(tx);
    let adopted = async {
        shared.adopt_again().await.map_err(|e| io::Error::other(e.to_string()))?;
        shared.connected.send_replace(Connected::Yes);
        std::future::pending().await
    };
    tokio::select! {
        ended = take_in(shared, frames) => ended,
        ended = send_out(outgoing, write) => ended,
        failed = adopted => failed,
    }
}

async fn take_in(shared: &Shared, mut frames: Frames<BufReader<OwnedReadHalf>>) -> Result<(), FrameError> {
    while let Some(frame) = frames.next().await? {
        match frame {
            FromHost::Hello { .. } => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the host said hello twice").into());
            }
            FromHost::Answer { id, result } => {
                let asker = {
                    let mut state = shared.state();
                    let Some(waiting) = state.waiting.remove(&id) else { continue };
                    // Noted here and not by whoever asked, so that events come after what they build on.
                    if let Ok(reply) = &result {
                        state.note(waiting.note, reply);
                    }
                    waiting.asker
                };
                if let Some(asker) = asker {
                    // It may give up just now.
                    let _ = asker.send(result);
                }
            }
            FromHost::Told { event } => shared.tell(event.into()),
        }
    }
    Ok(())
}

async fn send_out(mut outgoing: mpsc::UnboundedReceiver<ToHost>, mut write: OwnedWriteHalf) -> Result<(), FrameError> {
    let mut out = Vec::new();
    while let Some(frame) = outgoing.recv().await {
        push(&mut out, &frame);
        // Whatever waits goes out together, but not so much that the host has nothing to do meanwhile.
        while out.len() < FLUSH_BYTES
            && let Ok(frame) = outgoing.try_recv()
        {
            push(&mut out, &frame);
        }
        flush(&mut write, &mut out).await?;
    }
    Ok(())
}

/// Starts a host process and waits until it listens; `false` when it ended instead. It makes itself the leader of its own session, and
/// so outlives this one.
async fn start(shared: &Shared, binary: &Path) -> io::Result<(Child, bool)> {
    let mut command = Command::new(binary);
    command.arg("--socket").arg(&shared.options.socket).arg("--exit-when-idle").arg(IDLE_SECONDS.to_string());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let stdout = child.stdout.take().expect("its standard output is a pipe");
    let mut stdout = pipe::Receiver::from_owned_fd(stdout.into())?;
    // It says one line; or it ends, when another one serves the socket already.
    let mut line = [0; 16];
    tokio::select! {
        biased;
        said = stdout.read(&mut line) => said.map(|bytes| (child, bytes > 0)),
        () = shared.options.clock.sleep(CONNECT_DEADLINE) => {
            child.kill()?;
            child.wait()?;
            Err(io::ErrorKind::TimedOut.into())
        }
    }
}

impl Shared {
    async fn ready(&self) -> Result<(), HostError> {
        let mut connected = self.connected.subscribe();
        let deadline = self.options.clock.sleep(CONNECT_DEADLINE);
        tokio::select! {
            biased;
            now = connected.wait_for(|c| !matches!(c, Connected::Not(_))) => match now.as_deref() {
                Ok(Connected::Yes) => Ok(()),
                _ => Err(HostError::Gone { why: "the backend is dead".to_owned() }),
            },
            () = deadline => {
                let why = match &*self.connected.borrow() {
                    Connected::Not(why) => why.clone(),
                    Connected::Yes | Connected::Severed => "the connection came and went".to_owned(),
                };
                Err(HostError::Gone { why })
            }
        }
    }

    /// Sends a request: from here on it is under way, before all that is sent after it.
    fn begin(self: &Arc<Self>, request: Request) -> Result<Asked, HostError> {
        let gone = || HostError::Gone { why: "the connection broke".to_owned() };
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        let (note, (asker, answer)) = (Note::of(&request), oneshot::channel());
        let outgoing = state.outgoing.as_ref().ok_or_else(gone)?;
        outgoing.send(ToHost::Ask { id, request }).map_err(|_| gone())?;
        state.waiting.insert(id, Waiting { note, asker: Some(asker) });
        Ok(Asked { shared: Arc::clone(self), id, answer })
    }

    async fn ask(self: &Arc<Self>, request: Request) -> Result<Reply, HostError> {
        self.begin(request)?.answer().await
    }

    async fn adopt(self: &Arc<Self>, vms: Vec<Sought>) -> Result<Vec<Found>, HostError> {
        let mut asked = Vec::new();
        for batch in vms.chunks(BATCH) {
            asked.push(self.begin(Request::Adopt { vms: batch.to_vec() })?.answer());
        }
        let mut found = Vec::with_capacity(vms.len());
        for reply in try_join_all(asked).await? {
            match reply {
                Reply::Found { found: batch } => found.extend(batch),
                other => return Err(HostError::Gone { why: format!("its answer does not fit: {other:?}") }),
            }
        }
        Ok(found)
    }

    /// After a connection was lost: takes up the machines that still are, tells of those that are not, and
    /// gives a new host the definitions that the old one had.
    async fn adopt_again(self: &Arc<Self>) -> Result<(), HostError> {
        let (sought, untold): (Vec<Sought>, Vec<bool>) = {
            let state = self.state();
            let each = |(vm, known): (&VmId, &Known)| {
                let sought = Sought { vm: *vm, guest: known.guest.clone(), defined: true, launch: known.launch };
                (sought, !known.ended)
            };
            state.known.iter().map(each).unzip()
        };
        let vms: Vec<VmId> = sought.iter().map(|s| s.vm).collect();
        let found = self.adopt(sought).await?;
        for ((vm, found), untold) in vms.into_iter().zip(found).zip(untold) {
            if let (Machine::Ended { cause, .. }, Some(launch), true) = (found.machine, found.launch, untold) {
                self.tell(Event { vm, launch, happened: Happened::Ended(cause) });
            }
        }
        Ok(())
    }

    /// Nobody listens any more: every machine that lived has been killed.
    fn host_is_dead(&self) {
        let killed: Vec<Event> = {
            let state = self.state();
            let lived = state.known.iter().filter(|(_, k)| !k.ended);
            let event = |(vm, known): (&VmId, &Known)| {
                let happened = Happened::Ended(ExitCause::Killed);
                Some(Event { vm: *vm, launch: known.launch?, happened })
            };
            lived.filter_map(event).collect()
        };
        killed.into_iter().for_each(|event| self.tell(event));
    }

    fn tell(&self, event: Event) {
        if let (Happened::Ended(_), Some(known)) = (event.happened, self.state().known.get_mut(&event.vm))
            && known.launch == Some(event.launch)
        {
            known.ended = true;
        }
        // Without a listener the engine is on its way out.
        let _ = self.events.send(event);
    }

    /// The connection is gone; nothing that was asked will be answered.
    fn lost(&self, why: &str) {
        let waiting = {
            let mut state = self.state();
            state.outgoing = None;
            std::mem::take(&mut state.waiting)
        };
        for asker in waiting.into_values().filter_map(|w| w.asker) {
            // Whoever does not wait any more does not need to know.
            let _ = asker.send(Err(HostError::Gone { why: why.to_owned() }));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds this lock")
    }
}

impl Asked {
    async fn answer(mut self) -> Result<Reply, HostError> {
        let gone = |_| HostError::Gone { why: "the connection broke".to_owned() };
        (&mut self.answer).await.map_err(gone)?
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        let State { waiting, outgoing, .. } = &mut *state;
        if let (Some(waiting), Some(outgoing)) = (waiting.get_mut(&self.id), outgoing) {
            waiting.asker = None;
            // A connection that is gone has forgotten it anyway.
            let _ = outgoing.send(ToHost::Cancel { id: self.id });
        }
    }
}

/// What a request that succeeds changes in what is known.
#[derive(Debug)]
enum Note {
    Nothing,
    Adopted(Vec<(VmId, Guest)>),
    Defined(VmId, Guest),
    Launched(VmId, LaunchId),
    Ended(VmId),
    Cleared(VmId),
    Removed(VmId),
}

impl Note {
    fn of(request: &Request) -> Self {
        match request {
            Request::Define { vm, guest } => Note::Defined(*vm, guest.clone()),
            Request::Adopt { vms } => Note::Adopted(vms.iter().map(|s| (s.vm, s.guest.clone())).collect()),
            Request::Release { vm, launch } => Note::Launched(*vm, *launch),
            Request::Shutdown { vm, .. } => Note::Ended(*vm),
            Request::Clear { vm, .. } => Note::Cleared(*vm),
            Request::Remove { vm } => Note::Removed(*vm),
            _ => Note::Nothing,
        }
    }
}

impl State {
    fn note(&mut self, note: Note, reply: &Reply) {
        match note {
            Note::Nothing => {}
            Note::Adopted(vms) => {
                let Reply::Found { found } = reply else { return };
                for ((vm, guest), found) in vms.into_iter().zip(found) {
                    if found.machine != Machine::Absent {
                        let ended = !found.machine.is_up();
                        self.known.insert(vm, Known { guest, launch: found.launch, ended });
                    }
                }
            }
            Note::Defined(vm, guest) => {
                let known =
                    self.known.entry(vm).or_insert(Known { guest: Guest::default(), launch: None, ended: true });
                known.guest = guest;
            }
            Note::Launched(vm, launch) => {
                if let Some(known) = self.known.get_mut(&vm) {
                    known.launch = Some(launch);
                    known.ended = false;
                }
            }
            Note::Ended(vm) => {
                if let (Some(known), Reply::Ended { .. }) = (self.known.get_mut(&vm), reply) {
                    known.ended = true;
                }
            }
            Note::Cleared(vm) => {
                if let Some(known) = self.known.get_mut(&vm) {
                    known.launch = None;
                    known.ended = true;
                }
            }
            Note::Removed(vm) => {
                self.known.remove(&vm);
            }
        }
    }
}
