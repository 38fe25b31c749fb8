//! From a backend to the host that holds its machines.

use std::sync::Arc;

use roost_backend::EventSender;
use roost_model::{LaunchId, VmId};

use crate::host::{SessionId, SimHost};
use crate::remote::RemoteLink;
use crate::request::{HostError, Reply, Request};

/// A backend's session with a host.
#[derive(Debug)]
pub(crate) enum Link {
    /// In this process.
    Local(LocalLink),
    /// In a process of its own.
    Remote(RemoteLink),
}

/// A session with a host in this process. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct LocalLink {
    host: Arc<SimHost>,
    session: SessionId,
}

/// Holds a machine at its gate: dropped before the machine runs, it lets the machine vanish.
#[derive(Debug)]
pub(crate) struct Gate<'a> {
    link: &'a Link,
    vm: VmId,
    launch: LaunchId,
    open: bool,
}

impl Link {
    /// Asks and waits for the answer.
    pub(crate) async fn ask(&self, request: Request) -> Result<Reply, HostError> {
        match self {
            Link::Local(local) => local.host.execute(local.session, request).await,
            Link::Remote(remote) => remote.ask(request).await,
        }
    }

    /// The backend's process is gone, as far as the host can tell.
    pub(crate) fn sever(&self) {
        match self {
            Link::Local(local) => local.host.close_session(local.session),
            Link::Remote(remote) => remote.sever(),
        }
    }

    /// The host, where it is in this process.
    pub(crate) fn local(&self) -> Option<&Arc<SimHost>> {
        match self {
            Link::Local(local) => Some(&local.host),
            Link::Remote(_) => None,
        }
    }

    fn abandon(&self, vm: VmId, launch: LaunchId) {
        match self {
            Link::Local(local) => {
                // Abandoning cannot fail: what is not at its gate is left alone.
                let _ = local.host.execute_at_once(local.session, Request::Abandon { vm, launch });
            }
            Link::Remote(remote) => remote.post(Request::Abandon { vm, launch }),
        }
    }
}

impl LocalLink {
    pub(crate) fn new(host: Arc<SimHost>, events: EventSender, report_asked_ends: bool) -> Self {
        let session = host.open_session(events, report_asked_ends);
        Self { host, session }
    }
}

impl Drop for LocalLink {
    fn drop(&mut self) {
        self.host.close_session(self.session);
    }
}

impl<'a> Gate<'a> {
    /// To be made before the machine is: whoever drops it half-way leaves nothing.
    pub(crate) fn new(link: &'a Link, vm: VmId, launch: LaunchId) -> Self {
        Self { link, vm, launch, open: false }
    }

    /// The machine runs.
    pub(crate) fn opened(mut self) {
        self.open = true;
    }
}

impl Drop for Gate<'_> {
    fn drop(&mut self) {
        if !self.open {
            self.link.abandon(self.vm, self.launch);
        }
    }
}
