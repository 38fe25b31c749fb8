//! `roost doctor`.

use std::fmt::Write;

use roost_client::v1::finding::Severity;
use roost_client::v1::{DoctorResponse, Finding};

use crate::context::Context;
use crate::error::Failure;
use crate::escape;
use crate::output;

/// Runs the command. An error among the findings is exit code 1.
pub(crate) async fn run(context: &Context) -> Result<(), Failure> {
    let findings: Vec<Finding> = context.client.doctor().await?;
    let broken = findings.iter().any(|f| f.severity.as_known() == Some(Severity::SEVERITY_ERROR));
    if context.for_people() {
        let shown: String = findings.iter().filter(|f| !context.quiet || is_bad(f)).map(text).collect();
        output::print(&shown)?;
    } else {
        context.document(&DoctorResponse { findings, ..Default::default() })?;
    }
    if broken { Err(Failure::Told(1)) } else { Ok(()) }
}

fn is_bad(finding: &Finding) -> bool {
    !matches!(finding.severity.as_known(), Some(Severity::SEVERITY_OK | Severity::SEVERITY_INFO))
}

fn text(finding: &Finding) -> String {
    let word = match finding.severity.as_known() {
        Some(Severity::SEVERITY_OK) => "ok",
        Some(Severity::SEVERITY_INFO) => "info",
        Some(Severity::SEVERITY_WARNING) => "warning",
        Some(Severity::SEVERITY_ERROR) => "error",
        Some(Severity::SEVERITY_UNSPECIFIED) | None => "?",
    };
    let mut out = format!("{word:<8} {}\n", escape::line(&finding.title));
    for (label, value) in [("", &finding.detail), ("try: ", &finding.fix)] {
        for line in escape::lines(value).lines() {
            writeln!(out, "         {label}{line}").expect("a String takes everything");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_says_what_to_do() {
        let finding = Finding {
            severity: Severity::SEVERITY_WARNING.into(),
            title: "KVM does not work".to_owned(),
            detail: "a\nb\x1b".to_owned(),
            fix: "modprobe kvm".to_owned(),
            ..Default::default()
        };
        let shown = "warning  KVM does not work\n         a\n         b\\u{1b}\n         try: modprobe kvm\n";
        assert_eq!(text(&finding), shown);
        assert!(is_bad(&finding));
    }
}
