//! The hub: what the daemon holds.

use std::collections::HashMap;
use std::collections::hash_map;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use roost_guest_proto::{Channel, Exec, FilePull, FilePush, Request, Response};
use roost_model::VmId;
use tokio::sync::mpsc;

use crate::attachment::{Attachment, HubConfig};
use crate::entry::{Control, Entry};
use crate::error::CallError;
use crate::exec::ExecHandle;
use crate::files::{self, Pull};
use crate::metrics::{MetricsPoint, MetricsSample, MetricsWatch};
use crate::status::{HubEvent, Status};
use crate::supervisor;

/// All channels. Cheap to clone; when the last clone is gone, the channels are given up.
#[derive(Debug, Clone)]
pub struct Hub(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Arc<HubConfig>,
    entries: RwLock<HashMap<VmId, Arc<Entry>>>,
    events: mpsc::UnboundedSender<HubEvent>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let entries = self.entries.get_mut().expect("nothing panics while it holds the lock");
        for entry in entries.values() {
            let _ = entry.control.send(Control::Detach);
        }
    }
}

impl Hub {
    /// A hub, and what happens on its channels. Events come at the rate at which agents come and go, which the
    /// hub's back-off bounds; who wants none drops the receiver.
    pub fn new(config: HubConfig) -> (Self, mpsc::UnboundedReceiver<HubEvent>) {
        let (events, receiver) = mpsc::unbounded_channel();
        let inner = Inner { config: Arc::new(config), entries: RwLock::default(), events };
        (Self(Arc::new(inner)), receiver)
    }

    /// Takes up a VM's channel, or what is now said of one that was taken up before. Runs within a tokio runtime.
    ///
    /// Of one that there is, the policy counts from now on. The agent is told when nothing is under way; at once
    /// where the epoch is another one, and then what was under way ends as [`CallError::OutcomeUnknown`].
    pub fn attach(&self, attachment: Attachment) {
        let attachment = Arc::new(attachment);
        let mut entries = self.0.entries.write().expect("nothing panics while it holds the lock");
        match entries.entry(attachment.vm) {
            hash_map::Entry::Occupied(entry) => entry.get().set_attachment(attachment),
            hash_map::Entry::Vacant(vacant) => {
                let (entry, inbox) = Entry::new(attachment.clone(), self.0.config.clone());
                tokio::spawn(supervisor::supervise(entry.clone(), attachment, inbox, self.0.events.clone()));
                vacant.insert(entry);
            }
        }
    }

    /// The machine is gone. Calls that are under way end as [`CallError::OutcomeUnknown`].
    pub fn detach(&self, vm: VmId) {
        let entry = self.0.entries.write().expect("nothing panics while it holds the lock").remove(&vm);
        if let Some(entry) = entry {
            let _ = entry.control.send(Control::Detach);
        }
    }

    fn find(&self, vm: VmId) -> Option<Arc<Entry>> {
        self.0.entries.read().expect("nothing panics while it holds the lock").get(&vm).cloned()
    }

    fn entry(&self, vm: VmId) -> Result<Arc<Entry>, CallError> {
        self.find(vm).ok_or(CallError::NotAttached { vm })
    }

    /// `None`: not attached.
    pub fn status(&self, vm: VmId) -> Option<Status> {
        self.find(vm).map(|entry| entry.status())
    }

    /// Waits until an agent is connected.
    pub async fn wait_connected(&self, vm: VmId, at_most: Duration) -> Result<Status, CallError> {
        let entry = self.entry(vm)?;
        let mut status = entry.watch_status();
        if !status.borrow().connected {
            let _ = entry.control.send(Control::Poke);
            // The lock that `wait_for` gives is dropped at once.
            match tokio::time::timeout(at_most, async { status.wait_for(|status| status.connected).await.map(drop) })
                .await
            {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(CallError::NotAttached { vm }),
                Err(_) => return Err(entry.not_connected()),
            }
        }
        Ok(entry.status())
    }

    /// Asks the agent, and waits for its answer. The request's ID and epoch are set here.
    ///
    /// An answer is `Ok` where the guest did something, even if that failed: a command's exit code is in it. After
    /// [`CallError::Timeout`] the guest is told to give up.
    pub async fn call(&self, vm: VmId, request: Request, timeout: Duration) -> Result<Response, CallError> {
        let streamed = match &request {
            Request::FilePush(_) | Request::FilePull(_) => true,
            Request::Exec(exec) => exec.stream.is_some() || exec.stdin,
            _ => false,
        };
        if streamed {
            let message = "a call has no stream; use exec, push or pull".to_owned();
            return Err(CallError::Invalid { field: "stream", message });
        }
        self.entry(vm)?.call(request, timeout).await
    }

    /// Runs a command whose output is in the answer: its head and tail, if it is long.
    pub async fn run(&self, vm: VmId, exec: Exec, timeout: Duration) -> Result<Response, CallError> {
        self.call(vm, Request::Exec(Box::new(exec)), timeout).await
    }

    /// Runs a command with live input and output. With [`Exec::stdin`] the handle has an input.
    pub async fn exec(&self, vm: VmId, mut exec: Exec) -> Result<ExecHandle, CallError> {
        let entry = self.entry(vm)?;
        let (stream, permit) = entry.stream(&[Channel::Output, Channel::Error], exec.stdin)?;
        exec.stream = Some(stream.number);
        let call = entry.begin(Request::Exec(Box::new(exec)), Some(stream.clone()))?;
        Ok(ExecHandle::new(entry, stream, call, permit))
    }

    /// Copies a file, or a tree of files, to the guest. An error among the content ends the copy, and nothing is put
    /// in place. Where [`FilePush::sha256`] is given, what arrived is compared with it there, and with what was sent here.
    pub async fn push<S>(&self, vm: VmId, file: FilePush, content: S) -> Result<Response, CallError>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Send,
    {
        files::push(self.entry(vm)?, file, content).await
    }

    /// Copies a file, or a tree of files, from the guest.
    pub async fn pull(&self, vm: VmId, file: FilePull) -> Result<Pull, CallError> {
        files::pull(self.entry(vm)?, file)
    }

    /// The last metrics that came.
    pub fn metrics(&self, vm: VmId) -> Option<Arc<MetricsSample>> {
        self.find(vm)?.metrics.last()
    }

    /// An hour of a few figures, oldest first.
    pub fn metrics_history(&self, vm: VmId) -> Vec<MetricsPoint> {
        self.find(vm).map(|entry| entry.metrics.history()).unwrap_or_default()
    }

    /// Metrics as they come. Of several watchers the smallest interval wins; after the last, the attachment's counts again.
    pub async fn watch_metrics(
        &self,
        vm: VmId,
        groups: Vec<String>,
        interval: Duration,
    ) -> Result<MetricsWatch, CallError> {
        const SHORTEST: Duration = Duration::from_millis(100);
        if interval < SHORTEST {
            let message = format!("{interval:?}; permitted: at least {SHORTEST:?}");
            return Err(CallError::Invalid { field: "interval", message });
        }
        let entry = self.entry(vm)?;
        if !entry.status().connected {
            return Err(entry.not_connected());
        }
        Ok(MetricsWatch::new(&entry, groups, interval))
    }

    /// When a command or a copy was last begun or ended. Metrics do not count.
    pub fn last_activity(&self, vm: VmId) -> Option<std::time::Instant> {
        self.find(vm)?.last_activity()
    }
}
