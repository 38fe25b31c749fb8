//! Metrics: at an interval, or when a host asks. One collection at a time for each host, on a thread.

use std::time::{Duration, Instant};

use roost_guest_proto::{CommandType, ErrorBody, ErrorCode, MAX_LINE, MetricsRequest, Response, Subscribe};
use serde::Serialize;

use super::facts::now as timestamp;
use super::job::Reply;
use super::peer::{Ask, Subscription};
use super::programs::to_json;
use super::{Agent, Outcome};
use crate::metrics::{Collectors, Group, MetricsData};
use crate::{debug, warning};

/// The intervals that there are, whatever a host asks for.
pub(super) const SHORTEST: Duration = Duration::from_secs(1);
pub(super) const LONGEST: Duration = Duration::from_secs(86_400);

/// Frames that a host may have asked for and not yet got.
const MAX_ASKED: usize = 16;

/// What a thread comes back with.
#[derive(Debug)]
pub(super) struct Collected {
    collectors: Box<Collectors>,
    ask: Ask,
    json: Vec<u8>,
    /// The time until the next, for the subscription.
    next: Option<Duration>,
    /// For whom it was collected.
    host: u64,
}

/// `{"type": "metrics", ...}`, without a detour over a value in between.
#[derive(Serialize)]
struct Message<'a> {
    r#type: &'static str,
    timestamp: String,
    data: &'a MetricsData,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
}

impl Agent {
    pub(super) fn metrics_request(&mut self, id: u64, request: &MetricsRequest) -> Result<(), ErrorBody> {
        let groups = Group::parse_list(&request.groups)?;
        self.ask(id, Ask { groups, id: request.id.clone(), interval: None })
    }

    pub(super) fn subscribe(&mut self, id: u64, request: &Subscribe) -> Result<(), ErrorBody> {
        let groups = Group::parse_list(&request.groups)?;
        let interval = Duration::from_millis(request.interval_ms);
        let Some(link) = self.links.get_mut(&id) else { return Ok(()) };
        link.metrics.asked.retain(|ask| ask.interval.is_none());
        let effective = interval.clamp(SHORTEST, LONGEST);
        link.subscription = (!interval.is_zero()).then(|| Subscription {
            groups,
            interval: effective,
            // The first comes at once: whoever asks wants to see something.
            due: Some(Instant::now()),
        });
        let data =
            serde_json::json!({ "interval_ms": if interval.is_zero() { 0 } else { effective.as_millis() as u64 } });
        let response = Response { data: Some(data), ..Response::success(&request.id) };
        self.answer(id, Reply::Response(CommandType::Safe), response);
        Ok(())
    }

    /// A subscription's next frame.
    pub(super) fn metrics_due(&mut self, id: u64) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let Some(subscription) = &mut link.subscription else { return };
        subscription.due = None;
        let ask = Ask { groups: subscription.groups.clone(), id: None, interval: Some(subscription.interval) };
        if let Err(error) = self.ask(id, ask) {
            debug!("metrics: {error}");
            if let Some(subscription) = self.links.get_mut(&id).and_then(|link| link.subscription.as_mut()) {
                subscription.due = Some(Instant::now() + subscription.interval);
            }
        }
    }

    fn ask(&mut self, id: u64, ask: Ask) -> Result<(), ErrorBody> {
        let Some(link) = self.links.get_mut(&id) else { return Ok(()) };
        if link.metrics.asked.len() >= MAX_ASKED {
            let message = format!("{MAX_ASKED} frames of metrics are asked for and not yet collected");
            return Err(ErrorBody::new(ErrorCode::ResourceLimit, message));
        }
        link.metrics.asked.push_back(ask);
        self.collect_next(id)
    }

    fn collect_next(&mut self, id: u64) -> Result<(), ErrorBody> {
        let config = self.config.clone();
        let Some(link) = self.links.get_mut(&id) else { return Ok(()) };
        let metrics = &mut link.metrics;
        if metrics.busy {
            return Ok(());
        }
        let Some(ask) = metrics.asked.pop_front() else { return Ok(()) };
        let host = metrics.host;
        let collectors = metrics.collectors.take();
        let interval = ask.interval;
        let task = Box::new(move || {
            let mut collectors = collectors.unwrap_or_else(|| Box::new(Collectors::new(&config.metrics)));
            let data = collectors.collect(&ask.groups);
            let json =
                to_json(&Message { r#type: "metrics", timestamp: timestamp(), data: &data, id: ask.id.as_deref() });
            let next = interval.map(|interval| collectors.interval(interval));
            Outcome::Metrics(Box::new(Collected { collectors, ask, json, next, host }))
        });
        if self.workers.run(id, task).is_err() {
            // The collectors are lost with it; the next frame makes others.
            return Err(ErrorBody::new(ErrorCode::ResourceLimit, "no thread is free for metrics"));
        }
        if let Some(link) = self.links.get_mut(&id) {
            link.metrics.busy = true;
        }
        Ok(())
    }

    /// A thread came back.
    pub(super) fn metrics_done(&mut self, id: u64, collected: Collected) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let Collected { mut collectors, ask, json, next, host } = collected;
        link.metrics.busy = false;
        if host == link.metrics.host {
            link.metrics.collectors = Some(collectors);
            if json.len() > MAX_LINE {
                warning!("a frame of metrics of {} bytes is longer than a message may be", json.len());
            } else if link.connected && ask.id.is_some() {
                link.say_json(json);
            } else if link.connected {
                link.outbox.metrics(json);
            }
            if let (Some(subscription), Some(next)) = (&mut link.subscription, next)
                && subscription.due.is_none()
            {
                subscription.due = Some(Instant::now() + next);
            }
        } else {
            collectors.new_session();
            link.metrics.collectors = Some(collectors);
        }
        self.dirty.insert(id);
        if let Err(error) = self.collect_next(id) {
            debug!("metrics: {error}");
        }
    }
}
