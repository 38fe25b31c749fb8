//! What is kept of a command's output: the head and the tail. A peer's 10 GiB cost what the limit says.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

/// What all captures of the agent may hold together.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Rc<Cell<usize>>);

impl Budget {
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Rc::new(Cell::new(bytes)))
    }

    /// Takes up to `wanted`.
    fn take(&self, wanted: usize) -> usize {
        let taken = wanted.min(self.0.get());
        self.0.set(self.0.get() - taken);
        taken
    }

    fn give(&self, bytes: usize) {
        self.0.set(self.0.get() + bytes);
    }
}

/// The head and the tail of what a program wrote.
#[derive(Debug)]
pub(crate) struct Capture {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    limit: usize,
    dropped: u64,
    budget: Budget,
}

/// Output as a response carries it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Text {
    pub(crate) text: String,
    /// Bytes left out in the middle.
    pub(crate) truncated: u64,
    /// Something in it was no UTF-8.
    pub(crate) lossy: bool,
}

impl Capture {
    pub(crate) fn new(limit: usize, budget: Budget) -> Self {
        Self { head: Vec::new(), tail: VecDeque::new(), limit, dropped: 0, budget }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let half = self.limit.div_ceil(2);
        let mut rest = bytes;
        if self.tail.is_empty() && self.dropped == 0 {
            let room = self.budget.take(rest.len().min(half - self.head.len()));
            self.head.extend_from_slice(&rest[..room]);
            rest = &rest[room..];
        }
        if rest.is_empty() {
            return;
        }
        let keep = self.limit - half;
        if rest.len() > keep {
            self.dropped += (rest.len() - keep) as u64;
            rest = &rest[rest.len() - keep..];
        }
        let room = self.budget.take(rest.len().min(keep.saturating_sub(self.tail.len())));
        // Where there is no more room, the oldest of the tail gives way.
        let gone = (rest.len() - room).min(self.tail.len());
        self.tail.drain(..gone);
        self.dropped += gone as u64;
        let rest = if rest.len() > room + gone {
            self.dropped += (rest.len() - room - gone) as u64;
            &rest[rest.len() - room - gone..]
        } else {
            rest
        };
        self.tail.extend(rest);
    }

    /// What was kept.
    pub(crate) fn finish(mut self) -> Text {
        let mut bytes = std::mem::take(&mut self.head);
        let (first, second) = self.tail.as_slices();
        let truncated = self.dropped;
        // Cut at characters, so that only what the program wrote makes it lossy.
        if truncated > 0 {
            let end = bytes.len();
            let cut = (1..=3.min(end)).find(|&back| bytes[end - back] >= 0xC0).filter(|&back| {
                let wanted = match bytes[end - back] {
                    0xF0.. => 4,
                    0xE0.. => 3,
                    _ => 2,
                };
                back < wanted
            });
            self.budget.give(cut.unwrap_or(0));
            bytes.truncate(end - cut.unwrap_or(0));
        }
        let head = bytes.len();
        bytes.extend_from_slice(first);
        bytes.extend_from_slice(second);
        self.budget.give(bytes.len());
        self.tail = VecDeque::new();
        if truncated > 0 {
            let stray = bytes[head..].iter().take(3).take_while(|&&byte| byte & 0xC0 == 0x80).count();
            bytes.drain(head..head + stray);
        }
        match String::from_utf8(bytes) {
            Ok(text) => Text { text, truncated, lossy: false },
            Err(error) => Text { text: String::from_utf8_lossy(error.as_bytes()).into_owned(), truncated, lossy: true },
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.budget.give(self.head.len() + self.tail.len());
    }
}

impl Text {
    /// Leaves out more of the middle: what it comes to in JSON may be several times its length.
    pub(crate) fn halve(&mut self) {
        let keep = self.text.len() / 4;
        let mut head = keep;
        while !self.text.is_char_boundary(head) {
            head -= 1;
        }
        let mut tail = self.text.len() - keep;
        while !self.text.is_char_boundary(tail) {
            tail += 1;
        }
        self.truncated += (tail - head) as u64;
        self.text.replace_range(head..tail, "");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn head_and_tail() {
        let mut capture = Capture::new(10, Budget::new(1000));
        for _ in 0..1000 {
            capture.push(b"abc");
        }
        let text = capture.finish();
        assert_eq!(text, Text { text: "abcabbcabc".into(), truncated: 2990, lossy: false });
    }

    #[test]
    fn a_budget_in_common_is_given_back() {
        let budget = Budget::new(100);
        let mut first = Capture::new(1000, budget.clone());
        first.push(&[b'x'; 90]);
        let mut second = Capture::new(1000, budget.clone());
        second.push(&[b'y'; 90]);
        let text = second.finish();
        assert_eq!((text.text.len(), text.truncated), (10, 80));
        assert_eq!(first.finish().text.len(), 90);
        assert_eq!(budget.0.get(), 100);
    }

    #[test]
    fn characters_are_not_cut() {
        let mut capture = Capture::new(9, Budget::new(1000));
        capture.push("ääääääääää".as_bytes());
        let text = capture.finish();
        assert!(!text.lossy, "{text:?}");
        let mut capture = Capture::new(9, Budget::new(1000));
        capture.push(b"a\xffb");
        assert!(capture.finish().lossy);
    }

    proptest! {
        #[test]
        fn never_more_than_the_limit(
            limit in 1usize..50, budget in 0usize..60,
            parts in proptest::collection::vec(proptest::collection::vec(b'a'..=b'z', 0..40), 0..20),
        ) {
            let budget_left = Budget::new(budget);
            let mut capture = Capture::new(limit, budget_left.clone());
            for part in &parts {
                capture.push(part);
            }
            let all: Vec<u8> = parts.concat();
            let text = capture.finish();
            prop_assert!(text.text.len() <= limit && text.text.len() <= budget);
            prop_assert_eq!(text.text.len() as u64 + text.truncated, all.len() as u64);
            if all.len() <= limit.min(budget) / 2 {
                prop_assert_eq!(text.text.as_bytes(), all.as_slice());
            }
            prop_assert_eq!(budget_left.0.get(), budget);
        }
    }
}
