//! One connection: handshake, commands out, messages in.
//!
//! ```text
//!   new ──handshake──> ready ──send──> the answer comes out of `next`, by its ID
//!                        └──────────── events come out of `next` as they arrive
//! ```
//!
//! Nothing here waits for an answer but [`Connection::call`], which keeps the events that come
//! meanwhile. Both are for one task; a machine's actor is that task.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::Value;
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::QmpError;
use super::codec::Lines;
use super::message::{Command, Event, Message, Version, parse};

/// Commands that QEMU has not taken from the socket yet. Beyond it QEMU is not reading at all.
const UNSENT_LIMIT: usize = 64 * 1024;

#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    lines: Lines,
    unsent: VecDeque<u8>,
    events: VecDeque<Event>,
    next_id: u64,
}

impl Connection {
    /// Needs a stream that does not block.
    pub(crate) fn new(stream: std::os::unix::net::UnixStream) -> Result<Self, QmpError> {
        Ok(Self {
            stream: UnixStream::from_std(stream)?,
            lines: Lines::default(),
            unsent: VecDeque::new(),
            events: VecDeque::new(),
            next_id: 0,
        })
    }

    /// Takes the greeting and leaves the negotiation behind. Commands may follow at once: QEMU
    /// takes them in order.
    pub(crate) async fn handshake(&mut self, limit: Duration) -> Result<Version, QmpError> {
        let mut events = VecDeque::new();
        let shake = async {
            let id = self.send(&Command::new("qmp_capabilities"))?;
            let version = loop {
                match self.next().await? {
                    Message::Greeting { version } => break version,
                    // The answer to a command of the connection before this one, whose daemon died: ours bear IDs.
                    Message::Return { id: Some(_), .. } | Message::Error { id: Some(_), .. } => {}
                    other => return Err(QmpError::Garbage { excerpt: format!("{other:?} instead of a greeting") }),
                }
            };
            self.answer_to(id, "qmp_capabilities", &mut events).await?;
            Ok(version)
        };
        let version = within(limit, "the handshake", shake).await;
        self.events.append(&mut events);
        version
    }

    /// Sends a command and waits for its answer. The events that come meanwhile come out of
    /// [`Connection::next`] afterwards.
    pub(crate) async fn call(&mut self, command: &Command, limit: Duration) -> Result<Value, QmpError> {
        let id = self.send(command)?;
        let mut events = VecDeque::new();
        let answer = within(limit, command.name, self.answer_to(id, command.name, &mut events)).await;
        self.events.append(&mut events);
        answer
    }

    /// Events come between any two messages, even in the middle of the handshake.
    async fn answer_to(
        &mut self,
        id: u64,
        command: &'static str,
        events: &mut VecDeque<Event>,
    ) -> Result<Value, QmpError> {
        loop {
            match self.next().await? {
                Message::Return { id: Some(of), value } if of == id => return Ok(value),
                Message::Error { id: Some(of), text, .. } if of == id => {
                    return Err(QmpError::Refused { command, text });
                }
                Message::Event(event) => events.push_back(event),
                // The answer to a command whose caller went away.
                Message::Return { .. } | Message::Error { .. } | Message::Greeting { .. } => {}
            }
        }
    }

    /// Sends a command, or keeps it for when the socket takes it. Returns the ID that its answer bears.
    pub(crate) fn send(&mut self, command: &Command) -> Result<u64, QmpError> {
        let id = self.next_id;
        let line = command.line(id);
        if self.unsent.len() + line.len() > UNSENT_LIMIT {
            return Err(QmpError::Overloaded { waiting: self.unsent.iter().filter(|b| **b == b'\n').count() });
        }
        self.next_id += 1;
        self.unsent.extend(line);
        self.flush()?;
        Ok(id)
    }

    /// The next message. Cancel-safe: what was read stays here.
    pub(crate) async fn next(&mut self) -> Result<Message, QmpError> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Message::Event(event));
        }
        loop {
            if let Some(line) = self.lines.next()? {
                return parse(&line);
            }
            let interest =
                if self.unsent.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
            let ready = self.stream.ready(interest).await?;
            if ready.is_writable() {
                self.flush()?;
            }
            if ready.is_readable() {
                self.fill()?;
            }
        }
    }

    fn fill(&mut self) -> Result<(), QmpError> {
        match self.stream.try_read_buf(self.lines.buffer()) {
            Ok(0) => Err(QmpError::Closed),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn flush(&mut self) -> Result<(), QmpError> {
        while !self.unsent.is_empty() {
            match self.stream.try_write(self.unsent.as_slices().0) {
                Ok(sent) => {
                    self.unsent.drain(..sent);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

async fn within<T>(
    limit: Duration,
    what: &'static str,
    work: impl Future<Output = Result<T, QmpError>>,
) -> Result<T, QmpError> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_elapsed) => Err(QmpError::Timeout { what, limit }),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream as Std;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);
    const GREETING: &[u8] =
        b"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 0, \"minor\": 2, \"major\": 7}}, \"capabilities\": []}}\r\n{\"return\": {}, \"id\": 0}\r\n";

    fn pair() -> (Connection, Std) {
        let (ours, theirs) = Std::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Connection::new(ours).unwrap(), theirs)
    }

    #[tokio::test]
    async fn answers_find_their_command_and_events_are_kept() {
        let (mut connection, mut peer) = pair();
        let (greeting, answer) = GREETING.split_at(GREETING.iter().position(|b| *b == b'\n').unwrap() + 1);
        peer.write_all(&[greeting, b"{\"event\": \"RESUME\"}\n", answer].concat()).unwrap();
        assert_eq!(connection.handshake(LIMIT).await.unwrap().to_string(), "7.2.0");
        let Message::Event(event) = connection.next().await.unwrap() else { panic!() };
        assert_eq!(event.name, "RESUME");
        peer.write_all(b"{\"event\": \"STOP\"}\n{\"return\": 1, \"id\": 99}\n{\"return\": 2, \"id\": 1}\n").unwrap();
        assert_eq!(connection.call(&Command::new("query-status"), LIMIT).await.unwrap(), 2);
        let Message::Event(event) = connection.next().await.unwrap() else { panic!() };
        assert_eq!(event.name, "STOP");
        let mut sent = vec![0; 4096];
        let got = peer.read(&mut sent).unwrap();
        let sent = String::from_utf8_lossy(&sent[..got]).into_owned();
        assert!(sent.starts_with("{\"arguments\":{},\"execute\":\"qmp_capabilities\",\"id\":0}\n"), "{sent}");
    }

    #[tokio::test]
    async fn a_refusal_names_the_command() {
        let (mut connection, mut peer) = pair();
        peer.write_all(b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": 0}\n").unwrap();
        let refused = connection.call(&Command::new("cont"), LIMIT).await.unwrap_err();
        assert_eq!(refused, QmpError::Refused { command: "cont", text: "no".to_owned() });
    }

    #[tokio::test]
    async fn what_was_left_for_the_connection_before_is_no_greeting() {
        let (mut connection, mut peer) = pair();
        peer.write_all(b"{\"return\": {\"running\": true}, \"id\": 1}\n").unwrap();
        peer.write_all(b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": 2}\n").unwrap();
        peer.write_all(GREETING).unwrap();
        connection.handshake(LIMIT).await.unwrap();
    }

    #[tokio::test]
    async fn peers_that_misbehave_are_told_apart() {
        for (bytes, expected) in [
            (b"SSH-2.0-OpenSSH\n".to_vec(), "Garbage"),
            (b"{\"return\": {}}\n".to_vec(), "Garbage"),
            (vec![b'x'; super::super::codec::LINE_LIMIT + 8192], "Oversize"),
            (Vec::new(), "Closed"),
        ] {
            let (mut connection, mut peer) = pair();
            let writer = std::thread::spawn(move || {
                let _ = peer.write_all(&bytes);
                // Open until it has been judged, unless closing is all that it does.
                (!bytes.is_empty()).then_some(peer)
            });
            let error = connection.handshake(LIMIT).await.unwrap_err();
            assert!(format!("{error:?}").starts_with(expected), "{error:?}");
            drop(connection);
            drop(writer.join().unwrap());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_is_not_waited_for_and_its_queue_is_bounded() {
        let (mut connection, _peer) = pair();
        let error = connection.handshake(LIMIT).await.unwrap_err();
        assert_eq!(error, QmpError::Timeout { what: "the handshake", limit: LIMIT });
        let overloaded = (0..1_000_000).find_map(|_| connection.send(&Command::new("query-status")).err());
        assert!(matches!(overloaded, Some(QmpError::Overloaded { .. })));
    }
}
