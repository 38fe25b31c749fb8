//! The questions: a QEMU without a machine, its commands in its socket before it starts.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::time::Duration;

use roost_backend::BackendError;
use serde_json::{Value, json};

use super::{Binary, Probe, ProbedMachine};
use crate::exits::Exits;
use crate::qmp::{Command, Connection, Message, QmpError};
use crate::trial::Trial;

/// Where QEMU finds its control socket.
const QMP_FD: i32 = 3;

/// Denies what QEMU never needs once it has its descriptors: other users, other programs.
pub(crate) const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// The machine types that Roost knows, and where their options are declared.
const MACHINES: [(&str, &str); 2] = [("q35", "generic-pc-machine"), ("microvm", "microvm-machine")];

pub(super) async fn ask(binary: Binary, limit: Duration, exits: &Exits) -> Result<Probe, BackendError> {
    match ask_once(&binary, true, limit, exits).await {
        // A kernel without seccomp, or a QEMU without the filter: both say so.
        Err(error) if error.message.contains("sandbox") || error.message.contains("seccomp") => {
            ask_once(&binary, false, limit, exits).await
        }
        answer => answer,
    }
}

fn questions() -> Vec<Command> {
    let mut commands = vec![
        Command::with("qom-list-types", &[("implements", json!("accel")), ("abstract", json!(false))]),
        Command::new("query-machines"),
        Command::with("qom-list-types", &[("implements", json!("device")), ("abstract", json!(false))]),
        Command::new("query-cpu-definitions"),
        Command::new("query-qmp-schema"),
    ];
    commands
        .extend(MACHINES.map(|(_, declared)| Command::with("qom-list-properties", &[("typename", json!(declared))])));
    commands
}

async fn ask_once(binary: &Binary, sandbox: bool, limit: Duration, exits: &Exits) -> Result<Probe, BackendError> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(|e| crate::host_error("HOST_EXHAUSTED", &e))?;
    let prepared = || -> Result<Connection, QmpError> {
        ours.set_nonblocking(true)?;
        Connection::new(ours)
    };
    let mut connection = prepared()?;
    connection.send(&Command::new("qmp_capabilities"))?;
    let questions = questions();
    for question in &questions {
        connection.send(question)?;
    }
    connection.send(&Command::new("quit"))?;

    let mut args: Vec<OsString> =
        ["-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S", "-chardev"]
            .map(Into::into)
            .into();
    args.extend([format!("socket,id=qmp,fd={QMP_FD}").into(), "-mon".into(), "chardev=qmp,mode=control".into()]);
    if sandbox {
        args.extend(["-sandbox".into(), SANDBOX.into()]);
    }
    let mut trial = Trial::start(&binary.path, args, vec![(OwnedFd::from(theirs), QMP_FD)], exits)?;
    let answers = tokio::time::timeout(limit, answers(&mut connection, questions.len())).await;
    let path = binary.path.display();
    let hint = "point the setting qemu.binary at a QEMU 7.2 or later for x86_64";
    let (version, answers) = match answers {
        Ok(Ok(answers)) => answers,
        Ok(Err(QmpError::Closed)) => {
            let _ended = trial.end(limit).await;
            let message = format!("{path} ended instead of answering: {}", trial.last_words());
            return Err(BackendError::permanent("QEMU_UNUSABLE", message).hint(hint));
        }
        Ok(Err(error)) => return Err(BackendError::permanent("QEMU_UNUSABLE", format!("{path}: {error}")).hint(hint)),
        Err(_elapsed) => {
            let message = format!("{path} did not answer within {limit:?}");
            return Err(BackendError::transient("QEMU_UNUSABLE", message).hint(hint));
        }
    };
    Probe::from_answers(binary, version, &answers, sandbox).ok_or_else(|| {
        BackendError::permanent("QEMU_UNUSABLE", format!("{path} gave answers of an unknown form")).hint(hint)
    })
}

/// The version, and the answers to all questions in their order; a question that was refused has a
/// null. The first answer of all is that of the handshake.
async fn answers(connection: &mut Connection, questions: usize) -> Result<(String, Vec<Value>), QmpError> {
    let Message::Greeting { version } = connection.next().await? else {
        return Err(QmpError::Garbage { excerpt: "no greeting".to_owned() });
    };
    let mut answers = Vec::new();
    while answers.len() <= questions {
        match connection.next().await? {
            Message::Return { value, .. } => answers.push(value),
            Message::Error { .. } => answers.push(Value::Null),
            Message::Greeting { .. } | Message::Event(_) => {}
        }
    }
    answers.remove(0);
    Ok((version.to_string(), answers))
}

impl Probe {
    fn from_answers(binary: &Binary, version: String, answers: &[Value], sandbox: bool) -> Option<Self> {
        let [accelerators, machines, devices, cpus, schema, properties @ ..] = answers else { return None };
        let accelerators = names(accelerators).filter_map(|name| name.strip_suffix("-accel")).map(str::to_owned);
        let mut types: BTreeSet<String> = names(devices).map(|name| format!("device:{name}")).collect();
        for (kind, command) in [("net", "netdev_add"), ("block", "blockdev-add"), ("object", "object-add")] {
            types.extend(variants(schema, command).into_iter().map(|name| format!("{kind}:{name}")));
        }
        let mut known = BTreeMap::new();
        for ((kind, _), properties) in MACHINES.into_iter().zip(properties) {
            // `microvm` has no versions and no alias; `q35` is the alias of the newest version.
            let found = machines.as_array()?.iter().find(|m| m["alias"] == kind || m["name"] == kind);
            if let Some(found) = found {
                let machine = ProbedMachine {
                    name: found["name"].as_str()?.to_owned(),
                    max_cpus: u32::try_from(found["cpu-max"].as_u64()?).ok()?,
                    properties: names(properties).map(str::to_owned).collect(),
                };
                known.insert(kind.to_owned(), machine);
            }
        }
        Some(Self {
            binary: binary.clone(),
            version,
            accelerators: accelerators.collect(),
            machines: known,
            types,
            cpu_models: names(cpus).map(str::to_owned).collect(),
            sandbox,
        })
    }
}

fn names(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(|entry| entry["name"].as_str())
}

/// What a command's argument can be, by the schema's own description of it
/// (`docs/devel/qapi-code-gen.rst`, "Client JSON Protocol introspection").
fn variants(schema: &Value, command: &str) -> Vec<String> {
    let entity = |name: &Value| schema.as_array().into_iter().flatten().find(|e| e["name"] == *name);
    let argument = entity(&json!(command)).and_then(|command| entity(&command["arg-type"]));
    let cases = argument.and_then(|argument| argument["variants"].as_array()).into_iter().flatten();
    cases.filter_map(|variant| variant["case"].as_str()).map(str::to_owned).collect()
}
