//! `roost-simhost`: holds simulated machines, so that they outlive the daemon. Started by the simulated
//! backend, or by hand.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use roost_backend_sim::{Control, HostControl, HostOptions, serve};
use roost_model::VmId;

const USAGE: &str = "usage: roost-simhost --socket PATH [--exit-when-idle SECONDS]
       roost-simhost ctl --socket PATH ACTION VM

Holds simulated machines and serves them on a Unix socket until it is killed.

  --socket PATH             where it listens
  --exit-when-idle SECONDS  it ends when it has had neither a machine nor a client for so long

ctl acts on one of its machines from outside. ACTION is one of
  power-off  the guest powers itself off      reset    the guest resets itself
  panic      the guest's kernel panics        kill     somebody kills the machine's process
  stall      the CPUs stop on an I/O error    recover  they go on after that
";

enum Task {
    Help,
    Serve(HostOptions),
    Control { socket: PathBuf, control: Control, vm: VmId },
}

fn main() -> ExitCode {
    let done = parse(std::env::args().skip(1)).map_err(Into::into).and_then(|task| match task {
        Task::Help => {
            print!("{USAGE}");
            Ok(())
        }
        task => run(task),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("roost-simhost: {error}");
            let mut cause = error.source();
            while let Some(source) = cause {
                eprintln!("  because: {source}");
                cause = source.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match task {
            Task::Help => Ok(()),
            Task::Serve(options) => {
                // The end of the session that started it is not the end of its machines. A shell's job leads
                // its group already: it cannot leave its session, and need not.
                let _ = rustix::process::setsid();
                let ready = || {
                    // Whoever started it may wait for this line, or not be there any more.
                    let _ = writeln!(stdout(), "ready");
                };
                Ok(serve(&options, ready).await?)
            }
            Task::Control { socket, control, vm } => {
                Ok(HostControl::connect(&socket).await?.control(vm, control).await?)
            }
        }
    })
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Task, String> {
    let (mut socket, mut idle, mut words, mut ctl) = (None, None, Vec::new(), false);
    let mut first = true;
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value\n{USAGE}"));
        match arg.as_str() {
            "ctl" if first => ctl = true,
            "--help" | "-h" => return Ok(Task::Help),
            "--socket" => socket = Some(PathBuf::from(value()?)),
            "--exit-when-idle" if !ctl => {
                let text = value()?;
                let seconds =
                    text.parse().map_err(|_| format!("{arg} is {text:?}: a number of seconds is permitted"))?;
                idle = Some(Duration::from_secs(seconds));
            }
            word if ctl && !word.starts_with('-') => words.push(word.to_owned()),
            _ => return Err(format!("unknown option {arg:?}\n{USAGE}")),
        }
        first = false;
    }
    let socket = socket.ok_or_else(|| format!("--socket is missing\n{USAGE}"))?;
    if !ctl {
        return Ok(Task::Serve(HostOptions { socket, exit_when_idle: idle }));
    }
    let [action, vm] = words.as_slice() else {
        return Err(format!("ctl takes an action and a VM\n{USAGE}"));
    };
    let control = action.parse().map_err(|e: roost_model::Invalid| e.to_string())?;
    let vm = vm.parse().map_err(|e: roost_model::Invalid| e.to_string())?;
    Ok(Task::Control { socket, control, vm })
}
