//! Is this JSON the message that it claims to be? Asked before it is parsed, because the generated
//! parser drops unknown fields in silence and does not say where a value of the wrong type was.
//!
//! Owns the check, and an interceptor that runs it on whatever comes in as JSON. The tables are
//! generated from the protocol's descriptors; a field may be spelled as in the proto (`vm_id`) or
//! as in proto JSON (`vmId`).

use std::fmt;

use connectrpc::interceptor::{StreamRequest, StreamResponse, UnaryRequest, UnaryResponse};
use connectrpc::{CodecFormat, ConnectError, Interceptor, Next, NextStream, Payload, PayloadStream, async_trait};
use futures::StreamExt;
use roost_model::Invalid;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use crate::status;

/// What is wrong with a JSON document.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JsonError {
    /// There is no such field.
    #[error(transparent)]
    Unknown(#[from] UnknownField),
    /// A field's value is of another type.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// It cannot be parsed at all.
    #[error("not a JSON document of this kind: {0}")]
    Malformed(String),
}

/// A field that the message does not have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct UnknownField {
    /// Where it stands, e.g. `config.storage[1].pth`.
    pub path: String,
    /// The field that was probably meant, as spelled in the proto.
    pub nearest: Option<&'static str>,
    /// Every field that could stand there.
    pub known: Vec<&'static str>,
}

/// Refuses JSON requests that say something the daemon does not understand.
#[derive(Debug, Clone, Copy, Default)]
pub struct StrictJson;

/// Checks a document against a message of the API, by the message's full name (`vmm.v1.VmConfig`).
///
/// # Panics
///
/// When there is no message of that name: names come from code, never from outside.
pub fn check(message: &str, json: &Value) -> Result<(), JsonError> {
    let message = find(message).unwrap_or_else(|| panic!("{message} is not a message of the API"));
    check_message(message, json, &Path::Root)
}

/// Reads a message from a document that was checked: the one way from JSON or YAML to a message.
///
/// # Panics
///
/// As [`check`].
pub fn read<M: DeserializeOwned>(message: &str, json: Value) -> Result<M, JsonError> {
    check(message, &json)?;
    serde_json::from_value(json).map_err(|e| JsonError::Malformed(e.to_string()))
}

impl fmt::Display for UnknownField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Debug form: the name is the caller's, and may hold control characters.
        write!(f, "unknown field {:?}", self.path)?;
        match self.nearest {
            Some(nearest) => write!(f, "; did you mean {nearest:?}?"),
            None if self.known.is_empty() => write!(f, "; no field is known here"),
            None => write!(f, " (known: {})", self.known.join(", ")),
        }
    }
}

#[async_trait]
impl Interceptor for StrictJson {
    async fn intercept_unary(&self, req: UnaryRequest, next: Next<'_>) -> Result<UnaryResponse, ConnectError> {
        if let Some(message) = req.ctx.path().and_then(input_of) {
            check_payload(message, &req.payload)?;
        }
        next.run(req).await
    }

    async fn intercept_streaming(
        &self,
        req: StreamRequest,
        inbound: PayloadStream,
        next: NextStream<'_>,
    ) -> Result<StreamResponse, ConnectError> {
        let Some(message) = req.ctx.path().and_then(input_of) else {
            return next.run(req, inbound).await;
        };
        let checked = inbound.map(move |payload| {
            let payload = payload?;
            check_payload(message, &payload)?;
            Ok(payload)
        });
        next.run(req, Box::pin(checked)).await
    }
}

struct Message {
    name: &'static str,
    fields: &'static [Field],
}

struct Field {
    /// As in the proto.
    name: &'static str,
    /// As in proto JSON.
    json: &'static str,
    shape: Shape,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Shape {
    One,
    Many,
    Map,
}

#[derive(Clone, Copy)]
enum Kind {
    Bool,
    Text,
    Bytes,
    Float,
    Integer {
        least: i128,
        most: i128,
    },
    Enum(&'static [&'static str]),
    Message(&'static str),
    /// A type with a JSON form of its own.
    Other,
}

include!(concat!(env!("OUT_DIR"), "/schema.rs"));

/// Where in the document the check is.
#[derive(Clone, Copy)]
enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Field(Path::Root, name) => f.write_str(name),
            Path::Field(parent, name) => write!(f, "{parent}.{name}"),
            Path::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

fn find(message: &str) -> Option<&'static Message> {
    MESSAGES.binary_search_by(|m| m.name.cmp(message)).ok().map(|i| &MESSAGES[i])
}

/// The message that a procedure takes; `None` for procedures of other packages (health, reflection).
fn input_of(path: &str) -> Option<&'static Message> {
    METHODS.binary_search_by(|(p, _)| (*p).cmp(path)).ok().and_then(|i| find(METHODS[i].1))
}

fn check_payload(message: &'static Message, payload: &Payload) -> Result<(), ConnectError> {
    if payload.format() != CodecFormat::Json || payload.bytes().is_empty() {
        return Ok(());
    }
    let outcome = serde_json::from_slice(payload.bytes())
        .map_err(|e| JsonError::Malformed(e.to_string()))
        .and_then(|json: Value| check_message(message, &json, &Path::Root));
    outcome.map_err(|e| status::json(&e))
}

fn check_message(message: &'static Message, json: &Value, at: &Path<'_>) -> Result<(), JsonError> {
    let Value::Object(members) = json else {
        return wrong(at, json, "is not an object", []);
    };
    for (key, value) in members {
        let Some(field) = message.fields.iter().find(|f| f.name == key || f.json == key) else {
            return Err(unknown(message, key, at).into());
        };
        check_field(field, value, &Path::Field(at, field.name))?;
    }
    Ok(())
}

fn check_field(field: &Field, json: &Value, at: &Path<'_>) -> Result<(), JsonError> {
    match (field.shape, json) {
        // null is how proto JSON spells "not given".
        (_, Value::Null) => Ok(()),
        (Shape::One, value) => check_value(field.kind, value, at),
        (Shape::Many, Value::Array(items)) => {
            items.iter().enumerate().try_for_each(|(i, v)| check_value(field.kind, v, &Path::Index(at, i)))
        }
        (Shape::Many, _) => wrong(at, json, "is not a list", []),
        (Shape::Map, Value::Object(members)) => {
            members.iter().try_for_each(|(key, v)| check_value(field.kind, v, &Path::Field(at, key)))
        }
        (Shape::Map, _) => wrong(at, json, "is not an object", []),
    }
}

fn check_value(kind: Kind, json: &Value, at: &Path<'_>) -> Result<(), JsonError> {
    match kind {
        Kind::Other => Ok(()),
        Kind::Message(name) => {
            let message = find(name).expect("the tables name only messages that they hold");
            check_message(message, json, at)
        }
        Kind::Bool if json.is_boolean() => Ok(()),
        Kind::Bool => wrong(at, json, "is not a boolean", ["true", "false"].map(str::to_owned)),
        Kind::Text | Kind::Bytes if json.is_string() => Ok(()),
        Kind::Text => wrong(at, json, "is not a string", []),
        Kind::Bytes => wrong(at, json, "is not a base64 string", []),
        Kind::Float => match json {
            Value::Number(_) => Ok(()),
            Value::String(text) if text.parse::<f64>().is_ok() => Ok(()),
            _ => wrong(at, json, "is not a number", []),
        },
        Kind::Integer { least, most } => match integer(json) {
            Some(n) if (least..=most).contains(&n) => Ok(()),
            Some(_) => wrong(at, json, "is out of range", [format!("{least} to {most}")]),
            None => wrong(at, json, "is not a whole number", []),
        },
        Kind::Enum(names) => match json {
            Value::String(name) if names.contains(&name.as_str()) => Ok(()),
            // By number; whether it means anything is judged with the rest of the message.
            Value::Number(n) if n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => Ok(()),
            // The zero value says "not given".
            _ => wrong(at, json, "is not one of the permitted words", names[1..].iter().map(|n| (*n).to_owned())),
        },
    }
}

/// A whole number as proto JSON may write it: a number, or a decimal string.
fn integer(json: &Value) -> Option<i128> {
    match json {
        Value::Number(n) => n.as_i128().or_else(|| {
            // 1e3 and 2.0 are whole; 2^53 is where a float stops being exact.
            n.as_f64().filter(|f| f.fract() == 0.0 && f.abs() <= 9_007_199_254_740_992.0).map(|f| f as i128)
        }),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

fn unknown(message: &'static Message, key: &str, at: &Path<'_>) -> UnknownField {
    // A typo changes few letters; what is further away than a third of the word is another word.
    let furthest = (key.chars().count() / 3).max(1);
    let wanted = key.to_ascii_lowercase();
    let nearest = message
        .fields
        .iter()
        .flat_map(|f| [(f.name, f.name), (f.name, f.json)])
        .map(|(name, spelling)| (strsim::damerau_levenshtein(&wanted, &spelling.to_ascii_lowercase()), name))
        .filter(|(distance, _)| *distance <= furthest)
        .min();
    let key: String = key.chars().take(128).collect();
    UnknownField {
        path: Path::Field(at, &key).to_string(),
        nearest: nearest.map(|(_, name)| name),
        known: message.fields.iter().map(|f| f.name).collect(),
    }
}

fn wrong<T>(
    at: &Path<'_>,
    json: &Value,
    problem: &str,
    permitted: impl IntoIterator<Item = String>,
) -> Result<T, JsonError> {
    let value = match json {
        Value::String(text) => text.clone(),
        Value::Object(_) => "{...}".to_owned(),
        Value::Array(_) => "[...]".to_owned(),
        other => other.to_string(),
    };
    Err(Invalid::new(at.to_string(), value, problem).permit(permitted).into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::vmm::v1::CreateVmRequest;

    fn create(json: &Value) -> Result<(), JsonError> {
        check("vmm.v1.CreateVmRequest", json)
    }

    fn invalid(json: &Value) -> Invalid {
        match create(json) {
            Err(JsonError::Invalid(invalid)) => invalid,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn both_spellings_and_every_form_of_a_number_pass() {
        let document = json!({
            "vmId": "", "name": "web", "async": false, "idempotency_key": null,
            "config": {
                "cpu": {"vcpu_count": 2, "maxVcpuCount": "4", "features": {"avx2": "on"}},
                "memory": {"sizeBytes": "268435456", "max_size_bytes": 2.68435456e8},
                "storage": [{"path": "/srv/root.raw", "isRootDevice": true}],
                "restart_policy": {"mode": "MODE_ALWAYS", "backoff_seconds": 0.5},
                "metadata": {"any key": "any value"},
            },
        });
        create(&document).unwrap();
        let request: CreateVmRequest = read("vmm.v1.CreateVmRequest", document).unwrap();
        assert_eq!(request.config.memory.size_bytes, 256 << 20);
        assert_eq!(request.config.cpu.max_vcpu_count, 4);
    }

    #[test]
    fn an_unknown_field_is_named_with_its_path_and_the_nearest_one() {
        let unknown = |json| match create(&json) {
            Err(JsonError::Unknown(unknown)) => unknown,
            other => panic!("{other:?}"),
        };
        let found = unknown(json!({"config": {"storage": [{"path": "/a"}, {"pth": "/b"}]}}));
        assert_eq!((found.path.as_str(), found.nearest), ("config.storage[1].pth", Some("path")));
        assert_eq!(found.to_string(), r#"unknown field "config.storage[1].pth"; did you mean "path"?"#);

        let found = unknown(json!({"config": {"cpu": {"vcpuCont": 1}}}));
        assert_eq!((found.path.as_str(), found.nearest), ("config.cpu.vcpuCont", Some("vcpu_count")));

        let found = unknown(json!({"config": {"memory": {"Size_Bytes": 1}}}));
        assert_eq!(found.nearest, Some("size_bytes"));

        let found = unknown(json!({"frobnicate": 1}));
        assert_eq!((found.path.as_str(), found.nearest), ("frobnicate", None));
        assert!(found.known.contains(&"idempotency_key"));

        let found = unknown(json!({"a
b": 1}));
        assert!(!found.to_string().contains('\n'), "{found}");
    }

    #[test]
    fn a_value_of_another_type_is_named_with_its_path() {
        let found = invalid(&json!({"config": {"cpu": {"vcpuCount": "two"}}}));
        assert_eq!((found.field.as_str(), found.value.as_str()), ("config.cpu.vcpu_count", "two"));

        let found = invalid(&json!({"config": {"cpu": {"vcpu_count": -1}}}));
        assert_eq!(found.permitted, ["0 to 4294967295"]);
        assert_eq!(invalid(&json!({"config": {"cpu": {"vcpu_count": 1.5}}})).value, "1.5");

        let found = invalid(&json!({"config": {"restart_policy": {"mode": "sometimes"}}}));
        assert_eq!(found.permitted, ["MODE_NEVER", "MODE_ON_FAILURE", "MODE_ALWAYS"]);

        assert_eq!(invalid(&json!({"config": []})).field, "config");
        assert_eq!(invalid(&json!({"config": {"storage": {}}})).field, "config.storage");
        assert_eq!(invalid(&json!({"config": {"storage": [1]}})).field, "config.storage[0]");
        assert_eq!(invalid(&json!({"config": {"metadata": {"a": 1}}})).field, "config.metadata.a");
        assert_eq!(invalid(&json!({"start": "yes"})).permitted, ["true", "false"]);
        assert_eq!(invalid(&json!("create")).field, "");
    }

    #[test]
    fn every_procedure_of_the_api_is_checked_and_no_other() {
        assert!(METHODS.is_sorted() && MESSAGES.is_sorted_by_key(|m| m.name));
        for (path, input) in METHODS {
            assert_eq!(input_of(path).map(|m| m.name), Some(*input), "{path}");
        }
        assert!(input_of("/vmm.v1.VmService/CreateVm").is_some());
        assert!(input_of("/grpc.health.v1.Health/Check").is_none());
    }
}
