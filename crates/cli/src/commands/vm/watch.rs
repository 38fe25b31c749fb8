//! `roost vm watch`.

use clap::Args;
use clap_complete::ArgValueCompleter;
use roost_client::v1::{Event, WatchVmsRequest};

use crate::commands::completion::vm_names;
use crate::context::Context;
use crate::error::Failure;
use crate::escape;
use crate::output;
use crate::values::{state_word, status_word, time};

/// Prints events as they happen.
#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// Only those of these VMs, by name or ID
    #[arg(value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vms: Vec<String>,
    /// Only what follows this position
    #[arg(long, value_name = "POSITION")]
    from: Option<u64>,
    /// Begin with the VMs as they are
    #[arg(long, conflicts_with = "from")]
    snapshot: bool,
}

impl Watch {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let request = WatchVmsRequest {
            vm_ids: self.vms,
            from_position: self.from,
            snapshot: self.snapshot,
            ..Default::default()
        };
        let mut watch = context.client.watch_vms(request).await?;
        while let Some(event) = watch.next().await? {
            if context.for_people() {
                output::print(&format!("{}\n", line(&event)))?;
            } else {
                output::record(&event, context.format)?;
            }
        }
        Err(Failure::NotRunning {
            message: "the daemon ended the stream".to_owned(),
            hint: "roost daemon status; --from goes on after the last position that was printed".to_owned(),
        })
    }
}

fn line(event: &Event) -> String {
    let at = event.time.as_option().map(|t| time(t).to_string()).unwrap_or_default();
    let vm = event.vm.as_option();
    let name = vm.map_or(event.vm_id.as_str(), |vm| vm.name.as_str());
    let state = vm.map(|vm| state_word(vm.state)).unwrap_or_default();
    let operation = event.operation.as_option().map(|o| {
        let progress = o.progress.as_option().map(|p| format!(" {}%", p.percent)).unwrap_or_default();
        format!("{} {} {}{progress}", o.id, o.kind, status_word(o.status))
    });
    let line = [at.as_str(), &event.position.to_string(), &event.kind, name, &state, &operation.unwrap_or_default()];
    let words: Vec<&str> = line.into_iter().filter(|w| !w.is_empty()).collect();
    escape::line(&words.join("  ")).into_owned()
}
