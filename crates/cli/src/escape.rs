//! What a server or a guest sends, made fit for a terminal.
//!
//! Owns the one list of characters that may not reach a terminal as they are: control characters,
//! which terminals act on, and the marks that reverse or hide text. It knows nothing of where the
//! text comes from.

use std::borrow::Cow;
use std::fmt::Write;

/// One line of text: nothing in it moves the cursor, a line feed included.
pub(crate) fn line(text: &str) -> Cow<'_, str> {
    escaped(text, false)
}

/// Text of several lines: line feeds and tabs stay.
pub(crate) fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, true)
}

/// A JSON document in which every such character is written as `\uXXXX`. They can only stand inside
/// strings there, so that the document keeps its meaning.
pub(crate) fn json(document: &str) -> Cow<'_, str> {
    if !document.chars().any(|c| is_unsafe(c) && c != '\n') {
        return Cow::Borrowed(document);
    }
    let mut out = String::with_capacity(document.len());
    for c in document.chars() {
        if is_unsafe(c) && c != '\n' {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}").expect("a String takes everything");
            }
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// Whether a terminal would do something else with it than show it.
pub(crate) fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

fn escaped(text: &str, keep_lines: bool) -> Cow<'_, str> {
    let stays = |c: char| !is_unsafe(c) || (keep_lines && matches!(c, '\n' | '\t'));
    if text.chars().all(stays) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if stays(c) {
            out.push(c);
        } else {
            out.extend(c.escape_default());
        }
    }
    Cow::Owned(out)
}

/// What a guest writes to its console, as lines to read: colours and cursor movements become visible
/// (`^[[31m`), `\r\n` becomes `\n`. Takes the bytes in any pieces.
#[derive(Debug, Default)]
pub(crate) struct ConsoleText {
    /// The beginning of a character whose end has not come yet.
    partial: Vec<u8>,
    /// The last byte was a carriage return, and what follows decides what it meant.
    after_return: bool,
}

impl ConsoleText {
    /// The next piece.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        let mut all = std::mem::take(&mut self.partial);
        all.extend_from_slice(bytes);
        let mut out = String::with_capacity(all.len());
        let mut rest = all.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.show(text, &mut out);
                    return out;
                }
                Err(error) => {
                    let (good, bad) = rest.split_at(error.valid_up_to());
                    let good = std::str::from_utf8(good).expect("it is valid up to there");
                    self.show(good, &mut out);
                    match error.error_len() {
                        Some(length) => {
                            self.show("\u{fffd}", &mut out);
                            rest = &bad[length..];
                        }
                        None => {
                            self.partial = bad.to_vec();
                            return out;
                        }
                    }
                }
            }
        }
    }

    fn show(&mut self, text: &str, out: &mut String) {
        for c in text.chars() {
            let after_return = std::mem::replace(&mut self.after_return, c == '\r');
            if after_return && c != '\n' && c != '\r' {
                out.push_str("^M");
            }
            match c {
                '\r' => {}
                '\n' | '\t' => out.push(c),
                // As cat -v writes them.
                '\0'..='\u{1f}' => {
                    out.push('^');
                    out.push(char::from(c as u8 + b'@'));
                }
                '\u{7f}' => out.push_str("^?"),
                c if is_unsafe(c) => out.extend(c.escape_default()),
                c => out.push(c),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_character_gets_through() {
        let evil = "a\x1b]0;title\x07b\u{9b}31m\u{202e}c\u{7f}\r\n";
        for shown in [line(evil), lines(evil)] {
            assert!(!shown.chars().any(|c| is_unsafe(c) && c != '\n'), "{shown:?}");
        }
        assert!(!line(evil).contains('\n'));
        assert_eq!(line("plain — ok"), "plain — ok");
    }

    #[test]
    fn json_keeps_its_meaning() {
        let value = serde_json::json!({"a": "x\u{9b}y\u{7f}\u{202e}\u{e0001}\n"});
        let document = serde_json::to_string_pretty(&value).unwrap();
        let safe = json(&document);
        assert!(!safe.chars().any(|c| is_unsafe(c) && c != '\n'));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), value);
    }

    #[test]
    fn console_text_is_the_same_in_any_pieces() {
        let bytes = b"boot\r\n\x1b[31mred\x1b[0m\xff\xc3\xa9 50%\r 100%\r\n\x07\xc2\x9b31m end\r";
        let whole = ConsoleText::default().push(bytes);
        assert_eq!(whole, "boot\n^[[31mred^[[0m\u{fffd}é 50%^M 100%\n^G\\u{9b}31m end");
        let mut pieces = ConsoleText::default();
        let joined: String = bytes.chunks(1).map(|b| pieces.push(b)).collect();
        assert_eq!(joined, whole);
    }
}
