//! A session without sockets: any order of frames, any pieces of bytes.

use std::collections::HashMap;
use std::sync::Arc;

use futures::FutureExt;
use proptest::prelude::*;
use roost_guest_proto::{
    Channel, Decoder, Encoder, Envelope, Event, Exec, GuestMessage, Handshake, Request, Response, Upgrade,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Session;
use crate::attachment::HubConfig;
use crate::entry::{Answer, Entry, Inbox, Op};
use crate::policy::tests::attachment;
use crate::status::HubEvent;
use crate::stream::Stream;

struct Rig {
    session: Session,
    entry: Arc<Entry>,
    _inbox: Inbox,
    _events: mpsc::UnboundedReceiver<HubEvent>,
    agent: Decoder,
    encoder: Encoder,
    now: Instant,
}

impl Rig {
    /// A session that is established, and its peer's codec.
    fn new(upgrades: &[Upgrade]) -> Self {
        let attachment = Arc::new(attachment());
        let (entry, inbox) = Entry::new(attachment.clone(), Arc::new(HubConfig::default()));
        let (events, receiver) = mpsc::unbounded_channel();
        let now = Instant::now();
        let session = Session::new(entry.clone(), attachment, events, now);
        let (agent, encoder) = (Decoder::default(), Encoder::default());
        let mut rig = Self { session, entry, _inbox: inbox, _events: receiver, agent, encoder, now };
        let Request::Hello(hello) = rig.sent().remove(0) else { panic!() };
        let handshake = Handshake {
            timestamp: String::new(),
            vm_id: String::new(),
            version: String::new(),
            platform: String::new(),
            capabilities: Vec::new(),
            session: Some(hello.session),
            protocol: None,
            boot_id: None,
            agent_id: None,
            upgrades: upgrades.to_vec(),
            epoch: None,
            other: Default::default(),
        };
        let mut out = Vec::new();
        rig.encoder.line(&GuestMessage::Handshake(handshake).to_json(), &mut out);
        rig.receive(&out);
        let zstd = upgrades.contains(&Upgrade::Zstd);
        rig.encoder.use_frames(zstd, None);
        rig.agent.use_frames(zstd, None);
        assert!(rig.session.is_established());
        rig
    }

    /// Bytes from the agent, in as many turns as it takes.
    fn receive(&mut self, bytes: &[u8]) {
        self.session.receive(bytes, self.now);
        while self.session.has_more() {
            self.session.receive_more(self.now);
        }
    }

    /// The requests that the session sends.
    fn sent(&mut self) -> Vec<Request> {
        let mut requests = Vec::new();
        loop {
            let bytes = self.session.outgoing().to_vec();
            if bytes.is_empty() {
                return requests;
            }
            self.session.wrote(bytes.len());
            let mut rest = bytes.as_slice();
            while let Some(event) = self.agent.next(&mut rest) {
                if let Event::Line(text) | Event::Message(text) = event {
                    requests.push(Envelope::parse(&text).unwrap().request);
                }
            }
        }
    }

    fn exec(&mut self, number: u32) -> (Arc<Stream>, oneshot::Receiver<Answer>) {
        let (stream, _) = self.entry.stream(&[Channel::Output, Channel::Error], false).unwrap();
        let (reply, answer) = oneshot::channel();
        let exec =
            Exec { id: number.to_string(), argv: vec!["x".into()], stream: Some(stream.number), ..Exec::default() };
        let request = Request::Exec(Box::new(exec));
        let op = Op { id: number.to_string(), request, what: "Exec", stream: Some(stream.clone()), reply };
        self.session.op(op, self.now);
        assert_eq!(self.sent().len(), 1);
        (stream, answer)
    }
}

/// What one of the calls' programs does next.
#[derive(Debug, Clone)]
enum Step {
    Output(Vec<u8>),
    Error(Vec<u8>),
    Metrics,
    Forged,
}

fn step() -> impl Strategy<Value = (u32, Step)> {
    let bytes = || proptest::collection::vec(any::<u8>(), 1..200);
    let step = prop_oneof![
        4 => bytes().prop_map(Step::Output),
        4 => bytes().prop_map(Step::Error),
        1 => Just(Step::Metrics),
        1 => Just(Step::Forged),
    ];
    (0u32..5, step)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However the frames of several calls are mixed and however the bytes are cut, each call gets its own bytes, in
    /// the order of its channels, and its own answer.
    #[test]
    fn any_interleaving_keeps_each_calls_order(
        steps in proptest::collection::vec(step(), 0..80),
        ends in Just((0u32..5).collect::<Vec<_>>()).prop_shuffle(),
        piece in 1usize..300,
        zstd: bool,
    ) {
        let upgrades = if zstd { vec![Upgrade::Frames, Upgrade::Zstd] } else { vec![Upgrade::Frames] };
        let mut rig = Rig::new(&upgrades);
        let calls: Vec<_> = (0..5).map(|number| rig.exec(number)).collect();
        let mut expected: HashMap<u32, Vec<(Channel, u8)>> = HashMap::new();
        let mut forged = 0;
        let mut out = Vec::new();
        for (call, step) in &steps {
            let stream = calls[*call as usize].0.number;
            let mut send = |channel, bytes: &Vec<u8>| {
                rig.encoder.data(stream, channel, bytes, &mut out);
                expected.entry(*call).or_default().extend(bytes.iter().map(|&byte| (channel, byte)));
            };
            match step {
                Step::Output(bytes) => send(Channel::Output, bytes),
                Step::Error(bytes) => send(Channel::Error, bytes),
                Step::Metrics => rig.encoder.message(br#"{"type":"metrics","timestamp":"","data":{}}"#, &mut out),
                Step::Forged => {
                    forged += 1;
                    rig.encoder.message(&GuestMessage::from(Response::success("forged")).to_json(), &mut out);
                }
            }
        }
        for call in &ends {
            let stream = calls[*call as usize].0.number;
            rig.encoder.end(stream, Channel::Output, &mut out);
            rig.encoder.end(stream, Channel::Error, &mut out);
            let response = Response { exit_code: Some(*call as i32), ..Response::success(call.to_string()) };
            rig.encoder.message(&GuestMessage::from(response).to_json(), &mut out);
        }
        for bytes in out.chunks(piece) {
            rig.receive(bytes);
        }
        for (call, (stream, mut answer)) in calls.into_iter().enumerate() {
            let mut got = Vec::new();
            while let Some((channel, bytes)) = stream.read().now_or_never().expect("all is there") {
                got.extend(bytes.iter().map(|&byte| (channel, byte)));
            }
            prop_assert_eq!(got, expected.remove(&(call as u32)).unwrap_or_default());
            prop_assert_eq!(answer.try_recv().unwrap().unwrap().exit_code, Some(call as i32));
        }
        prop_assert_eq!(rig.entry.status().dropped.replies, forged);
        prop_assert_eq!(rig.entry.held(), 0);
    }

    /// Bytes of any kind, in any state: nothing panics, nothing is believed, what is held is bounded.
    #[test]
    fn hostile_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..2000), greeted: bool, newline: bool) {
        let mut rig = Rig::new(&[Upgrade::Frames]);
        if !greeted {
            rig.session.begin_anew("test", rig.now);
        }
        let (_stream, mut answer) = if greeted { let (s, a) = rig.exec(0); (Some(s), Some(a)) } else { (None, None) };
        if newline {
            rig.receive(b"\n");
        }
        rig.receive(&bytes);
        let _ = rig.session.tick(rig.now);
        if let Some(answer) = &mut answer {
            prop_assert!(answer.try_recv().is_err());
        }
        prop_assert!(!rig.entry.status().connected || greeted);
    }
}
