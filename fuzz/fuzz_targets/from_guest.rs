//! Anything that a guest may send, as the host takes it: bounded, the same in any pieces, refused or understood.
#![no_main]

mod channel;

use libfuzzer_sys::fuzz_target;
use roost_guest_proto::metrics::MetricsData;
use roost_guest_proto::{GuestMessage, LegacyOutput, LegacyReply, Upgrade};

fuzz_target!(|input: &[u8]| {
    let Some(script) = channel::Script::new(input) else { return };
    script.run(
        |line| match understand(line) {
            Some(GuestMessage::Handshake(handshake)) => handshake.upgrades.contains(&Upgrade::Frames),
            _ => false,
        },
        |message| {
            understand(message);
        },
    );
});

fn understand(text: &[u8]) -> Option<GuestMessage> {
    // An older vsock peer's answers.
    let _ = serde_json::from_slice::<LegacyReply>(text);
    let _ = serde_json::from_slice::<LegacyOutput>(text);
    let message = GuestMessage::parse(text).ok()?;
    let inexact = serde_json::from_slice(text).is_ok_and(|value| channel::has_fraction(&value));
    let again = GuestMessage::parse(&message.to_json()).expect("what we say we understand");
    assert!(again == message || inexact, "{message:?} came back as {again:?}");
    if let GuestMessage::Metrics(metrics) = &message
        && let Ok(mut data) = serde_json::from_value::<MetricsData>(metrics.data.clone())
    {
        let shown = serde_json::to_value(&data).expect("it was JSON");
        let inexact = channel::has_fraction(&shown);
        let again: MetricsData = serde_json::from_value(shown).expect("what we say we understand");
        assert!(again == data || inexact, "{data:?} came back as {again:?}");
        data.carry_forward(&again);
        assert!(data == again || inexact, "a frame carried onto itself is itself");
    }
    Some(message)
}
