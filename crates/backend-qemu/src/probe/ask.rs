//! The questions: a QEMU without a machine, its commands in its socket before it starts.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::try_join;
use roost_backend::BackendError;
use roost_host::exits::ExitStatus;
use serde_json::{Value, json};

use super::{Binary, Probe, ProbedMachine};
use crate::exits::Exits;
use crate::qmp::{Command, Connection, Message, QmpError};
use crate::trial::Trial;

/// Where QEMU finds its control socket.
const QMP_FD: i32 = 3;

/// Denies what QEMU never needs once it has its descriptors: other users, other programs.
pub(crate) const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// The machine types that Roost knows.
const MACHINES: [&str; 2] = ["q35", "microvm"];

pub(super) async fn ask(binary: Binary, limit: Duration, exits: &Exits) -> Result<Probe, BackendError> {
    let mut probe = match ask_once(&binary, true, limit, exits).await {
        // A kernel without seccomp, or a QEMU without the filter: both say so.
        Err(error) if error.message.contains("sandbox") || error.message.contains("seccomp") => {
            ask_once(&binary, false, limit, exits).await?
        }
        answer => answer?,
    };
    let help = Help { binary: &binary, limit, exits };
    let (networks, formats) =
        try_join!(help.on(&["-netdev", "help"]), help.on(&["-machine", "none", "-drive", "if=none,format=help"]),)?;
    // One name a line after a title; names after a title.
    probe.types.extend(networks.iter().map(|name| format!("net:{}", name.trim())));
    let formats = formats.iter().find_map(|line| line.strip_prefix("Supported formats:")).unwrap_or_default();
    probe.types.extend(formats.split_ascii_whitespace().map(|name| format!("block:{name}")));
    for (kind, machine) in &mut probe.machines {
        // QMP's own way makes a machine to look at, which kills QEMU 7.2 when that is a microvm.
        let said = help.on(&["-machine", &format!("{kind},help")]).await?;
        // `  name=<type>   - description`
        let options = said.iter().filter_map(|line| line.trim_start().split_once("=<"));
        machine.properties = options.map(|(name, _)| name.to_owned()).collect();
    }
    if probe.machines.contains_key("microvm") {
        probe.microvm_firmware = microvm_firmware(&help).await?;
    }
    Ok(probe)
}

/// SeaBIOS for microvm, wherever this QEMU keeps its firmware. Debian 12 has qboot under that name first,
/// which starts kernels only, and is silent about it.
async fn microvm_firmware(help: &Help<'_>) -> Result<Option<String>, BackendError> {
    let dirs = help.on(&["-L", "help"]).await?;
    let files = dirs.iter().map(|dir| Path::new(dir).join("bios-microvm.bin"));
    let is_seabios = |file: &PathBuf| {
        let bytes = std::fs::read(file).unwrap_or_default();
        bytes.windows(7).any(|word| word == b"SeaBIOS")
    };
    Ok(files.filter(is_seabios).find_map(|file| file.to_str().map(str::to_owned)))
}

/// What QEMU says when it is asked for help on something: where QMP has no answer, or too long a one.
struct Help<'a> {
    binary: &'a Binary,
    limit: Duration,
    exits: &'a Exits,
}

impl Help<'_> {
    async fn on(&self, args: &[&str]) -> Result<Vec<String>, BackendError> {
        let words = args.iter().map(OsString::from).collect();
        let mut trial = Trial::start(&self.binary.path, words, Vec::new(), self.exits)?;
        match trial.end(self.limit).await {
            Some(Some(ExitStatus::Exited(0))) => Ok(trial.said()),
            _ => {
                let path = self.binary.path.display();
                let message = format!("{path} {} fails: {}", args.join(" "), trial.last_words());
                Err(BackendError::permanent("QEMU_UNUSABLE", message))
            }
        }
    }
}

/// All answers together must fit into a socket's buffer (208 KiB as a rule; they are 85): QEMU drops what
/// nobody has read by the time that it quits. That is why the schema is not among them.
fn questions() -> Vec<Command> {
    let types = |of: &str| {
        let arguments = [("implements", json!(of)), ("abstract", json!(false))];
        Command::with("qom-list-types", &arguments)
    };
    vec![
        types("accel"),
        Command::new("query-machines"),
        types("device"),
        types("user-creatable"),
        Command::new("query-cpu-definitions"),
    ]
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
        let [accelerators, machines, devices, objects, cpus] = answers else { return None };
        let accelerators = names(accelerators).filter_map(|name| name.strip_suffix("-accel")).map(str::to_owned);
        let devices = names(devices).map(|name| format!("device:{name}"));
        let objects = names(objects).map(|name| format!("object:{name}"));
        let mut known = BTreeMap::new();
        for kind in MACHINES {
            // `microvm` has no versions and no alias; `q35` is the alias of the newest version.
            let found = machines.as_array()?.iter().find(|m| m["alias"] == kind || m["name"] == kind);
            if let Some(found) = found {
                let machine = ProbedMachine {
                    name: found["name"].as_str()?.to_owned(),
                    max_cpus: u32::try_from(found["cpu-max"].as_u64()?).ok()?,
                    properties: BTreeSet::new(),
                };
                known.insert(kind.to_owned(), machine);
            }
        }
        Some(Self {
            binary: binary.clone(),
            version,
            accelerators: accelerators.collect(),
            machines: known,
            types: devices.chain(objects).collect(),
            cpu_models: names(cpus).map(str::to_owned).collect(),
            sandbox,
            microvm_firmware: None,
        })
    }
}

fn names(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(|entry| entry["name"].as_str())
}
