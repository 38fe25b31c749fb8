//! What the kernel's text files have in common: lines of fields, whole numbers, names of any bytes.
//!
//! Nothing here fails on odd bytes: a field that is no number is `None`, and what is shown is made printable.

/// The lines of a text, without their newlines.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty())
}

/// What white space divides.
pub(super) fn fields(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty())
}

/// A whole number of digits alone. `None` too where it does not fit.
pub(super) fn number(field: &[u8]) -> Option<u64> {
    if field.is_empty() {
        return None;
    }
    field.iter().try_fold(0u64, |value, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        value.checked_mul(10)?.checked_add(digit.into())
    })
}

/// The same in sixteens, of any case.
pub(super) fn hexadecimal(field: &[u8]) -> Option<u64> {
    if field.is_empty() || field.len() > 16 {
        return None;
    }
    field.iter().try_fold(0u64, |value, &byte| Some(value << 4 | u64::from((byte as char).to_digit(16)?)))
}

/// A number with a fraction, from 0; no infinity and no NaN.
pub(super) fn decimal(field: &[u8]) -> Option<f64> {
    let value: f64 = std::str::from_utf8(field).ok()?.parse().ok()?;
    (value.is_finite() && value >= 0.0).then_some(value)
}

/// Text as it may be shown, of at most `max` bytes: what is no UTF-8 is replaced, and control characters are `?`.
pub(super) fn printable(text: &[u8], max: usize) -> String {
    // Longer input cannot make shorter output, so the rest need not be looked at.
    let text = &text[..text.len().min(max)];
    let mut shown = String::with_capacity(text.len());
    for chunk in text.utf8_chunks() {
        for character in chunk.valid().chars() {
            push_within(&mut shown, if character.is_control() { '?' } else { character }, max);
        }
        if !chunk.invalid().is_empty() {
            push_within(&mut shown, char::REPLACEMENT_CHARACTER, max);
        }
    }
    shown
}

fn push_within(text: &mut String, character: char, max: usize) {
    if text.len() + character.len_utf8() <= max {
        text.push(character);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_digits_that_fit() {
        assert_eq!(number(b"0"), Some(0));
        assert_eq!(number(b"18446744073709551615"), Some(u64::MAX));
        for wrong in [&b""[..], b"18446744073709551616", b"-1", b"+1", b"1.0", b" 1", b"1 ", b"0x1", b"\xff"] {
            assert_eq!(number(wrong), None, "{wrong:?}");
        }
        assert_eq!(hexadecimal(b"0016"), Some(22));
        assert_eq!(hexadecimal(b"fFfFfFfFfFfFfFfF"), Some(u64::MAX));
        for wrong in [&b""[..], b"g", b"00000000000000001", b"-1"] {
            assert_eq!(hexadecimal(wrong), None, "{wrong:?}");
        }
        for wrong in [&b"nan"[..], b"inf", b"-0.5", b"", b"1e999"] {
            assert_eq!(decimal(wrong), None, "{wrong:?}");
        }
        assert_eq!(decimal(b"12.75"), Some(12.75));
    }

    #[test]
    fn what_is_shown_holds_no_control_character() {
        assert_eq!(printable(b"a\x1b[31mred\n\x00\x7f", 64), "a?[31mred???");
        assert_eq!(printable(b"\xff\xfe", 64), "\u{fffd}\u{fffd}");
        assert_eq!(printable("\u{9b}x".as_bytes(), 64), "?x");
        assert_eq!(printable("äöü".as_bytes(), 3), "ä");
    }

    proptest! {
        #[test]
        fn what_is_shown_is_bounded_and_printable(bytes in proptest::collection::vec(any::<u8>(), 0..200), max in 0usize..100) {
            let shown = printable(&bytes, max);
            prop_assert!(shown.len() <= max);
            prop_assert!(!shown.chars().any(char::is_control));
        }

        #[test]
        fn a_number_is_what_was_written(value in any::<u64>()) {
            prop_assert_eq!(number(value.to_string().as_bytes()), Some(value));
            prop_assert_eq!(hexadecimal(format!("{value:X}").as_bytes()), Some(value));
        }
    }
}
