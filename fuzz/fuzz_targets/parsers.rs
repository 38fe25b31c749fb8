//! Any text as a name, a size, a path, an address, a time or an ID: refused, or it round-trips.
#![no_main]

use std::fmt::{Debug, Display};
use std::str::FromStr;

use libfuzzer_sys::fuzz_target;
use roost_model::spec::{AbsolutePath, KernelArgs, MacAddress};
use roost_model::{BackendName, Bytes, Timestamp, VmId, VmName};

fn round_trip<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string().parse::<T>().ok(), Some(value));
    }
}

fuzz_target!(|text: &str| {
    round_trip::<VmName>(text);
    round_trip::<BackendName>(text);
    round_trip::<AbsolutePath>(text);
    round_trip::<KernelArgs>(text);
    round_trip::<MacAddress>(text);
    round_trip::<Bytes>(text);
    round_trip::<VmId>(text);
    round_trip::<Timestamp>(text);
});
