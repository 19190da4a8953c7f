//! The commands over policies on disk, as a person types them.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const POLICY: &str = "package a\n\ndefault allow := false\n\nallow if {\n\tinput.x == 1\n\ttrace(\"hello\")\n}\n\nallow if input.y == 2\n";
const TESTS: &str = "package a_test\n\ntest_one if data.a.allow with input as {\"x\": 1}\n";

/// A folder of its own with the policy and its test.
fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("a.rego"), POLICY).expect("the policy");
    std::fs::write(folder.join("a_test.rego"), TESTS).expect("the test");
    std::fs::write(folder.join("input.json"), "{\"x\": 1}").expect("the input");
    folder
}

fn stepgate(folder: &PathBuf, args: &[&str]) -> Output {
    let command = env!("CARGO_BIN_EXE_stepgate");
    Command::new(command).args(args).current_dir(folder).output().expect("stepgate starts")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn numbers_in_answers_keep_their_spelling() {
    let output = stepgate(&folder("spelling"), &["eval", "--format", "pretty", "x := [1e400, 1/3, -0]"]);
    let text = String::from_utf8_lossy(&output.stdout).replace([' ', '\n'], "");
    assert_eq!(text, "{\"x\":[1e400,0.33333333333333333334,-0]}");
}

#[test]
fn an_evaluation_can_be_explained_and_profiled() {
    let folder = folder("explained");
    let eval = ["eval", "-d", "a.rego", "-i", "input.json"];
    let full = json(&stepgate(&folder, &[&eval[..], &["--explain", "full", "--profile", "data.a.allow"]].concat()));
    let steps = full["explanation"].as_array().expect("steps");
    assert_eq!(steps.first(), Some(&Value::from("a.rego:6:2 | eval")));
    assert_eq!(steps.last(), Some(&Value::from("a.rego:5:1 | exit")));
    assert!(full["profile"].as_array().is_some_and(|list| list.iter().any(|it| it["location"]["row"] == 6)));
    let notes = json(&stepgate(&folder, &[&eval[..], &["--explain", "notes", "data.a.allow"]].concat()));
    assert_eq!(notes["explanation"], serde_json::json!(["note \"hello\""]));
    let plain = json(&stepgate(&folder, &[&eval[..], &["data.a.allow"]].concat()));
    assert!(plain.get("explanation").is_none() && plain.get("profile").is_none());
}

#[test]
fn coverage_names_the_rows_that_no_test_came_by() {
    let folder = folder("coverage");
    let report = json(&stepgate(&folder, &["test", "--coverage", "."]));
    let policy = &report["files"]["./a.rego"];
    assert_eq!(policy["not_covered"][0]["start"]["row"], 3);
    assert!(policy["covered"].to_string().contains("\"row\":5"));
    let below = stepgate(&folder, &["test", "--threshold", "95", "."]);
    assert_eq!(below.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&below.stderr).contains("threshold not met"));
    assert!(stepgate(&folder, &["test", "--threshold", "10", "."]).status.success());
    let measured = stepgate(&folder, &["test", "--bench", "--count", "3", "."]);
    assert!(String::from_utf8_lossy(&measured.stdout).starts_with("data.a_test.test_one\t3\t"));
}

#[test]
fn each_definition_of_a_test_is_a_test() {
    let folder = folder("twice");
    let more = "package a_test\n\ntest_one if false\n\ntest_one if true\n";
    std::fs::write(folder.join("b_test.rego"), more).expect("more tests");
    let output = stepgate(&folder, &["test", "-f", "json", "."]);
    assert_eq!(output.status.code(), Some(2));
    let reports = json(&output);
    let output: Vec<_> =
        reports.as_array().expect("reports").iter().map(|it| (it["name"].clone(), it["fail"] == true)).collect();
    let want = [("test_one", false), ("test_one#01", true), ("test_one#02", false)];
    assert_eq!(output, want.map(|(name, fails)| (Value::from(name), fails)));
    std::fs::write(folder.join("b_test.rego"), "package a_test\n\ntodo_test_two if false\n").expect("more tests");
    assert_eq!(stepgate(&folder, &["test", "."]).status.code(), Some(2), "one was skipped");
    assert!(stepgate(&folder, &["test", "-z", "."]).status.success());
}

#[test]
fn cases_of_a_test_are_reported_by_name() {
    let folder = folder("cases");
    std::fs::remove_file(folder.join("a_test.rego")).expect("the other tests");
    let tests = r#"package test_utils

test_data[name] if {
    some name, tc in {"good": {"x": 1, "want": 1}, "bad": {"x": 1, "want": 2}}
    tc.x == tc.want
}

test_fixed.one if true

test_fixed.two if false

test_all[name] if some name in ["a", "b"]

test_none[name] if some name in []

test_object := {"a": true}

helper[name] if some name in ["a"]
"#;
    std::fs::write(folder.join("b_test.rego"), tests).expect("tests");
    let output = stepgate(&folder, &["test", "-f", "json", "."]);
    assert_eq!(output.status.code(), Some(2));
    let reports = json(&output);
    let output: Vec<_> = reports
        .as_array()
        .expect("reports")
        .iter()
        .map(|it| (it["name"].as_str().unwrap_or_default().to_owned(), it["fail"] == true, it["sub_results"].clone()))
        .collect();
    let (good, bad) =
        (|name: &str| serde_json::json!({"name": name}), |name: &str| serde_json::json!({"name": name, "fail": true}));
    let want = [
        ("test_data", true, serde_json::json!({"good": good("good"), "bad": bad("bad")})),
        ("test_fixed", true, serde_json::json!({"one": good("one"), "two": bad("two")})),
        ("test_all", false, serde_json::json!({"a": good("a"), "b": good("b")})),
        ("test_none", true, Value::Null),
        ("test_object", true, Value::Null),
    ];
    assert_eq!(output, want.map(|(name, fails, cases)| (name.to_owned(), fails, cases)));
    let pretty = String::from_utf8_lossy(&stepgate(&folder, &["test", "."]).stdout).into_owned();
    assert!(pretty.contains("data.test_utils.test_data: FAIL") && pretty.contains("\n  bad: FAIL\n"), "{pretty}");
    assert!(!pretty.contains("good: PASS") && pretty.contains("PASS: 1/5\nFAIL: 4/5"), "{pretty}");
}

#[test]
fn strict_checks_are_asked_for() {
    let folder = folder("strict");
    std::fs::write(folder.join("a.rego"), "package a\n\nimport data.unused\n\nallow if true\n").expect("the policy");
    assert!(stepgate(&folder, &["check", "a.rego"]).status.success());
    let strict = stepgate(&folder, &["check", "--strict", "a.rego"]);
    assert_eq!(strict.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&strict.stderr).contains("a.rego:3: rego_compile_error: import data.unused unused")
    );
}

#[test]
fn bundles_are_taken_as_archives_and_as_folders() {
    let folder = folder("bundles");
    let bundle = folder.join("b");
    std::fs::create_dir_all(bundle.join("conf")).expect("folders");
    for (name, content) in [
        ("p.rego", "package p\n\nallow if data.conf.open == input.x\n"),
        ("p_test.rego", "package p_test\n\ntest_it if data.p.allow with input as {\"x\": 1}\n"),
        ("conf/data.json", "{\"open\": 1}"),
        ("conf/other.json", "{\"open\": 2}"),
        (".manifest", "{\"revision\": \"r\", \"roots\": [\"p\", \"p_test\", \"conf\"]}"),
    ] {
        std::fs::write(bundle.join(name), content).expect("a file");
    }
    let file = std::fs::File::create(folder.join("b.tar.gz")).expect("a file");
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(file, flate2::Compression::fast()));
    tar.append_dir_all(".", &bundle).expect("it is packed");
    tar.into_inner().and_then(flate2::write::GzEncoder::finish).expect("it is written");

    for path in ["b", "b.tar.gz"] {
        let eval = ["eval", "-b", path, "-i", "input.json", "-f", "raw", "data.p.allow"];
        let output = stepgate(&folder, &eval);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "true\n", "{path}: {output:?}");
        assert!(stepgate(&folder, &["check", "-b", path]).status.success(), "{path}");
        assert!(stepgate(&folder, &["test", "-b", path]).status.success(), "{path}");
    }
    let twice = stepgate(&folder, &["check", "-b", "b", "b.tar.gz"]);
    assert!(String::from_utf8_lossy(&twice.stderr).contains("both own `conf`"), "{twice:?}");
    let plain = stepgate(&folder, &["check", "-b", "a.rego"]);
    assert!(String::from_utf8_lossy(&plain.stderr).contains("a bundle is a gzipped tar"), "{plain:?}");
    std::fs::write(bundle.join(".manifest"), "{\"roots\": [\"p\"]}").expect("a file");
    let outside = stepgate(&folder, &["check", "-b", "b"]);
    assert!(String::from_utf8_lossy(&outside.stderr).contains("do not permit"), "{outside:?}");
}

#[test]
fn a_start_can_be_rehearsed() {
    let folder = folder("rehearsed");
    let plan = |more: &[&str]| stepgate(&folder, &[&["doctor", "plan"], more].concat());
    let path = ["--set", "plugins.envoy_ext_authz_grpc.path=a/allow"];
    let good = plan(&[&path[..], &["a.rego"]].concat());
    let output = String::from_utf8_lossy(&good.stdout);
    assert!(good.status.success() && output.contains("policies compiled; smoke evaluation passed"), "{good:?}");
    std::fs::write(folder.join("broken.rego"), "package b\n\nallow if nothing\n").expect("a policy");
    let tls = [
        "--set",
        "plugins.stepgate.grpc.tls.cert_file=none",
        "--set",
        "plugins.stepgate.grpc.tls.private_key_file=none",
    ];
    for (more, why) in [
        (&["broken.rego"][..], "var nothing is unsafe"),
        (&[&path[..], &tls, &["a.rego"]].concat(), "plugins.stepgate.grpc.tls: `none`"),
        (&["--set", "plugins.stepgate.limits.check_timeout=fast"], "plugins.stepgate.limits.check_timeout"),
        (&["--pprof", "a.rego"], "--pprof"),
    ] {
        let refused = plan(more);
        assert!(
            !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains(why),
            "{why}: {refused:?}"
        );
    }
}

/// Mistakes of every kind in one file are reported in one run, each with its place.
#[test]
fn all_mistakes_of_a_configuration_are_reported_at_once() {
    let folder = folder("mistakes");
    let configuration = r#"
services:
  logs: {url: nowhere}
bundles:
  mesh: {service: absent}
labels: {a: one}
labels: {a: two}
plugins:
  envoy_ext_authz_grpc:
    addr: nonsense
    path: a/allow
    query: data.a.allow
  stepgate:
    inputt: {}
    cors_preflight: maybe
    socket_mode: "${UNSET_MODE}"
    limits:
      checks_in_flight: 0
      check_timeout: fast
      evaluation_timeout: 10m
    input: {extras: true, stepgate_fields: true}
    identity_headers: {"x auth": claims.sub}
    issuers:
    - issuer: https://idp.example.com
      algorithms: [HS256]
    routes:
    - {path: "pay/*", level: godlike}
    - {path: /pay, level: godlike}
"#;
    std::fs::write(folder.join("mistakes.yaml"), configuration).expect("a configuration");
    let output = stepgate(&folder, &["doctor", "plan", "--config-file", "mistakes.yaml", "a.rego"]);
    let report = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    for place in [
        "services.logs.url: ",
        "bundles.mesh.service: ",
        "labels: stands twice, again in line 7",
        "plugins.envoy_ext_authz_grpc.addr: ",
        "plugins.envoy_ext_authz_grpc.query: ",
        "plugins.stepgate.inputt: unknown key; did you mean `input`?",
        "plugins.stepgate.cors_preflight: ",
        "plugins.stepgate.socket_mode: a `${…}` in it was not replaced",
        "plugins.stepgate.limits.checks_in_flight: ",
        "plugins.stepgate.limits.check_timeout: ",
        "plugins.stepgate.limits.evaluation_timeout: ",
        "plugins.stepgate.input.extras: ",
        "plugins.stepgate.identity_headers.x auth: ",
        "plugins.stepgate.issuers[0].audiences: ",
        "plugins.stepgate.issuers[0].algorithms: ",
        "plugins.stepgate.routes[0].path: ",
        "plugins.stepgate.routes[1].level: ",
    ] {
        assert!(report.lines().any(|line| line.starts_with(place)), "{place} is missing in\n{report}");
    }
}

#[test]
fn a_logged_decision_is_explained_line_by_line() {
    let folder = folder("story");
    let event = |id: &str, x: u32, result: bool| {
        format!(
            "{{\"decision_id\": \"{id}\", \"path\": \"a/allow\", \"input\": {{\"x\": {x}}}, \"result\": {result}}}\n"
        )
    };
    let log = event("one", 1, true) + "no event\n" + &event("two", 3, true);
    std::fs::write(folder.join("log.ndjson"), log).expect("the log");
    let explain = |id: &str| stepgate(&folder, &["explain", "-d", "a.rego", "--log", "log.ndjson", id]);
    let text = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let allowed = text(&explain("one"));
    for line in ["decision one", "data.a.allow is true", "+    6  \tinput.x == 1", "+    7  \ttrace(\"hello\")"] {
        assert!(allowed.lines().any(|known| known == line), "{line:?} is not in\n{allowed}");
    }
    assert!(!allowed.contains("it was"), "{allowed}");
    let denied = text(&explain("two"));
    for line in ["data.a.allow is false", "+    6  \tinput.x == 1", "-    7  \ttrace(\"hello\")"] {
        assert!(denied.lines().any(|known| known == line), "{line:?} is not in\n{denied}");
    }
    assert!(denied.contains("it was true"), "what decided then was something else: {denied}");
    let missing = explain("three");
    assert!(
        !missing.status.success()
            && String::from_utf8_lossy(&missing.stderr)
                .contains("no decision `three` in 2 event(s); 1 line(s) are no JSON")
    );
    let input = stepgate(&folder, &["explain", "-d", "a.rego", "--log", "input.json", "--rule", "data.a.allow"]);
    assert!(text(&input).contains("data.a.allow is true"));
    // A file stands where an id can: events, an input, or what Envoy sends.
    let file = stepgate(&folder, &["explain", "input.json", "-d", "a.rego", "--rule", "data.a.allow"]);
    assert!(text(&file).contains("data.a.allow is true"));
    let policy = "package r\n\nallow if {\n\tinput.parsed_path == [\"a\", \"b\"]\n\tinput.method == \"PUT\"\n\tinput.path == \"/a/b\"\n\tinput.parsed_body.n == 1\n\
                  \tprint(\"token:\", input.attributes.request.http.headers.authorization)\n}\n";
    std::fs::write(folder.join("r.rego"), policy).expect("a policy");
    let request = serde_json::json!({"attributes": {"request": {"http": {"method": "PUT", "path": "/a/b?token=canary", "body": "{\"n\": 1}",
        "headers": {"content-type": "application/json", "authorization": "Bearer canary"}}}}});
    std::fs::write(folder.join("request.json"), request.to_string()).expect("a request");
    let output = text(&stepgate(&folder, &["explain", "request.json", "-d", "r.rego", "--rule", "data.r.allow"]));
    assert!(
        output.contains("data.r.allow is true")
            && output.contains("\"n\": 1")
            && output.contains("print: token: (erased)"),
        "{output}"
    );
    assert!(!output.contains("canary"), "{output}");
    let unnamed = stepgate(&folder, &["explain", "-d", "a.rego", "--log", "input.json"]);
    assert!(String::from_utf8_lossy(&unnamed.stderr).contains("--rule is needed"));
}

/// The output of `stepgate explain` for one event under a policy, and its errors.
fn explained(name: &str, policy: &str, event: &Value) -> (String, String) {
    let folder = folder(name);
    std::fs::write(folder.join("own.rego"), policy).expect("the policy");
    std::fs::write(folder.join("log.ndjson"), event.to_string()).expect("the log");
    let output = stepgate(&folder, &["explain", "-d", "own.rego", "--log", "log.ndjson"]);
    (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn an_explanation_says_what_overruled_the_policy() {
    let policy = "package own\n\nallow if input.x\n";
    let mut event = serde_json::json!({"decision_id": "d", "path": "own/allow", "input": {"x": true}, "result": true,
        "custom": {"answered": "deny", "reason": "level_too_low"}});
    let (output, _) = explained("overruled", policy, &event);
    assert!(output.contains("data.own.allow is true\nEnvoy was answered deny, reason level_too_low\n"), "{output}");
    let given_up = serde_json::json!({"decision_id": "d", "path": "own/allow", "input": {}, "error": {"message": "the caller gave up"},
        "custom": {"reason": "cancelled"}});
    let (output, _) = explained("overruled", policy, &given_up);
    assert!(
        output.contains("it was not decided then: the caller gave up; the input is what Envoy sent, without what"),
        "{output}"
    );
    event.as_object_mut().expect("an object").remove("input");
    assert!(explained("overruled", policy, &event).1.contains("the mask of the log has taken it"));
    event["error"] = serde_json::json!({"message": "m"});
    event["custom"]["reason"] = "ambiguous_path".into();
    assert!(explained("overruled", policy, &event).1.contains("no input to decide about: ambiguous_path"));
}

#[test]
fn an_explanation_sees_the_world_as_the_event_has_it() {
    let policy = "package own\n\nallow := [time.now_ns(), answer] if {\n\tanswer := http.send({\"method\": \"GET\", \"url\": input.url}).body\n}\n";
    let mut event = serde_json::json!({"decision_id": "d", "path": "own/allow", "input": {"url": "http://127.0.0.1:1/x"},
        "timestamp": "2026-01-02T03:04:05.000000006Z", "result": [1_767_323_045_000_000_006_i64, "hello"],
        "nd_builtin_cache": {"http.send": {"[{\"method\":\"GET\",\"url\":\"http://127.0.0.1:1/x\"}]": {"body": "hello"}}}});
    let (output, error) = explained("world", policy, &event);
    assert!(output.contains("data.own.allow is [1767323045000000006,\"hello\"]\n"), "{output}{error}");
    assert!(!output.contains("it was"), "{output}");
    // No request is sent: an unknown answer is undefined.
    event["input"]["url"] = "http://127.0.0.1:1/y".into();
    let (output, _) = explained("world", policy, &event);
    assert!(
        output.contains("data.own.allow is undefined\n") && output.contains("it was [1767323045000000006,"),
        "{output}"
    );
    // Recorded answers are replayed before their time is set.
    event["nd_builtin_cache"] = serde_json::json!({"time.now_ns": {"[]": 7}});
    assert!(explained("clock", "package own\n\nallow := time.now_ns()\n", &event).0.contains("data.own.allow is 7\n"));
}

#[test]
fn an_explanation_asks_nobody_and_commands_no_terminal() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("it does not wait");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let policy = format!(
        "package own\n\nallow := x if {{\n\tprint(input.x)\n\tx := [opa.runtime().env, object.get({{}}, \"a\", \"b\")]\n\tnot http.send({{\"method\": \"GET\", \"url\": \"{url}\"}}).status_code\n}}\n"
    );
    let event = serde_json::json!({"decision_id": "\u{1b}[2J", "path": "own/allow", "input": {"x": "\u{1b}]0;a\u{7}\u{202e}b"}});
    let (output, errors) = explained("alone", &policy, &event);
    assert!(output.contains("decision ?[2J\n") && output.contains("print: ?]0;a??b\n"), "{output:?} {errors}");
    assert!(!output.contains("PATH"), "the environment is not shown: {output}");
    assert!(listener.accept().is_err(), "no request was sent");
}

#[test]
fn an_explanation_knows_odd_packages_and_closed_pipes() {
    let policy = "package own[\"odd-pkg\"]\n\nallow if input.x\n";
    let event =
        serde_json::json!({"decision_id": "d", "path": "own/odd-pkg/allow", "input": {"x": true}, "result": true});
    let (output, errors) = explained("odd", policy, &event);
    assert!(output.contains("data.own[\"odd-pkg\"].allow is true"), "{output} {errors}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_stepgate"));
    command.args(["explain", "-d", "own.rego", "--log", "log.ndjson"]).current_dir(folder("odd"));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("stepgate starts");
    drop(child.stdout.take());
    let ended = child.wait_with_output().expect("it ends");
    assert!(ended.status.success() && ended.stderr.is_empty(), "{}", String::from_utf8_lossy(&ended.stderr));
}
