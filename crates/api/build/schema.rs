//! The shape of every message as static tables, for the check of JSON that comes in: serde's
//! generated code drops unknown fields in silence.

use std::fmt::Write;

use protox::prost_reflect::{DescriptorPool, FieldDescriptor, Kind, MessageDescriptor};

/// Rust source of `MESSAGES` (sorted by name) and `METHODS` (sorted by path).
pub(crate) fn generate(pool: &DescriptorPool) -> String {
    let mut messages: Vec<MessageDescriptor> =
        pool.all_messages().filter(|m| !m.is_map_entry() && m.package_name() == "vmm.v1").collect();
    messages.sort_by(|a, b| a.full_name().cmp(b.full_name()));
    let mut methods: Vec<(String, String)> = pool
        .services()
        .flat_map(|s| s.methods().collect::<Vec<_>>())
        .map(|m| (format!("/{}/{}", m.parent_service().full_name(), m.name()), m.input().full_name().to_owned()))
        .collect();
    methods.sort();

    let mut out = String::from("static MESSAGES: &[Message] = &[\n");
    for message in &messages {
        let fields: Vec<String> = message.fields().map(|f| field(&f)).collect();
        writeln!(out, "Message {{ name: {:?}, fields: &[{}] }},", message.full_name(), fields.join(", "))
            .expect("a String takes everything");
    }
    out.push_str("];\nstatic METHODS: &[(&str, &str)] = &[\n");
    for (path, input) in methods {
        writeln!(out, "({path:?}, {input:?}),").expect("a String takes everything");
    }
    out.push_str("];\n");
    out
}

fn field(field: &FieldDescriptor) -> String {
    let (shape, value) = match field.kind() {
        Kind::Message(entry) if field.is_map() => ("Map", entry.map_entry_value_field().kind()),
        kind if field.is_list() => ("Many", kind),
        kind => ("One", kind),
    };
    format!(
        "Field {{ name: {:?}, json: {:?}, shape: Shape::{shape}, kind: {} }}",
        field.name(),
        field.json_name(),
        kind(&value)
    )
}

fn kind(kind: &Kind) -> String {
    match kind {
        Kind::Double | Kind::Float => "Kind::Float".to_owned(),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
            "Kind::Integer { least: i32::MIN as i128, most: i32::MAX as i128 }".to_owned()
        }
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
            "Kind::Integer { least: i64::MIN as i128, most: i64::MAX as i128 }".to_owned()
        }
        Kind::Uint32 | Kind::Fixed32 => "Kind::Integer { least: 0, most: u32::MAX as i128 }".to_owned(),
        Kind::Uint64 | Kind::Fixed64 => "Kind::Integer { least: 0, most: u64::MAX as i128 }".to_owned(),
        Kind::Bool => "Kind::Bool".to_owned(),
        Kind::String => "Kind::Text".to_owned(),
        Kind::Bytes => "Kind::Bytes".to_owned(),
        Kind::Message(m) if m.package_name() == "vmm.v1" => format!("Kind::Message({:?})", m.full_name()),
        // A well-known type has a JSON form of its own, which its own parser checks.
        Kind::Message(_) => "Kind::Other".to_owned(),
        Kind::Enum(e) => {
            let names: Vec<String> = e.values().map(|v| format!("{:?}", v.name())).collect();
            format!("Kind::Enum(&[{}])", names.join(", "))
        }
    }
}
