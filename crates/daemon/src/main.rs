//! `roostd`: the daemon's command line. What it does is in the library beside it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use roost_daemon::config::{Config, Sources};

/// The Roost daemon: one control plane for virtual machines.
#[derive(Debug, Parser)]
#[command(name = "roostd", version, after_help = EXIT_CODES)]
struct Flags {
    /// Configuration file [default: /etc/roost/config.toml as root, else $XDG_CONFIG_HOME/roost/config.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the database, volumes and logs live
    #[arg(long, value_name = "DIR")]
    state_dir: Option<String>,
    /// The API's Unix socket
    #[arg(long, value_name = "PATH")]
    socket: Option<String>,
    /// The backend of a VM that names none
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// How logs look: text or json
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// What is logged, e.g. info or roost_engine=debug
    #[arg(long, value_name = "FILTER")]
    log_level: Option<String>,
    /// Any other setting
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    settings: Vec<(String, String)>,
    /// Print every setting with its value and origin, and exit
    #[arg(long)]
    show_config: bool,
}

const EXIT_CODES: &str =
    "Exit codes: 0 ended on request; 1 cannot run (the reason is on standard error); 2 bad usage or configuration.";

fn main() -> ExitCode {
    let flags = Flags::parse();
    let sources = sources(&flags);
    let (config, effective) = match Config::load(&sources) {
        Ok(loaded) => loaded,
        Err(error) => return refuse(&error.to_string(), 2),
    };
    if flags.show_config {
        for (key, value, origin) in effective.rows() {
            println!("{key} = {value:?}  # {origin}");
        }
        return ExitCode::SUCCESS;
    }
    match roost_daemon::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refuse(&format!("{error:#}"), 1),
    }
}

fn refuse(message: &str, code: u8) -> ExitCode {
    eprintln!("roostd: {message}");
    ExitCode::from(code)
}

fn sources(flags: &Flags) -> Sources {
    let named = [
        ("state_dir", &flags.state_dir),
        ("socket", &flags.socket),
        ("backend", &flags.backend),
        ("log.format", &flags.log_format),
        ("log.level", &flags.log_level),
    ];
    let mut given: Vec<(String, String)> =
        named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?))).collect();
    given.extend(flags.settings.iter().cloned());
    // A variable that is no Unicode cannot be one of ours.
    let env: BTreeMap<String, String> =
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
    Sources { flags: given, env, file: flags.config.clone(), root: rustix::process::geteuid().is_root() }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}
