//! Our Rego engine against regorus's interpreter, on the same policies and inputs.
//!
//! `cargo bench -p stepgate-rego --bench eval`. Compare medians of one run only: machines are noisy.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use stepgate_rego::value::{DuplicateKeys, JsonLimits, parse_json};
use stepgate_rego::{EvalOptions, Host, Policy, Source, Value, Version, compile};

struct TestHost;

impl Host for TestHost {
    fn now_ns(&self) -> i64 {
        1_800_000_000_000_000_000
    }

    fn random(&self, _: &mut [u8]) {}
}

struct Subject {
    name: &'static str,
    policy: String,
    data: String,
    input: String,
}

fn input(path: &str, payload: &str) -> String {
    let segments: Vec<String> = path.trim_start_matches('/').split('/').map(|it| format!("{it:?}")).collect();
    let headers: String = (0..20).map(|at| format!(r#","x-header-{at}":"value {at}""#)).collect();
    format!(
        r#"{{"attributes":{{"source":{{"address":{{"socketAddress":{{"address":"10.0.0.1","portValue":1234}}}},"principal":"spiffe://cluster.local/ns/a/sa/b"}},
        "request":{{"http":{{"method":"GET","path":"{path}","host":"api","headers":{{"x-payload":"{payload}"{headers}}}}}}}}},
        "parsed_path":[{}],"parsed_query":{{}},"parsed_body":null,"truncated_body":false,
        "jwt":{{"state":"verified","claims":{{"sub":"user500","scope":"read write"}}}},"authn":{{"level":2,"mfa":true}}}}"#,
        segments.join(",")
    )
}

fn subjects() -> Vec<Subject> {
    // {"sub":"alice","role":"guest","exp":1900000000}
    let payload = "eyJzdWIiOiJhbGljZSIsInJvbGUiOiJndWVzdCIsImV4cCI6MTkwMDAwMDAwMH0";
    let tutorial = r#"package app
import rego.v1
default allow := false
http := input.attributes.request.http
claims := json.unmarshal(base64url.decode(http.headers["x-payload"]))
allow if {
    claims.exp * 1000000000 > 1800000000000000000
    action_allowed
}
action_allowed if {
    http.method == "GET"
    claims.role == "guest"
    glob.match("/people/*", ["/"], http.path)
}
action_allowed if {
    http.method == "POST"
    claims.role == "admin"
    glob.match("/people", ["/"], http.path)
}
"#;
    let rbac = r#"package app
import rego.v1
default allow := false
allow if {
    some role in data.users[input.jwt.claims.sub]
    some grant in data.roles[role]
    grant.method == input.attributes.request.http.method
    grant.path == input.parsed_path[0]
}
"#;
    let users: Vec<String> = (0..1_000)
        .map(|user| {
            let roles: Vec<String> = (0..10).map(|at| format!("\"role{}\"", (user * 7 + at * 13) % 100)).collect();
            format!("\"user{user}\":[{}]", roles.join(","))
        })
        .collect();
    let roles: Vec<String> = (0..100)
        .map(|role| {
            let grants: Vec<String> = (0..8)
                .map(|at| {
                    format!(
                        r#"{{"method":"GET","path":"{}"}}"#,
                        if role == 17 && at == 7 { "people".into() } else { format!("p{role}x{at}") }
                    )
                })
                .collect();
            format!("\"role{role}\":[{}]", grants.join(","))
        })
        .collect();
    let mixed: String = (0..200)
        .map(|at| match at % 4 {
            0 => format!(
                "allow if {{ input.parsed_path = [\"svc{at}\", _]; input.attributes.request.http.method == \"GET\" }}\n"
            ),
            1 => format!("allow if {{ glob.match(\"/svc{at}/*\", [\"/\"], input.attributes.request.http.path) }}\n"),
            2 => format!("allow if {{ some segment in input.parsed_path; segment == \"deep{at}\" }}\n"),
            _ => format!(
                "allow if {{ startswith(input.attributes.request.http.path, \"/svc{at}/\"); input.authn.level >= 2 }}\n"
            ),
        })
        .collect();
    let indexed = |count: usize| -> String {
        let rules: String = (0..count)
            .map(|at| format!("allow if {{ input.parsed_path = [\"api\", \"svc{at}\", _]; input.attributes.request.http.method == \"GET\" }}\n"))
            .collect();
        format!("package app\nimport rego.v1\ndefault allow := false\n{rules}")
    };
    let subject = |name, policy: String, data: String, input: String| Subject { name, policy, data, input };
    vec![
        subject("tutorial", tutorial.into(), "{}".into(), input("/people/alice", payload)),
        subject(
            "rbac 1000x10",
            rbac.into(),
            format!("{{\"users\":{{{}}},\"roles\":{{{}}}}}", users.join(","), roles.join(",")),
            input("/people", payload),
        ),
        subject(
            "200 rules",
            format!("package app\nimport rego.v1\ndefault allow := false\n{mixed}"),
            "{}".into(),
            input("/svc199/x", payload),
        ),
        subject("10 indexed rules", indexed(10), "{}".into(), input("/api/svc5/x", payload)),
        subject("1000 indexed rules", indexed(1_000), "{}".into(), input("/api/svc500/x", payload)),
    ]
}

fn founding() -> Subject {
    let root = env!("CARGO_MANIFEST_DIR");
    let policy = std::fs::read_to_string(format!("{root}/policies/api_policy/api_policy.rego")).unwrap_or_default();
    Subject { name: "founding", policy, data: "{}".into(), input: input("/api/v1/public/info", "x") }
}

fn json(text: &str) -> Value {
    parse_json(text.as_bytes(), JsonLimits { depth: 100, duplicates: DuplicateKeys::LastWins }).expect("JSON")
}

fn ours(subject: &Subject) -> Policy {
    let source = Source { path: "p.rego".into(), text: subject.policy.clone(), version: Version::V1 };
    compile(&[source], json(&subject.data), &Default::default()).expect("it compiles")
}

fn theirs(subject: &Subject) -> regorus::Engine {
    let mut engine = regorus::Engine::new();
    engine.set_strict_builtin_errors(false);
    engine.add_policy("p.rego".into(), subject.policy.clone()).expect("it compiles");
    engine.add_data(regorus::Value::from_json_str(&subject.data).expect("JSON")).expect("data");
    engine
}

fn engines(c: &mut Criterion) {
    let path = [Value::from("app"), Value::from("allow")];
    for subject in subjects() {
        let (policy, document) = (ours(&subject), json(&subject.input));
        let options = EvalOptions::default();
        let got = policy.eval(&path, Some(&document), &options, &TestHost).expect("a result");
        assert_eq!(got, Some(Value::Bool(true)), "{}", subject.name);
        c.bench_function(&format!("{}/ours", subject.name), |b| {
            b.iter(|| policy.eval(&path, Some(black_box(&document)), &options, &TestHost));
        });
        let mut engine = theirs(&subject);
        let input = regorus::Value::from_json_str(&subject.input).expect("JSON");
        engine.set_input(input.clone());
        assert_eq!(engine.eval_rule("data.app.allow".into()).expect("a result"), regorus::Value::from(true));
        c.bench_function(&format!("{}/regorus", subject.name), |b| {
            b.iter(|| {
                engine.set_input(black_box(input.clone()));
                engine.eval_rule("data.app.allow".into())
            });
        });
    }
    let subject = founding();
    let mut sources = vec![Source { path: "p.rego".into(), text: subject.policy.clone(), version: Version::V1 }];
    let root = env!("CARGO_MANIFEST_DIR");
    for library in ["mfa", "step_up"] {
        let text = std::fs::read_to_string(format!("{root}/policies/lib/{library}.rego")).unwrap_or_default();
        if !text.is_empty() {
            sources.push(Source { path: library.into(), text, version: Version::V1 });
        }
    }
    let policy = compile(&sources, json("{}"), &Default::default()).expect("the founding policy compiles");
    let document = json(&subject.input);
    let path = [Value::from("api_policy"), Value::from("allow")];
    c.bench_function("founding/ours", |b| {
        b.iter(|| policy.eval(&path, Some(black_box(&document)), &EvalOptions::default(), &TestHost));
    });
}

/// The number of runs of `work` within a fixed time on this many threads.
fn rounds(threads: usize, work: &(dyn Fn() + Sync)) -> u64 {
    let end = std::time::Instant::now() + std::time::Duration::from_millis(500);
    let count = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut own = 0;
                while std::time::Instant::now() < end {
                    for _ in 0..100 {
                        work();
                    }
                    own += 100;
                }
                count.fetch_add(own, std::sync::atomic::Ordering::Relaxed);
            });
        }
    });
    count.into_inner()
}

/// The speed-up by a second thread: one policy for both, against a loop that shares nothing.
fn threads(_: &mut Criterion) {
    let speed_up = |work: &(dyn Fn() + Sync)| {
        let mut all: Vec<f64> = (0..9).map(|_| rounds(2, work) as f64 / rounds(1, work) as f64).collect();
        all.sort_by(f64::total_cmp);
        all.get(4).copied().unwrap_or_default()
    };
    let path = [Value::from("app"), Value::from("allow")];
    for subject in subjects().iter().take(2) {
        let (policy, document) = (ours(subject), json(&subject.input));
        let pure = speed_up(&|| {
            black_box((0..2_000u64).fold(1, |sum: u64, at| black_box(sum.wrapping_mul(31).wrapping_add(at))));
        });
        let evaluation = speed_up(&|| {
            black_box(policy.eval(&path, Some(&document), &EvalOptions::default(), &TestHost).expect("a result"));
        });
        println!(
            "{}: two threads are {evaluation:.2} times one, a pure loop {pure:.2}; ratio {:.2}",
            subject.name,
            evaluation / pure
        );
    }
}

criterion_group!(benches, engines, threads);
criterion_main!(benches);
