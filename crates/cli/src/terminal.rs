//! The user's terminal in raw mode, and back again whatever happens.

use std::io::{self, Write};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// Undoes what a guest may have done to the terminal itself: colours, a hidden cursor, application
/// keys, bracketed paste, mouse reports.
const CALM: &[u8] = b"\x1b[0m\x1b[?25h\x1b[?1l\x1b>\x1b[?2004l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l";

/// Standard input as a raw terminal for as long as this lives. Dropped by every way out: the end of
/// the command, a signal (which drops the command), and a panic.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    before: Termios,
    stdout_is_terminal: bool,
}

impl RawTerminal {
    /// Every key goes to the guest, Ctrl-C included.
    pub(crate) fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Self { before, stdout_is_terminal: io::IsTerminal::is_terminal(&io::stdout()) })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if self.stdout_is_terminal {
            let mut out = io::stdout();
            // The terminal may be gone, and then there is nothing to calm.
            let _gone = out.write_all(CALM).and_then(|()| out.flush());
        }
        let _gone = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}
