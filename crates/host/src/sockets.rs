//! Unix sockets: listening, connecting, pairs, and who is at the other end.
//!
//! Owns: making the socket file with the right mode from its first instant, replacing a stale one,
//! paths of any length.
//! Not here: what is spoken on a socket; the directory that it is in ([`crate::dirs`]).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// `sun_path` holds 108 bytes with the zero at the end (`unix(7)`).
const MAX_PATH: usize = 107;

/// Why a socket could not be made or reached.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A live server listens there.
    #[error("a process listens on {path:?} already")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Something that is not a socket is in the way; it is left alone.
    #[error("{path:?} exists and is not a socket")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Nobody listens: no such file, or a socket whose process ended.
    #[error("nobody listens on {path:?}")]
    NoServer {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The server does not accept and its queue is full: it hangs or is overloaded.
    #[error("the server on {path:?} accepts no connections now")]
    Busy {
        /// The path.
        path: PathBuf,
    },
    /// The path has no file name, or one that no socket address can hold.
    #[error("{path:?} is no path for a socket")]
    BadPath {
        /// The path at fault.
        path: PathBuf,
    },
    /// Another system call failed.
    #[error("{call} for the socket {path:?} failed")]
    Call {
        /// The system call.
        call: &'static str,
        /// The path; empty for sockets without one.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Who is at the other end, as the kernel saw it when the connection was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCredentials {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Process; `None` if it is in a PID namespace that we cannot see. For logs only: it may have
    /// handed the socket on.
    pub pid: Option<u32>,
}

/// Listens on `path`: mode 0600 from its first instant, close-on-exec, non-blocking (ready for
/// `tokio::net::UnixListener::from_std`). A socket whose server is gone is replaced.
///
/// # Errors
/// [`SocketError::InUse`] if a server is alive there. The check and the replacement are two steps:
/// the directory must be one that only we write to.
pub fn bind_unix(path: &Path) -> Result<UnixListener, SocketError> {
    let place = Place::of(path)?;
    match rustix::fs::statat(place.base(), &place.name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(call("stat", path, errno)),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
            return Err(SocketError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => match connect_unix(path) {
            Ok(_) | Err(SocketError::Busy { .. }) => {
                return Err(SocketError::InUse { path: path.to_owned() });
            }
            Err(SocketError::NoServer { .. }) => {
                match rustix::fs::unlinkat(place.base(), &place.name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(errno) => return Err(call("unlink", path, errno)),
                }
            }
            Err(error) => return Err(error),
        },
    }
    let socket = stream_socket(path)?;
    // On Linux the mode of an unbound socket becomes the mode of its file: no instant at which
    // others could connect, and no change of the process-wide umask.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(|errno| call("fchmod", path, errno))?;
    match rustix::net::bind(&socket, &place.address(path)?) {
        Ok(()) => {}
        Err(Errno::ADDRINUSE) => {
            return Err(SocketError::InUse { path: path.to_owned() });
        }
        Err(errno) => return Err(call("bind", path, errno)),
    }
    rustix::net::listen(&socket, 128).map_err(|errno| call("listen", path, errno))?;
    Ok(UnixListener::from(socket))
}

/// Connects to `path` without ever waiting: a server that hangs with a full queue is
/// [`SocketError::Busy`]. The stream is non-blocking (ready for `tokio::net::UnixStream::from_std`).
///
/// # Errors
/// Says whether nobody listens or the server does not accept.
pub fn connect_unix(path: &Path) -> Result<UnixStream, SocketError> {
    let place = match Place::of(path) {
        Err(SocketError::Call { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Err(SocketError::NoServer { path: path.to_owned(), source });
        }
        place => place?,
    };
    let socket = stream_socket(path)?;
    loop {
        return match rustix::net::connect(&socket, &place.address(path)?) {
            Ok(()) => Ok(UnixStream::from(socket)),
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => Err(SocketError::Busy { path: path.to_owned() }),
            Err(errno @ (Errno::CONNREFUSED | Errno::NOENT)) => {
                Err(SocketError::NoServer { path: path.to_owned(), source: errno.into() })
            }
            Err(errno) => Err(call("connect", path, errno)),
        };
    }
}

/// Two connected stream sockets without a path; close-on-exec, blocking.
///
/// # Errors
/// No descriptors are left.
pub fn socketpair() -> Result<(OwnedFd, OwnedFd), SocketError> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|errno| call("socketpair", Path::new(""), errno))
}

/// Who connected.
///
/// # Errors
/// The descriptor is not a connected Unix socket.
pub fn peer_credentials(socket: impl AsFd) -> Result<PeerCredentials, SocketError> {
    let failed = |errno| call("getsockopt SO_PEERCRED", Path::new(""), errno);
    // Not by `rustix`: its type has no room for the process number 0, which the kernel tells for a
    // process that this PID namespace does not contain.
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into a local of that size and type.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        let errno = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        return Err(failed(Errno::from_raw_os_error(errno)));
    }
    // A socket that never had a peer answers with nobody.
    if peer.uid == u32::MAX {
        return Err(failed(Errno::NOTCONN));
    }
    let pid = u32::try_from(peer.pid).ok().filter(|pid| *pid != 0);
    Ok(PeerCredentials { uid: peer.uid, gid: peer.gid, pid })
}

/// Where a socket file is: by its path, or by its directory's descriptor where the path is too long.
struct Place {
    dir: Option<OwnedFd>,
    name: PathBuf,
}

impl Place {
    fn of(path: &Path) -> Result<Self, SocketError> {
        if path.as_os_str().len() <= MAX_PATH {
            return Ok(Self { dir: None, name: path.to_owned() });
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(SocketError::BadPath { path: path.to_owned() });
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(parent, flags, Mode::empty()).map_err(|errno| call("open", parent, errno))?;
        Ok(Self { dir: Some(dir), name: PathBuf::from(name) })
    }

    fn base(&self) -> std::os::fd::BorrowedFd<'_> {
        self.dir.as_ref().map_or(CWD, AsFd::as_fd)
    }

    fn address(&self, path: &Path) -> Result<SocketAddrUnix, SocketError> {
        let short = match &self.dir {
            None => self.name.clone(),
            Some(dir) => {
                let mut short = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
                short.push(&self.name);
                short
            }
        };
        if short.as_os_str().len() > MAX_PATH || is_abstract(short.as_os_str()) {
            return Err(SocketError::BadPath { path: path.to_owned() });
        }
        SocketAddrUnix::new(&*short).map_err(|_errno| SocketError::BadPath { path: path.to_owned() })
    }
}

/// An empty path would ask for an automatic address, a leading zero for an abstract one: neither has
/// permissions.
fn is_abstract(path: &OsStr) -> bool {
    path.as_bytes().first().is_none_or(|first| *first == 0)
}

fn stream_socket(path: &Path) -> Result<OwnedFd, SocketError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|errno| call("socket", path, errno))
}

fn call(call: &'static str, path: &Path, errno: Errno) -> SocketError {
    SocketError::Call { call, path: path.to_owned(), source: errno.into() }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn talk(listener: &UnixListener, mut client: UnixStream) {
        let (mut server, _) = listener.accept().unwrap();
        client.set_nonblocking(false).unwrap();
        server.set_nonblocking(false).unwrap();
        client.write_all(b"hello").unwrap();
        let mut heard = [0; 5];
        server.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
    }

    #[test]
    fn a_socket_is_private_and_its_peer_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = bind_unix(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let client = connect_unix(&path).unwrap();
        let (server, _) = listener.accept().unwrap();
        let us = PeerCredentials {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            pid: Some(std::process::id()),
        };
        assert_eq!(peer_credentials(&server).unwrap(), us);
        assert_eq!(peer_credentials(&client).unwrap(), us);
        let unconnected = stream_socket(&path).unwrap();
        assert!(peer_credentials(&unconnected).is_err());
    }

    #[test]
    fn a_stale_socket_is_replaced_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        assert!(matches!(connect_unix(&path), Err(SocketError::NoServer { .. })));
        let listener = bind_unix(&path).unwrap();
        assert!(matches!(bind_unix(&path), Err(SocketError::InUse { .. })));
        drop(listener);
        assert!(path.exists());
        assert!(matches!(connect_unix(&path), Err(SocketError::NoServer { .. })));
        let listener = bind_unix(&path).unwrap();
        // The failed attempt above waits in no queue: this is a new socket.
        talk(&listener, connect_unix(&path).unwrap());
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/nonexistent", &link).unwrap();
        for path in [&file, &link, &dir.path().to_owned()] {
            assert!(matches!(bind_unix(path), Err(SocketError::NotASocket { path: at }) if at == *path));
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
        assert!(matches!(bind_unix(Path::new("")), Err(SocketError::BadPath { .. } | SocketError::Call { .. })));
        assert!(matches!(
            bind_unix(Path::new("\0abstract")),
            Err(SocketError::BadPath { .. } | SocketError::Call { .. })
        ));
    }

    #[test]
    fn a_path_may_be_longer_than_an_address() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120)).join("e".repeat(120));
        std::fs::create_dir_all(&deep).unwrap();
        let path = deep.join("socket");
        assert!(matches!(connect_unix(&path), Err(SocketError::NoServer { .. })));
        let listener = bind_unix(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        talk(&listener, connect_unix(&path).unwrap());
        assert!(matches!(bind_unix(&path), Err(SocketError::InUse { .. })));
        drop(listener);
        drop(bind_unix(&path).unwrap());
        // A name that no address holds, whatever the directory.
        assert!(matches!(bind_unix(&deep.join("n".repeat(100))), Err(SocketError::BadPath { .. })));
        assert!(matches!(
            connect_unix(&dir.path().join("x".repeat(120)).join("socket")),
            Err(SocketError::NoServer { .. })
        ));
    }

    #[test]
    fn a_server_that_hangs_does_not_hang_its_client() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _listener = bind_unix(&path).unwrap();
        let mut waiting = Vec::new();
        let error = loop {
            match connect_unix(&path) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
            assert!(waiting.len() < 10_000);
        };
        assert!(matches!(error, SocketError::Busy { .. }), "{error:?}");
        assert!(matches!(bind_unix(&path), Err(SocketError::InUse { .. })), "busy is alive");
    }

    #[test]
    fn pairs_are_connected() {
        let (one, other) = socketpair().unwrap();
        let (mut one, mut other) = (UnixStream::from(one), UnixStream::from(other));
        one.write_all(b"x").unwrap();
        drop(one);
        let mut heard = Vec::new();
        other.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, b"x");
    }
}
