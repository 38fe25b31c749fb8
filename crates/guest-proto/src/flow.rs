//! Credit: how much one channel of a stream may have in flight.
//!
//! A sender starts with [`WINDOW`] and loses what it sends; the receiver grants more as what it took in is used.
//! A receiver therefore never holds more than a window, and a reader that never drains stops its own stream only.

use crate::WINDOW;

/// The peer sent more than it was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{sent} bytes came where {permitted} were permitted")]
pub struct Overrun {
    pub sent: u64,
    pub permitted: u32,
}

/// What may still be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendWindow {
    left: u32,
}

impl Default for SendWindow {
    fn default() -> Self {
        Self { left: WINDOW }
    }
}

impl SendWindow {
    pub fn left(&self) -> u32 {
        self.left
    }

    /// Takes up to `wanted` bytes' worth of credit and says how many it got.
    pub fn take(&mut self, wanted: usize) -> usize {
        let taken = u32::try_from(wanted).unwrap_or(u32::MAX).min(self.left);
        self.left -= taken;
        taken as usize
    }

    /// The peer granted more. Saturates: a peer that grants without end gains nothing by it.
    pub fn grant(&mut self, bytes: u32) {
        self.left = self.left.saturating_add(bytes);
    }
}

/// What may still come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiveWindow {
    /// The peer's credit as it stands.
    open: u32,
    /// Used here, and not yet granted again.
    used: u32,
}

impl Default for ReceiveWindow {
    fn default() -> Self {
        Self { open: WINDOW, used: 0 }
    }
}

impl ReceiveWindow {
    /// `bytes` came in.
    pub fn received(&mut self, bytes: usize) -> Result<(), Overrun> {
        match u32::try_from(bytes).ok().and_then(|bytes| self.open.checked_sub(bytes)) {
            Some(open) => {
                self.open = open;
                Ok(())
            }
            None => Err(Overrun { sent: bytes as u64, permitted: self.open }),
        }
    }

    /// `bytes` of what came in were used. What to grant the peer now, if it is worth a frame.
    pub fn used(&mut self, bytes: usize) -> Option<u32> {
        self.used = self.used.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX)).min(WINDOW - self.open);
        if self.used < WINDOW / 2 {
            return None;
        }
        let grant = std::mem::take(&mut self.used);
        self.open += grant;
        Some(grant)
    }

    /// What came in and was not yet used.
    pub fn held(&self) -> u32 {
        WINDOW - self.open - self.used
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn more_than_the_window_is_an_overrun() {
        let mut window = ReceiveWindow::default();
        window.received(WINDOW as usize).unwrap();
        assert_eq!(window.received(1), Err(Overrun { sent: 1, permitted: 0 }));
        assert_eq!(window.used(WINDOW as usize), Some(WINDOW));
        window.received(1).unwrap();
    }

    proptest! {
        /// Whatever is read and granted in between, the receiver never holds more than a window, the two ends agree,
        /// and a sender that waits always gets more in the end.
        #[test]
        fn two_ends_agree(steps in proptest::collection::vec((0usize..100_000, 0usize..100_000), 1..200)) {
            let mut sender = SendWindow::default();
            let mut receiver = ReceiveWindow::default();
            let mut held = 0usize;
            for (send, use_up) in steps {
                let sent = sender.take(send);
                prop_assert!(receiver.received(sent).is_ok());
                held += sent;
                prop_assert!(held <= WINDOW as usize);
                let used = use_up.min(held);
                held -= used;
                if let Some(grant) = receiver.used(used) {
                    sender.grant(grant);
                }
                prop_assert_eq!(receiver.held() as usize, held);
                if held == 0 {
                    prop_assert!(sender.left() > 0, "nothing is held, and nothing may be sent");
                }
            }
        }
    }
}
