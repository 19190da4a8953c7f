//! Calls of every built-in function with hostile arguments: long texts, deep and wide values, long numbers, patterns that explode.
//!
//! [`ROWS`] says which kinds of arguments a function takes. A function without a row fails the tests that walk the table.

use std::cell::Cell;
use std::collections::BTreeMap;

use stepgate_rego::Options;
use stepgate_rego::value::Number;
use stepgate_rego::{
    EvalError, EvalOptions, Host, HttpClient, HttpError, HttpRequest, HttpResponse, Limits, Policy, Source, Value,
    Version, compile, parse_yaml,
};

/// The kind of a function's argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Text,
    Texts,
    Number,
    Numbers,
    Any,
    Array,
    Object,
    Set,
    /// A set of sets.
    Sets,
    Objects,
    /// Small and fixed: a count, a base, a flag.
    Fixed(i64),
    Word(&'static str),
    Pattern,
    Glob,
    Delimiters,
    Networks,
    Network,
    Json,
    Yaml,
    Base64,
    Hex,
    Query,
    Url,
    Token,
    Keys,
    Certificates,
    PrivateKeys,
    Graph,
    Patch,
    Paths,
    Amount,
    Version,
    Format,
    Time,
    Layout,
    Replacements,
    Request,
    AwsRequest,
    AwsSettings,
    Constraints,
    Header,
    PrintArgs,
}

use Kind::*;

/// Each function with the kinds of its arguments.
pub const ROWS: &[(&str, &[Kind])] = &[
    ("print", &[PrintArgs]),
    ("walk", &[Any]),
    ("internal.test_panic", &[]),
    ("count", &[Any]),
    ("sum", &[Numbers]),
    ("product", &[Numbers]),
    ("max", &[Array]),
    ("min", &[Array]),
    ("sort", &[Array]),
    ("all", &[Array]),
    ("any", &[Array]),
    ("internal.member_2", &[Any, Array]),
    ("internal.member_3", &[Any, Any, Object]),
    ("type_name", &[Any]),
    ("is_null", &[Any]),
    ("is_boolean", &[Any]),
    ("is_number", &[Any]),
    ("is_string", &[Any]),
    ("is_array", &[Any]),
    ("is_object", &[Any]),
    ("is_set", &[Any]),
    ("to_number", &[Amount]),
    ("cast_array", &[Set]),
    ("cast_set", &[Array]),
    ("cast_string", &[Text]),
    ("cast_boolean", &[Any]),
    ("cast_null", &[Any]),
    ("cast_object", &[Object]),
    ("eq", &[Any, Any]),
    ("equal", &[Any, Any]),
    ("neq", &[Any, Any]),
    ("lt", &[Any, Any]),
    ("lte", &[Any, Any]),
    ("gt", &[Any, Any]),
    ("gte", &[Any, Any]),
    ("plus", &[Number, Number]),
    ("mul", &[Number, Number]),
    ("minus", &[Number, Number]),
    ("div", &[Number, Number]),
    ("rem", &[Number, Number]),
    ("abs", &[Number]),
    ("round", &[Number]),
    ("ceil", &[Number]),
    ("floor", &[Number]),
    ("bits.or", &[Number, Number]),
    ("bits.and", &[Number, Number]),
    ("bits.xor", &[Number, Number]),
    ("bits.negate", &[Number]),
    ("bits.lsh", &[Number, Fixed(100_000)]),
    ("bits.rsh", &[Number, Fixed(5)]),
    ("numbers.range", &[Fixed(0), Number]),
    ("numbers.range_step", &[Fixed(0), Number, Fixed(3)]),
    ("rand.intn", &[Text, Number]),
    ("and", &[Set, Set]),
    ("or", &[Set, Set]),
    ("set_diff", &[Set, Set]),
    ("intersection", &[Sets]),
    ("union", &[Sets]),
    ("array.concat", &[Array, Array]),
    ("array.flatten", &[Array]),
    ("array.slice", &[Array, Fixed(1), Fixed(1 << 40)]),
    ("array.reverse", &[Array]),
    ("object.get", &[Object, Array, Any]),
    ("object.keys", &[Object]),
    ("object.union", &[Object, Object]),
    ("object.union_n", &[Objects]),
    ("object.remove", &[Object, Array]),
    ("object.filter", &[Object, Array]),
    ("object.subset", &[Array, Array]),
    ("json.filter", &[Object, Paths]),
    ("json.remove", &[Object, Paths]),
    ("json.patch", &[Object, Patch]),
    ("graph.reachable", &[Graph, Array]),
    ("graph.reachable_paths", &[Graph, Array]),
    ("crypto.x509.parse_certificates", &[Certificates]),
    ("crypto.x509.parse_certificate_request", &[Certificates]),
    ("crypto.x509.parse_and_verify_certificates", &[Certificates]),
    ("crypto.x509.parse_and_verify_certificates_with_options", &[Certificates, Word("{}")]),
    ("crypto.x509.parse_keypair", &[Certificates, PrivateKeys]),
    ("crypto.x509.parse_rsa_private_key", &[PrivateKeys]),
    ("crypto.parse_private_keys", &[PrivateKeys]),
    ("crypto.md5", &[Text]),
    ("crypto.sha1", &[Text]),
    ("crypto.sha256", &[Text]),
    ("crypto.hmac.md5", &[Text, Text]),
    ("crypto.hmac.sha1", &[Text, Text]),
    ("crypto.hmac.sha256", &[Text, Text]),
    ("crypto.hmac.sha512", &[Text, Text]),
    ("crypto.hmac.equal", &[Text, Text]),
    ("json.marshal", &[Any]),
    (
        "json.marshal_with_options",
        &[Any, Word("{\"indent\": \"        \", \"prefix\": \"xxxxxxxx\", \"pretty\": true}")],
    ),
    ("json.unmarshal", &[Json]),
    ("json.is_valid", &[Json]),
    ("yaml.marshal", &[Any]),
    ("yaml.unmarshal", &[Yaml]),
    ("yaml.is_valid", &[Yaml]),
    ("base64.encode", &[Text]),
    ("base64.decode", &[Base64]),
    ("base64.is_valid", &[Base64]),
    ("base64url.encode", &[Text]),
    ("base64url.encode_no_pad", &[Text]),
    ("base64url.decode", &[Base64]),
    ("hex.encode", &[Text]),
    ("hex.decode", &[Hex]),
    ("urlquery.encode", &[Text]),
    ("urlquery.decode", &[Query]),
    ("urlquery.encode_object", &[Replacements]),
    ("urlquery.decode_object", &[Query]),
    ("uri.parse", &[Url]),
    ("uri.is_valid", &[Url]),
    ("http.send", &[Request]),
    ("net.cidr_contains", &[Network, Network]),
    ("net.cidr_overlap", &[Network, Network]),
    ("net.cidr_intersects", &[Network, Network]),
    ("net.cidr_is_valid", &[Network]),
    ("net.cidr_contains_matches", &[Networks, Networks]),
    ("net.cidr_expand", &[Network]),
    ("net.cidr_merge", &[Networks]),
    ("regex.match", &[Pattern, Text]),
    ("re_match", &[Pattern, Text]),
    ("regex.is_valid", &[Pattern]),
    ("regex.split", &[Pattern, Text]),
    ("regex.find_n", &[Pattern, Text, Fixed(-1)]),
    ("regex.find_all_string_submatch_n", &[Pattern, Text, Fixed(-1)]),
    ("regex.replace", &[Text, Pattern, Text]),
    ("regex.template_match", &[Pattern, Text, Word("{"), Word("}")]),
    ("regex.globs_match", &[Glob, Glob]),
    ("glob.match", &[Glob, Delimiters, Text]),
    ("glob.quote_meta", &[Text]),
    ("providers.aws.sign_req", &[AwsRequest, AwsSettings, Fixed(1_700_000_000_000_000_000)]),
    ("concat", &[Text, Texts]),
    ("contains", &[Text, Text]),
    ("startswith", &[Text, Text]),
    ("endswith", &[Text, Text]),
    ("strings.any_prefix_match", &[Texts, Texts]),
    ("strings.any_suffix_match", &[Texts, Texts]),
    ("strings.reverse", &[Text]),
    ("strings.count", &[Text, Text]),
    ("strings.replace_n", &[Replacements, Text]),
    ("strings.split_n", &[Text, Text, Fixed(-9)]),
    ("format_int", &[Number, Fixed(2)]),
    ("indexof", &[Text, Text]),
    ("indexof_n", &[Text, Text]),
    ("substring", &[Text, Fixed(1), Fixed(-1)]),
    ("lower", &[Text]),
    ("upper", &[Text]),
    ("replace", &[Text, Text, Text]),
    ("split", &[Text, Text]),
    ("trim", &[Text, Text]),
    ("trim_left", &[Text, Text]),
    ("trim_right", &[Text, Text]),
    ("trim_prefix", &[Text, Text]),
    ("trim_suffix", &[Text, Text]),
    ("trim_space", &[Text]),
    ("sprintf", &[Format, Array]),
    ("internal.template_string", &[Array]),
    ("internal.test_case", &[Array]),
    ("time.now_ns", &[]),
    ("time.parse_ns", &[Layout, Layout]),
    ("time.parse_rfc3339_ns", &[Layout]),
    ("time.parse_duration_ns", &[Layout]),
    ("time.format", &[Time]),
    ("time.date", &[Time]),
    ("time.clock", &[Time]),
    ("time.weekday", &[Time]),
    ("time.add_date", &[Time, Fixed(1), Fixed(1), Fixed(1)]),
    ("time.diff", &[Time, Time]),
    ("io.jwt.decode", &[Token]),
    ("io.jwt.verify_rs256", &[Token, Keys]),
    ("io.jwt.verify_rs384", &[Token, Keys]),
    ("io.jwt.verify_rs512", &[Token, Keys]),
    ("io.jwt.verify_ps256", &[Token, Keys]),
    ("io.jwt.verify_ps384", &[Token, Keys]),
    ("io.jwt.verify_ps512", &[Token, Keys]),
    ("io.jwt.verify_es256", &[Token, Keys]),
    ("io.jwt.verify_es384", &[Token, Keys]),
    ("io.jwt.verify_es512", &[Token, Keys]),
    ("io.jwt.verify_eddsa", &[Token, Keys]),
    ("io.jwt.verify_hs256", &[Token, Text]),
    ("io.jwt.verify_hs384", &[Token, Text]),
    ("io.jwt.verify_hs512", &[Token, Text]),
    ("io.jwt.decode_verify", &[Token, Constraints]),
    ("io.jwt.encode_sign", &[Header, Any, Header]),
    ("io.jwt.encode_sign_raw", &[Json, Json, Keys]),
    ("units.parse", &[Amount]),
    ("units.parse_bytes", &[Amount]),
    ("semver.compare", &[Version, Version]),
    ("semver.is_valid", &[Version]),
    ("uuid.rfc4122", &[Text]),
    ("uuid.parse", &[Hex]),
    ("opa.runtime", &[]),
    ("trace", &[Text]),
    ("net.lookup_ip_addr", &[Text]),
];

/// One call: the place of its function in [`ROWS`], what is large, and its arguments.
pub struct Call {
    pub row: usize,
    pub what: String,
    pub input: Value,
}

/// All calls: the same kind of hostile value of 64 KB everywhere, and each place alone with ones of `sizes`.
pub fn calls(row: usize, sizes: &[usize]) -> Vec<Call> {
    let Some((name, kinds)) = ROWS.get(row) else { return Vec::new() };
    let mut calls = Vec::new();
    let mut made: BTreeMap<(String, usize), Vec<Value>> = BTreeMap::new();
    let mut pick = |kind: &Kind, bytes: usize, variant: usize| {
        let all = made.entry((format!("{kind:?}"), bytes)).or_insert_with(|| hostile(*kind, bytes));
        all.get(variant % all.len().max(1)).cloned().unwrap_or_default()
    };
    let mut add = |what: String, args: Vec<Value>| {
        let names = ["a", "b", "c", "d"];
        let input = names.into_iter().zip(args).collect();
        calls.push(Call { row, what: format!("{name}: {what}"), input });
    };
    let variants: Vec<usize> = kinds.iter().map(|kind| hostile(*kind, 64).len()).collect();
    for variant in 0..variants.iter().copied().max().unwrap_or(1) {
        let args = kinds.iter().map(|kind| pick(kind, 64_000, variant)).collect();
        add(format!("64 KB everywhere, {variant}"), args);
        for (place, kind) in kinds.iter().enumerate().filter(|(_, kind)| !matches!(kind, Fixed(_) | Word(_))) {
            if variants.get(place).is_some_and(|variants| *variants <= variant) {
                continue;
            }
            for &bytes in sizes {
                let size = |at: usize| if at == place { bytes } else { 64 };
                let args = kinds.iter().enumerate().map(|(at, kind)| pick(kind, size(at), variant)).collect();
                add(format!("{bytes} bytes at {place} ({kind:?}), {variant}"), args);
            }
        }
    }
    calls
}

fn numbers(text: &str, count: usize) -> Value {
    let number = Number::parse(text).map(Value::Number).unwrap_or_default();
    Value::array(vec![number; count.max(1)])
}

fn parsed(text: &str) -> Value {
    parse_yaml(text).unwrap_or_default()
}

fn text(text: String) -> Value {
    Value::from(text)
}

fn counted(count: usize) -> impl Iterator<Item = Value> {
    (0..count.max(1)).map(|at| Value::from(at.to_string()))
}

/// Hostile values of about this many bytes.
fn hostile(kind: Kind, bytes: usize) -> Vec<Value> {
    let deep = |value: Value| (0..200).fold(value, |inner, _| Value::array(vec![inner]));
    let prefixed = |count: usize| -> Vec<Value> {
        let rows = (0..count.max(1)).map(|at| Value::array(vec![Value::from(0), Value::from(0), Value::from(at)]));
        rows.collect()
    };
    let number = |text: &str| Number::parse(text).map(Value::Number).unwrap_or_default();
    match kind {
        Text => vec![
            text("a".repeat(bytes)),
            text("字".repeat(bytes / 3)),
            text("\u{1}".repeat(bytes)),
            text("a,".repeat(bytes / 2)),
        ],
        Texts => vec![
            Value::array(vec![Value::from("a"); bytes / 4 + 1]),
            Value::array(vec![text("b".repeat(bytes / 8)); 8]),
            Value::array(vec![Value::from(""); bytes / 3 + 1]),
        ],
        Number => vec![
            number(&"9".repeat(1_000)),
            number("1e29999"),
            number("1.5e-29999"),
            number("123456789.125"),
            number("1e15"),
        ],
        Numbers => vec![
            numbers("1e999", bytes / 6),
            numbers(&"9".repeat(1_000), bytes / 1_000),
            numbers("1.1", bytes / 4),
            numbers("1e29999", bytes / 8),
            numbers("1e-29999", bytes / 8),
            numbers("7", bytes / 2),
        ],
        Any => vec![
            Value::array(vec![Value::from(0); bytes / 2 + 1]),
            deep(Value::array(prefixed(bytes / 10))),
            Value::object(counted(bytes / 10).map(|key| (key.clone(), key)).collect()),
            text("é".repeat(bytes / 2)),
            numbers("1e999", bytes / 6),
        ],
        Array => vec![
            Value::array(prefixed(bytes / 10).into_iter().rev().collect()),
            Value::array(counted(bytes / 8).collect()),
            Value::array([vec![Value::from(1); bytes / 2], vec![Value::from(2)]].concat()),
            numbers("1e999", bytes / 6),
            Value::array(vec![deep(Value::from(1)); bytes / 400 + 1]),
        ],
        Object => vec![
            Value::object(counted(bytes / 10).map(|key| (key, Value::from(1))).collect()),
            [("a", Value::object(counted(bytes / 10).map(|key| (key, Value::from(1))).collect()))]
                .into_iter()
                .collect(),
            [("a", Value::array(vec![Value::from(1); bytes / 2]))].into_iter().collect(),
        ],
        Objects => vec![
            Value::array(counted(bytes / 12).map(|key| Value::object(vec![(key, Value::from(1))])).collect()),
            Value::array(vec![
                Value::object(vec![(
                    Value::from("a"),
                    Value::object(vec![(Value::from("b"), Value::from(1))])
                )]);
                bytes / 12 + 1
            ]),
        ],
        Set => vec![Value::set(prefixed(bytes / 10)), Value::set(counted(bytes / 8).collect())],
        Sets => vec![
            Value::set(counted(bytes / 12).map(|item| Value::set(vec![item, Value::from(1)])).collect()),
            Value::set((0..8).map(|at| Value::set(counted(bytes / 64).chain([Value::from(at)]).collect())).collect()),
        ],
        Fixed(number) => vec![Value::from(number)],
        Word(word) => vec![if word.starts_with('{') && word.len() > 1 { parsed(word) } else { Value::from(word) }],
        Pattern => vec![
            text("a".repeat(bytes)),
            text(format!("{}a{}", "(".repeat(150), ")*".repeat(150))),
            text("(?:a{0,100}){0,90}".repeat(3)),
            text(r"[\p{L}]{1000}".to_owned()),
            text("(".repeat(bytes / 2) + &")".repeat(bytes / 2)),
            text((0..bytes / 6).map(|at| format!("{at:05}")).collect::<Vec<_>>().join("|")),
            text("[ab]*a[ab]{12}".to_owned()),
            text("{".repeat(bytes)),
            text(".*[^A-Z]|[A-Z]".to_owned()),
        ],
        Glob => vec![
            text("[a-z]*".repeat(bytes / 6)),
            text(".*".repeat(bytes / 2)),
            text(format!("{{{}}}", "a,*b*,".repeat(bytes / 6))),
            text(format!("[{}]*", "ab".repeat(bytes / 2))),
            text("*a".repeat(60)),
        ],
        Delimiters => vec![Value::array(vec![Value::from("/"); bytes / 4 + 1]), Value::array(vec![Value::from(".")])],
        Network => vec![Value::from("10.0.0.0/8"), Value::from("::/1"), text("1".repeat(bytes))],
        Networks => vec![
            Value::array(
                (0..bytes / 16 + 1).map(|at| text(format!("10.{}.{}.0/24", at >> 8 & 255, at & 255))).collect(),
            ),
            Value::array((0..bytes / 16 + 1).map(|at| text(format!("::{:x}/128", at * 2))).collect()),
        ],
        Json => vec![
            text(format!("[{}0]", "0,".repeat(bytes / 2))),
            text(format!("[{}[]]", "[],".repeat(bytes / 3))),
            text(format!("{{{}\"z\":0}}", (0..bytes / 10).map(|at| format!("\"{at}\":0,")).collect::<String>())),
            text(format!("\"{}\"", "\\u0001".repeat(bytes / 6))),
            text(format!("[{}0]", "1e999,".repeat(bytes / 6))),
            text("[".repeat(bytes)),
        ],
        Yaml => vec![
            text("- a\n".repeat(bytes / 4)),
            text(format!("[{}0]", "[],".repeat(bytes / 3))),
            text((0..bytes / 10).map(|at| format!("k{at}: 0\n")).collect::<String>()),
            text("a".repeat(bytes)),
            text("[".repeat(bytes)),
            text("? ".repeat(bytes / 2)),
            text(format!("a: &a [{}]\nb: [{}0]\n", "1,".repeat(500), "*a,".repeat(bytes / 3))),
        ],
        Base64 => vec![text("QUJD".repeat(bytes / 4)), text("____".repeat(bytes / 4))],
        Hex => vec![text("ff".repeat(bytes / 2)), text("2d".repeat(bytes / 2))],
        Query => vec![text("a=%ff&".repeat(bytes / 6)), text((0..bytes / 8).map(|at| format!("{at}=1&")).collect())],
        Url => vec![
            text(format!("http://example.com/{}", "%ff".repeat(bytes / 3))),
            text(format!("http://{}", "a.".repeat(bytes / 2))),
            text("a".repeat(bytes)),
        ],
        Token => vec![
            token(&format!("{{\"alg\":\"RS256\",\"x\":[{}0]}}", "0,".repeat(bytes / 2))),
            text("a.".repeat(bytes / 2)),
            token("{\"alg\":\"ES256\"}"),
        ],
        Keys => vec![
            text(format!(
                "{{\"keys\":[{}]}}",
                vec![format!("{{\"kty\":\"RSA\",\"n\":\"{}\",\"e\":\"AQAB\"}}", "x".repeat(342)); bytes / 400 + 1]
                    .join(",")
            )),
            text(format!(
                "{{\"keys\":[{}]}}",
                vec!["{\"kty\":\"EC\",\"crv\":\"P-521\",\"x\":\"AQ\",\"y\":\"AQ\"}".to_owned(); bytes / 60 + 1]
                    .join(",")
            )),
            text("x".repeat(bytes)),
        ],
        Certificates => vec![
            text(pem("CERTIFICATE", &"MIIB".repeat(bytes / 4))),
            text(pem("CERTIFICATE", CERTIFICATE).repeat(bytes / 900 + 1)),
            text(pem("CERTIFICATE", "").repeat(bytes / 60 + 1)),
        ],
        PrivateKeys => vec![
            text(pem("RSA PRIVATE KEY", &"MIIB".repeat(bytes / 4))),
            text(pem("EC PRIVATE KEY", "AAAA").repeat(bytes / 70 + 1)),
        ],
        Graph => vec![
            Value::object(
                (0..bytes / 20 + 1)
                    .map(|at| {
                        (
                            text(at.to_string()),
                            Value::array(vec![text((at + 1).to_string()), text((at + 2).to_string())]),
                        )
                    })
                    .collect(),
            ),
            Value::object(counted(64).map(|key| (key, Value::array(counted(64).collect()))).collect()),
        ],
        Patch => vec![
            Value::array(vec![parsed("{op: add, path: a/0, value: 1}"); bytes / 40 + 1]),
            Value::array(vec![parsed("{op: copy, from: a, path: a/-}"); bytes / 40 + 1]),
            Value::array(
                (0..bytes / 40 + 1)
                    .map(|at| {
                        parsed(if at % 2 == 0 {
                            "{op: move, from: a, path: b}"
                        } else {
                            "{op: move, from: b, path: a}"
                        })
                    })
                    .collect(),
            ),
        ],
        Paths => vec![
            Value::array((0..bytes / 10 + 1).map(|at| text(format!("a/{at}"))).collect()),
            Value::array(vec![text("a/".repeat(bytes / 2))]),
        ],
        Amount => vec![
            text("9".repeat(bytes)),
            text("1e29999".to_owned()),
            text("1E-29999".to_owned()),
            text("9".repeat(19_000)),
        ],
        Version => vec![text(format!("1.0.0-{}", "1.".repeat(bytes / 2))), text("1.".repeat(bytes / 2))],
        Format => vec![
            text("%v".repeat(bytes / 2)),
            text("%1000000d".repeat(bytes / 9 + 1)),
            text("%[1]x".repeat(bytes / 5)),
            text("%.999999f".repeat(bytes / 9 + 1)),
        ],
        Time => vec![
            Value::from(1_700_000_000_000_000_000i64),
            Value::array(vec![
                Value::from(1_700_000_000_000_000_000i64),
                Value::from("America/New_York"),
                text("Monday".repeat(bytes / 6)),
            ]),
        ],
        Layout => vec![text("2006-01-02".repeat(bytes / 10)), text("1h".repeat(bytes / 2)), text("1".repeat(bytes))],
        Replacements => vec![
            Value::object(counted(bytes / 10).map(|key| (key, Value::from("字"))).collect()),
            Value::object(vec![(Value::from("a"), text("%".repeat(bytes)))]),
        ],
        Request => vec![
            parsed(&format!("{{method: get, url: http://a, headers: {{x: {}}}}}", "a".repeat(bytes))),
            parsed("{method: get, url: http://json}"),
            parsed("{method: get, url: http://yaml}"),
        ],
        AwsRequest => vec![parsed(&format!(
            "{{method: get, url: http://a/b, headers: {{x: {}}}, raw_body: {}}}",
            "a".repeat(bytes / 2),
            "a".repeat(bytes / 2)
        ))],
        AwsSettings => vec![parsed(&format!(
            "{{aws_service: s3, aws_access_key: a, aws_region: b, aws_secret_access_key: {}}}",
            "a".repeat(bytes)
        ))],
        Constraints => hostile(Keys, bytes).into_iter().map(|keys| [("cert", keys)].into_iter().collect()).collect(),
        Header => vec![
            [("alg", Value::from("HS256")), ("kty", Value::from("oct")), ("k", text("A".repeat(bytes)))]
                .into_iter()
                .collect(),
            [("alg", Value::from("HS256")), ("x", Value::array(vec![Value::from(0); bytes / 2]))].into_iter().collect(),
        ],
        PrintArgs => vec![text("a".repeat(bytes))],
    }
}

fn pem(label: &str, body: &str) -> String {
    format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
}

fn token(header: &str) -> Value {
    let encode = |part: &str| {
        const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut out = String::new();
        for chunk in part.as_bytes().chunks(3) {
            let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
            for at in 0..=chunk.len() {
                let digit = DIGITS.get((bits >> (18 - 6 * at) & 63) as usize).copied().unwrap_or(b'A');
                out.push(char::from(digit));
            }
        }
        out
    };
    text(format!("{}.{}.{}", encode(header), encode("{}"), encode(&"s".repeat(256))))
}

/// A certificate of a P-256 key, made for these tests.
const CERTIFICATE: &str = include_str!("certificate.b64");

/// The limits of an evaluation, and its result.
pub struct TestHost {
    /// The poll at which the deadline has passed.
    pub expire_at: u64,
    pub polls: Cell<u64>,
    pub granted: Cell<usize>,
}

impl TestHost {
    pub fn new(expire_at: u64) -> Self {
        Self { expire_at, polls: Cell::new(0), granted: Cell::new(0) }
    }
}

impl Host for TestHost {
    fn now_ns(&self) -> i64 {
        1_700_000_000_000_000_000
    }

    fn is_expired(&self) -> bool {
        self.polls.set(self.polls.get() + 1);
        self.polls.get() >= self.expire_at
    }

    fn grant_memory(&self, bytes: usize) -> bool {
        self.granted.set(self.granted.get() + bytes);
        true
    }

    fn random(&self, bytes: &mut [u8]) {
        bytes.fill(7);
    }

    fn http_client(&self) -> Option<&dyn HttpClient> {
        Some(self)
    }
}

impl HttpClient for TestHost {
    fn send(&self, request: &HttpRequest) -> Result<HttpResponse, HttpError> {
        // The host bounds what it reads.
        let (kind, body) = match request.url.as_str() {
            "http://json" => ("application/json", format!("[{}0]", "[],".repeat(20_000))),
            "http://yaml" => ("application/yaml", "- a\n".repeat(15_000)),
            _ => ("text/plain", "x".repeat(60_000)),
        };
        let headers = vec![("content-type".to_owned(), kind.to_owned())];
        Ok(HttpResponse { status: 200, reason: "OK".to_owned(), headers, body: body.into_bytes() })
    }

    fn lookup_ip_addr(&self, _name: &str) -> Result<Vec<String>, String> {
        Ok(vec!["127.0.0.1".to_owned()])
    }
}

/// A policy with one rule for each row.
pub fn policy() -> Policy {
    // Functions that are deprecated, and those that are new.
    let mut old = "package p\nimport future.keywords\n".to_owned();
    let mut new = "package p\n".to_owned();
    for (row, (name, kinds)) in ROWS.iter().enumerate() {
        let args =
            ["input.a", "input.b", "input.c", "input.d"].into_iter().take(kinds.len()).collect::<Vec<_>>().join(", ");
        let rule = match *name {
            "print" => format!("r{row} if {{ print({args}, {args}) }}\n"),
            "walk" => format!("r{row} := count([x | walk({args}, x)])\n"),
            "internal.test_panic" | "internal.member_2" | "internal.member_3" | "internal.template_string" => {
                match kinds.len() {
                    2 => format!("r{row} if input.a in input.b\n"),
                    3 => format!("r{row} if input.a, input.b in input.c\n"),
                    1 => format!("r{row} := $\"{{input.a}}{{input.a}}\"\n"),
                    _ => format!("r{row} := 1\n"),
                }
            }
            "eq" => format!("r{row} if input.a = input.b\n"),
            name => format!("r{row} := {name}({args})\n"),
        };
        if *name == "internal.template_string" { new.push_str(&rule) } else { old.push_str(&rule) }
    }
    let sources = [("old.rego", old, Version::V0), ("new.rego", new, Version::V1)]
        .map(|(path, text, version)| Source { path: path.into(), text, version });
    compile(&sources, Value::empty_object(), &Options::default()).expect("the rules compile")
}

/// Makes one call. Never inlined: tools that count instructions look for its name.
#[inline(never)]
pub fn run_call(policy: &Policy, call: &Call, limits: Limits, host: &TestHost) -> Result<Option<Value>, EvalError> {
    let path = [Value::from("p"), Value::from(format!("r{}", call.row))];
    policy.eval(&path, Some(&call.input), &EvalOptions { limits, strict_builtin_errors: false }, host)
}
