//! Any bytes from a guest: the same events however they are cut up, and no more held than one message.
#![no_main]

use libfuzzer_sys::fuzz_target;
use roost_guest_proto::{Decoder, Envelope, Event, GuestMessage, MAX_LINE, TreeDecoder};

/// What a decoder with these settings gives for bytes that come in pieces.
fn events<'a>(framed: bool, compressed: bool, pieces: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    let mut decoder = Decoder::default();
    if framed {
        decoder.use_frames(compressed, None);
    }
    let mut events = Vec::new();
    for mut piece in pieces {
        while let Some(event) = decoder.next(&mut piece) {
            if let Event::Line(text) | Event::Message(text) = &event {
                let _refused = GuestMessage::parse(text);
                let _refused = Envelope::parse(text);
            }
            events.push(format!("{event:?}"));
        }
        // A vector grows to twice of what it needs.
        assert!(decoder.held() <= 4 * MAX_LINE);
    }
    events
}

fuzz_target!(|bytes: &[u8]| {
    let [settings, bytes @ ..] = bytes else { return };
    let (framed, compressed, size) = (settings & 1 != 0, settings & 2 != 0, usize::from(settings >> 2) + 1);
    let whole = events(framed, compressed, std::iter::once(bytes));
    assert_eq!(whole, events(framed, compressed, bytes.chunks(size)));

    let mut tree = TreeDecoder::default();
    let mut rest = bytes;
    while let Ok(Some(_piece)) = tree.next(&mut rest) {}
});
