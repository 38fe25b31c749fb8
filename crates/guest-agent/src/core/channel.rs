//! What goes in and out on a link: bytes, hosts that come and go, hellos, sealing, signs of life.

use std::mem;
use std::time::{Duration, Instant};

use roost_guest_proto::{
    Channel, ConnectionStatus, Decoder, Envelope, ErrorBody, ErrorCode, ErrorReport, Event, Frame, GuestMessage, Hello,
    KeepAlive, Key, Kind, NoiseHandshake, NoiseLine, Pulled, Request, ResetCode, Upgrade, choose_upgrades,
};
use rustix::event::epoll::EventFlags;
use zeroize::Zeroizing;

use super::facts::now as timestamp;
use super::job::{Job, Read, Verdict, Work};
use super::peer::{Link, Session, Subscription};
use super::reports::{LONGEST, SHORTEST};
use super::{Agent, Target};
use crate::config::Encryption;
use crate::{debug, info, warning};

/// What is put together for one write: virtio_console takes no more at a time.
const CHUNK: usize = 32 * 1024;
/// Writes, and reads, before others have their turn.
const TURNS: usize = 16;
/// So much later than metrics at the same interval, which are a sign of life too.
const SLACK: Duration = Duration::from_secs(2);
/// The longest name of a session.
const MAX_SESSION: usize = 128;

impl Agent {
    pub(super) fn link_event(&mut self, id: u64, flags: EventFlags) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.writable |= flags.contains(EventFlags::OUT);
        link.readable |= flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::RDHUP | EventFlags::ERR);
        let there = !flags.contains(EventFlags::HUP);
        if there && !link.connected {
            self.host_came(id);
        }
        self.read_link(id);
        match self.links.get(&id) {
            Some(link) if !there && !link.lasting => self.drop_link(id, "the other side closed it"),
            Some(link) if !there && link.connected => self.host_left(id),
            _ => {}
        }
        self.dirty.insert(id);
    }

    fn host_came(&mut self, id: u64) {
        let now = Instant::now();
        let handshake = self.handshake(None, Vec::new(), None);
        let interval = self.config.metrics_interval;
        let Some(link) = self.links.get_mut(&id) else { return };
        link.forget_host();
        link.connected = true;
        link.writable = true;
        (link.last_sent, link.last_received) = (now, now);
        info!("{}: a host is there", link.name);
        // An older host takes the first line on vsock for its answer.
        if link.port {
            link.say(&GuestMessage::Handshake(handshake));
            link.subscription = subscription(interval, now);
        }
    }

    fn host_left(&mut self, id: u64) {
        self.end_session(id);
        let Some(link) = self.links.get_mut(&id) else { return };
        link.forget_host();
        link.connected = false;
        info!("{}: the host is gone", link.name);
    }

    /// A connection is over. If it was made from here, it is made again later.
    pub(super) fn drop_link(&mut self, id: u64, why: &str) {
        self.end_session(id);
        let Some(link) = self.links.remove(&id) else { return };
        self.forget(link.token);
        let why = format!("{}: {why}", link.name);
        match link.place {
            Some(at) => self.place_failed(at, &why, Instant::now()),
            None => debug!("{why}"),
        }
    }

    /// Whoever asked on this link gets no more answers: streams end, what runs without one goes on unheard.
    fn end_session(&mut self, id: u64) {
        let jobs: Vec<u64> = self.jobs.iter().filter(|(_, job)| job.link == Some(id)).map(|(&job, _)| job).collect();
        for job_id in jobs {
            let Some(job) = self.jobs.get_mut(&job_id) else { continue };
            let streamed = job.stream.is_some();
            job.link = None;
            if streamed {
                // A reader that is gone: what it would have read is dropped.
                for source in [&mut job.output, &mut job.error].into_iter().flatten() {
                    source.closed = true;
                }
                self.end_job(job_id, Verdict::Cancelled);
            }
        }
        if let Some(link) = self.links.get_mut(&id) {
            link.streams.clear();
            link.outbox.clear_streams();
        }
    }

    pub(super) fn read_link(&mut self, id: u64) {
        let mut buffer = mem::take(&mut self.buffer);
        let mut turns = TURNS;
        while let Some(link) = self.links.get_mut(&id) {
            if !link.readable || link.is_clogged() {
                break;
            }
            if turns == 0 {
                self.heat(Target::Link(id));
                break;
            }
            turns -= 1;
            match rustix::io::read(&link.fd, &mut buffer[..]) {
                Ok(0) => {
                    link.readable = false;
                    if link.lasting {
                        // No host is there at the moment.
                        if link.connected {
                            self.host_left(id);
                        }
                    } else {
                        self.drop_link(id, "the other side closed it");
                    }
                }
                Ok(len) => {
                    link.last_received = Instant::now();
                    let place = link.place;
                    if !link.connected {
                        self.host_came(id);
                    }
                    if let Some(at) = place {
                        self.places[at].backoff.succeeded();
                    }
                    self.take_bytes(id, &buffer[..len]);
                    // Answers leave before it is looked whether there is more.
                    self.flush(id);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => link.readable = false,
                Err(error) => self.drop_link(id, &error.to_string()),
            }
            self.dirty.insert(id);
        }
        self.buffer = buffer;
    }

    fn take_bytes(&mut self, id: u64, mut input: &[u8]) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let mut decoder = mem::take(&mut link.decoder);
        while let Some(event) = decoder.next(&mut input) {
            self.take_event(id, event, &mut decoder);
            if !self.links.contains_key(&id) {
                return;
            }
        }
        if let Some(link) = self.links.get_mut(&id) {
            link.decoder = decoder;
        }
    }

    fn take_event(&mut self, id: u64, event: Event, decoder: &mut Decoder) {
        match event {
            Event::Line(line) => {
                let searching = decoder.is_searching();
                match Envelope::parse(&line) {
                    Ok(Envelope { request: Request::Hello(hello), .. }) => self.hello(id, &hello, &line, decoder),
                    _ if searching => {}
                    Ok(Envelope { request: Request::Noise(noise), .. }) => self.noise(id, &noise, decoder),
                    parsed => {
                        drop(line);
                        self.touched(id);
                        self.request_line(id, parsed);
                    }
                }
            }
            Event::Message(message) => {
                self.touched(id);
                let parsed = Envelope::parse(&message);
                drop(message);
                match parsed {
                    Ok(Envelope { request: Request::Hello(_) | Request::Noise(_), .. }) => {
                        debug!("a hello is a line; one in a frame is left alone");
                    }
                    parsed => self.request(id, parsed),
                }
            }
            Event::Frame(frame) => {
                self.touched(id);
                self.frame(id, frame);
            }
            Event::Problem(problem) => {
                let Some(link) = self.links.get_mut(&id) else { return };
                debug!("{}: {problem}", link.name);
                if !link.encoder.is_framed() {
                    let error = ErrorBody::new(ErrorCode::InvalidMessage, problem.to_string());
                    link.mention(&GuestMessage::Error(ErrorReport { timestamp: timestamp(), error }));
                }
            }
        }
    }

    fn touched(&mut self, id: u64) {
        if let Some(session) = self.links.get_mut(&id).and_then(|link| link.session.as_mut()) {
            session.touched = true;
        }
    }

    /// A request in a line. Where sealing is required, none is taken.
    fn request_line(&mut self, id: u64, parsed: Result<Envelope, roost_guest_proto::ParseError>) {
        if self.config.encryption == Encryption::Required {
            let message = "this agent takes requests only in a session that is sealed (encryption.mode)";
            let error = ErrorBody::new(ErrorCode::PermissionDenied, message);
            let Some(link) = self.links.get_mut(&id) else { return };
            let request = match &parsed {
                Ok(envelope) => envelope.request.id().map(str::to_owned),
                Err(error) => error.id.clone(),
            };
            match request {
                Some(request) => {
                    link.say(&GuestMessage::from(roost_guest_proto::Response::failure(request, error)));
                }
                None => link.mention(&GuestMessage::Error(ErrorReport { timestamp: timestamp(), error })),
            }
            return;
        }
        self.request(id, parsed);
    }

    fn hello(&mut self, id: u64, hello: &Hello, line: &[u8], decoder: &mut Decoder) {
        let Some(link) = self.links.get_mut(&id) else { return };
        if let Some(session) = &link.session
            && session.name == hello.session
            && !session.touched
        {
            // It was not heard. What it asks is what there is.
            link.encoder.line(&session.handshake, &mut link.out);
            decoder.resume_frames();
            return;
        }
        if hello.session.is_empty() || hello.session.len() > MAX_SESSION {
            let message = format!("session: a text of 1 to {MAX_SESSION} bytes");
            let error = ErrorBody::field("session", message);
            link.mention(&GuestMessage::Error(ErrorReport { timestamp: timestamp(), error }));
            return;
        }
        self.begin_session(id, hello, line, decoder);
    }

    fn begin_session(&mut self, id: u64, hello: &Hello, line: &[u8], decoder: &mut Decoder) {
        let key = match self.config.encryption {
            Encryption::Off => None,
            Encryption::Optional | Encryption::Required => self.key(),
        };
        let upgrades = choose_upgrades(&hello.upgrades, key.is_some());
        let sealed = upgrades.contains(&Upgrade::E2e);
        if self.config.encryption == Encryption::Required && !sealed {
            let Some(link) = self.links.get_mut(&id) else { return };
            warning!("{}: a hello without sealing, which the settings require", link.name);
            let message = "this agent takes no session that is not sealed (encryption.mode), or has no key for one";
            let error = ErrorBody::new(ErrorCode::PermissionDenied, message);
            let report = GuestMessage::Error(ErrorReport { timestamp: timestamp(), error }).to_json();
            link.encoder.line(&report, &mut link.out);
            return;
        }
        self.end_session(id);
        if self.epoch.is_none() {
            self.epoch = Some(hello.epoch);
        }
        let allowed = hello.policy.unsafe_commands;
        let handshake = self.handshake(Some(&hello.session), upgrades.clone(), allowed);
        let handshake = GuestMessage::Handshake(handshake).to_json();
        let now = Instant::now();
        let interval = hello.metrics_interval_ms.map_or(self.config.metrics_interval, Duration::from_millis);
        let Some(link) = self.links.get_mut(&id) else { return };
        let half_written = link.out_at < link.out.len() || link.encoder.is_framed();
        link.forget_host();
        if half_written {
            // Whoever looks for the handshake looks behind a newline.
            link.out.push(b'\n');
        }
        link.encoder.line(&handshake, &mut link.out);
        let frames = upgrades.contains(&Upgrade::Frames);
        let compressed = upgrades.contains(&Upgrade::Zstd);
        match key.filter(|_| sealed) {
            Some(key) => {
                link.noise = Some(Box::new(NoiseHandshake::agent(&key, line, &handshake)));
                decoder.use_lines();
            }
            None if frames => {
                decoder.use_frames(compressed, None);
                link.encoder.use_frames(compressed, None);
            }
            None => decoder.use_lines(),
        }
        info!(
            "{}: session {:.16}, epoch {}, {}",
            link.name,
            hello.session,
            hello.epoch,
            if sealed {
                "sealed frames"
            } else if frames {
                "frames"
            } else {
                "lines"
            }
        );
        link.subscription = subscription(interval, now);
        link.session = Some(Session {
            name: hello.session.clone(),
            handshake,
            touched: false,
            policy: hello.policy.clone(),
            compressed,
        });
        link.last_sent = now;
    }

    fn noise(&mut self, id: u64, noise: &NoiseLine, decoder: &mut Decoder) {
        self.touched(id);
        let Some(link) = self.links.get_mut(&id) else { return };
        let Some(exchange) = link.noise.take() else {
            let error = ErrorBody::new(ErrorCode::InvalidMessage, "noise: no handshake before it chose e2e");
            link.mention(&GuestMessage::Error(ErrorReport { timestamp: timestamp(), error }));
            return;
        };
        match exchange.answer(&noise.data) {
            Ok((data, seal, open)) => {
                let reply = GuestMessage::Noise(NoiseLine { data }).to_json();
                link.encoder.line(&reply, &mut link.out);
                let compressed = link.session.as_ref().is_some_and(|session| session.compressed);
                link.encoder.use_frames(compressed, Some(seal));
                decoder.use_frames(compressed, Some(open));
            }
            Err(error) => {
                warning!("{}: sealing failed: {error}", link.name);
                let body = ErrorBody::new(ErrorCode::PermissionDenied, format!("noise: {error}"));
                let report = GuestMessage::Error(ErrorReport { timestamp: timestamp(), error: body }).to_json();
                link.encoder.line(&report, &mut link.out);
                link.session = None;
                link.subscription = None;
            }
        }
    }

    /// The key that the host placed in this VM, if it did.
    fn key(&self) -> Option<Key> {
        let config = &self.config;
        if let Some(text) = config.key_env.as_ref().and_then(|name| std::env::var(name).ok()).map(Zeroizing::new) {
            match Key::parse(text.as_bytes()) {
                Ok(key) => return Some(key),
                Err(error) => warning!("encryption.key_env: {error}"),
            }
        }
        let bytes = Zeroizing::new(std::fs::read(&config.key_file).ok()?);
        match Key::parse(&bytes) {
            Ok(key) => Some(key),
            Err(error) => {
                warning!("{}: {error}", config.key_file.display());
                None
            }
        }
    }

    fn handshake(
        &self,
        session: Option<&str>,
        upgrades: Vec<Upgrade>,
        allowed: Option<bool>,
    ) -> roost_guest_proto::Handshake {
        let unsafe_commands = self.config.unsafe_commands && allowed.unwrap_or(true);
        self.facts.handshake(&self.config, session, upgrades, self.epoch, unsafe_commands)
    }

    fn frame(&mut self, id: u64, frame: Frame) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let job = link.streams.get(&frame.stream).copied();
        match (frame.kind, job) {
            (Kind::Credit, _) => {
                link.outbox.grant(frame.stream, frame.channel, frame.number().unwrap_or(0));
            }
            // It may be on its way since before the end; said once, not for each.
            (Kind::Data, None) if link.outbox.is_idle() => link.outbox.reset(frame.stream, ResetCode::Unknown),
            (Kind::Data, Some(job)) if frame.channel == Channel::Input => {
                self.input(job, Some(Zeroizing::new(frame.payload)));
            }
            (Kind::End, Some(job)) if frame.channel == Channel::Input => self.input(job, None),
            (Kind::Reset, Some(job)) => {
                link.streams.remove(&frame.stream);
                link.outbox.close(frame.stream);
                if let Some(job) = self.jobs.get_mut(&job) {
                    for source in [&mut job.output, &mut job.error].into_iter().flatten() {
                        source.closed = true;
                    }
                }
                self.end_job(job, Verdict::Cancelled);
            }
            _ => {}
        }
    }

    /// Writes until there is nothing to say, no room, or others have their turn.
    pub(super) fn flush(&mut self, id: u64) {
        let was_clogged = self.links.get(&id).is_some_and(Link::is_clogged);
        for _ in 0..TURNS {
            let Self { links, jobs, .. } = self;
            let Some(link) = links.get_mut(&id) else { return };
            if !link.connected || !link.writable {
                return;
            }
            if link.out_at == link.out.len() {
                link.out.clear();
                link.out_at = 0;
                if link.noise.is_none() {
                    link.refill();
                    let Link { outbox, encoder, out, streams, .. } = link;
                    let mut pull = |stream: u32, channel: Channel, buffer: &mut [u8]| {
                        let job = streams.get(&stream).and_then(|job| jobs.get_mut(job));
                        job.map_or(Pulled::End, |job| pull(job, channel, buffer))
                    };
                    outbox.fill(encoder, out, CHUNK, &mut pull);
                }
                if link.out.is_empty() {
                    shrink(&mut link.out);
                    break;
                }
            }
            match rustix::io::write(&link.fd, &link.out[link.out_at..]) {
                Ok(len) => {
                    link.out_at += len;
                    link.last_sent = Instant::now();
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    link.writable = false;
                    break;
                }
                Err(error) => {
                    self.drop_link(id, &error.to_string());
                    return;
                }
            }
        }
        self.settle(id);
        let Some(link) = self.links.get(&id) else { return };
        if link.writable && link.connected && link.has_output() {
            // Epoll says nothing more about it, so it stays on the list.
            self.dirty_again(id);
        } else if was_clogged && link.readable && !link.is_clogged() {
            // What was left unread is read now; epoll said so long ago.
            self.heat(Target::Link(id));
        }
    }

    fn dirty_again(&mut self, id: u64) {
        // A turn of the link flushes it, and the loop does not wait before it.
        self.heat(Target::Link(id));
    }

    /// The streams of a link whose last byte has left.
    fn settle(&mut self, id: u64) {
        let Some(link) = self.links.get(&id) else { return };
        let ended: Vec<u64> = link.streams.values().copied().collect();
        for job in ended {
            self.finish_if_done(job);
        }
    }

    pub(super) fn link_deadline(&self, link: &Link) -> Option<Instant> {
        if !link.connected {
            return None;
        }
        let metrics = link.subscription.as_ref().and_then(|it| it.due);
        let alive = (link.port || link.session.is_some()).then(|| link.last_sent + self.config.keep_alive + SLACK);
        let idle = (!link.port && link.session.is_none()).then(|| link.last_received + self.config.idle_timeout);
        [metrics, alive, idle].into_iter().flatten().min()
    }

    pub(super) fn link_due(&mut self, id: u64, now: Instant) {
        let (keep_alive, idle_timeout) = (self.config.keep_alive + SLACK, self.config.idle_timeout);
        let Some(link) = self.links.get_mut(&id) else { return };
        if !link.port && link.session.is_none() && now >= link.last_received + idle_timeout {
            if self.jobs.values().any(|job| job.link == Some(id)) {
                link.last_received = now;
            } else {
                self.drop_link(id, "nothing came for too long");
            }
            return;
        }
        if (link.port || link.session.is_some()) && now >= link.last_sent + keep_alive {
            link.sequence += 1;
            link.last_sent = now;
            let sign = KeepAlive { sequence_number: link.sequence, timestamp: timestamp() };
            // One that waits is sign enough.
            if link.outbox.is_idle() {
                link.mention(&GuestMessage::KeepAlive(sign));
            }
            self.dirty.insert(id);
        }
        let subscription = self.links.get(&id).and_then(|link| link.subscription.as_ref());
        if subscription.and_then(|it| it.due).is_some_and(|due| due <= now) {
            self.metrics_due(id);
        }
    }

    /// Tells every host that listens how the agent's connections are.
    pub(super) fn tell_status(&mut self, status: &str, message: Option<String>) {
        let status =
            GuestMessage::ConnectionStatus(ConnectionStatus { timestamp: timestamp(), status: status.into(), message });
        for (&id, link) in &mut self.links {
            if link.connected && (link.port || link.session.is_some()) {
                link.mention(&status);
                self.dirty.insert(id);
            }
        }
    }
}

/// Metrics of all groups, as a host has them that asks for no others.
fn subscription(interval: Duration, now: Instant) -> Option<Subscription> {
    (!interval.is_zero()).then(|| {
        let interval = interval.clamp(SHORTEST, LONGEST);
        Subscription { groups: Vec::new(), interval, due: Some(now + interval) }
    })
}

/// A buffer that grew for one long message is not kept.
fn shrink(buffer: &mut Vec<u8>) {
    if buffer.capacity() > 4 * CHUNK {
        *buffer = Vec::new();
    }
}

/// What a stream has to say in its turn.
fn pull(job: &mut Job, channel: Channel, buffer: &mut [u8]) -> Pulled {
    let over = job.is_over();
    let thread_failed = match &job.work {
        Work::Thread { result, .. } => Some(result.as_ref().map(|result| !result.success)),
        Work::Program(_) => None,
    };
    let Some(source) = job.source(channel) else { return Pulled::End };
    match source.read(buffer, over && thread_failed.is_none()) {
        Read::Bytes(len) => Pulled::Bytes(len),
        Read::Empty => Pulled::Empty,
        Read::End => match thread_failed {
            // Whether that was all, its result will say.
            Some(None) => Pulled::Empty,
            Some(Some(true)) => {
                source.closed = true;
                Pulled::Failed
            }
            _ => {
                source.closed = true;
                Pulled::End
            }
        },
    }
}
