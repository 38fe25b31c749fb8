//! `roost cp`: files and directories to and from a guest.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use roost_client::ErrorCode;
use roost_client::v1::{PullFileRequest, PushFileRequest, PushFileStart, StatFileRequest};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::tree;
use crate::context::Context;
use crate::error::Failure;
use crate::escape;
use crate::output;
use crate::values::bytes;

/// Bytes sent in one message, and messages that may wait.
const PIECE: usize = 256 << 10;
const WAITING: usize = 8;

/// Copies files and directories to and from a guest.
#[derive(Debug, Args)]
#[command(after_help = "\
One side is VM:PATH, with an absolute path within the VM's file roots (roost vm update VM --file-root DIR).
- is standard input or output: roost cp web:/etc/hosts -")]
pub(crate) struct Cp {
    /// Permission bits in the guest, e.g. 0644 [default: those of the source]
    #[arg(long, value_name = "MODE", value_parser = mode)]
    mode: Option<u32>,
    /// Owner in the guest: user, user:group, names or numbers
    #[arg(long, value_name = "OWNER", default_value = "", hide_default_value = true)]
    owner: String,
    /// Make the directories in the guest that lead to it
    #[arg(long, short)]
    parents: bool,
    /// Compare the SHA-256 on both sides; under emulation that takes longer than the copy
    #[arg(long)]
    checksum: bool,
    /// From: a path here, or VM:PATH
    #[arg(value_name = "SOURCE")]
    source: String,
    /// To: a path here, or VM:PATH
    #[arg(value_name = "DESTINATION")]
    destination: String,
}

/// One side of a copy.
enum Side {
    Here(PathBuf),
    Guest { vm: String, path: String },
}

impl Side {
    /// `VM:/path`; anything else is a path here. One with a colon is written `./a:b`.
    fn parse(text: &str) -> Result<Self, Failure> {
        match text.split_once(':') {
            Some((vm, path)) if !vm.is_empty() && !vm.contains('/') => {
                if !path.starts_with('/') {
                    let message = format!("{text}: the path in the guest is not absolute");
                    return Err(Failure::usage(
                        message,
                        format!("write {vm}:/...; a file here with a colon is ./{text}"),
                    ));
                }
                Ok(Self::Guest { vm: vm.to_owned(), path: path.to_owned() })
            }
            _ => Ok(Self::Here(text.into())),
        }
    }
}

impl Cp {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        match (Side::parse(&self.source)?, Side::parse(&self.destination)?) {
            (Side::Here(from), Side::Guest { vm, path }) => self.push(context, &from, vm, path).await,
            (Side::Guest { vm, path }, Side::Here(to)) => pull(context, vm, path, &to, self.checksum).await,
            (Side::Here(_), Side::Here(_)) => {
                Err(Failure::usage("neither side is in a guest", "name one of them VM:/path"))
            }
            (Side::Guest { .. }, Side::Guest { .. }) => {
                Err(Failure::usage("both sides are in guests", "copy to a file here first"))
            }
        }
    }

    async fn push(self, context: &Context, from: &Path, vm: String, path: String) -> Result<(), Failure> {
        let stdin = from == Path::new("-");
        let meta = if stdin { None } else { Some(fs::metadata(from).map_err(|e| unreadable(from, &e))?) };
        let directory = meta.as_ref().is_some_and(fs::Metadata::is_dir);
        let path = match (directory, from.file_name().and_then(|name| name.to_str())) {
            // Into a directory that is there, as cp does it.
            (false, Some(name)) if !stdin && is_directory(context, &vm, &path).await? => {
                format!("{}/{name}", path.trim_end_matches('/'))
            }
            _ => path,
        };
        let file = meta.as_ref().filter(|_| !directory);
        let start = PushFileStart {
            vm_id: vm.clone(),
            path: path.clone(),
            mode: self.mode.or_else(|| file.map(|meta| meta.mode() & 0o777)),
            owner: self.owner,
            size: file.map(fs::Metadata::len),
            sha256: if self.checksum { checksum(from, stdin, directory).await? } else { String::new() },
            tree: directory,
            parents: self.parents,
            ..Default::default()
        };
        let bar = Bar::new(context, &format!("to {vm}:{path}"), start.size);
        let (send, receive) = mpsc::channel(WAITING);
        let source = from.to_owned();
        let counted = bar.clone();
        let reading = tokio::task::spawn_blocking(move || read(&source, directory, start, &send, &counted));
        let answer = context.client.push_file(futures::stream::unfold(receive, async |mut receive| {
            receive.recv().await.map(|message| (message, receive))
        }));
        let answer = answer.await;
        bar.done();
        // What could not be read here is the cause of whatever the guest says.
        reading.await.map_err(|e| Failure::other(e.to_string(), ""))?.map_err(|e| unreadable(from, &e))?;
        let answer = answer?;
        if !context.for_people() {
            return context.document(&answer);
        }
        context.say(&format!("{} copied to {vm}:{path}", bytes(answer.size)))
    }
}

/// The SHA-256 of what is about to be sent.
async fn checksum(from: &Path, stdin: bool, directory: bool) -> Result<String, Failure> {
    if stdin {
        return Err(Failure::usage("--checksum: standard input cannot be read twice", "copy a file"));
    }
    let path = from.to_owned();
    let hash = tokio::task::spawn_blocking(move || {
        let mut hash = Sha256::new();
        let mut take = |piece: Vec<u8>| {
            hash.update(&piece);
            true
        };
        if directory {
            tree::read(&path, &mut take)?;
        } else {
            pieces(&mut File::open(&path)?, &mut take)?;
        }
        Ok(roost_guest_proto::hex(&hash.finalize()))
    });
    hash.await.map_err(|e| Failure::other(e.to_string(), ""))?.map_err(|e| unreadable(from, &e))
}

/// A file's bytes, as long as they are wanted.
fn pieces(file: &mut dyn Read, piece: &mut dyn FnMut(Vec<u8>) -> bool) -> io::Result<()> {
    loop {
        let mut data = vec![0; PIECE];
        let got = file.read(&mut data)?;
        data.truncate(got);
        if got == 0 || !piece(data) {
            return Ok(());
        }
    }
}

/// Reads what is here into messages. A receiver that is gone ends it: the call's answer says why.
fn read(
    from: &Path,
    directory: bool,
    start: PushFileStart,
    send: &mpsc::Sender<PushFileRequest>,
    bar: &Bar,
) -> io::Result<()> {
    let mut start = Some(start);
    let mut piece = |data: Vec<u8>| {
        bar.add(data.len());
        send.blocking_send(PushFileRequest { start: start.take().into(), data, ..Default::default() }).is_ok()
    };
    if directory {
        piece(Vec::new());
        return tree::read(from, &mut piece);
    }
    let mut file: Box<dyn Read> =
        if from == Path::new("-") { Box::new(io::stdin()) } else { Box::new(File::open(from)?) };
    piece(Vec::new());
    pieces(&mut file, &mut piece)
}

async fn pull(context: &Context, vm: String, path: String, to: &Path, sha256: bool) -> Result<(), Failure> {
    let request = StatFileRequest { vm_id: vm.clone(), path: path.clone(), ..Default::default() };
    let stat = context.client.stat_file(request).await?;
    let directory = stat.kind == "directory";
    let stdout = to == Path::new("-");
    if directory && stdout {
        return Err(Failure::usage(format!("{vm}:{path} is a directory"), "name a directory here to copy it to"));
    }
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let target = if !directory && to.is_dir() { to.join(name) } else { to.to_owned() };
    let bar = Bar::new(context, &format!("from {vm}:{path}"), (!directory).then_some(stat.size));
    let request =
        PullFileRequest { vm_id: vm.clone(), path: path.clone(), tree: directory, sha256, ..Default::default() };
    let mut file = context.client.pull_file(request).await?;
    // A copy that breaks off leaves what was there before.
    let part = part_of(&target);
    let mut sink = if directory {
        Sink::Tree(Box::new(tree::Writer::new(&target).map_err(|e| unwritable(&target, &e))?))
    } else if stdout {
        Sink::Stdout
    } else {
        Sink::File(File::create(&part).map_err(|e| unwritable(&part, &e))?)
    };
    let end = loop {
        let Some(message) = file.next().await? else { break None };
        bar.add(message.data.len());
        sink.write(&message.data).map_err(|e| unwritable(&target, &e))?;
        if let Some(end) = message.end.into_option() {
            break Some(end);
        }
    };
    bar.done();
    let end = end.ok_or_else(|| Failure::other(format!("{vm}:{path}: the copy broke off"), "copy it again"))?;
    match sink {
        Sink::Stdout => return Ok(()),
        Sink::Tree(writer) => writer.finish().map_err(|e| unwritable(&target, &e))?,
        Sink::File(file) => {
            let put = file
                .set_permissions(fs::Permissions::from_mode(stat.mode & 0o777))
                .and_then(|()| file.sync_all())
                .and_then(|()| fs::rename(&part, &target));
            put.map_err(|e| unwritable(&target, &e))?;
        }
    }
    if !context.for_people() {
        return context.document(&end);
    }
    context.say(&format!("{} copied to {}", bytes(end.size), target.display()))
}

/// Where bytes from a guest go.
enum Sink {
    File(File),
    Tree(Box<tree::Writer>),
    Stdout,
}

impl Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::File(file) => file.write_all(bytes),
            Self::Tree(writer) => writer.write(bytes),
            Self::Stdout => output::write(bytes).map_err(io::Error::other),
        }
    }
}

/// What a copy is while it is not whole: beside its place, so that putting it there is one step.
fn part_of(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.roost-part"))
}

async fn is_directory(context: &Context, vm: &str, path: &str) -> Result<bool, Failure> {
    let request = StatFileRequest { vm_id: vm.to_owned(), path: path.to_owned(), ..Default::default() };
    match context.client.stat_file(request).await {
        Ok(stat) => Ok(stat.kind == "directory"),
        // Only the guest can say that there is no such file; there may be no such VM.
        Err(error) if error.code() == ErrorCode::NotFound && error.reason() == Some("GUEST_NOT_FOUND") => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// How far a copy is, where somebody watches.
#[derive(Clone)]
struct Bar(Option<ProgressBar>);

impl Bar {
    fn new(context: &Context, label: &str, size: Option<u64>) -> Self {
        let bar = context.shows_progress().then(|| {
            let bar = size.map_or_else(ProgressBar::no_length, ProgressBar::new);
            let template = match size {
                Some(_) => "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}",
                None => "{msg} {bytes} {bytes_per_sec}",
            };
            bar.set_style(ProgressStyle::with_template(template).expect("the template is well-formed"));
            bar.set_message(escape::line(label).into_owned());
            bar
        });
        Self(bar)
    }

    fn add(&self, count: usize) {
        if let Some(bar) = &self.0 {
            bar.inc(count as u64);
        }
    }

    fn done(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text.trim_start_matches("0o"), 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err(format!("{text:?} is no mode; write 0644")),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::File { path: path.to_owned(), problem: format!("cannot be read: {error}") }
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::other(format!("{}: cannot be written: {error}", path.display()), "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_is_here_or_in_a_guest() {
        let guest = |text| match Side::parse(text) {
            Ok(Side::Guest { vm, path }) => format!("{vm} {path}"),
            Ok(Side::Here(path)) => format!("here {}", path.display()),
            Err(failure) => format!("refused {}", failure.exit()),
        };
        assert_eq!(guest("web:/etc/hosts"), "web /etc/hosts");
        assert_eq!(guest("./web:/x"), "here ./web:/x");
        assert_eq!(guest("plain"), "here plain");
        assert_eq!(guest("web:etc"), "refused 2");
        assert_eq!(part_of(Path::new("/a/b")), Path::new("/a/.b.roost-part"));
        assert_eq!((mode("0644"), mode("9").is_err(), mode("77777").is_err()), (Ok(0o644), true, true));
    }
}
