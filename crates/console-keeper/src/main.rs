//! `roost-console`: keeps one VM's serial line. Started by the daemon, not by hand.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use roost_console_keeper::{GUEST_FD, KeeperConfig, KeeperFds, LISTENER_FD, LOG_DIR_FD, run};
use roost_host::process::Signal;
use roost_host::{inherited, signals};

const USAGE: &str = "usage: roost-console [--cap BYTES] [--replay BYTES]

Keeps the serial line of one VM. Expects open: descriptor 3, the connected socket of the serial
port; descriptor 4, a listening Unix socket for clients; descriptor 5, the directory of console.log.

  --cap BYTES     both log files together never exceed this (default 1048576)
  --replay BYTES  what a client gets of the past when it attaches (default 4096)
";

fn main() -> ExitCode {
    match keep() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("roost-console: {error}");
            let mut cause = error.source();
            while let Some(source) = cause {
                eprintln!("  because: {source}");
                cause = source.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn keep() -> Result<(), Box<dyn std::error::Error>> {
    let mut config = KeeperConfig::default();
    let mut args = std::env::args();
    args.next();
    while let Some(option) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{option} needs a value\n{USAGE}"));
        match option.as_str() {
            "--cap" => config.log_cap_bytes = number(&option, &value()?)?,
            "--replay" => config.replay_bytes = number(&option, &value()?)?,
            "--help" | "-h" => {
                print!("{USAGE}");
                return Ok(());
            }
            _ => return Err(format!("unknown option {option:?}\n{USAGE}").into()),
        }
    }
    // Held back and never read: the end of a terminal session is not the end of a VM.
    signals::hold_back(&[Signal::HUP, Signal::INT])?;
    let fds = KeeperFds {
        guest: inherited::take(GUEST_FD)?,
        listener: inherited::take(LISTENER_FD)?,
        log_dir: inherited::take(LOG_DIR_FD)?,
        stop: Some(signals::readable_on(&[Signal::TERM])?),
    };
    Ok(run(&config, fds)?)
}

fn number<N: std::str::FromStr>(option: &str, text: &str) -> Result<N, String> {
    text.parse().map_err(|_not_a_number| format!("{option} is {text:?}: a number of bytes is permitted"))
}
