//! Opening a TAP interface that somebody else made.
//!
//! Owns: attaching to an existing interface by its name.
//! Not here, on purpose: creating, configuring or removing one. A TAP that the user names is the
//! user's.

use std::ffi::{c_char, c_short};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// `IFNAMSIZ` less the zero at the end (`linux/if.h`).
const MAX_NAME: usize = 15;

/// Why a TAP could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// Not 1 to 15 of the permitted characters.
    #[error("{name:?} is not an interface name: 1 to {MAX_NAME} of A-Z a-z 0-9 _ - . are permitted")]
    BadName {
        /// The name at fault.
        name: String,
    },
    /// There is no such interface, or it went away while it was being opened.
    #[error("there is no network interface {name}")]
    NotFound {
        /// The interface.
        name: String,
    },
    /// It is a bridge, a wire, a TUN.
    #[error("the network interface {name} is not a TAP")]
    NotATap {
        /// The interface.
        name: String,
    },
    /// Another process is attached to it.
    #[error("the TAP {name} is in use")]
    Busy {
        /// The interface.
        name: String,
    },
    /// It belongs to another user, or `/dev/net/tun` does not open for us.
    #[error("no permission to open the TAP {name}")]
    Permission {
        /// The interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A system call failed.
    #[error("{call} for the TAP {name} failed")]
    Call {
        /// The system call.
        call: &'static str,
        /// The interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Attaches to the TAP `name`: whole Ethernet frames, each behind a `virtio_net_hdr`. Dropping the
/// descriptor detaches.
///
/// # Errors
/// Says which of the things that must be true of it is not. Nothing is created.
pub fn open_tap(name: &str) -> Result<OwnedFd, TapError> {
    check_name(name)?;
    let before = Interface::look_up(name)?;
    let fd = rustix::fs::open("/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
        .map_err(|errno| refused("open /dev/net/tun", name, errno))?;
    // The kernel insists that the number of queues is asked for as the interface was made.
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | (before.tun_flags & libc::IFF_MULTI_QUEUE);
    attach(&fd, name, flags).map_err(|errno| refused("TUNSETIFF", name, errno))?;
    // Asked for by name, an interface that went away meanwhile is made anew: then this one is
    // another. It is not persistent and goes with the descriptor.
    match Interface::look_up(name) {
        Ok(after) if after.index == before.index => Ok(fd),
        _ => Err(TapError::NotFound { name: name.to_owned() }),
    }
}

/// Checks the form of an interface name. Stricter than the kernel's: no `%` (a pattern to
/// `TUNSETIFF`), no white space, nothing outside ASCII.
///
/// # Errors
/// [`TapError::BadName`].
pub fn check_name(name: &str) -> Result<(), TapError> {
    let permitted = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    let good = !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(permitted) && !matches!(name, "." | "..");
    if good { Ok(()) } else { Err(TapError::BadName { name: name.to_owned() }) }
}

struct Interface {
    index: u32,
    tun_flags: i32,
}

impl Interface {
    fn look_up(name: &str) -> Result<Self, TapError> {
        let not_found = || TapError::NotFound { name: name.to_owned() };
        // /sys shows the network namespace in which it was mounted, which need not be ours: the
        // index asked of a socket tells.
        let index = interface_index(name)?;
        let listed = read_attribute(name, "ifindex")?.ok_or_else(not_found)?;
        if listed.parse() != Ok(index) {
            return Err(not_found());
        }
        let not_a_tap = || TapError::NotATap { name: name.to_owned() };
        let flags = read_attribute(name, "tun_flags")?.ok_or_else(not_a_tap)?;
        let flags = flags.strip_prefix("0x").and_then(|hex| i32::from_str_radix(hex, 16).ok());
        match flags {
            Some(tun_flags) if tun_flags & libc::IFF_TAP != 0 => Ok(Self { index, tun_flags }),
            _ => Err(not_a_tap()),
        }
    }
}

fn interface_index(name: &str) -> Result<u32, TapError> {
    let failed = |call| move |errno: Errno| TapError::Call { call, name: name.to_owned(), source: errno.into() };
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .map_err(failed("socket"))?;
    match rustix::net::netdevice::name_to_index(&socket, name) {
        Ok(index) => Ok(index),
        Err(Errno::NODEV) => Err(TapError::NotFound { name: name.to_owned() }),
        Err(errno) => Err(failed("SIOCGIFINDEX")(errno)),
    }
}

/// `None`: no such interface, or it has no such attribute.
fn read_attribute(name: &str, attribute: &str) -> Result<Option<String>, TapError> {
    match std::fs::read_to_string(format!("/sys/class/net/{name}/{attribute}")) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TapError::Call { call: "read /sys/class/net", name: name.to_owned(), source }),
    }
}

fn attach(fd: &OwnedFd, name: &str, flags: i32) -> Result<(), Errno> {
    // SAFETY: an all-zero ifreq is a valid one: an empty name and a union of plain integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name[..MAX_NAME].iter_mut().zip(name.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = flags as c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives across the call; the name in it ends
    // with a zero as one byte more than MAX_NAME is left zero.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 {
        let errno = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        return Err(Errno::from_raw_os_error(errno));
    }
    Ok(())
}

fn refused(call: &'static str, name: &str, errno: Errno) -> TapError {
    let name = name.to_owned();
    match errno {
        Errno::BUSY => TapError::Busy { name },
        Errno::PERM | Errno::ACCESS => TapError::Permission { name, source: errno.into() },
        errno => TapError::Call { call, name, source: errno.into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["tap0", "vm_1-a.b", "x", "exactly15bytes_"] {
            check_name(good).unwrap();
        }
        let long = "sixteen_bytes_it";
        for bad in ["", ".", "..", "tap%d", "br0; rm -rf /", "a/b", "a b", "tap0\n", "tap\0", "t\u{e4}p", long, "../lo"]
        {
            assert!(matches!(open_tap(bad), Err(TapError::BadName { name }) if name == bad), "{bad:?}");
        }
    }

    #[test]
    fn what_is_not_there_is_not_made() {
        assert!(matches!(open_tap("roost-no-such"), Err(TapError::NotFound { name }) if name == "roost-no-such"));
        assert!(!std::path::Path::new("/sys/class/net/roost-no-such").exists());
        assert!(matches!(open_tap("lo"), Err(TapError::NotATap { name }) if name == "lo"));
    }
}
