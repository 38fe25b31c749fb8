//! Configuration: flag > environment > file > default, each value with where it came from.
//!
//! Every setting is one row of [`keys::KEYS`]; files, variables and flags are three ways to write the
//! same text. A bad value or an unknown key stops the start and names the key and its source.

mod keys;
mod log_level;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use roost_model::BackendName;
use roost_model::spec::Accelerator;
use thiserror::Error;

use keys::{KEYS, Key};

/// The backends that this program has.
const BACKENDS: [&str; 2] = ["qemu", "sim"];

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where the database, volumes and logs live.
    pub state_dir: PathBuf,
    /// Where sockets of running machines live; short, private, gone with a reboot.
    pub runtime_dir: PathBuf,
    /// The API's Unix socket.
    pub socket: PathBuf,
    /// The backend of a VM that names none.
    pub backend: BackendName,
    /// How logs look.
    pub log_format: LogFormat,
    /// `tracing` filter directives.
    pub log_level: String,
    /// How often unsettled VMs are looked at again without a signal.
    pub reconcile_period: Duration,
    /// How many machines start at the same time.
    pub parallel_starts: usize,
    /// QEMU.
    pub qemu: Qemu,
    /// The simulator.
    pub sim: Sim,
}

/// Settings of the QEMU backend.
#[derive(Debug, Clone, PartialEq)]
pub struct Qemu {
    /// Name on the PATH, or a path.
    pub binary: PathBuf,
    /// What `auto` in a spec becomes; `auto` decides by what the host is.
    pub accelerator: Accelerator,
    /// The keeper of serial consoles; `None`: beside the daemon's own binary.
    pub console_binary: Option<PathBuf>,
}

/// Settings of the simulated backend.
#[derive(Debug, Clone, PartialEq)]
pub struct Sim {
    /// Whether there is one; the default backend is there in any case.
    pub enabled: bool,
    /// Whether its machines live in a process of their own, which outlives the daemon.
    pub hosted: bool,
}

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why the configuration cannot be used.
#[derive(Debug, Error, PartialEq)]
pub enum ConfigError {
    /// No such key.
    #[error("{origin}: unknown key {key:?}{}", .nearest.map(|n| format!("; did you mean {n:?}?")).unwrap_or_default())]
    UnknownKey { origin: Origin, key: String, nearest: Option<&'static str> },
    /// The value does not fit.
    #[error("{origin}: {key} = {value:?}: {problem}")]
    BadValue { origin: Origin, key: &'static str, value: String, problem: String },
    /// The file cannot be read.
    #[error("{}: {problem}", .path.display())]
    File { path: PathBuf, problem: String },
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// A configuration file.
    File(PathBuf),
    /// An environment variable.
    Env(String),
    /// A command-line flag.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) => write!(f, "file {}", path.display()),
            Origin::Env(name) => write!(f, "environment {name}"),
            Origin::Flag => f.write_str("command line"),
        }
    }
}

/// What configuration is made of; the environment is an argument so that tests own it.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// `key = value` from flags.
    pub flags: Vec<(String, String)>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// The file named by `--config`; must exist. `None`: the default one, if it exists.
    pub file: Option<PathBuf>,
    /// Whether we are root.
    pub root: bool,
}

/// The values by key, with their origins.
#[derive(Debug, Clone)]
pub struct Effective(BTreeMap<&'static str, (String, Origin)>);

impl Config {
    /// Reads every source. The second part is for showing.
    pub fn load(sources: &Sources) -> Result<(Config, Effective), ConfigError> {
        let mut values = BTreeMap::new();
        for key in KEYS {
            if let Some(default) = key.default {
                values.insert(key.name, (default.to_owned(), Origin::Default));
            }
        }
        if let Some((path, text)) = read_file(sources)? {
            for (name, value) in flatten(&path, &text)? {
                put(&mut values, &name, value, Origin::File(path.clone()))?;
            }
        }
        for key in KEYS {
            // The seed's names are aliases: our own comes last and wins.
            for variable in key.env.iter().rev() {
                if let Some(value) = sources.env.get(*variable).filter(|v| !v.is_empty()) {
                    let origin = Origin::Env((*variable).to_owned());
                    let value = (key.translate)(variable, value).map_err(|problem| ConfigError::BadValue {
                        origin: origin.clone(),
                        key: key.name,
                        value: value.clone(),
                        problem,
                    })?;
                    values.insert(key.name, (value, origin));
                }
            }
        }
        for (name, value) in &sources.flags {
            put(&mut values, name, value.clone(), Origin::Flag)?;
        }
        let mut effective = Effective(values);
        let config = effective.config(sources)?;
        effective.fill_in(&config);
        Ok((config, effective))
    }
}

impl Effective {
    /// `key = value` and its origin, in order.
    pub fn rows(&self) -> impl Iterator<Item = (&'static str, &str, &Origin)> {
        self.0.iter().map(|(key, (value, origin))| (*key, value.as_str(), origin))
    }

    fn config(&self, sources: &Sources) -> Result<Config, ConfigError> {
        let own_state = self.path("state_dir")?;
        // A state directory of one's own is a daemon of one's own: its sockets live with it. Without root they
        // do so too, and not in `XDG_RUNTIME_DIR`: that goes when the user logs out, and the machines stay.
        let beside = own_state.is_some() || !sources.root;
        let state_dir = own_state.unwrap_or_else(|| default_state_dir(sources));
        let default = || if beside { state_dir.join("run") } else { PathBuf::from("/run/roost") };
        let runtime_dir = self.path("runtime_dir")?.unwrap_or_else(default);
        let socket = self.path("socket")?.unwrap_or_else(|| runtime_dir.join("api.sock"));
        Ok(Config {
            socket,
            runtime_dir,
            state_dir,
            backend: self.parse("backend", |t| match BACKENDS.contains(&t) {
                true => t.parse().map_err(|e: roost_model::Invalid| e.to_string()),
                false => Err(format!("permitted: {}", BACKENDS.join(", "))),
            })?,
            log_format: self.parse("log.format", |t| match t {
                "text" => Ok(LogFormat::Text),
                "json" => Ok(LogFormat::Json),
                _ => Err("permitted: text, json".to_owned()),
            })?,
            log_level: self.parse("log.level", |t| log_level::check(t).map(|()| t.to_owned()))?,
            reconcile_period: self.parse("reconcile_period_seconds", seconds(1, 3600))?,
            parallel_starts: self.parse("parallel_starts", count(1, 1024))?,
            qemu: Qemu {
                binary: self.parse("qemu.binary", |t| Ok(PathBuf::from(t)))?,
                accelerator: self
                    .parse("qemu.accelerator", |t| t.parse().map_err(|e: roost_model::Invalid| e.to_string()))?,
                console_binary: self.0.get("qemu.console_binary").map(|(p, _)| PathBuf::from(p)),
            },
            sim: Sim { enabled: self.parse("sim.enabled", boolean)?, hosted: self.parse("sim.hosted", boolean)? },
        })
    }

    /// Adds what follows from other settings, for showing.
    fn fill_in(&mut self, config: &Config) {
        let beside = || std::env::current_exe().ok().map(|own| own.with_file_name("roost-console"));
        let paths = [
            ("state_dir", Some(config.state_dir.clone())),
            ("runtime_dir", Some(config.runtime_dir.clone())),
            ("socket", Some(config.socket.clone())),
            ("qemu.console_binary", config.qemu.console_binary.clone().or_else(beside)),
        ];
        for (key, path) in paths {
            let Some(path) = path else { continue };
            let row = self.0.entry(key).or_insert_with(|| (String::new(), Origin::Default));
            row.0 = path.display().to_string();
        }
    }

    /// A path that somebody gave. From a flag or a variable it is relative to where the daemon was started, then
    /// and for ever; nobody knows to what it would be relative in a file.
    fn path(&self, key: &'static str) -> Result<Option<PathBuf>, ConfigError> {
        let Some((value, origin)) = self.0.get(key) else { return Ok(None) };
        let path = match origin {
            Origin::File(_) => Some(PathBuf::from(value)).filter(|path| path.is_absolute()),
            _ => std::path::absolute(value).ok(),
        };
        match path {
            Some(path) => Ok(Some(path)),
            None => Err(ConfigError::BadValue {
                origin: origin.clone(),
                key,
                value: value.clone(),
                problem: "permitted: an absolute path".to_owned(),
            }),
        }
    }

    fn parse<T>(&self, key: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Result<T, ConfigError> {
        let (value, origin) = self.0.get(key).expect("keys without a default are not parsed here");
        parse(value).map_err(|problem| ConfigError::BadValue {
            origin: origin.clone(),
            key,
            value: value.clone(),
            problem,
        })
    }
}

fn seconds(least: u64, most: u64) -> impl Fn(&str) -> Result<Duration, String> {
    move |text| match text.parse() {
        Ok(n) if (least..=most).contains(&n) => Ok(Duration::from_secs(n)),
        _ => Err(format!("permitted: {least} to {most} seconds")),
    }
}

fn count(least: usize, most: usize) -> impl Fn(&str) -> Result<usize, String> {
    move |text| match text.parse() {
        Ok(n) if (least..=most).contains(&n) => Ok(n),
        _ => Err(format!("permitted: {least} to {most}")),
    }
}

fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("permitted: true, false".to_owned()),
    }
}

fn put(
    values: &mut BTreeMap<&'static str, (String, Origin)>,
    name: &str,
    value: String,
    origin: Origin,
) -> Result<(), ConfigError> {
    match KEYS.iter().find(|k| k.name == name) {
        Some(Key { name, .. }) => {
            values.insert(name, (value, origin));
            Ok(())
        }
        None => {
            let nearest = KEYS
                .iter()
                .map(|k| (strsim::jaro_winkler(k.name, name), k.name))
                .filter(|(likeness, _)| *likeness > 0.7)
                .max_by(|a, b| a.0.total_cmp(&b.0))
                .map(|(_, name)| name);
            Err(ConfigError::UnknownKey { origin, key: name.to_owned(), nearest })
        }
    }
}

fn read_file(sources: &Sources) -> Result<Option<(PathBuf, String)>, ConfigError> {
    let (path, must_exist) = match (&sources.file, sources.env.get("ROOST_CONFIG").filter(|v| !v.is_empty())) {
        (Some(path), _) => (path.clone(), true),
        (None, Some(path)) => (PathBuf::from(path), true),
        (None, None) => (default_config_file(sources), false),
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some((path, text))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !must_exist => Ok(None),
        Err(e) => Err(ConfigError::File { path, problem: e.to_string() }),
    }
}

/// `[qemu] binary = "x"` becomes `("qemu.binary", "x")`.
fn flatten(path: &Path, text: &str) -> Result<Vec<(String, String)>, ConfigError> {
    let broken = |problem: String| ConfigError::File { path: path.to_owned(), problem };
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| broken(e.to_string()))?;
    let mut rows = Vec::new();
    let mut todo: Vec<(String, toml::Value)> = table.into_iter().collect();
    while let Some((name, value)) = todo.pop() {
        match value {
            toml::Value::Table(inner) => {
                todo.extend(inner.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
            }
            toml::Value::String(text) => rows.push((name, text)),
            toml::Value::Integer(n) => rows.push((name, n.to_string())),
            toml::Value::Boolean(b) => rows.push((name, b.to_string())),
            other => return Err(broken(format!("{name} cannot be a {}", other.type_str()))),
        }
    }
    Ok(rows)
}

fn home(sources: &Sources, xdg: &str, below_home: &str) -> PathBuf {
    let given = |name: &str| sources.env.get(name).filter(|v| v.starts_with('/')).map(PathBuf::from);
    given(xdg)
        .or_else(|| given("HOME").map(|h| h.join(below_home)))
        .unwrap_or_else(|| PathBuf::from("/").join(below_home))
}

fn default_state_dir(sources: &Sources) -> PathBuf {
    if sources.root {
        PathBuf::from("/var/lib/roost")
    } else {
        home(sources, "XDG_STATE_HOME", ".local/state").join("roost")
    }
}

fn default_config_file(sources: &Sources) -> PathBuf {
    if sources.root {
        PathBuf::from("/etc/roost/config.toml")
    } else {
        home(sources, "XDG_CONFIG_HOME", ".config").join("roost/config.toml")
    }
}

#[cfg(test)]
mod tests;
