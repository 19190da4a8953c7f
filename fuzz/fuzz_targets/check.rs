//! Bytes as Envoy's message.
#![no_main]

libfuzzer_sys::fuzz_target!(|message: &[u8]| {
    stepgate_fuzz::must_deny(message);
});
