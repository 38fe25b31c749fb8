//! From an object's fields to an action's, with errors that name the field, the value and what is permitted.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::error::{ErrorBody, ErrorCode};

/// A text of the peer's, short enough to be shown.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Takes one field. One that may be absent is an `Option`, for which null is absent too.
pub(super) fn take<T: DeserializeOwned>(map: &mut Map<String, Value>, field: &str) -> Result<T, ErrorBody> {
    let value = map.remove(field).unwrap_or(Value::Null);
    let missing = value.is_null();
    serde_json::from_value(value).map_err(|error| {
        let why = if missing { "missing".to_owned() } else { error.to_string().chars().take(512).collect() };
        ErrorBody::field(field, format!("{field}: {why}"))
    })
}

/// Refuses a field that the action does not have.
pub(super) fn refuse_unknown(action: &str, map: &Map<String, Value>, permitted: &[&str]) -> Result<(), ErrorBody> {
    let Some(field) = map.keys().find(|key| !permitted.contains(&key.as_str())).map(|key| shown(key)) else {
        return Ok(());
    };
    let list = if permitted.is_empty() { "none".to_owned() } else { permitted.join(", ") };
    let nearest = nearest(&field, permitted);
    let hint = nearest.map(|nearest| format!("; {nearest:?} is the nearest")).unwrap_or_default();
    let mut error = ErrorBody::field(&field, format!("{field:?} is no field of {action}{hint}; permitted: {list}"));
    error.details = Some(json!({ "field": field, "nearest": nearest, "permitted": permitted }));
    Err(error)
}

/// Refuses an action that there is not.
pub(super) fn unknown_action(action: &str, permitted: &[&str]) -> ErrorBody {
    let action = shown(action);
    let nearest = nearest(&action, permitted);
    let hint = nearest.map(|nearest| format!("; {nearest:?} is the nearest")).unwrap_or_default();
    let mut error = ErrorBody::new(ErrorCode::UnknownCommand, format!("there is no action {action:?}{hint}"));
    error.details = Some(json!({ "field": "command_type.action", "nearest": nearest, "permitted": permitted }));
    error
}

fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance = |other: &&str| strsim::damerau_levenshtein(&name.to_lowercase(), &other.to_lowercase());
    let best = known.iter().min_by_key(|other| distance(other))?;
    // Further than half of it is no typing error.
    (distance(best) <= best.len().max(4) / 2).then_some(best)
}
