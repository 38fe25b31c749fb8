//! Logs: text for people, JSON for machines, with fixed field names (`vm_id`, `backend`,
//! `operation_id`, `error`).

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogFormat;

/// Installs the process's log on standard error. `level` is a `tracing` filter.
pub(crate) fn install(format: LogFormat, level: &str) -> anyhow::Result<()> {
    let filter: Targets = level.parse()?;
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text => {
            registry.with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false)).try_init()?
        }
        LogFormat::Json => {
            let layer = tracing_subscriber::fmt::layer().json().flatten_event(true).with_current_span(false);
            registry.with(layer.with_writer(std::io::stderr)).try_init()?;
        }
    }
    Ok(())
}
