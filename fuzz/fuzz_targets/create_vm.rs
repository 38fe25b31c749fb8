//! Any bytes as a request: refused, or a spec that passes its own check and survives its stored form.
#![no_main]

use buffa::Message;
use libfuzzer_sys::fuzz_target;
use roost_api::vmm::v1::CreateVmRequest;
use roost_api::{from_proto, to_proto};

fuzz_target!(|bytes: &[u8]| {
    let Ok(request) = CreateVmRequest::decode_from_slice(bytes) else { return };
    let Ok(create) = from_proto::create(request) else { return };
    create.spec.check().expect("what was read has been checked");
    let stored = serde_json::to_string(&create.spec).expect("a spec has a stored form");
    assert_eq!(serde_json::from_str::<roost_model::VmSpec>(&stored).expect("it reads back"), create.spec);
    let again = from_proto::spec(to_proto::spec(&create.spec)).expect("what we say we understand");
    assert_eq!(again, create.spec);
});
