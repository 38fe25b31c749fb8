//! The last metrics of a VM, an hour of a few of them, and those who watch.
//!
//! A frame is kept as it came and is parsed when somebody looks. For the history one frame in half a minute is parsed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::Stream;
use roost_guest_proto::{GuestError, GuestMessage};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::entry::Control;

/// Points of the history: an hour.
const POINTS: usize = 120;
const STEP: Duration = Duration::from_secs(30);

/// One metrics frame, as it came. What it says is the guest's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsSample {
    pub received: SystemTime,
    raw: Box<[u8]>,
}

impl MetricsSample {
    pub(crate) fn new(raw: &[u8]) -> Self {
        Self { received: SystemTime::now(), raw: raw.into() }
    }

    /// The message's JSON. It is not checked to be any.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// The message's `data`: `{system: {cpu, memory, ...}}`.
    pub fn data(&self) -> Result<Value, GuestError> {
        match GuestMessage::parse(&self.raw)? {
            GuestMessage::Metrics(metrics) => Ok(metrics.data),
            _ => Err(GuestError::Type("not metrics".to_owned())),
        }
    }
}

/// A few figures at one time. Rates are means since the point before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MetricsPoint {
    pub at: SystemTime,
    pub cpu_percent: f32,
    pub memory_used_bytes: u64,
    pub network_received_bytes_per_second: u64,
    pub network_sent_bytes_per_second: u64,
    pub disk_read_bytes_per_second: u64,
    pub disk_written_bytes_per_second: u64,
}

/// A point in 28 bytes.
#[derive(Debug, Clone, Copy)]
struct Packed {
    at: u32,
    figures: [f32; 6],
}

impl Packed {
    fn unpack(&self) -> MetricsPoint {
        let [cpu_percent, memory, received, sent, read, written] = self.figures;
        MetricsPoint {
            at: UNIX_EPOCH + Duration::from_secs(self.at.into()),
            cpu_percent,
            memory_used_bytes: memory as u64,
            network_received_bytes_per_second: received as u64,
            network_sent_bytes_per_second: sent as u64,
            disk_read_bytes_per_second: read as u64,
            disk_written_bytes_per_second: written as u64,
        }
    }
}

#[derive(Debug, Default)]
struct History {
    points: VecDeque<Packed>,
    last: Option<Instant>,
    /// Bytes received and sent at the last point.
    network: Option<(f64, f64)>,
}

impl History {
    fn is_due(&self, now: Instant) -> bool {
        self.last.is_none_or(|last| now.saturating_duration_since(last) >= STEP)
    }

    fn add(&mut self, data: &Value, at: SystemTime, now: Instant) {
        let system = data.get("system").unwrap_or(&Value::Null);
        let number =
            |path: &str| system.pointer(path).and_then(Value::as_f64).filter(|n| n.is_finite()).unwrap_or(0.0).max(0.0);
        let interfaces = system.pointer("/network/interfaces").and_then(Value::as_array);
        let sum = |key: &str| -> f64 {
            let counts = interfaces.into_iter().flatten().take(1000);
            counts
                .filter(|interface| interface.get("name").and_then(Value::as_str) != Some("lo"))
                .filter_map(|interface| interface.get(key).and_then(Value::as_f64))
                .sum()
        };
        let network = (sum("bytes_received"), sum("bytes_sent"));
        // A counter that went back began anew.
        let rates = match (self.network, self.last) {
            (Some(before), Some(last)) => {
                let seconds = now.saturating_duration_since(last).as_secs_f64().max(0.001);
                (((network.0 - before.0) / seconds).max(0.0), ((network.1 - before.1) / seconds).max(0.0))
            }
            _ => (0.0, 0.0),
        };
        self.network = Some(network);
        self.last = Some(now);
        let figures = [
            number("/cpu/usage_percent"),
            number("/memory/used_kb") * 1024.0,
            rates.0,
            rates.1,
            number("/disk/io_stats/read_bytes_per_sec"),
            number("/disk/io_stats/write_bytes_per_sec"),
        ];
        let at = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let point = Packed { at: u32::try_from(at).unwrap_or(u32::MAX), figures: figures.map(|n| n as f32) };
        if self.points.len() == POINTS {
            self.points.pop_front();
        }
        self.points.push_back(point);
    }
}

#[derive(Debug)]
pub(crate) struct MetricsState {
    last: watch::Sender<Option<Arc<MetricsSample>>>,
    history: Mutex<History>,
}

impl Default for MetricsState {
    fn default() -> Self {
        Self { last: watch::Sender::new(None), history: Mutex::default() }
    }
}

impl MetricsState {
    /// A frame came. An error: it was looked at, and is none.
    pub(crate) fn store(&self, raw: &[u8], now: Instant) -> Result<(), GuestError> {
        let sample = Arc::new(MetricsSample::new(raw));
        {
            let mut history = self.history.lock().expect("nothing panics while it holds the lock");
            if history.is_due(now) {
                history.add(&sample.data()?, sample.received, now);
            }
        }
        self.last.send_replace(Some(sample));
        Ok(())
    }

    pub(crate) fn last(&self) -> Option<Arc<MetricsSample>> {
        self.last.borrow().clone()
    }

    pub(crate) fn history(&self) -> Vec<MetricsPoint> {
        let history = self.history.lock().expect("nothing panics while it holds the lock");
        history.points.iter().map(Packed::unpack).collect()
    }
}

/// Who watches which groups, how often.
#[derive(Debug, Default)]
pub(crate) struct Watchers(Mutex<BTreeMap<u64, (Vec<String>, Duration)>>);

impl Watchers {
    fn with<T>(&self, act: impl FnOnce(&mut BTreeMap<u64, (Vec<String>, Duration)>) -> T) -> T {
        act(&mut self.0.lock().expect("nothing panics while it holds the lock"))
    }

    /// What the guest is to be asked for: the smallest interval, and all groups that anybody wants (none: all).
    pub(crate) fn wanted(&self) -> Option<(Vec<String>, Duration)> {
        self.with(|watchers| {
            let interval = watchers.values().map(|watcher| watcher.1).min()?;
            if watchers.values().any(|watcher| watcher.0.is_empty()) {
                return Some((Vec::new(), interval));
            }
            let mut groups: Vec<String> = watchers.values().flat_map(|watcher| watcher.0.iter().cloned()).collect();
            groups.sort_unstable();
            groups.dedup();
            Some((groups, interval))
        })
    }
}

/// A VM's metrics as they come, no more often than was asked for. Who is slow gets the newest.
#[derive(Debug)]
pub struct MetricsWatch {
    id: u64,
    entry: std::sync::Weak<crate::entry::Entry>,
    control: mpsc::UnboundedSender<Control>,
    samples: watch::Receiver<Option<Arc<MetricsSample>>>,
    interval: Duration,
    last: Option<Instant>,
}

impl MetricsWatch {
    pub(crate) fn new(entry: &Arc<crate::entry::Entry>, groups: Vec<String>, interval: Duration) -> Self {
        let mut samples = entry.metrics.last.subscribe();
        samples.mark_unchanged();
        let id = entry.watchers.with(|watchers| {
            let id = watchers.last_key_value().map_or(0, |(last, _)| last + 1);
            watchers.insert(id, (groups, interval));
            id
        });
        let control = entry.control.clone();
        let _ = control.send(Control::Watchers);
        Self { id, entry: Arc::downgrade(entry), control, samples, interval, last: None }
    }

    /// The next one; `None` when the VM was detached.
    pub async fn next(&mut self) -> Option<Arc<MetricsSample>> {
        loop {
            self.samples.changed().await.ok()?;
            let sample = self.samples.borrow_and_update().clone();
            let now = Instant::now();
            // Another watcher may want them more often. A tenth of leeway, for clocks are not equal.
            if self.last.is_some_and(|last| now.saturating_duration_since(last) < self.interval.mul_f64(0.9)) {
                continue;
            }
            if sample.is_some() {
                self.last = Some(now);
                return sample;
            }
        }
    }

    pub fn into_stream(self) -> impl Stream<Item = Arc<MetricsSample>> + Send {
        futures::stream::unfold(self, async |mut watch| watch.next().await.map(|sample| (sample, watch)))
    }
}

impl Drop for MetricsWatch {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.upgrade() {
            entry.watchers.with(|watchers| watchers.remove(&self.id));
            let _ = self.control.send(Control::Watchers);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_hour_and_no_more() {
        let mut history = History::default();
        let start = Instant::now();
        for step in 0..200u32 {
            let now = start + STEP * step;
            assert!(history.is_due(now) && (step == 0 || !history.is_due(now - Duration::from_secs(1))));
            let data = json!({"system": {
                "cpu": {"usage_percent": 12.5}, "memory": {"used_kb": 2048},
                "network": {"interfaces": [
                    {"name": "lo", "bytes_received": 1e18, "bytes_sent": 1e18},
                    {"name": "eth0", "bytes_received": 3000 * step, "bytes_sent": "many"},
                ]},
            }});
            history.add(&data, UNIX_EPOCH + Duration::from_secs(30 * u64::from(step)), now);
        }
        assert_eq!(history.points.len(), POINTS);
        let point = history.points.back().unwrap().unpack();
        assert_eq!((point.cpu_percent, point.memory_used_bytes), (12.5, 2 << 20));
        assert_eq!((point.network_received_bytes_per_second, point.network_sent_bytes_per_second), (100, 0));
        assert!(std::mem::size_of::<Packed>() * POINTS < 4096);
    }

    #[test]
    fn hostile_figures_are_figures() {
        let mut history = History::default();
        for data in [
            json!(null),
            json!([]),
            json!({"system": {"cpu": {"usage_percent": -1e308}, "memory": {"used_kb": 1e308}}}),
        ] {
            history.add(&data, SystemTime::now(), Instant::now());
        }
        let point = history.points.back().unwrap().unpack();
        assert_eq!((point.cpu_percent, point.memory_used_bytes), (0.0, u64::MAX));
    }
}
