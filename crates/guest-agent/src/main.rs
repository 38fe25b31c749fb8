//! `roost-agent`.

use std::process::ExitCode;

use roost_guest_agent::args::{Args, Command, HELP};
use roost_guest_agent::config::{Config, Sources};
use roost_guest_agent::{Agent, diagnose, error, freeze};

/// A mistake in how it was called or set up, as sysexits.h has it: a supervisor that starts it again gains nothing.
const USAGE: u8 = 64;
const CONFIG: u8 = 78;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(freeze::GUARD_ARG) {
        return freeze::guard_main();
    }
    let words = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
    let args = match Args::parse(words) {
        Ok(args) => args,
        Err(message) => {
            error!("{message}");
            return USAGE.into();
        }
    };
    match args.command {
        Command::Help => print(HELP),
        Command::Version => print(concat!("roost-agent ", env!("CARGO_PKG_VERSION"), "\n")),
        Command::Diagnose => {
            let device = args.settings.iter().find(|(name, _)| name == "devices").map(|(_, value)| value.into());
            match diagnose::run(&diagnose::Options { device }, &mut std::io::stdout()) {
                Ok(code) => code.into(),
                Err(_) => ExitCode::FAILURE,
            }
        }
        Command::Run => run(args),
    }
}

fn print(text: &str) -> ExitCode {
    use std::io::Write;
    if std::io::stdout().write_all(text.as_bytes()).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(args: Args) -> ExitCode {
    roost_guest_agent::prepare();
    let sources = Sources {
        file: Some((args.config, args.config_named)),
        environment: std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .collect(),
        flags: args.settings,
    };
    let config = match Config::load(&sources) {
        Ok(config) => config,
        Err(problem) => {
            error!("{problem}");
            return CONFIG.into();
        }
    };
    match Agent::new(sources, config).and_then(Agent::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            error!("{problem}");
            ExitCode::FAILURE
        }
    }
}
