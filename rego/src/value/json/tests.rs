use super::*;

const LIMITS: JsonLimits = JsonLimits { depth: 100, duplicates: DuplicateKeys::LastWins };

fn read(text: &[u8]) -> Result<String, JsonError> {
    parse_json(text, LIMITS).map(|value| value.to_json())
}

#[test]
fn documents_read_as_go_reads_them() {
    for (name, text, want) in [
        ("object", &b" {\"a\": [1, true, null, \"x\"]} \n"[..], r#"{"a":[1,true,null,"x"]}"#),
        ("scalar", b"42", "42"),
        ("last key wins", br#"{"a":1,"a":2}"#, r#"{"a":2}"#),
        ("big integer", b"123456789012345678901234567890", "123456789012345678901234567890"),
        ("escapes", br#""\u00e9\n\/\\""#, "\"\u{e9}\\n/\\\\\""),
        ("surrogate pair", br#""\ud83d\ude00""#, "\"\u{1f600}\""),
        ("lone high surrogate", br#""\ud83dx""#, "\"\u{fffd}x\""),
        ("high surrogate, then a letter", br#""\ud83d\u0041""#, "\"\u{fffd}A\""),
        ("invalid UTF-8", b"\"\xe2\x82\"", "\"\u{fffd}\u{fffd}\""),
    ] {
        assert_eq!(read(text).as_deref(), Ok(want), "{name}");
    }
}

#[test]
fn malformed_documents_are_refused() {
    for (name, text) in [
        ("nothing", &b""[..]),
        ("only space", b"  "),
        ("cut object", b"{\"a\":"),
        ("two documents", b"{} {}"),
        ("leading zero", b"01"),
        ("trailing comma", b"[1,]"),
        ("control character", b"\"\x01\""),
        ("byte order mark", b"\xef\xbb\xbf{}"),
        ("bare word", b"nul"),
        ("single quotes", b"'a'"),
        ("lone minus", b"-"),
        ("dot without digits", b"1."),
        ("endless exponent", b"1e999999999999"),
        ("exponent too large to keep", b"1e1000000000"),
    ] {
        assert!(read(text).is_err(), "{name}");
    }
}

#[test]
fn depth_and_number_length_are_bounded() {
    let deep = [b"[".repeat(101), b"]".repeat(101)].concat();
    assert_eq!(read(&deep), Err(JsonError::Depth(100)));
    let at_the_bound = [b"[".repeat(100), b"]".repeat(100)].concat();
    assert!(read(&at_the_bound).is_ok());
    assert_eq!(read(&b"9".repeat(MAX_NUMBER_BYTES + 1)), Err(JsonError::NumberTooLarge(0)));
}

#[test]
fn duplicates_are_refused_when_asked() {
    let strict = JsonLimits { duplicates: DuplicateKeys::Refuse, ..LIMITS };
    assert_eq!(parse_json(br#"{"a":1,"a":1}"#, strict), Err(JsonError::Duplicate(13)));
}
