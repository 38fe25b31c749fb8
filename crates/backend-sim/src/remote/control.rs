//! Acting on the machines of a host process from outside: for tests, demonstrations and
//! `roost-simhost ctl`.

use std::io;
use std::path::Path;

use roost_model::VmId;
use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::frame::{Frames, FromHost, ToHost, VERSION, flush, push};
use crate::request::{Control, HostError, Reply, Request};

/// A connection to a host process.
#[derive(Debug)]
pub struct HostControl {
    frames: Frames<BufReader<OwnedReadHalf>>,
    write: OwnedWriteHalf,
    next: u64,
}

impl HostControl {
    /// Connects to the host that listens there.
    pub async fn connect(socket: &Path) -> io::Result<Self> {
        let (read, mut write) = UnixStream::connect(socket).await?.into_split();
        let mut frames = Frames::new(BufReader::new(read));
        let mut out = Vec::new();
        push(&mut out, &ToHost::Hello { version: VERSION, report_asked_ends: false });
        flush(&mut write, &mut out).await?;
        match frames.next().await.map_err(io::Error::other)? {
            Some(FromHost::Hello { version: VERSION, .. }) => Ok(Self { frames, write, next: 0 }),
            other => Err(io::Error::other(format!("not a roost-simhost of this version: {other:?}"))),
        }
    }

    /// Acts on a machine.
    pub async fn control(&mut self, vm: VmId, control: Control) -> io::Result<()> {
        self.ask(Request::Control { vm, control }).await.map(|_| ())
    }

    /// What the host holds that belongs to the VM.
    pub async fn leftovers(&mut self, vm: VmId) -> io::Result<Vec<String>> {
        match self.ask(Request::Leftovers { vm }).await? {
            Reply::Left { left } => Ok(left),
            other => Err(io::Error::other(format!("an answer that does not fit: {other:?}"))),
        }
    }

    async fn ask(&mut self, request: Request) -> io::Result<Reply> {
        self.next += 1;
        let mut out = Vec::new();
        push(&mut out, &ToHost::Ask { id: self.next, request });
        flush(&mut self.write, &mut out).await?;
        loop {
            match self.frames.next().await.map_err(io::Error::other)? {
                Some(FromHost::Answer { id, result }) if id == self.next => {
                    return result.map_err(|e: HostError| io::Error::other(e));
                }
                Some(_) => {}
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }
}
