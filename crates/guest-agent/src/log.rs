//! The agent's log: lines on standard error, or the kernel's log where there is none to read that.
//!
//! A line is one write, cut at 1 KiB, and a burst of lines is cut short: what a peer can cause costs no disk.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

/// How much a line matters. The numbers are those of syslog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Somebody has to do something.
    Error = 3,
    /// Something is not as it should be, and the agent copes.
    Warning = 4,
    /// What it did.
    Info = 6,
    /// How.
    Debug = 7,
}

/// The lines of one second.
const BURST: u64 = 100;
const LONGEST: usize = 1024;

static LEVEL: AtomicU8 = AtomicU8::new(Level::Info as u8);
static QUIET: AtomicBool = AtomicBool::new(false);
static KERNEL: OnceLock<Mutex<File>> = OnceLock::new();
static SECOND: AtomicU64 = AtomicU64::new(0);
static LINES: AtomicU64 = AtomicU64::new(0);
static START: OnceLock<Instant> = OnceLock::new();

/// From which level on.
pub fn set_level(level: Level) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

/// To the kernel's log from now on, where the agent may write to it.
pub fn use_kernel_log() -> std::io::Result<()> {
    let file = File::options().write(true).open("/dev/kmsg")?;
    let _ = KERNEL.set(Mutex::new(file));
    Ok(())
}

/// Not a word while file systems are frozen: whoever keeps the log may wait for one of them.
pub fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// One line. Use the macros.
pub fn write(level: Level, text: fmt::Arguments<'_>) {
    if level as u8 > LEVEL.load(Ordering::Relaxed) || QUIET.load(Ordering::Relaxed) {
        return;
    }
    let second = START.get_or_init(Instant::now).elapsed().as_secs();
    if SECOND.swap(second, Ordering::Relaxed) != second {
        LINES.store(0, Ordering::Relaxed);
    }
    let lines = LINES.fetch_add(1, Ordering::Relaxed);
    if lines >= BURST {
        return;
    }
    let mut line = if KERNEL.get().is_some() {
        format!("<{}>roost-agent: ", level as u8)
    } else {
        format!(
            "roost-agent: {}",
            match level {
                Level::Error => "error: ",
                Level::Warning => "warning: ",
                Level::Info => "",
                Level::Debug => "debug: ",
            }
        )
    };
    // A text of the other end's may hold control characters.
    line.extend(text.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST));
    if lines + 1 == BURST {
        line.push_str(" (more in this second is left out)");
    }
    line.push('\n');
    match KERNEL.get() {
        Some(file) => {
            if let Ok(mut file) = file.lock() {
                let _ = file.write_all(line.as_bytes());
            }
        }
        None => {
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }
}

/// A line that matters to an operator.
#[macro_export]
macro_rules! error {
    ($($text:tt)*) => { $crate::log::write($crate::log::Level::Error, format_args!($($text)*)) };
}

/// Something is not as it should be.
#[macro_export]
macro_rules! warning {
    ($($text:tt)*) => { $crate::log::write($crate::log::Level::Warning, format_args!($($text)*)) };
}

/// What the agent did.
#[macro_export]
macro_rules! info {
    ($($text:tt)*) => { $crate::log::write($crate::log::Level::Info, format_args!($($text)*)) };
}

/// How it did it.
#[macro_export]
macro_rules! debug {
    ($($text:tt)*) => { $crate::log::write($crate::log::Level::Debug, format_args!($($text)*)) };
}
