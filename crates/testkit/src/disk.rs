//! A small disk of a daemon's own, which a test can fill or make read-only.
//!
//! It is a tmpfs in a mount namespace of its own, so that nothing of it outlives the test. From outside it
//! is seen through `/proc`. That needs root: in a user namespace, where others may mount, the directories
//! above it belong to nobody, and a daemon trusts no such place.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A small disk, mounted for those that are started on it only.
#[derive(Debug)]
pub struct Disk {
    /// Holds the namespace while its standard input is open.
    holder: Child,
    at: PathBuf,
}

impl Disk {
    /// A disk of so many MiB at this directory. `None`: we are not root, and that is said.
    pub(crate) fn new(at: &Path, mib: u32) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not tried: mounting a small disk needs root");
            return None;
        }
        std::fs::create_dir_all(at).expect("the mount point can be made");
        let mut command = Command::new("unshare");
        let hold = format!(r#"mount -t tmpfs -o mode=0700,size={mib}m roost "$0" && echo mounted && read -r _"#);
        command.args(["--mount", "--", "sh", "-c", &hold]).arg(at).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command.spawn().expect("unshare is part of util-linux");
        let mut line = String::new();
        let stdout = holder.stdout.take().expect("it was piped");
        BufReader::new(stdout).read_line(&mut line).expect("a pipe can be read");
        assert_eq!(line, "mounted\n", "root may make a mount namespace and a tmpfs in it");
        Some(Self { holder, at: at.to_owned() })
    }

    /// The process that holds it.
    pub(crate) fn holder(&self) -> u32 {
        self.holder.id()
    }

    /// A command that runs where the disk is.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.id().to_string(), "--mount", "--"]).arg(program.as_ref());
        command
    }

    /// Where a path is found from outside.
    pub(crate) fn seen(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(path.strip_prefix("/").expect("paths of tests are absolute"))
    }

    /// Fills it to the last byte.
    pub fn fill(&self) {
        let mut file = File::create(self.filling()).expect("a file can be made");
        for piece in [1 << 20, 4096, 1] {
            let piece = vec![0; piece];
            loop {
                match file.write_all(&piece) {
                    Ok(()) => {}
                    Err(e) if e.kind() == ErrorKind::StorageFull => break,
                    Err(e) => panic!("{e}"),
                }
            }
        }
    }

    /// Takes away what filled it.
    pub fn free(&self) {
        std::fs::remove_file(self.filling()).expect("it was filled");
    }

    /// Makes it read-only, or writable again. Nobody may have a file open for writing.
    pub fn set_read_only(&self, read_only: bool) {
        let option = if read_only { "remount,ro" } else { "remount,rw" };
        let status = self.command("mount").args(["-o", option]).arg(&self.at).status();
        assert!(status.expect("mount is part of util-linux").success());
    }

    fn filling(&self) -> PathBuf {
        self.seen(&self.at).join("filling")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ended = self.holder.wait();
    }
}
