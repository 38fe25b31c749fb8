//! `roost vm logs`.

use clap::Args;
use clap_complete::ArgValueCompleter;
use roost_client::v1::GetConsoleLogRequest;

use crate::commands::completion::vm_names;
use crate::context::Context;
use crate::error::Failure;
use crate::escape::ConsoleText;
use crate::output;

/// A line of a log is seldom longer.
const USUAL_LINE: u64 = 256;

/// Prints what the guest wrote to its serial console.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Name or ID
    #[arg(value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vm: String,
    /// Only the last N lines [default: all that is kept]
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    tail: Option<u32>,
    /// Go on with what the guest writes next
    #[arg(long, short)]
    follow: bool,
    /// Exactly what the guest wrote, control characters included
    #[arg(long)]
    raw: bool,
}

impl Logs {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut text = ConsoleText::default();
        let mut ends_a_line = true;
        let mut show = |bytes: &[u8]| {
            ends_a_line = bytes.last().map_or(ends_a_line, |b| *b == b'\n');
            if self.raw { output::write(bytes) } else { output::print(&text.push(bytes)) }
        };
        let mut tail_bytes = u64::MAX;
        if let Some(lines) = self.tail {
            let last = last_lines(context, &self.vm, lines as usize).await?;
            if !self.follow {
                show(&last)?;
                return self.finish(ends_a_line);
            }
            // Followed from the same place; a stream's zero would mean "as usual".
            tail_bytes = (last.len() as u64).max(1);
        }
        let request =
            GetConsoleLogRequest { vm_id: self.vm.clone(), tail_bytes, follow: self.follow, ..Default::default() };
        let mut log = context.client.console_log(request).await?;
        while let Some(bytes) = log.next().await? {
            show(&bytes)?;
        }
        self.finish(ends_a_line)
    }

    /// A prompt waits at the end of its line; ours comes on the next.
    fn finish(&self, ends_a_line: bool) -> Result<(), Failure> {
        if ends_a_line || self.raw { Ok(()) } else { output::print("\n") }
    }
}

/// As many bytes as hold that many lines, or all there are.
async fn last_lines(context: &Context, vm: &str, lines: usize) -> Result<Vec<u8>, Failure> {
    let mut ask = (lines as u64).saturating_mul(USUAL_LINE).max(64 << 10);
    let mut before = 0;
    loop {
        let request = GetConsoleLogRequest { vm_id: vm.to_owned(), tail_bytes: ask, ..Default::default() };
        let mut log = context.client.console_log(request).await?;
        let mut bytes = Vec::new();
        while let Some(more) = log.next().await? {
            bytes.extend_from_slice(&more);
        }
        let all = (bytes.len() as u64) < ask || bytes.len() <= before;
        let (from, whole) = start_of(&bytes, lines);
        if whole || all {
            return Ok(bytes.split_off(from));
        }
        before = bytes.len();
        ask = ask.saturating_mul(4);
    }
}

/// Where the last `lines` lines begin, and whether there are so many.
fn start_of(bytes: &[u8], lines: usize) -> (usize, bool) {
    let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let nth = body.iter().enumerate().rev().filter(|(_, b)| **b == b'\n').nth(lines.saturating_sub(1));
    nth.map_or((0, false), |(i, _)| (i + 1, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_found() {
        let log = b"a\r\nb\r\nc\r\n# ";
        let last = |n| String::from_utf8_lossy(&log[start_of(log, n).0..]).into_owned();
        assert_eq!(last(1), "# ");
        assert_eq!(last(2), "c\r\n# ");
        assert_eq!(last(9), "a\r\nb\r\nc\r\n# ");
        assert_eq!(start_of(b"a\nb\n", 1), (2, true));
        assert_eq!(start_of(b"a\nb\n", 2), (0, false));
        assert_eq!(start_of(b"", 3), (0, false));
    }
}
