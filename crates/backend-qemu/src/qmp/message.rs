//! Lines to meaning, and commands to lines. The forms are those of QEMU's `docs/interop/qmp-spec.rst`.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::QmpError;

/// One command.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Command {
    pub(crate) name: &'static str,
    pub(crate) arguments: Map<String, Value>,
}

/// What QEMU sends.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Message {
    /// The first line of a connection.
    Greeting { version: Version },
    /// A command's result.
    Return { id: Option<u64>, value: Value },
    /// A command was refused.
    Error { id: Option<u64>, class: String, text: String },
    /// Something happened.
    Event(Event),
}

/// Something that happened in QEMU.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) data: Map<String, Value>,
}

/// QEMU's version: for people. What it can do is asked, never concluded from it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Version {
    qemu: Triple,
    #[serde(default)]
    package: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Triple {
    major: u32,
    minor: u32,
    micro: u32,
}

impl Command {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, arguments: Map::new() }
    }

    pub(crate) fn with(name: &'static str, arguments: &[(&str, Value)]) -> Self {
        let arguments = arguments.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        Self { name, arguments }
    }

    /// The line that is sent, its end included.
    pub(crate) fn line(&self, id: u64) -> Vec<u8> {
        let mut line = json!({ "execute": self.name, "arguments": self.arguments, "id": id }).to_string().into_bytes();
        line.push(b'\n');
        line
    }
}

impl Event {
    /// A text of the event's data.
    pub(crate) fn text(&self, key: &str) -> &str {
        self.data.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    /// A truth of the event's data.
    pub(crate) fn truth(&self, key: &str) -> bool {
        self.data.get(key).and_then(Value::as_bool).unwrap_or_default()
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.qemu.major, self.qemu.minor, self.qemu.micro)?;
        if self.package.is_empty() { Ok(()) } else { write!(f, " ({})", self.package) }
    }
}

/// Every form at once; which one it is follows from the member that is there.
#[derive(Deserialize)]
struct Wire {
    #[serde(rename = "QMP")]
    greeting: Option<WireGreeting>,
    #[serde(rename = "return", default, deserialize_with = "present")]
    value: Option<Value>,
    error: Option<WireError>,
    event: Option<String>,
    #[serde(default)]
    data: Map<String, Value>,
    id: Option<Value>,
}

#[derive(Deserialize)]
struct WireGreeting {
    version: Version,
}

#[derive(Deserialize)]
struct WireError {
    class: String,
    desc: String,
}

/// `"return": null` is a result too.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// Reads one line.
pub(crate) fn parse(line: &[u8]) -> Result<Message, QmpError> {
    let garbage = || QmpError::garbage(line);
    let wire: Wire = serde_json::from_slice(line).map_err(|_| garbage())?;
    let id = wire.id.as_ref().and_then(Value::as_u64);
    match wire {
        Wire { value: Some(value), .. } => Ok(Message::Return { id, value }),
        Wire { error: Some(error), .. } => Ok(Message::Error { id, class: error.class, text: error.desc }),
        Wire { event: Some(name), data, .. } => Ok(Message::Event(Event { name, data })),
        Wire { greeting: Some(greeting), .. } => Ok(Message::Greeting { version: greeting.version }),
        _ => Err(garbage()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_form_is_read() {
        let greeting = br#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian"}, "capabilities": ["oob"]}}"#;
        let Message::Greeting { version } = parse(greeting).unwrap() else { panic!() };
        assert_eq!(version.to_string(), "10.0.2 (Debian)");
        assert_eq!(
            parse(br#"{"return": {}, "id": 7}"#).unwrap(),
            Message::Return { id: Some(7), value: Value::Object(Map::new()) }
        );
        assert_eq!(parse(br#"{"return": null}"#).unwrap(), Message::Return { id: None, value: Value::Null });
        let refused = parse(br#"{"id": 1, "error": {"class": "GenericError", "desc": "no"}}"#).unwrap();
        assert_eq!(refused, Message::Error { id: Some(1), class: "GenericError".to_owned(), text: "no".to_owned() });
        let stop = parse(br#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}"#).unwrap();
        assert_eq!(stop, Message::Event(Event { name: "STOP".to_owned(), data: Map::new() }));
    }

    #[test]
    fn what_is_no_message_is_garbage() {
        let deep = [b"{\"return\":".as_slice(), &[b'['; 10_000]].concat();
        for line in [b"".as_slice(), b"{}", b"[]", b"null", b"HTTP/1.1 200 OK", b"{\"event\": 3}", b"\xff\xfe", &deep] {
            assert!(matches!(parse(line), Err(QmpError::Garbage { .. })), "{line:?}");
        }
    }

    #[test]
    fn a_command_is_one_line() {
        let line = Command::with("x", &[("text", json!("a\nb"))]).line(3);
        assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
        assert!(line.ends_with(b"\n"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(line in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&line);
        }

        #[test]
        fn no_json_makes_it_panic(line in r#"\{("(QMP|return|error|event|id|data)": ?([0-9]{1,25}|null|"[a-z]{0,5}"|\{\}|\[\]),?){0,4}\}"#) {
            let _ = parse(line.as_bytes());
        }
    }
}
