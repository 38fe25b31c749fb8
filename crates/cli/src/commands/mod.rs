//! The commands, one file for each group: arguments, help and handler together.

pub(crate) mod backend;
pub(crate) mod completion;
pub(crate) mod daemon;
pub(crate) mod doctor;
pub(crate) mod guest;
pub(crate) mod operation;
pub(crate) mod version;
pub(crate) mod vm;

use roost_api::from_proto::LARGEST_PAGE;
use roost_client::Error as ClientError;

use crate::cli::Command;
use crate::context::Context;
use crate::error::Failure;

/// Page after page, until there are `limit` items or no more; 0 is all. `page` gets how many are wanted at most, and
/// the token of the page.
async fn paged<T>(
    limit: usize,
    mut page: impl AsyncFnMut(i32, String) -> Result<(Vec<T>, String), ClientError>,
) -> Result<Vec<T>, Failure> {
    let limit = if limit == 0 { usize::MAX } else { limit };
    let size = i32::try_from(limit.min(LARGEST_PAGE)).unwrap_or(i32::MAX);
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let (items, next) = page(size, token).await?;
        all.extend(items);
        if next.is_empty() || all.len() >= limit {
            all.truncate(limit);
            return Ok(all);
        }
        token = next;
    }
}

/// Runs a command.
pub(crate) async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::Vm(command) => vm::run(command, context).await,
        Command::Console(command) => command.run(context).await,
        Command::Exec(command) => command.run(context).await,
        Command::Cp(command) => command.run(context).await,
        Command::Top(command) => command.run(context).await,
        Command::Metrics(command) => command.run(context).await,
        Command::Service(command) => guest::service::run(command, context).await,
        Command::Package(command) => guest::package::run(command, context).await,
        Command::Process(command) => guest::process::run(command, context).await,
        Command::Agent(command) => guest::agent::run(command, context).await,
        Command::Execution(command) => guest::execution::run(command, context).await,
        Command::Job(command) => guest::job::run(command, context).await,
        Command::Operation(command) => operation::run(command, context).await,
        Command::Daemon(command) => daemon::run(command, context).await,
        Command::Backend(command) => backend::run(command, context).await,
        Command::Doctor => doctor::run(context).await,
        Command::Version => version::run(context).await,
        Command::Completion(command) => command.run(),
    }
}
