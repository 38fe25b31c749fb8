//! Jobs: several commands in a guest, one after the other.

use roost_api::from_proto::guest::{Command, NewJob};
use roost_model::{Execution, ExecutionStatus, Job, Vm};

use super::{Failure, Guests};

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
                    work.await.unwrap_or_else(|broken| std::panic::resume_unwind(broken.into_panic()))
                }
                Err(error) => Err(error),
            };
            let ended = match ended {
                Ok(ended) => ended,
                Err(error) => {
                    job.status = ExecutionStatus::Failed;
                    self.engine().put_job(job).await?;
                    return Err(error);
                }
            };
            match worse(&ended) {
                None => {}
                // Nobody knows what was done: to go on would be to guess.
                Some(ExecutionStatus::Unknown) => {
                    status = ExecutionStatus::Unknown;
                    break;
                }
                Some(worse) => {
                    status = worse;
                    if job.stop_on_error {
                        break;
                    }
                }
            }
        }
        job.status = status;
        self.engine().put_job(job).await?;
        Ok(())
    }
}

fn worse(execution: &Execution) -> Option<ExecutionStatus> {
    (execution.status != ExecutionStatus::Succeeded).then_some(execution.status)
}
