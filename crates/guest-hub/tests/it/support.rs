//! A hub with one VM, and a scripted peer at the other end of its socket.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use roost_guest_hub::proto::{
    Channel, Decoder, Encoder, Envelope, Event, Frame, GuestMessage, Handshake, Hello, Key, Kind, NoiseHandshake,
    NoiseLine, Policy, Request, Response, Sealer, Upgrade,
};
use roost_guest_hub::{Attachment, Endpoint, Hub, HubConfig, HubEvent, Status};
use roost_model::VmId;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

/// For what should be there at once, on a machine that may be busy.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) async fn soon<T>(what: &str, act: impl Future<Output = T>) -> T {
    match tokio::time::timeout(SOON, act).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {SOON:?}"),
    }
}

/// Waits for what nothing announces.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    soon(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

pub(crate) struct Bench {
    pub(crate) hub: Hub,
    pub(crate) events: mpsc::UnboundedReceiver<HubEvent>,
    pub(crate) vm: VmId,
    pub(crate) listener: UnixListener,
    pub(crate) dir: TempDir,
    pub(crate) attachment: Attachment,
}

pub(crate) fn vm(number: u16) -> VmId {
    let [high, low] = number.to_be_bytes();
    VmId::from_parts(1_700_000_000_000, [1, 2, 3, 4, 5, 6, 7, 8, high, low])
}

pub(crate) fn attachment(vm: VmId, socket: PathBuf) -> Attachment {
    Attachment {
        vm,
        endpoint: Endpoint::Unix(socket),
        qemu_guest_agent: None,
        policy: Policy::default(),
        allow_exec: true,
        file_roots: vec!["/".to_owned()],
        exec_user: None,
        metrics_interval: Duration::from_secs(30),
        epoch: 1,
        key: None,
    }
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(HubConfig::default(), |_| {})
    }

    pub(crate) fn with(config: HubConfig, change: impl FnOnce(&mut Attachment)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent");
        let listener = UnixListener::bind(&socket).unwrap();
        let (hub, events) = Hub::new(config);
        let mut attachment = attachment(vm(1), socket);
        change(&mut attachment);
        hub.attach(attachment.clone());
        Self { hub, events, vm: attachment.vm, listener, dir, attachment }
    }

    pub(crate) async fn accept(&self) -> Peer {
        let (stream, _) = soon("a connection", self.listener.accept()).await.unwrap();
        Peer::new(stream)
    }

    /// A peer that has greeted as Roost's agent does, and the status that the hub has of it.
    pub(crate) async fn roost(&mut self) -> (Peer, Status) {
        let mut peer = self.accept().await;
        peer.greet(&[Upgrade::Frames]).await;
        let status = self.hub.wait_connected(self.vm, SOON).await.unwrap();
        (peer, status)
    }

    pub(crate) async fn event(&mut self) -> HubEvent {
        soon("an event", self.events.recv()).await.unwrap()
    }
}

/// The agent's end of a channel, which says what the test says.
pub(crate) struct Peer {
    pub(crate) stream: UnixStream,
    pub(crate) decoder: Decoder,
    pub(crate) encoder: Encoder,
    input: Vec<u8>,
    events: VecDeque<Event>,
    /// Of every hello that came.
    pub(crate) hellos: Vec<Hello>,
    pub(crate) agent_id: String,
    pub(crate) epoch: Option<u64>,
    /// The session that was answered, and how.
    answered: Option<(String, Vec<u8>)>,
}

impl Peer {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            decoder: Decoder::default(),
            encoder: Encoder::default(),
            input: Vec::new(),
            events: VecDeque::new(),
            hellos: Vec::new(),
            agent_id: "agent-1".to_owned(),
            epoch: None,
            answered: None,
        }
    }

    /// What comes next; `None`: the hub hung up.
    pub(crate) async fn event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            if !self.input.is_empty() {
                // One at a time: what it is may change how the rest is read.
                let mut rest = self.input.as_slice();
                let event = self.decoder.next(&mut rest);
                let used = self.input.len() - rest.len();
                self.input.drain(..used);
                match event {
                    Some(Event::Line(line)) if self.is_answered(&line) => self.answer_again().await,
                    event => self.events.extend(event),
                }
                continue;
            }
            let mut buffer = vec![0; 64 * 1024];
            let len = soon("bytes from the hub", self.stream.read(&mut buffer)).await.unwrap_or(0);
            if len == 0 {
                return None;
            }
            self.input.extend_from_slice(&buffer[..len]);
        }
    }

    /// A hello that was on its way a second time when the first was answered.
    fn is_answered(&self, line: &[u8]) -> bool {
        let Some((session, _)) = &self.answered else { return false };
        matches!(Envelope::parse(line), Ok(Envelope { request: Request::Hello(hello), .. }) if hello.session == *session)
    }

    /// As Roost's agent does, before anything else came: the same handshake, and nothing changes.
    async fn answer_again(&mut self) {
        let Some((_, line)) = self.answered.clone() else { return };
        let mut out = Vec::new();
        self.encoder.line(&line, &mut out);
        self.decoder.resume_frames();
        self.raw(&out).await;
    }

    /// The next line or message that is a request. Anything else is lost.
    pub(crate) async fn envelope(&mut self) -> Option<Envelope> {
        loop {
            let text = match self.event().await? {
                Event::Line(text) | Event::Message(text) => text,
                Event::Frame(_) | Event::Problem(_) => continue,
            };
            if let Ok(envelope) = Envelope::parse(&text) {
                return Some(envelope);
            }
        }
    }

    pub(crate) async fn request(&mut self) -> Request {
        self.envelope().await.expect("the hub hung up").request
    }

    pub(crate) async fn exec(&mut self) -> roost_guest_hub::proto::Exec {
        loop {
            match self.request().await {
                Request::Exec(exec) => return *exec,
                // Of a call that ended before; a hello that was answered already.
                Request::Cancel(_) | Request::Hello(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The next frame of a stream.
    pub(crate) async fn frame(&mut self) -> Option<Frame> {
        loop {
            match self.event().await? {
                Event::Frame(frame) => return Some(frame),
                Event::Problem(problem) => panic!("{problem}"),
                Event::Line(_) | Event::Message(_) => {}
            }
        }
    }

    /// Waits for a hello, and gives the line as well.
    pub(crate) async fn hello(&mut self) -> (Hello, Vec<u8>) {
        loop {
            let Some(Event::Line(line)) = self.event().await else { continue };
            if let Ok(Envelope { request: Request::Hello(hello), .. }) = Envelope::parse(&line) {
                self.hellos.push(hello.clone());
                return (hello, line.to_vec());
            }
        }
    }

    pub(crate) fn handshake(&self, session: Option<&str>, upgrades: &[Upgrade]) -> Handshake {
        Handshake {
            timestamp: "2026-01-01T00:00:00Z".to_owned(),
            vm_id: "whatever".to_owned(),
            version: "1.2.3".to_owned(),
            platform: "linux".to_owned(),
            capabilities: vec!["exec".to_owned()],
            session: session.map(str::to_owned),
            protocol: Some("1.0".to_owned()),
            boot_id: Some("boot".to_owned()),
            agent_id: Some(self.agent_id.clone()),
            upgrades: upgrades.to_vec(),
            epoch: self.epoch,
            other: Default::default(),
        }
    }

    /// Answers the next hello as Roost's agent does.
    pub(crate) async fn greet(&mut self, upgrades: &[Upgrade]) -> Hello {
        let (hello, _) = self.hello().await;
        self.answer(&hello, upgrades).await;
        hello
    }

    pub(crate) async fn answer(&mut self, hello: &Hello, upgrades: &[Upgrade]) -> Vec<u8> {
        let line = GuestMessage::Handshake(self.handshake(Some(&hello.session), upgrades)).to_json();
        let mut out = Vec::new();
        self.encoder.line(&line, &mut out);
        self.answered = Some((hello.session.clone(), line.clone()));
        self.raw(&out).await;
        if upgrades.contains(&Upgrade::Frames) && !upgrades.contains(&Upgrade::E2e) {
            self.use_frames(upgrades.contains(&Upgrade::Zstd), None);
        } else {
            self.decoder.use_lines();
            self.encoder.reset();
        }
        line
    }

    fn use_frames(&mut self, compressed: bool, sealers: Option<(Sealer, Sealer)>) {
        let (seal, open) = sealers.unzip();
        self.decoder.use_frames(compressed, open);
        self.encoder.use_frames(compressed, seal);
    }

    /// The same with sealing.
    pub(crate) async fn greet_sealed(&mut self, key: &Key) {
        let (hello, hello_line) = self.hello().await;
        let handshake_line = self.answer(&hello, &[Upgrade::Frames, Upgrade::E2e]).await;
        let Request::Noise(noise) = self.request().await else { panic!() };
        let exchange = NoiseHandshake::agent(key, &hello_line, &handshake_line);
        let (data, seal, open) = exchange.answer(&noise.data).unwrap();
        let mut out = Vec::new();
        self.encoder.line(&GuestMessage::Noise(NoiseLine { data }).to_json(), &mut out);
        self.raw(&out).await;
        self.use_frames(false, Some((seal, open)));
    }

    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        soon("the hub reads", self.stream.write_all(bytes)).await.unwrap();
    }

    pub(crate) async fn say(&mut self, message: impl Into<GuestMessage>) {
        self.text(&message.into().to_json()).await;
    }

    pub(crate) async fn text(&mut self, json: &[u8]) {
        let mut out = Vec::new();
        self.encoder.message(json, &mut out);
        self.raw(&out).await;
    }

    pub(crate) async fn data(&mut self, stream: u32, channel: Channel, bytes: &[u8]) {
        let mut out = Vec::new();
        self.encoder.data(stream, channel, bytes, &mut out);
        self.raw(&out).await;
    }

    pub(crate) async fn end(&mut self, stream: u32, channel: Channel) {
        let mut out = Vec::new();
        self.encoder.end(stream, channel, &mut out);
        self.raw(&out).await;
    }

    pub(crate) async fn credit(&mut self, stream: u32, channel: Channel, bytes: u32) {
        let mut out = Vec::new();
        self.encoder.credit(stream, channel, bytes, &mut out);
        self.raw(&out).await;
    }

    /// Takes all that comes on channel `Input` of a stream, and grants credit for it.
    pub(crate) async fn take_input(&mut self, stream: u32) -> Vec<u8> {
        let mut taken = Vec::new();
        while let Some(frame) = self.frame().await {
            if frame.stream != stream {
                continue;
            }
            match frame.kind {
                Kind::Data => {
                    assert_eq!(frame.channel, Channel::Input);
                    taken.extend_from_slice(&frame.payload);
                    self.credit(stream, Channel::Input, u32::try_from(frame.payload.len()).unwrap()).await;
                }
                Kind::End => return taken,
                _ => {}
            }
        }
        panic!("the hub hung up");
    }
}

pub(crate) fn ran(id: &str, stdout: &str) -> Response {
    Response { exit_code: Some(0), stdout: stdout.to_owned(), ..Response::success(id) }
}

pub(crate) fn run(argv: &[&str]) -> roost_guest_hub::proto::Exec {
    roost_guest_hub::proto::Exec { argv: argv.iter().map(|&text| text.to_owned()).collect(), ..Default::default() }
}
