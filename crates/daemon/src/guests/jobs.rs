//! Jobs: several commands in a guest, one after the other.

use roost_api::from_proto::guest::{Command, NewJob};
use roost_model::{ExecutionStatus, Job, Vm};

use super::{Failure, Guests, joined};

impl Guests {
    /// Writes a job down and begins it. Values of variables live no longer than this daemon, and neither does the job.
    pub(crate) async fn start_job(&self, vm: Vm, new: NewJob) -> Result<Job, Failure> {
        let NewJob { vm: _, name, commands, stop_on_error } = new;
        let kept = commands.iter().map(Command::of_job).collect();
        let job = self.engine().begin_job(&vm, name, kept, stop_on_error).await?;
        let guests = self.clone();
        let begun = job.clone();
        tokio::spawn(async move {
            let id = begun.id;
            if let Err(error) = guests.carry_out(vm, begun, commands).await {
                tracing::error!(job_id = %id, error = %error, "a job broke off");
            }
        });
        Ok(job)
    }

    async fn carry_out(&self, vm: Vm, mut job: Job, commands: Vec<Command>) -> Result<(), Failure> {
        let mut status = ExecutionStatus::Succeeded;
        for command in commands {
            let ended = match self.run(&vm, Some(job.id), command, Vec::new()).await {
                Ok((execution, work)) => {
                    job.executions.push(execution.id);
                    job = self.engine().put_job(job).await?;
                    joined(work).await
                }
                Err(error) => Err(error),
            };
            match ended {
                Ok(ended) if ended.outcome.status == ExecutionStatus::Succeeded => continue,
                Ok(ended) => status = ended.outcome.status,
                Err(error) => {
                    job.status = ExecutionStatus::Failed;
                    self.engine().put_job(job).await?;
                    return Err(error);
                }
            }
            // Where nobody knows what was done, to go on would be to guess.
            if job.stop_on_error || status == ExecutionStatus::Unknown {
                break;
            }
        }
        job.status = status;
        self.engine().put_job(job).await?;
        Ok(())
    }
}
