//! Bytes to lines: QMP is one JSON object a line.
//!
//! Owns the bound on a line's length. What a line means is [`super::message`]'s business.

use super::QmpError;

/// The longest line that is taken. The longest that QEMU 10 sends is its schema, 236 kB.
pub(crate) const LINE_LIMIT: usize = 1 << 20;

/// Collects bytes and gives out lines.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    buffer: Vec<u8>,
    /// Up to here there is no line's end.
    searched: usize,
}

impl Lines {
    /// Where the next bytes go; call [`Lines::next`] until it gives nothing after each addition.
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// The next line without its end; empty ones are skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<u8>>, QmpError> {
        loop {
            let Some(at) = self.buffer[self.searched..].iter().position(|b| *b == b'\n') else {
                self.searched = self.buffer.len();
                if self.buffer.len() > LINE_LIMIT {
                    return Err(QmpError::Oversize { limit: LINE_LIMIT });
                }
                return Ok(None);
            };
            let end = self.searched + at;
            self.searched = 0;
            let rest = self.buffer.split_off(end + 1);
            let mut line = std::mem::replace(&mut self.buffer, rest);
            line.truncate(line.trim_ascii_end().len());
            if line.len() > LINE_LIMIT {
                return Err(QmpError::Oversize { limit: LINE_LIMIT });
            }
            if !line.is_empty() {
                return Ok(Some(line));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(lines: &mut Lines) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| lines.next().unwrap()).collect()
    }

    #[test]
    fn an_endless_line_is_refused_before_memory_is() {
        let mut lines = Lines::default();
        for _ in 0..=LINE_LIMIT / 4096 {
            lines.buffer().extend_from_slice(&[b'x'; 4096]);
            if let Err(e) = lines.next() {
                assert_eq!(e, QmpError::Oversize { limit: LINE_LIMIT });
                return;
            }
        }
        panic!("never refused");
    }

    proptest! {
        #[test]
        fn lines_are_the_same_however_the_bytes_arrive(text in proptest::collection::vec(any::<u8>(), 0..200), cut in 1usize..20) {
            let mut whole = Lines::default();
            whole.buffer().extend_from_slice(&text);
            let at_once = all(&mut whole);
            let mut pieces = Lines::default();
            let mut piecewise = Vec::new();
            for piece in text.chunks(cut) {
                pieces.buffer().extend_from_slice(piece);
                piecewise.extend(all(&mut pieces));
            }
            prop_assert_eq!(at_once, piecewise);
        }
    }
}
