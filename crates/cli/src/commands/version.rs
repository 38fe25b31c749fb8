//! `roost version`.

use roost_client::v1::GetVersionResponse;
use serde::Serialize;

use crate::context::Context;
use crate::error::Failure;
use crate::escape;
use crate::output;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    client: &'static str,
    /// Absent when none answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    daemon: Option<GetVersionResponse>,
}

/// Runs the command. That no daemon answers is told, and no failure.
pub(crate) async fn run(context: &Context) -> Result<(), Failure> {
    let client = env!("CARGO_PKG_VERSION");
    let daemon = context.client.version().await;
    if !context.for_people() {
        return context.document(&Versions { client, daemon: daemon.ok() });
    }
    let daemon = match daemon {
        Ok(v) => format!("{} ({}, schema {}, {})", v.version, v.platform, v.schema_version, v.api_versions.join(" ")),
        Err(error) => error.to_string(),
    };
    output::print(&format!("client {client}\ndaemon {}\n", escape::line(&daemon)))
}
