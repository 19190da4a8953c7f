//! Bytes as the key set of an identity provider.
#![no_main]

use stepgate::token::{KeySet, Profile};

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    for profile in [Profile::Legacy, Profile::JwtSvid] {
        if let Ok(keys) = KeySet::parse_for(profile, text) {
            assert!(!keys.is_empty());
        }
    }
});
