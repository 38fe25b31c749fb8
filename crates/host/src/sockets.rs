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
    let place = Place::of(path)?;
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
        let dir = rustix::fs::open(parent, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::NOENT => SocketError::NoServer { path: path.to_owned(), source: errno.into() },
            errno => call("open", parent, errno),
        })?;
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
