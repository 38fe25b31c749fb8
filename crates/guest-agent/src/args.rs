//! The command line.

use std::path::PathBuf;

use crate::config::DEFAULT_PATH;

/// What the program was told to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Be the agent.
    Run,
    /// Look at devices, permissions and drivers, and say what is wrong.
    Diagnose,
    Help,
    Version,
}

/// The command line, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    pub command: Command,
    pub config: PathBuf,
    /// The file was named, so it has to exist.
    pub config_named: bool,
    /// `name=value`, as `--set` has them; the other flags are short for some.
    pub settings: Vec<(String, String)>,
}

/// What `--help` shows.
pub const HELP: &str = "\
roost-agent: the agent of a Roost VM

It waits for its host on a virtio-serial port (org.roost.agent.0) and on vsock port 9999, and does what it is asked.

  --diagnose         look at devices, permissions and drivers; say what is wrong and what cures it
  --device DEVICE    meet the host there instead: serial, /dev/..., vsock, vsock:PORT, unix:/PATH, unix-listen:/PATH,
                     fd:NUMBER; may be repeated
  --config FILE      settings (default: /etc/roost/agent.toml, if there is one)
  --set NAME=VALUE   one setting; may be repeated
  --debug            say more
  --version          the version
  --help             this

Settings are read again on SIGHUP. The environment may hold them too: ROOST_AGENT_COMMANDS_USER is commands.user.
";

impl Args {
    /// Takes a command line apart; the program's name is not part of it.
    pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut args =
            Self { command: Command::Run, config: DEFAULT_PATH.into(), config_named: false, settings: Vec::new() };
        let mut devices: Vec<String> = Vec::new();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let (flag, attached) = match word.split_once('=') {
                Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
                None => (word, None),
            };
            let plain = |value: &Option<String>| match value {
                None => Ok(()),
                Some(_) => Err(format!("{flag} takes no value")),
            };
            match flag.as_str() {
                "--debug" => {
                    plain(&attached)?;
                    args.settings.push(("debug".into(), "true".into()));
                }
                "--diagnose" => {
                    plain(&attached)?;
                    args.command = Command::Diagnose;
                }
                "--help" | "-h" => args.command = Command::Help,
                "--version" | "-V" => args.command = Command::Version,
                "--device" | "--config" | "--set" => {
                    let Some(value) = attached.or_else(|| words.next()) else {
                        return Err(format!("{flag} takes a value"));
                    };
                    match flag.as_str() {
                        "--device" => devices.push(value),
                        "--config" => (args.config, args.config_named) = (value.into(), true),
                        _ => {
                            let (name, value) = value.split_once('=').ok_or("--set takes NAME=VALUE")?;
                            args.settings.push((name.to_owned(), value.to_owned()));
                        }
                    }
                }
                _ => return Err(format!("{flag:?} is no flag; roost-agent --help shows those there are")),
            }
        }
        if !devices.is_empty() {
            args.settings.push(("devices".into(), devices.join(",")));
        }
        Ok(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Args, String> {
        Args::parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn flags() {
        let args = parse("--debug --device fd:3 --device=vsock:7 --config /x --set commands.user=a=b").unwrap();
        assert_eq!((args.command, args.config_named), (Command::Run, true));
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            args.settings,
            [pair("debug", "true"), pair("commands.user", "a=b"), pair("devices", "fd:3,vsock:7")]
        );
        assert_eq!(parse("--diagnose").unwrap().command, Command::Diagnose);
        for wrong in ["--device", "--set x", "--debug=1", "-x", "run"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
