//! The Unix socket: who may connect, how many, and how a daemon that stops lets them finish.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use roost_api::AnyAuthority;
use roost_host::sockets::{PeerCredentials, bind_unix, peer_credentials};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tower::ServiceExt;

/// Connections at once; one more waits.
const MOST_CONNECTIONS: usize = 1024;
/// A client that has not sent its headers by then is hung up on.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);
/// How long calls in flight may go on when the daemon stops.
const DRAIN: Duration = Duration::from_secs(5);

/// The bound socket; its file is removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Binds `path`, readable and writable by its owner alone.
    pub(crate) fn bind(path: &Path) -> anyhow::Result<Self> {
        let socket = bind_unix(path)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket: UnixListener::from_std(socket)?, path: path.to_owned() })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // The next start replaces what is left here, so a failure costs nothing.
        let _left_behind = std::fs::remove_file(&self.path);
    }
}

/// Serves until `stop` says so, then lets calls in flight finish for a while.
pub(crate) async fn serve(listener: Listener, router: axum::Router, mut stop: watch::Receiver<bool>) {
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let place = tokio::select! {
            _ = stop.wait_for(|s| *s) => break,
            place = Arc::clone(&places).acquire_owned() => place.expect("the semaphore is never closed"),
        };
        let accepted = tokio::select! {
            _ = stop.wait_for(|s| *s) => break,
            accepted = listener.socket.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors: what is served goes on, and a place comes free.
                tracing::warn!(error = %error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let peer = match may_connect(&stream) {
            Ok(peer) => peer,
            Err(error) => {
                tracing::warn!(error = %error, "a connection was turned away");
                continue;
            }
        };
        let router = router.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            let router = router.clone();
            async move {
                request.extensions_mut().insert(peer);
                Ok::<_, std::convert::Infallible>(router.oneshot(request).await.into_response())
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_DEADLINE);
        builder.http2().timer(TokioTimer::new()).max_concurrent_streams(256);
        let connection = builder.serve_connection(TokioIo::new(AnyAuthority::new(stream)), service).into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = %error, "a connection ended");
            }
            drop(place);
        });
    }
    drop(listener);
    tokio::select! {
        () = graceful.shutdown() => {}
        () = tokio::time::sleep(DRAIN) => tracing::info!("calls in flight were cut off"),
    }
}

/// The same user, or root. The file's mode says so too; a socket in a directory that somebody
/// opened up says only this.
fn may_connect(stream: &UnixStream) -> io::Result<PeerCredentials> {
    let peer = peer_credentials(stream).map_err(io::Error::other)?;
    let own = rustix::process::geteuid().as_raw();
    if peer.uid == own || peer.uid == 0 {
        return Ok(peer);
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("uid {} is not uid {own}", peer.uid)))
}
