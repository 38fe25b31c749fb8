//! What is asked of a living machine. Runs in the caller's task; dropping it is safe at any await.

use std::time::Duration;

use roost_backend::BackendError;
use roost_host::fault::{self, Point};
use roost_host::process::{Process, Signal};
use roost_model::ExitCause;
use roost_model::plan::Stop;
use tokio::time::Instant;

use super::{Machine, Request, Run, View, wrong_state};
use crate::config::Limits;
use crate::ending;
use crate::qmp::{Command, QmpError};

/// The longest that a killed process may take to vanish: the kernel may have to write out its files.
const KILLED: Duration = Duration::from_secs(30);

impl Machine {
    pub(crate) async fn pause(&self, limits: &Limits) -> Result<(), BackendError> {
        match self.view().run {
            Run::Paused => return Ok(()),
            Run::Ended(_) => return Err(wrong_state("pause", self.observed())),
            Run::Running | Run::Held => {}
        }
        fault::point(Point::PauseAsked);
        self.execute(Command::new("stop"), limits.command).await?;
        fault::point(Point::PauseDone);
        match self.view().run {
            Run::Ended(_) => Err(wrong_state("pause", self.observed())),
            _ => Ok(()),
        }
    }

    pub(crate) async fn resume(&self, limits: &Limits) -> Result<(), BackendError> {
        match self.view().run {
            Run::Running => return Ok(()),
            Run::Ended(_) => return Err(wrong_state("resume", self.observed())),
            Run::Paused | Run::Held => {}
        }
        fault::point(Point::ResumeAsked);
        match self.execute(Command::new("cont"), limits.command).await {
            // It ended in this very moment.
            Err(QmpError::Refused { .. }) if matches!(self.view().run, Run::Ended(_)) => {
                Err(wrong_state("resume", self.observed()))
            }
            answer => {
                answer?;
                fault::point(Point::ResumeDone);
                Ok(())
            }
        }
    }

    pub(crate) async fn shutdown(&self, stop: Stop, limits: &Limits) -> Result<ExitCause, BackendError> {
        fault::point(Point::ShutdownAsked);
        if let Stop::Graceful(grace) = stop {
            self.press_until(grace, limits, |view| matches!(view.run, Run::Ended(_))).await;
        }
        if let Run::Ended(cause) = self.view().run {
            fault::point(Point::ShutdownEnded);
            return Ok(cause);
        }
        self.quit(limits).await?;
        match self.view().run {
            Run::Ended(cause) => Ok(cause),
            // The process is gone and its actor has not come to it yet: it was we who ended it.
            _ => Ok(ExitCause::Forced),
        }
    }

    pub(crate) async fn reboot(&self, stop: Stop, limits: &Limits) -> Result<(), BackendError> {
        if matches!(self.view().run, Run::Ended(_)) {
            return Err(wrong_state("reboot", self.observed()));
        }
        let resets = self.view().resets;
        if let Stop::Graceful(grace) = stop {
            let _hold = Hold::on(self);
            let done = |view: &View| view.resets > resets || matches!(view.run, Run::Held | Run::Ended(_));
            self.press_until(grace, limits, done).await;
            let view = self.view();
            match view.run {
                Run::Ended(_) => return Err(wrong_state("reboot", self.observed())),
                // Its own way to obey: it restarted instead of powering off.
                _ if view.resets > resets => return Ok(()),
                _ => self.reset(limits).await?,
            }
            // Still held: a machine that is off runs again from here.
            return Ok(());
        }
        self.reset(limits).await
    }

    /// Resets the guest and lets it run.
    async fn reset(&self, limits: &Limits) -> Result<(), BackendError> {
        let resets = self.view().resets;
        fault::point(Point::ResetAsked);
        self.execute(Command::new("system_reset"), limits.command).await?;
        // The answer says that it will be done. Until then a machine that is off refuses to go on.
        if !self.until(limits.command, |view| view.resets > resets || view.gone).await {
            return Err(QmpError::Timeout { what: "system_reset", limit: limits.command }.into());
        }
        if self.view().run != Run::Running {
            self.execute(Command::new("cont"), limits.command).await?;
        }
        fault::point(Point::ResetDone);
        Ok(())
    }

    /// Presses the power button again and again: guests miss what comes before they are up.
    async fn press_until(&self, grace: Duration, limits: &Limits, done: impl Fn(&View) -> bool) {
        let deadline = Instant::now() + grace;
        while !done(&self.view()) && Instant::now() < deadline {
            let next = (Instant::now() + limits.press).min(deadline);
            let left = || next.saturating_duration_since(Instant::now());
            // A QEMU that does not answer is what the deadline is for.
            let _ = self.execute(Command::new("system_powerdown"), left()).await;
            self.until(left(), &done).await;
        }
    }

    /// Ends the process: by request, so that disks are flushed, and by a kill if it does not obey.
    pub(crate) async fn quit(&self, limits: &Limits) -> Result<(), BackendError> {
        if self.view().gone {
            return Ok(());
        }
        fault::point(Point::QuitAsked);
        // Worth a log only: where the mark cannot be made the end may be told as a kill, but is an end.
        if let Err(error) = ending::mark(&self.identity.run_dir).await {
            tracing::warn!(vm_id = %self.identity.definition.id, %error, "the end of a machine cannot be marked");
        }
        // The actor has ended only if the process has.
        let _ = self.requests.send(Request::EndedByUs).await;
        let heard = match self.execute(Command::new("quit"), limits.command).await {
            Ok(_) => true,
            // The same wish by another way.
            Err(QmpError::Closed) => self.processes.vmm.signal(Signal::TERM).is_ok(),
            Err(_) => false,
        };
        fault::point(Point::QuitSent);
        if heard {
            self.until(limits.quit, |view| view.gone).await;
        }
        if !self.view().gone {
            kill(&self.processes.vmm).await?;
            self.until(limits.command, |view| view.gone).await;
        }
        fault::point(Point::QuitDone);
        Ok(())
    }
}

/// Kills a process and waits until it is gone.
pub(crate) async fn kill(process: &Process) -> Result<(), BackendError> {
    let failed = |e| crate::host_error("KILL_FAILED", &e);
    process.kill().map_err(failed)?;
    if process.wait_gone(KILLED).await.map_err(failed)? {
        return Ok(());
    }
    let message = format!("process {} does not end, though killed", process.ident().pid);
    Err(BackendError::transient("KILL_FAILED", message).hint("its disk or the host's kernel hangs; see dmesg"))
}

/// While this lives, a power-off is not an end. Dropped in the middle, it is one after all.
struct Hold<'a>(&'a Machine);

impl<'a> Hold<'a> {
    fn on(machine: &'a Machine) -> Self {
        machine.hold.send_replace(true);
        Self(machine)
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.hold.send_replace(false);
    }
}
