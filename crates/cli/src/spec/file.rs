//! Spec files: YAML or JSON, one document or many, in the API's own field names.
//!
//! A document is read strictly: an unknown field, a field twice, or a value of another type is an
//! error that names its place, before anything is sent. Sizes (`..._bytes`) may carry a unit.

use std::io::Read;
use std::path::Path;

use roost_api::strict_json::{self, JsonError};
use roost_client::v1::CreateVmRequest;
use roost_model::Invalid;
use serde::Deserialize;
use serde_json::Value;

use crate::error::Failure;
use crate::values;

/// More is no spec.
const MOST_BYTES: u64 = 4 << 20;
/// As many VMs as can be created at once.
const MOST_DOCUMENTS: usize = 1000;
/// Brackets within brackets. The YAML parser takes time that grows with the square of this.
const DEEPEST: usize = 200;
/// Fields whose keys are the user's own words.
const FREE_MAPS: [&str; 5] = ["metadata", "features", "options", "boot_options", "bootOptions"];

/// The documents of a file; `-` is standard input. Read on a thread of its own, so that Ctrl-C is
/// heard while somebody types.
pub(crate) async fn read(path: &Path) -> Result<Vec<CreateVmRequest>, Failure> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || read_now(&path)).await.expect("reading does not panic")
}

fn read_now(path: &Path) -> Result<Vec<CreateVmRequest>, Failure> {
    let failed = |problem: String| Failure::File { path: path.to_owned(), problem };
    let mut text = String::new();
    let taken = if path == Path::new("-") {
        std::io::stdin().take(MOST_BYTES + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_string(&mut text))
    };
    let length = taken.map_err(|e| failed(e.to_string()))?;
    if length as u64 > MOST_BYTES {
        return Err(failed("it is larger than 4 MiB".to_owned()));
    }
    let documents = parse(&text).map_err(failed)?;
    if documents.len() > MOST_DOCUMENTS {
        return Err(failed(format!("it has {} documents; permitted: {MOST_DOCUMENTS}", documents.len())));
    }
    if documents.is_empty() {
        return Err(failed("there is no document in it".to_owned()));
    }
    let several = documents.len() > 1;
    let mut requests = Vec::with_capacity(documents.len());
    for (i, document) in documents.into_iter().enumerate() {
        requests.push(request(document).map_err(|error| {
            let document = if several { format!(", document {}", i + 1) } else { String::new() };
            let file = Some(format!("{}{document}", path.display()));
            match error {
                JsonError::Invalid(invalid) => Failure::Invalid { file, invalid },
                error => Failure::Document { file, error },
            }
        })?);
    }
    Ok(requests)
}

/// JSON where it looks so (YAML takes most of JSON, but no tabs), else YAML.
fn parse(text: &str) -> Result<Vec<serde_norway::Value>, String> {
    if depth(text) > DEEPEST {
        return Err(format!("brackets stand in brackets more than {DEEPEST} deep"));
    }
    let documents: Vec<serde_norway::Value> = if text.trim_start().starts_with('{') {
        serde_json::Deserializer::from_str(text)
            .into_iter::<serde_norway::Value>()
            .collect::<Result<_, _>>()
            .or_else(|json| yaml(text).map_err(|_| json.to_string()))?
    } else {
        yaml(text)?
    };
    // A file that ends in `---` ends in an empty document.
    Ok(documents.into_iter().filter(|d| !d.is_null()).collect())
}

/// How deep brackets stand in each other; those in texts count too, and close each other as a rule.
fn depth(text: &str) -> usize {
    let (mut now, mut most) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => now += 1,
            b']' | b'}' => now = now.saturating_sub(1),
            _ => {}
        }
        most = most.max(now);
    }
    most
}

fn yaml(text: &str) -> Result<Vec<serde_norway::Value>, String> {
    serde_norway::Deserializer::from_str(text)
        .map(|document| serde_norway::Value::deserialize(document).map_err(|e| e.to_string()))
        .collect()
}

fn request(document: serde_norway::Value) -> Result<CreateVmRequest, JsonError> {
    let mut json = to_json(document)?;
    with_units(&mut json, "")?;
    strict_json::read("vmm.v1.CreateVmRequest", json)
}

fn to_json(value: serde_norway::Value) -> Result<Value, JsonError> {
    use serde_norway::Value as Yaml;
    let malformed = |problem: &str| Err(JsonError::Malformed(problem.to_owned()));
    Ok(match value {
        Yaml::Null => Value::Null,
        Yaml::Bool(b) => Value::Bool(b),
        Yaml::String(text) => Value::String(text),
        Yaml::Number(n) => {
            let number = n.as_u64().map(Into::into).or_else(|| n.as_i64().map(Into::into));
            match number.or_else(|| n.as_f64().and_then(serde_json::Number::from_f64)) {
                Some(number) => Value::Number(number),
                None => return malformed("a number that is none"),
            }
        }
        Yaml::Sequence(items) => Value::Array(items.into_iter().map(to_json).collect::<Result<_, _>>()?),
        Yaml::Mapping(members) => {
            let mut object = serde_json::Map::with_capacity(members.len());
            for (key, value) in members {
                let Yaml::String(key) = key else {
                    return malformed("a field's name that is no text: put it in quotes");
                };
                object.insert(key, to_json(value)?);
            }
            Value::Object(object)
        }
        Yaml::Tagged(_) => return malformed("tags are not supported"),
    })
}

/// `size_bytes: 256MiB` becomes `size_bytes: 268435456`.
fn with_units(json: &mut Value, at: &str) -> Result<(), JsonError> {
    match json {
        Value::Object(members) => {
            for (key, value) in members {
                let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                match value {
                    Value::String(text) if key.ends_with("_bytes") || key.ends_with("Bytes") => {
                        let bytes = values::size(text).map_err(|_| {
                            Invalid::new(&at, &*text, "is not a size")
                                .permit(["a whole number with KiB, MiB, GiB, TiB, KB, MB, GB, TB or B"])
                        })?;
                        *value = bytes.into();
                    }
                    _ if FREE_MAPS.contains(&key.as_str()) => {}
                    _ => with_units(value, &at)?,
                }
            }
            Ok(())
        }
        Value::Array(items) => {
            items.iter_mut().enumerate().try_for_each(|(i, item)| with_units(item, &format!("{at}[{i}]")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
