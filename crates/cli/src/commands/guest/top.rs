//! `roost top`: the processes of a guest, again and again.

use std::io::{self, IsTerminal};
use std::time::Duration;

use clap::Args;
use clap_complete::ArgValueCompleter;
use roost_client::v1::{GetMetricsRequest, ListProcessesRequest};

use super::metrics::Figures;
use super::process::{COLUMNS, row};
use crate::commands::completion::vm_names;
use crate::context::Context;
use crate::error::Failure;
use crate::escape;
use crate::output;
use crate::values::duration;

/// What a list takes besides its rows: two lines of figures, its headings, and the last line.
const OTHER_LINES: u32 = 5;

/// The processes of a guest that do the most.
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// How often
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "2s")]
    interval: Duration,
    /// Once, and no more
    #[arg(long)]
    once: bool,
    /// By what they are ordered
    #[arg(long, value_name = "WHAT", value_parser = ["cpu", "memory", "pid", "name"], default_value = "cpu")]
    sort: String,
    /// Name or ID
    #[arg(value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vm: String,
}

impl Top {
    /// Runs the command, until it is interrupted.
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let screen = io::stdout().is_terminal() && context.for_people() && !self.once;
        loop {
            let rows = rustix::termios::tcgetwinsize(io::stdout()).map_or(0, |size| u32::from(size.ws_row));
            let limit = if screen && rows > OTHER_LINES { rows - OTHER_LINES } else { 50 };
            let request = ListProcessesRequest {
                vm_id: self.vm.clone(),
                limit,
                sort_by: self.sort.clone(),
                ..Default::default()
            };
            let processes = context.client.list_processes(request).await?;
            if !context.for_people() {
                return context.document(&processes);
            }
            let request = GetMetricsRequest { vm_id: self.vm.clone(), ..Default::default() };
            let metrics = context.client.get_metrics(request).await?;
            if screen {
                output::write(b"\x1b[H\x1b[2J")?;
            }
            if let Some(sample) = metrics.metrics.as_option() {
                let figures = Figures::of(sample);
                output::print(&format!(
                    "{}  up {}  load {}  cpu {}  memory {}\n\n",
                    escape::line(&self.vm),
                    figures.uptime(),
                    figures.load(),
                    figures.cpu(),
                    figures.memory()
                ))?;
            }
            output::table(&COLUMNS, processes.processes.iter().map(row))?;
            if !screen {
                return Ok(());
            }
            tokio::time::sleep(self.interval.max(Duration::from_millis(200))).await;
        }
    }
}
