//! Bytes as JSON: what we take, another reader takes, too, and what we write, we read as the same.
#![no_main]

use serde_json::value::RawValue;
use stepgate::value::{DuplicateKeys, JsonLimits, json_text, parse_json};

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    for duplicates in [DuplicateKeys::Refuse, DuplicateKeys::LastWins] {
        let limits = JsonLimits { depth: 64, duplicates };
        let Ok(value) = parse_json(text, limits) else { continue };
        // Invalid UTF-8 is replaced, as Go does it; another reader refuses it.
        let plain = std::str::from_utf8(text).ok();
        assert!(plain.is_none_or(|text| serde_json::from_str::<&RawValue>(text).is_ok()), "only we take it");
        let written = json_text(&value);
        let again = parse_json(written.as_bytes(), limits).expect("what we write is JSON");
        assert_eq!(value, again, "{written}");
    }
});
