//! Where a host is met: a virtio-serial port, a vsock port, a Unix socket, an inherited descriptor. No inet socket.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use roost_guest_proto::VSOCK_PORT;
use rustix::fs::{FileType, Mode, OFlags};

use super::port;
use crate::sys;

/// A place to meet a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// The virtio-serial port that is found.
    Serial,
    /// This device.
    Device(PathBuf),
    /// A vsock port to listen on.
    Vsock(u32),
    /// A Unix socket to connect to, which behaves like a port.
    Unix(PathBuf),
    /// A Unix socket to listen on, which behaves like vsock.
    UnixListen(PathBuf),
    /// A descriptor that was inherited; what it is decides how it behaves.
    Inherited(i32),
}

/// What is behind an endpoint once it is open.
#[derive(Debug)]
pub(crate) enum Opened {
    /// A port: it stays open while hosts come and go.
    Port(OwnedFd, String),
    /// A connection, which ends with the other side.
    Stream(OwnedFd),
    Listener(Listener),
}

/// Where connections come from.
#[derive(Debug)]
pub(crate) enum Listener {
    Vsock(OwnedFd),
    Unix(UnixListener),
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once(':').unwrap_or(("", text));
        match scheme {
            "" if rest.starts_with('/') => Ok(Self::Device(rest.into())),
            "" if rest == "serial" => Ok(Self::Serial),
            "" if rest == "vsock" => Ok(Self::Vsock(VSOCK_PORT)),
            "vsock" => rest.parse().map(Self::Vsock).map_err(|_| format!("{rest:?} is no vsock port")),
            "unix" if rest.starts_with('/') => Ok(Self::Unix(rest.into())),
            "unix-listen" if rest.starts_with('/') => Ok(Self::UnixListen(rest.into())),
            "fd" => rest.parse().map(Self::Inherited).map_err(|_| format!("{rest:?} is no number of a descriptor")),
            _ => Err(format!(
                "{text:?} is no device; permitted: serial, /dev/..., vsock, vsock:PORT, unix:/PATH, unix-listen:/PATH, fd:NUMBER"
            )),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serial => f.write_str("serial"),
            Self::Device(path) => write!(f, "{}", path.display()),
            Self::Vsock(port) => write!(f, "vsock:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::UnixListen(path) => write!(f, "unix-listen:{}", path.display()),
            Self::Inherited(number) => write!(f, "fd:{number}"),
        }
    }
}

impl Endpoint {
    /// Opens it; nothing in it blocks.
    pub(crate) fn open(&self) -> io::Result<Opened> {
        match self {
            Self::Serial => open_found(),
            Self::Device(path) => Ok(Opened::Port(open_device(path)?, path.display().to_string())),
            Self::Vsock(port) => Ok(Opened::Listener(Listener::Vsock(sys::vsock_listen(*port)?))),
            Self::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_nonblocking(true)?;
                Ok(Opened::Stream(stream.into()))
            }
            Self::UnixListen(path) => {
                remove_stale(path)?;
                let listener = UnixListener::bind(path)?;
                rustix::fs::chmod(path, Mode::from_raw_mode(0o600))?;
                listener.set_nonblocking(true)?;
                Ok(Opened::Listener(Listener::Unix(listener)))
            }
            Self::Inherited(number) => {
                let fd = sys::inherited(*number)?;
                let flags = rustix::fs::fcntl_getfl(&fd)?;
                rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
                match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
                    FileType::Socket => Ok(Opened::Stream(fd)),
                    _ => Ok(Opened::Port(fd, self.to_string())),
                }
            }
        }
    }

    /// What went wrong cannot go right a second time.
    pub(crate) fn is_once(&self) -> bool {
        matches!(self, Self::Inherited(_))
    }
}

impl Listener {
    /// The next connection, from the host or from who the agent runs as.
    pub(crate) fn accept(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Vsock(fd) => sys::vsock_accept(fd.as_fd()),
            Self::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                let peer = rustix::net::sockopt::socket_peercred(&stream)?;
                if peer.uid.is_root() || peer.uid == rustix::process::geteuid() {
                    return Ok(stream.into());
                }
                let message =
                    format!("a connection from uid {}; permitted: root, and who the agent is", peer.uid.as_raw());
                Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Self::Vsock(fd) => fd.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

fn open_found() -> io::Result<Opened> {
    let found = port::in_order(port::ports(Path::new("/sys/class/virtio-ports"), Path::new("/dev")));
    let mut last = io::Error::new(io::ErrorKind::NotFound, "this guest has no virtio-serial port for an agent");
    for port in found {
        match open_device(&port.device) {
            Ok(fd) => return Ok(Opened::Port(fd, format!("{} ({})", port.device.display(), port.name))),
            Err(error) => last = io::Error::new(error.kind(), format!("{}: {error}", port.device.display())),
        }
    }
    Err(last)
}

fn open_device(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let fd = rustix::fs::open(path, flags, Mode::empty())?;
    // A file would be at its end for ever.
    match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
        FileType::CharacterDevice => Ok(fd),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "no character device")),
    }
}

/// A socket that nobody listens on any more; anything else is left alone.
fn remove_stale(path: &Path) -> io::Result<()> {
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_as_text() {
        for text in ["serial", "/dev/vport1p1", "vsock:9999", "unix:/run/x", "unix-listen:/run/x", "fd:3"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        assert_eq!("vsock".parse::<Endpoint>().unwrap(), Endpoint::Vsock(9999));
        for text in ["", "vport1p1", "vsock:x", "unix:rel", "tcp:127.0.0.1:80", "fd:", "fd:-"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text:?}");
        }
    }
}
