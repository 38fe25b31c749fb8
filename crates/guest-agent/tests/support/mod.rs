//! The real agent, and a host for it: a Unix socket in place of the port, everything else as it is.
#![allow(dead_code, clippy::unwrap_used, reason = "each test binary uses a part of it, and it is for tests")]

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use roost_guest_proto::{
    Channel, Decoder, Encoder, Event, Frame, GuestMessage, Handshake, Key, Kind, NoiseHandshake, Response, Upgrade,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long anything may take before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// An agent that runs. It ends with the value.
pub(crate) struct Guest {
    pub(crate) child: Child,
    pub(crate) directory: TempDir,
    listener: UnixListener,
}

impl Guest {
    /// An agent with these settings, and its first connection.
    pub(crate) fn start(settings: &[&str]) -> (Self, Peer) {
        let guest = Self::start_unmet(settings);
        let peer = guest.meet();
        (guest, peer)
    }

    pub(crate) fn start_unmet(settings: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("port");
        let listener = UnixListener::bind(&path).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_roost-agent"));
        command.env_clear().args(["--config", "/dev/null", "--device", &format!("unix:{}", path.display())]);
        command.args(["--device", &format!("unix-listen:{}", directory.path().join("vsock").display())]);
        for setting in settings {
            match setting.split_once('@') {
                Some(("env", pair)) => {
                    let (name, value) = pair.split_once('=').unwrap();
                    command.env(name, value);
                }
                _ => {
                    command.args(["--set", setting]);
                }
            }
        }
        if std::env::var_os("AGENT_DEBUG").is_some() {
            command.arg("--debug");
        } else {
            command.stderr(Stdio::null());
        }
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        Self { child, directory, listener }
    }

    /// The agent's next connection to the port.
    pub(crate) fn meet(&self) -> Peer {
        Peer::new(self.listener.accept().unwrap().0)
    }

    /// A connection as over vsock.
    pub(crate) fn dial(&self) -> Peer {
        let path = self.directory.path().join("vsock");
        let deadline = Instant::now() + PATIENCE;
        loop {
            match UnixStream::connect(&path) {
                Ok(stream) => return Peer::new(stream),
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::yield_now();
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A host.
pub(crate) struct Peer {
    pub(crate) stream: UnixStream,
    pub(crate) decoder: Decoder,
    pub(crate) encoder: Encoder,
    input: VecDeque<Event>,
    /// Everything that came on streams.
    pub(crate) data: BTreeMap<(u32, Channel), Vec<u8>>,
    pub(crate) ended: Vec<(u32, Channel)>,
    pub(crate) resets: Vec<(u32, u32)>,
    pub(crate) credit: BTreeMap<u32, u64>,
    pub(crate) others: Vec<GuestMessage>,
    /// Grants what comes in at once.
    pub(crate) generous: bool,
}

impl Peer {
    pub(crate) fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream,
            decoder: Decoder::default(),
            encoder: Encoder::default(),
            input: VecDeque::new(),
            data: BTreeMap::new(),
            ended: Vec::new(),
            resets: Vec::new(),
            credit: BTreeMap::new(),
            others: Vec::new(),
            generous: true,
        }
    }

    pub(crate) fn event(&mut self) -> Event {
        loop {
            if let Some(event) = self.input.pop_front() {
                return event;
            }
            let mut buffer = [0; 64 * 1024];
            let len = self.stream.read(&mut buffer).expect("the agent says nothing");
            assert!(len > 0, "the agent closed the connection");
            let mut input = &buffer[..len];
            while let Some(event) = self.decoder.next(&mut input) {
                self.input.push_back(event);
                // What follows may be in another form.
                if !input.is_empty() && matches!(self.input.back(), Some(Event::Line(_))) {
                    let Some(Event::Line(line)) = self.input.back() else { continue };
                    if let Ok(GuestMessage::Handshake(handshake)) = GuestMessage::parse(line)
                        && handshake.upgrades == [Upgrade::Frames]
                    {
                        self.decoder.use_frames(false, None);
                    }
                }
            }
        }
    }

    /// The next message; what comes on streams is kept.
    pub(crate) fn message(&mut self) -> GuestMessage {
        loop {
            match self.event() {
                Event::Line(text) | Event::Message(text) => return GuestMessage::parse(&text).unwrap(),
                Event::Frame(frame) => self.frame(frame),
                Event::Problem(problem) => panic!("{problem}"),
            }
        }
    }

    fn frame(&mut self, frame: Frame) {
        let key = (frame.stream, frame.channel);
        match frame.kind {
            Kind::Data => {
                if self.generous {
                    let mut out = Vec::new();
                    self.encoder.credit(frame.stream, frame.channel, frame.payload.len() as u32, &mut out);
                    self.write(&out);
                }
                self.data.entry(key).or_default().extend_from_slice(&frame.payload);
            }
            Kind::End => self.ended.push(key),
            Kind::Reset => self.resets.push((frame.stream, frame.number().unwrap())),
            Kind::Credit => *self.credit.entry(frame.stream).or_default() += u64::from(frame.number().unwrap()),
            _ => {}
        }
    }

    /// Takes one event in, whatever it is.
    pub(crate) fn step(&mut self) {
        match self.event() {
            Event::Line(text) | Event::Message(text) => {
                let message = GuestMessage::parse(&text).unwrap();
                self.others.push(message);
            }
            Event::Frame(frame) => self.frame(frame),
            Event::Problem(problem) => panic!("{problem}"),
        }
    }

    /// The answer to a request; other messages are kept.
    pub(crate) fn response(&mut self, id: &str) -> Response {
        loop {
            let found = self.others.iter().position(|it| matches!(it, GuestMessage::Response(it) if it.id == id));
            if let Some(at) = found {
                let GuestMessage::Response(response) = self.others.remove(at) else { unreachable!() };
                return *response;
            }
            self.step();
        }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends JSON in the form that was agreed on.
    pub(crate) fn send(&mut self, value: &Value) {
        let mut out = Vec::new();
        self.encoder.message(value.to_string().as_bytes(), &mut out);
        self.write(&out);
    }

    pub(crate) fn ask(&mut self, value: &Value) -> Response {
        self.send(value);
        self.response(value["id"].as_str().unwrap())
    }

    pub(crate) fn data(&mut self, stream: u32, bytes: &[u8]) {
        let mut out = Vec::new();
        self.encoder.data(stream, Channel::Input, bytes, &mut out);
        self.write(&out);
    }

    /// Sends all of it within the credit that the agent grants.
    pub(crate) fn data_all(&mut self, stream: u32, bytes: &[u8]) {
        let mut left = u64::from(roost_guest_proto::WINDOW);
        let mut rest = bytes;
        while !rest.is_empty() {
            left += self.credit.remove(&stream).unwrap_or(0);
            if left == 0 {
                self.step();
                continue;
            }
            let len = rest.len().min(left as usize).min(64 * 1024);
            self.data(stream, &rest[..len]);
            left -= len as u64;
            rest = &rest[len..];
        }
    }

    pub(crate) fn end(&mut self, stream: u32) {
        let mut out = Vec::new();
        self.encoder.end(stream, Channel::Input, &mut out);
        self.write(&out);
    }

    pub(crate) fn stream_data(&self, stream: u32, channel: Channel) -> &[u8] {
        self.data.get(&(stream, channel)).map_or(&[], Vec::as_slice)
    }

    /// Agrees on frames, with more in the hello. What came before is dropped.
    pub(crate) fn hello(&mut self, more: Value) -> Handshake {
        let mut hello = json!({"type": "hello", "version": "1.0", "session": "s1", "epoch": 1, "upgrades": ["frames"]});
        hello["metrics_interval_ms"] = 0.into();
        for (name, value) in more.as_object().unwrap() {
            hello[name] = value.clone();
        }
        let mut out = Vec::new();
        self.encoder.line(hello.to_string().as_bytes(), &mut out);
        self.write(&out);
        let handshake = self.await_handshake(hello["session"].as_str().unwrap());
        if handshake.upgrades.contains(&Upgrade::Frames) && !handshake.upgrades.contains(&Upgrade::E2e) {
            let zstd = handshake.upgrades.contains(&Upgrade::Zstd);
            self.encoder.use_frames(zstd, None);
            self.decoder.use_frames(zstd, None);
        }
        handshake
    }

    pub(crate) fn await_handshake(&mut self, session: &str) -> Handshake {
        loop {
            let text = match self.event() {
                Event::Line(text) => text,
                _ => continue,
            };
            if let Ok(GuestMessage::Handshake(handshake)) = GuestMessage::parse(&text)
                && handshake.session.as_deref() == Some(session)
            {
                return handshake;
            }
        }
    }

    /// The same with sealing.
    pub(crate) fn hello_sealed(&mut self, key: &Key) {
        let hello = json!({"type": "hello", "version": "1.0", "session": "sealed", "epoch": 1,
            "upgrades": ["frames", "zstd", "e2e"], "metrics_interval_ms": 0, "policy": {}})
        .to_string();
        self.write(format!("{hello}\n").as_bytes());
        let line = loop {
            if let Event::Line(line) = self.event()
                && let Ok(GuestMessage::Handshake(handshake)) = GuestMessage::parse(&line)
                && handshake.session.is_some()
            {
                assert!(handshake.upgrades.contains(&Upgrade::E2e), "{handshake:?}");
                break line;
            }
        };
        let mut noise = NoiseHandshake::host(key, hello.as_bytes(), &line);
        let first = noise.first().unwrap();
        self.write(format!("{}\n", json!({"type": "noise", "data": first})).as_bytes());
        let GuestMessage::Noise(answer) = self.message() else { panic!("no noise") };
        let (seal, open) = noise.complete(&answer.data).unwrap();
        self.encoder.use_frames(true, Some(seal));
        self.decoder.use_frames(true, Some(open));
    }
}

/// Waits until something is so.
pub(crate) fn wait_for(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A process is there and runs.
pub(crate) fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| !rest.starts_with(['Z', 'X'])))
}
