//! What the callers and the task of one VM share.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use roost_guest_proto::{Channel, ErrorCode, Request, Response};
use roost_model::VmId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::attachment::{Attachment, HubConfig};
use crate::error::CallError;
use crate::metrics::{MetricsState, Watchers};
use crate::status::{Dropped, Status};
use crate::stream::{Closed, Stream};
use crate::{policy, request};

pub(crate) type Answer = Result<Response, CallError>;
pub(crate) type Reply = oneshot::Sender<Answer>;

/// A request on its way to the VM's task.
#[derive(Debug)]
pub(crate) struct Op {
    pub(crate) id: String,
    pub(crate) request: Request,
    pub(crate) what: &'static str,
    pub(crate) stream: Option<Arc<Stream>>,
    pub(crate) reply: Reply,
}

/// Everything else that the task is told. Each is bounded by calls, streams, credit or watchers.
#[derive(Debug)]
pub(crate) enum Control {
    Attach(Arc<Attachment>),
    Detach,
    /// Somebody waits for the agent.
    Poke,
    /// Nobody waits for this call any more.
    Abandon {
        id: String,
    },
    /// What came on a stream was read.
    Credit {
        stream: u32,
        channel: Channel,
        bytes: u32,
    },
    /// A stream has something to send, or its end.
    Ready {
        stream: u32,
    },
    /// There are other watchers than before.
    Watchers,
    /// QEMU's guest agent came or went.
    QemuGa(Box<Status>),
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    long: AtomicU64,
    messages: AtomicU64,
    frames: AtomicU64,
    bytes: AtomicU64,
    replies: AtomicU64,
}

impl Counters {
    pub(crate) fn add(&self, more: Dropped) {
        for (counter, more) in [
            (&self.long, more.long),
            (&self.messages, more.messages),
            (&self.frames, more.frames),
            (&self.bytes, more.bytes),
            (&self.replies, more.replies),
        ] {
            if more > 0 {
                counter.fetch_add(more, Ordering::Relaxed);
            }
        }
    }

    fn read(&self) -> Dropped {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Dropped {
            long: read(&self.long),
            messages: read(&self.messages),
            frames: read(&self.frames),
            bytes: read(&self.bytes),
            replies: read(&self.replies),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) vm: VmId,
    pub(crate) config: Arc<HubConfig>,
    ops: mpsc::Sender<Op>,
    pub(crate) control: mpsc::UnboundedSender<Control>,
    attachment: RwLock<Arc<Attachment>>,
    status: watch::Sender<Arc<Status>>,
    pub(crate) counters: Counters,
    pub(crate) metrics: MetricsState,
    pub(crate) watchers: Watchers,
    activity: Mutex<Option<std::time::Instant>>,
    next_stream: AtomicU32,
    held: Arc<AtomicUsize>,
    calls: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

/// What the VM's task gets.
#[derive(Debug)]
pub(crate) struct Inbox {
    pub(crate) ops: mpsc::Receiver<Op>,
    pub(crate) control: mpsc::UnboundedReceiver<Control>,
}

impl Entry {
    pub(crate) fn new(attachment: Arc<Attachment>, config: Arc<HubConfig>) -> (Arc<Self>, Inbox) {
        let (ops, ops_inbox) = mpsc::channel(config.queue.max(1));
        let (control, control_inbox) = mpsc::unbounded_channel();
        let entry = Self {
            vm: attachment.vm,
            ops,
            control,
            status: watch::Sender::new(Arc::new(Status::away(attachment.vm, "it was not yet reached"))),
            attachment: RwLock::new(attachment),
            counters: Counters::default(),
            metrics: MetricsState::default(),
            watchers: Watchers::default(),
            activity: Mutex::new(None),
            next_stream: AtomicU32::new(1),
            held: Arc::default(),
            calls: Arc::new(Semaphore::new(config.queue.max(1))),
            streams: Arc::new(Semaphore::new(config.streams.max(1))),
            config,
        };
        (Arc::new(entry), Inbox { ops: ops_inbox, control: control_inbox })
    }

    pub(crate) fn attachment(&self) -> Arc<Attachment> {
        self.attachment.read().expect("nothing panics while it holds the lock").clone()
    }

    /// From now on, callers are held to this. The task is told, too.
    pub(crate) fn set_attachment(&self, attachment: Arc<Attachment>) {
        *self.attachment.write().expect("nothing panics while it holds the lock") = attachment.clone();
        let _ = self.control.send(Control::Attach(attachment));
    }

    pub(crate) fn status(&self) -> Status {
        let status = Status::clone(&self.status.borrow());
        Status { dropped: self.counters.read(), ..status }
    }

    pub(crate) fn publish(&self, status: Status) {
        self.status.send_replace(Arc::new(status));
    }

    pub(crate) fn watch_status(&self) -> watch::Receiver<Arc<Status>> {
        self.status.subscribe()
    }

    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    pub(crate) fn last_activity(&self) -> Option<std::time::Instant> {
        *self.activity.lock().expect("nothing panics while it holds the lock")
    }

    fn mark_activity(&self) {
        *self.activity.lock().expect("nothing panics while it holds the lock") = Some(std::time::Instant::now());
    }

    pub(crate) fn not_connected(&self) -> CallError {
        let why = self.status.borrow().why.clone().unwrap_or_else(|| "it is just going".to_owned());
        CallError::NotConnected { vm: self.vm, why }
    }

    /// A stream for one call, with a number that no other of the VM has.
    pub(crate) fn stream(
        &self,
        receives: &[Channel],
        sends: bool,
    ) -> Result<(Arc<Stream>, OwnedSemaphorePermit), CallError> {
        let permit = self
            .streams
            .clone()
            .try_acquire_owned()
            .map_err(|_| CallError::QueueFull { waiting: self.config.streams, permitted: self.config.streams })?;
        let mut number = self.next_stream.fetch_add(1, Ordering::Relaxed);
        if number == 0 {
            number = self.next_stream.fetch_add(1, Ordering::Relaxed);
        }
        Ok((Stream::new(number, receives, sends, self.control.clone(), self.held.clone()), permit))
    }

    /// Checks a request, gives it an ID and sends it off.
    pub(crate) fn begin(&self, mut request: Request, stream: Option<Arc<Stream>>) -> Result<Call, CallError> {
        let what = request::name(&request);
        policy::apply(&self.attachment(), &mut request)?;
        let id = request::random_id();
        request::set_id(&mut request, &id)?;
        if !self.status.borrow().connected {
            return Err(self.not_connected());
        }
        let full = CallError::QueueFull { waiting: self.config.queue, permitted: self.config.queue };
        let permit = self.calls.clone().try_acquire_owned().map_err(|_| full.clone())?;
        if request::is_activity(&request) {
            self.mark_activity();
        }
        let (reply, answer) = oneshot::channel();
        let op = Op { id: id.clone(), request, what, stream: stream.clone(), reply };
        match self.ops.try_send(op) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => return Err(full),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(CallError::NotAttached { vm: self.vm }),
        }
        let guard = Guard { id, stream, control: self.control.clone(), armed: true };
        Ok(Call { what, answer, guard, _permit: permit })
    }

    /// The whole of a call without a stream.
    pub(crate) async fn call(&self, mut request: Request, timeout: Duration) -> Answer {
        request::set_timeout(&mut request, timeout);
        // The guest keeps the time; this end waits a little longer, for its answer to arrive.
        let patience = match &request {
            Request::Exec(_) | Request::UnsafeCommand(_) | Request::SafeCommand(_) => timeout + Duration::from_secs(2),
            _ => timeout,
        };
        let activity = request::is_activity(&request);
        let mut call = self.begin(request, None)?;
        let answer = call.wait(Some(patience)).await;
        if activity {
            self.mark_activity();
        }
        answer
    }
}

/// Tells the task that nobody waits any more, unless the answer came.
#[derive(Debug)]
pub(crate) struct Guard {
    pub(crate) id: String,
    stream: Option<Arc<Stream>>,
    control: mpsc::UnboundedSender<Control>,
    armed: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.armed {
            if let Some(stream) = &self.stream {
                stream.close(Closed::Over);
            }
            let _ = self.control.send(Control::Abandon { id: std::mem::take(&mut self.id) });
        }
    }
}

/// A request that was sent. Dropping it abandons it.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) what: &'static str,
    answer: oneshot::Receiver<Answer>,
    pub(crate) guard: Guard,
    _permit: OwnedSemaphorePermit,
}

impl Call {
    /// The answer; `None` waits for as long as it takes. After a timeout, the call is abandoned when it is dropped.
    pub(crate) async fn wait(&mut self, timeout: Option<Duration>) -> Answer {
        let answer = match timeout {
            None => (&mut self.answer).await,
            Some(after) => match tokio::time::timeout(after, &mut self.answer).await {
                Ok(answer) => answer,
                Err(_) => return Err(CallError::Timeout { what: self.what, after }),
            },
        };
        self.guard.armed = false;
        match answer {
            Ok(answer) => answer.and_then(told),
            Err(_) => Err(CallError::OutcomeUnknown { what: self.what, why: "its channel was given up".to_owned() }),
        }
    }
}

/// What the guest refused is an error; what it ran and what came of it, however bad, is an answer.
fn told(response: Response) -> Answer {
    let ran = response.exit_code.is_some()
        || response.signal.is_some()
        || !response.stdout.is_empty()
        || !response.stderr.is_empty()
        || response.data.is_some()
        || response.error.as_ref().is_some_and(|error| error.code == ErrorCode::CommandTimeout);
    match response.error {
        Some(error) if !response.success && !ran => Err(CallError::Guest(error)),
        _ => Ok(response),
    }
}

/// The earlier of two moments that may not come.
pub(crate) fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
