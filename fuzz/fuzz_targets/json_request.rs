//! Any JSON as a request: refused with a path, or read. Never a panic, whatever its depth.
#![no_main]

use libfuzzer_sys::fuzz_target;
use roost_api::strict_json;
use roost_api::vmm::v1::CreateVmRequest;

fuzz_target!(|bytes: &[u8]| {
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(bytes) else { return };
    let _refused = strict_json::read::<CreateVmRequest>("vmm.v1.CreateVmRequest", value);
});
