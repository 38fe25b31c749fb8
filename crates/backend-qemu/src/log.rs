//! What QEMU says on its standard error: kept in a file, quoted in errors, turned into reasons.
//!
//! The file is opened for appending, so that it can be cut while QEMU writes to it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::Path;

use roost_backend::BackendError;
use rustix::fs::{Mode, OFlags};

/// A log that grew beyond this is cut at the next occasion.
const LOG_LIMIT: u64 = 1 << 20;
/// What of it goes into an error's message.
const QUOTED_LINES: usize = 5;
const QUOTED_BYTES: u64 = 4096;

/// Opens the log for QEMU to append to.
pub(crate) fn open(path: &Path) -> io::Result<OwnedFd> {
    cut(path);
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?)
}

/// Empties a log that is too long. Called where something happens anyway: there is no timer for it.
pub(crate) fn cut(path: &Path) {
    let too_long = std::fs::symlink_metadata(path).is_ok_and(|m| m.is_file() && m.len() > LOG_LIMIT);
    if too_long && let Ok(file) = File::options().write(true).open(path) {
        // A log that cannot be cut is no reason to stop a VM.
        let _ = file.set_len(0);
    }
}

/// The log's length, to tell afterwards what a launch has added to it.
pub(crate) fn length(path: &Path) -> u64 {
    std::fs::symlink_metadata(path).map_or(0, |m| m.len())
}

/// The last lines of the log after `from`.
pub(crate) fn tail(path: &Path, from: u64) -> Vec<String> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let end = file.metadata()?.len();
        let from = if from > end { 0 } else { from };
        file.seek(SeekFrom::Start(from.max(end.saturating_sub(QUOTED_BYTES))))?;
        let mut text = Vec::new();
        file.take(QUOTED_BYTES).read_to_end(&mut text)?;
        Ok(text)
    };
    let mut lines = printable(&read().unwrap_or_default());
    lines.drain(..lines.len().saturating_sub(QUOTED_LINES));
    lines
}

/// Lines without control characters, time stamps and the program's name.
pub(crate) fn printable(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.lines().map(|line| {
        let line = match line.split_once(' ') {
            Some((stamp, rest)) if is_time_stamp(stamp) => rest,
            _ => line,
        };
        let line = match line.split_once(": ") {
            Some((program, rest)) if program.ends_with("qemu-system-x86_64") => rest,
            _ => line,
        };
        line.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
    });
    lines.filter(|line: &String| !line.trim().is_empty()).collect()
}

/// As `-msg timestamp=on` writes them: `2026-01-31T12:00:00.123456Z`.
fn is_time_stamp(word: &str) -> bool {
    word.len() >= 20
        && word.ends_with('Z')
        && word.as_bytes()[10] == b'T'
        && word.starts_with(|c: char| c.is_ascii_digit())
}

/// The error that QEMU's last words amount to.
pub(crate) fn explain(lines: &[String], otherwise: &str) -> BackendError {
    let said = lines.join("; ");
    let has = |words: &[&str]| words.iter().any(|w| said.contains(w));
    let quoted = if said.is_empty() { otherwise.to_owned() } else { format!("{otherwise}: {said}") };
    // The texts are QEMU's own, from 7.2 to 10.0: softmmu/physmem.c, backends/hostmem.c, block.c,
    // net/slirp.c, target/i386/cpu.c, accel/kvm/kvm-all.c, qom/object.c.
    if has(&["cannot set up guest memory", "Cannot allocate memory", "unable to map backing store", "os_mem_prealloc"])
    {
        return BackendError::transient("NO_MEMORY", quoted)
            .hint("give the VM less memory, free some on the host, or add huge pages if it uses them");
    }
    if has(&["lock. Is another process using the image", "Failed to get \"write\" lock", "Failed to get shared"]) {
        return BackendError::transient("DISK_IN_USE", quoted).hint("stop what uses the disk, or give the VM a copy");
    }
    if has(&["Could not set up host forwarding rule"]) {
        return BackendError::transient("PORT_IN_USE", quoted).hint("choose another host_port, or free this one");
    }
    if has(&["unable to find CPU model", "CPU model"]) && !has(&["doesn't support requested feature"]) {
        return BackendError::permanent("CPU_MODEL_UNKNOWN", quoted).hint("leave cpu.model out for the fastest one");
    }
    if has(&["-x86_64-cpu.", "doesn't support requested feature"]) {
        return BackendError::permanent("CPU_FEATURE_UNKNOWN", quoted).hint("correct cpu.features");
    }
    if has(&["failed to initialize kvm", "Could not access KVM kernel module", "kvm_buf_set_msrs"]) {
        return BackendError::permanent("KVM_UNAVAILABLE", quoted).hint("leave the accelerator at auto");
    }
    if has(&["Could not open '", "could not open kernel file", "could not load initrd"]) {
        let reason = if has(&["could not open kernel", "could not load initrd"]) {
            "KERNEL_UNREADABLE"
        } else {
            "DISK_UNREADABLE"
        };
        return BackendError::permanent(reason, quoted).hint("check that the daemon's user may read the file");
    }
    BackendError::transient("QEMU_ENDED", quoted).hint("see qemu.log in the VM's directory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_fit_for_a_terminal() {
        let lines = printable(
            b"2026-11-21T10:08:53.153837Z qemu-system-x86_64: \x1b[31mno\n\n/opt/qemu-system-x86_64: two\r\nplain \xff\n",
        );
        assert_eq!(lines, ["\\u{1b}[31mno", "two", "plain \u{fffd}"]);
    }

    #[test]
    fn the_log_is_cut_and_only_what_is_new_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qemu.log");
        drop(open(&path).unwrap());
        std::fs::write(&path, "old\n".repeat(100)).unwrap();
        let from = length(&path);
        let log = open(&path).unwrap();
        rustix::io::write(&log, b"a\nb\nc\nd\ne\nf\n").unwrap();
        assert_eq!(tail(&path, from), ["b", "c", "d", "e", "f"]);
        std::fs::write(&path, vec![b'x'; (LOG_LIMIT + 1) as usize]).unwrap();
        cut(&path);
        assert_eq!(length(&path), 0);
        rustix::io::write(&log, b"after\n").unwrap();
        assert_eq!(tail(&path, 1 << 40), ["after"], "a log that was cut is quoted from its start");
    }

    #[test]
    fn known_words_have_reasons() {
        for (line, reason) in [
            ("cannot set up guest memory 'ram0': Cannot allocate memory", "NO_MEMORY"),
            ("Failed to get \"write\" lock", "DISK_IN_USE"),
            ("Could not set up host forwarding rule 'tcp:127.0.0.1:22-:22'", "PORT_IN_USE"),
            ("unable to find CPU model 'nonsense'", "CPU_MODEL_UNKNOWN"),
            ("Property 'max-x86_64-cpu.nonsense' not found", "CPU_FEATURE_UNKNOWN"),
            ("failed to initialize kvm: No such device", "KVM_UNAVAILABLE"),
            ("Could not open '/x': Permission denied", "DISK_UNREADABLE"),
            ("something new", "QEMU_ENDED"),
        ] {
            let error = explain(&[line.to_owned()], "QEMU ended");
            assert_eq!(error.reason, reason, "{line}");
            assert_eq!(error.message, format!("QEMU ended: {line}"));
        }
    }
}
