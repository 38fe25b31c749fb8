//! Anything that a host may send, as the agent takes it: bounded, the same in any pieces, refused or understood.
#![no_main]

mod channel;

use libfuzzer_sys::fuzz_target;
use roost_guest_proto::metrics::Group;
use roost_guest_proto::{Envelope, MAX_BATCH, MAX_ID, Request, Upgrade};

fuzz_target!(|input: &[u8]| {
    let Some(script) = channel::Script::new(input) else { return };
    script.run(
        |line| match understand(line) {
            Some(Request::Hello(hello)) => hello.upgrades.contains(&Upgrade::Frames),
            _ => false,
        },
        |message| {
            understand(message);
        },
    );
});

fn understand(text: &[u8]) -> Option<Request> {
    let envelope = match Envelope::parse(text) {
        Ok(envelope) => envelope,
        Err(refused) => {
            assert!(refused.id.is_none_or(|id| id.len() <= MAX_ID));
            assert!(refused.error.message.len() <= 4096, "a refusal is not as long as what it refuses");
            return None;
        }
    };
    assert!(envelope.request.id().is_none_or(|id| id.len() <= MAX_ID));
    match &envelope.request {
        // Only ever received.
        Request::Legacy(_) => {}
        Request::Batch(batch) => assert!(batch.commands.len() <= MAX_BATCH),
        request => {
            if let Request::Metrics(metrics) = request {
                let _ = Group::parse_list(&metrics.groups);
            }
            let again = Envelope::parse(&envelope.to_json()).expect("what we say we understand");
            let inexact = serde_json::from_slice(text).is_ok_and(|value| channel::has_fraction(&value));
            assert!(again == envelope || inexact, "{envelope:?} came back as {again:?}");
        }
    }
    Some(envelope.request)
}
