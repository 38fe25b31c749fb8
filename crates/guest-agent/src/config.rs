//! The agent's settings: flag over `ROOST_AGENT_*` over file over default.
//!
//! Every setting is one row of a table, which gives it its name in the file (`commands.user`), in the environment
//! (`ROOST_AGENT_COMMANDS_USER`) and as a flag (`--set commands.user=...`). A name that is no setting is refused, and
//! the nearest one is named.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Value;

use crate::link::endpoint::Endpoint;
use crate::metrics;

/// Where the file is, unless a flag says otherwise. There need not be one.
pub const DEFAULT_PATH: &str = "/etc/roost/agent.toml";

const PREFIX: &str = "ROOST_AGENT_";

/// Frames that are sealed: whether they may be, have to be, or are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encryption {
    /// Where the host asks for it and there is a key.
    Optional,
    /// No session without it, and nothing but a hello in lines.
    Required,
    Off,
}

/// All settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub(crate) debug: bool,
    pub(crate) kernel_log: bool,
    pub(crate) vm_id: Option<String>,
    pub(crate) devices: Vec<Endpoint>,
    pub(crate) keep_alive: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) metrics_interval: Duration,
    pub(crate) metrics: metrics::Config,
    pub(crate) unsafe_commands: bool,
    pub(crate) user: Option<String>,
    pub(crate) timeout: Duration,
    pub(crate) grace: Duration,
    pub(crate) max_commands: usize,
    pub(crate) output_bytes: usize,
    /// `None`: as the host says.
    pub(crate) file_roots: Option<Vec<String>>,
    pub(crate) encryption: Encryption,
    pub(crate) key_file: PathBuf,
    pub(crate) key_env: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            debug: false,
            kernel_log: false,
            vm_id: None,
            devices: vec![Endpoint::Serial, Endpoint::Vsock(roost_guest_proto::VSOCK_PORT)],
            keep_alive: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(30 * 60),
            metrics_interval: Duration::from_secs(30),
            metrics: metrics::Config::default(),
            unsafe_commands: true,
            user: None,
            timeout: Duration::from_secs(30),
            grace: Duration::from_secs(5),
            max_commands: 128,
            output_bytes: 256 * 1024,
            file_roots: None,
            encryption: Encryption::Optional,
            key_file: Path::new("/sys/firmware/qemu_fw_cfg/by_name").join(roost_guest_proto::KEY_FW_CFG).join("raw"),
            key_env: None,
        }
    }
}

/// Why settings are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{path}: {message}")]
    File { path: String, message: String },
    #[error("{place}: no setting is called {name:?}; the nearest is {nearest}")]
    Unknown { place: String, name: String, nearest: String },
    #[error("{place}: {name}: {message}")]
    Value { place: String, name: String, message: String },
}

struct Setting {
    name: &'static str,
    apply: fn(&mut Config, &Value) -> Result<(), String>,
}

macro_rules! settings {
    ($($name:literal => |$config:ident, $value:ident| $apply:expr,)*) => {
        &[$(Setting { name: $name, apply: |$config, $value| { $apply; Ok(()) } },)*]
    };
}

const SETTINGS: &[Setting] = settings! {
    "debug" => |config, value| config.debug = boolean(value)?,
    "kernel_log" => |config, value| config.kernel_log = boolean(value)?,
    "vm_id" => |config, value| config.vm_id = Some(text(value)?).filter(|text| !text.is_empty()),
    "devices" => |config, value| {
        config.devices = texts(value)?.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    },
    "keep_alive_s" => |config, value| config.keep_alive = seconds(value, 5, 3600)?,
    "idle_timeout_s" => |config, value| config.idle_timeout = seconds(value, 10, 86_400)?,
    "metrics.interval_s" => |config, value| config.metrics_interval = seconds(value, 0, 86_400)?,
    "metrics.processes" => |config, value| config.metrics.processes = number(value, 0, 100)? as usize,
    "metrics.plugins" => |config, value| {
        config.metrics.plugins = Some(text(value)?).filter(|text| !text.is_empty()).map(Into::into);
    },
    "metrics.plugin_timeout_ms" => |config, value| config.metrics.plugin_timeout_ms = number(value, 1, 60_000)?,
    "metrics.plugin_interval_s" => |config, value| {
        config.metrics.plugin_interval_seconds = number(value, 1, 86_400)?;
    },
    "metrics.mount_timeout_ms" => |config, value| config.metrics.mount_timeout_ms = number(value, 1, 60_000)?,
    "metrics.static_interval_s" => |config, value| {
        config.metrics.static_interval_seconds = number(value, 1, 86_400)?;
    },
    "commands.unsafe" => |config, value| config.unsafe_commands = boolean(value)?,
    "commands.user" => |config, value| config.user = Some(text(value)?).filter(|text| !text.is_empty()),
    "commands.timeout_s" => |config, value| config.timeout = seconds(value, 1, 86_400)?,
    "commands.grace_s" => |config, value| config.grace = seconds(value, 0, 600)?,
    "commands.max" => |config, value| config.max_commands = number(value, 1, 1024)? as usize,
    "commands.output_bytes" => |config, value| {
        config.output_bytes = number(value, 1024, MAX_OUTPUT as u64)? as usize;
    },
    "files.roots" => |config, value| {
        let roots = texts(value)?;
        if let Some(root) = roots.iter().find(|root| !root.starts_with('/')) {
            return Err(format!("{root:?} is not absolute"));
        }
        config.file_roots = Some(roots);
    },
    "encryption.mode" => |config, value| {
        config.encryption = match text(value)?.as_str() {
            "optional" => Encryption::Optional,
            "required" => Encryption::Required,
            "off" => Encryption::Off,
            other => return Err(format!("{other:?}; permitted: optional, required, off")),
        };
    },
    "encryption.key_file" => |config, value| config.key_file = text(value)?.into(),
    "encryption.key_env" => |config, value| config.key_env = Some(text(value)?).filter(|text| !text.is_empty()),
};

/// The most of each of stdout and stderr that a response may be set to carry.
pub(crate) const MAX_OUTPUT: usize = 512 * 1024;

/// Where settings come from, the strongest last.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file, and whether it has to exist.
    pub file: Option<(PathBuf, bool)>,
    /// The environment's variables, whatever they are.
    pub environment: Vec<(String, String)>,
    /// `name=value`, by flags.
    pub flags: Vec<(String, String)>,
}

impl Config {
    /// The settings that the sources come to.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        if let Some((path, required)) = &sources.file {
            match std::fs::read_to_string(path) {
                Ok(text) => config.apply_file(&text, &path.display().to_string())?,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => {}
                Err(error) => {
                    let path = path.display().to_string();
                    return Err(ConfigError::File { path, message: error.to_string() });
                }
            }
        }
        for (name, value) in &sources.environment {
            if let Some(rest) = name.strip_prefix(PREFIX) {
                let known = SETTINGS.iter().find(|setting| variable(setting.name) == rest);
                let unknown = || unknown("the environment", name, |setting| format!("{PREFIX}{}", variable(setting)));
                config.apply("the environment", known.ok_or_else(unknown)?, &loose(value))?;
            }
        }
        for (name, value) in &sources.flags {
            let known = SETTINGS.iter().find(|setting| setting.name == name);
            config.apply("a flag", known.ok_or_else(|| unknown("a flag", name, str::to_owned))?, &loose(value))?;
        }
        Ok(config)
    }

    fn apply_file(&mut self, text: &str, path: &str) -> Result<(), ConfigError> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| ConfigError::File {
            path: path.to_owned(),
            message: error.to_string(),
        })?;
        self.apply_table(&table, "", path)
    }

    fn apply_table(&mut self, table: &toml::Table, prefix: &str, path: &str) -> Result<(), ConfigError> {
        for (key, value) in table {
            let name = format!("{prefix}{key}");
            if let Some(setting) = SETTINGS.iter().find(|setting| setting.name == name) {
                self.apply(path, setting, value)?;
                continue;
            }
            let inside = format!("{name}.");
            match value {
                Value::Table(table) if SETTINGS.iter().any(|setting| setting.name.starts_with(&inside)) => {
                    self.apply_table(table, &inside, path)?;
                }
                _ => return Err(unknown(path, &name, str::to_owned)),
            }
        }
        Ok(())
    }

    fn apply(&mut self, place: &str, setting: &Setting, value: &Value) -> Result<(), ConfigError> {
        (setting.apply)(self, value).map_err(|message| ConfigError::Value {
            place: place.to_owned(),
            name: setting.name.to_owned(),
            message,
        })
    }
}

fn unknown(place: &str, name: &str, shown: impl Fn(&str) -> String) -> ConfigError {
    let nearest = SETTINGS
        .iter()
        .map(|setting| shown(setting.name))
        .min_by_key(|known| strsim::damerau_levenshtein(known, name))
        .unwrap_or_default();
    ConfigError::Unknown { place: place.to_owned(), name: name.chars().take(64).collect(), nearest }
}

fn variable(name: &str) -> String {
    name.replace('.', "_").to_uppercase()
}

/// A value as a flag or variable has it: quotes are not needed, and a list has commas.
fn loose(text: &str) -> Value {
    match text {
        "true" => Value::Boolean(true),
        "false" => Value::Boolean(false),
        _ => text.parse().map(Value::Integer).unwrap_or_else(|_| Value::String(text.to_owned())),
    }
}

fn boolean(value: &Value) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| format!("{value} is neither true nor false"))
}

fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        _ => Err(format!("{value} is no text")),
    }
}

fn texts(value: &Value) -> Result<Vec<String>, String> {
    match value {
        Value::Array(values) => values.iter().map(text).collect(),
        Value::String(list) => Ok(list.split(',').map(str::trim).filter(|it| !it.is_empty()).map(Into::into).collect()),
        _ => Err(format!("{value} is no list of texts")),
    }
}

fn number(value: &Value, least: u64, most: u64) -> Result<u64, String> {
    value
        .as_integer()
        .and_then(|number| u64::try_from(number).ok())
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| format!("{value}; permitted: a whole number from {least} to {most}"))
}

fn seconds(value: &Value, least: u64, most: u64) -> Result<Duration, String> {
    number(value, least, most).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.toml");
        std::fs::write(&path, file).unwrap();
        let own = |pairs: &[(&str, &str)]| pairs.iter().map(|&(a, b)| (a.to_owned(), b.to_owned())).collect();
        Config::load(&Sources { file: Some((path, true)), environment: own(environment), flags: own(flags) })
    }

    #[test]
    fn flag_over_environment_over_file() {
        let file = "debug = true\ndevices = [\"vsock:1\"]\n[commands]\nuser = \"file\"\ntimeout_s = 7\n";
        let config = load(file, &[("ROOST_AGENT_COMMANDS_USER", "env"), ("HOME", "/x")], &[]).unwrap();
        assert_eq!((config.user.as_deref(), config.timeout.as_secs(), config.debug), (Some("env"), 7, true));
        assert_eq!(config.devices, [Endpoint::Vsock(1)]);
        let flags = [("commands.user", "1000"), ("files.roots", "/a, /b"), ("commands.unsafe", "false")];
        let config = load(file, &[("ROOST_AGENT_COMMANDS_USER", "env")], &flags).unwrap();
        assert_eq!(config.user.as_deref(), Some("1000"));
        assert_eq!(config.file_roots.unwrap(), ["/a", "/b"]);
        assert!(!config.unsafe_commands);
    }

    #[test]
    fn unknown_names_name_the_nearest() {
        let message = |result: Result<Config, ConfigError>| result.unwrap_err().to_string();
        assert!(message(load("[commands]\nusr = 1", &[], &[])).ends_with("the nearest is commands.user"));
        assert!(message(load("debgu = true", &[], &[])).contains("the nearest is debug"));
        assert!(message(load("[debug]\nx = 1", &[], &[])).contains("neither true nor false"));
        assert!(message(load("", &[("ROOST_AGENT_DEVICE", "x")], &[])).ends_with("ROOST_AGENT_DEVICES"));
        assert!(message(load("", &[], &[("files.root", "/")])).ends_with("files.roots"));
        assert!(message(load("= 3", &[], &[])).contains("agent.toml"));
    }

    #[test]
    fn values_out_of_range() {
        for (name, value) in [
            ("commands.timeout_s", "0"),
            ("commands.max", "4294967295"),
            ("commands.output_bytes", "-1"),
            ("files.roots", "relative"),
            ("devices", "tcp:1"),
            ("encryption.mode", "maybe"),
            ("debug", "1"),
        ] {
            assert!(matches!(load("", &[], &[(name, value)]), Err(ConfigError::Value { .. })), "{name}={value}");
        }
    }
}
