use std::collections::BTreeMap;

use stepgate_jose::ConfiguredKey;

use super::*;
use crate::feed::bundle::archive::pack;
use crate::opa::signature::{PublicKey, SignaturePolicy, Signer, sign};
use crate::value::json_text;

fn file(name: &str, text: &str) -> File {
    File { name: name.to_owned(), bytes: text.as_bytes().to_vec() }
}

fn files(listed: &[(&str, &str)]) -> Vec<File> {
    listed.iter().map(|(name, text)| file(name, text)).collect()
}

fn reading() -> BundleReader {
    BundleReader { limit: 1 << 20, version: RegoVersion::V1, verification: Verification::default() }
}

fn refusal(listed: &[(&str, &str)]) -> String {
    let error = reading().contents(files(listed)).expect_err("it must be refused");
    crate::telemetry::chain(&error)
}

fn snapshot_of(contents: BundlePayload) -> Bundle {
    match contents {
        BundlePayload::Snapshot(bundle) => bundle,
        BundlePayload::Delta(_) => panic!("a delta"),
    }
}

#[test]
fn a_bundle_is_read_as_opa_builds_it() {
    let files = [
        ("/data.json", r#"{"a": {"x": 1}}"#),
        ("/a/data.yaml", "y: n"),
        ("/a/list/data.json", "[1]"),
        ("/a/other.json", "not looked at"),
        ("./app/p.rego", "package a.app\nallow := true"),
        ("/old/q.rego", "package a.old\nallow { true }"),
        ("/.manifest", r#"{"revision": "r1", "roots": ["a"], "file_rego_versions": {"/old/*.rego": 0}}"#),
    ];
    let packed = pack(&self::files(&files)).expect("it packs");
    let bundle = snapshot_of(reading().archive(&packed).expect("a bundle"));
    assert_eq!(bundle.manifest.revision, "r1");
    assert_eq!(json_text(&bundle.sources.data), r#"{"a":{"list":[1],"true":false,"x":1}}"#);
    let modules: Vec<_> = bundle.sources.modules.iter().map(|it| (it.path.as_str(), it.version)).collect();
    assert_eq!(modules, [("app/p.rego", RegoVersion::V1), ("old/q.rego", RegoVersion::V0)]);
}

#[test]
fn what_does_not_belong_is_refused_by_name() {
    let change = r#"{"data": [{"op": "upsert", "path": "/a", "value": 1}]}"#;
    for (files, message) in [
        (&[("data.json", "[1]")][..], "`data.json` is not a data document"),
        (&[("data.json", "{")], "is not a data document"),
        (&[("data.json", "{}"), ("/data.json", "{}")], "duplicate entry"),
        (&[("data.json", r#"{"a": 1}"#), ("a/data.json", r#"{"b": 1}"#)], "disagree at `data.a`"),
        (&[("policy.wasm", "")], "compiled policies"),
        (&[(".manifest", "[]")], "not an object"),
        (&[("a/.manifest", "{}"), (".manifest", "{}")], "duplicate entry"),
        (&[("a/.manifest", r#"{"roots": ["z"]}"#), ("p.rego", "package p")], "do not permit `package p`"),
        (&[(".manifest.pb", "")], "manifests in Protobuf"),
        (&[(".manifest", r#"{"roots": ["a"]}"#), ("p.rego", "package b")], "do not permit `package b`"),
        (&[(".manifest", r#"{"roots": ["a"]}"#), ("p.rego", "package ab")], "do not permit `package ab`"),
        (&[(".manifest", r#"{"roots": ["a"]}"#), ("data.json", r#"{"b": {"c": 1}}"#)], "data at `/b`"),
        (&[(".manifest", r#"{"roots": ["a/b"]}"#), ("data.json", r#"{"a": 1}"#)], "data at `/a`"),
        (&[("patch.json", change), ("data.json", "{}")], "expected to contain only patch file"),
        (&[("patch.json", change), ("p.rego", "package p")], "expected to contain only patch file"),
        (&[("patch.json", change), (".manifest", r#"{"roots": ["b"]}"#)], "do not permit data patch at path `a`"),
        (&[("patch.json", "{}"), ("p.rego", "package p")], "expected to contain only patch file"),
        (&[("patch.json", r#"{"data": []}"#), ("data.json", "{}")], "expected to contain only patch file"),
        (&[("patch.json", "{")], "`patch.json` is refused"),
        (&[(".signatures.json", "{")], "`.signatures.json` is malformed"),
        (&[(".signatures.json", r#"{"signatures": ["a.b.c"]}"#)], "verification key not provided"),
    ] {
        let got = refusal(files);
        assert!(got.contains(message), "{files:?}: {got}");
    }
}

#[test]
fn a_patch_file_makes_a_delta() {
    let change = r#"{"data": [{"op": "upsert", "path": "/a", "value": 1}]}"#;
    let read = |listed: &[(&str, &str)]| reading().contents(files(listed)).expect("it is read");
    assert!(matches!(read(&[("/patch.json", change)]), BundlePayload::Delta(delta) if delta.patches.len() == 1));
    // One without changes wipes nothing.
    assert!(
        matches!(read(&[("patch.json", r#"{"data": []}"#)]), BundlePayload::Delta(delta) if delta.patches.is_empty())
    );
}

#[test]
fn deltas_are_verified_like_snapshots() {
    let key = PublicKey { key: ConfiguredKey::new("HS256", "s3cret").expect("a key"), scope: String::new() };
    let keys = BTreeMap::from([("k".to_owned(), key)]);
    let verification = Verification { keys, demand: SignaturePolicy::Required, ..Verification::default() };
    let reading = BundleReader { verification, ..reading() };
    let change = file("/patch.json", r#"{"data": [{"op": "upsert", "path": "/a", "value": 1}]}"#);
    assert!(matches!(reading.contents(vec![change.clone()]), Err(BundleError::Signature(SignatureError::Missing))));
    let signer = Signer { key: "s3cret", algorithm: "HS256", key_id: "k", claims: serde_json::Map::new() };
    let signed = sign(&[(change.plain(), &change.bytes)], &signer).expect("it signs");
    let signed = file("/.signatures.json", &signed);
    assert!(matches!(reading.contents(vec![change.clone(), signed.clone()]), Ok(BundlePayload::Delta(_))));
    let other = file("/patch.json", r#"{"data": [{"op": "upsert", "path": "/a", "value": 2}]}"#);
    let error = reading.contents(vec![other, signed]).expect_err("it was changed");
    assert!(matches!(error, BundleError::Signature(SignatureError::Digest(_))), "{error:?}");
}
