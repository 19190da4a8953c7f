//! Loading and asking policies.

use std::time::{Duration, Instant};

use super::*;
use crate::value::{Value, json_text};

const BUDGET: Duration = Duration::from_millis(500);

fn host_context() -> Arc<HostContext> {
    Arc::new(HostContext::new(&BuiltinSettings::default()))
}

fn build(policy: &str, path: &str) -> Result<Snapshot, Vec<Rejection>> {
    let module = Module { path: "p.rego".into(), text: policy.into(), version: RegoVersion::V1 };
    let sources = Sources { modules: vec![module], ..Sources::default() };
    Snapshot::build(&sources, &Entrypoint::from_path(path), &host_context())
}

/// The decision as JSON text, or the error.
fn ask(policy: &str, path: &str, input: Value) -> Result<String, EvalError> {
    let snapshot = build(policy, path).expect("the policy loads");
    snapshot
        .eval(&input, Bounds::within(BUDGET))
        .map(|it| it.value.map_or("undefined".to_owned(), |value| json_text(&value)))
}

fn refusal(policy: &str) -> String {
    let rejections = build(policy, "p/allow").expect_err("the policy must be refused");
    rejections.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn decisions_are_read_from_rules_packages_and_parts() {
    let policy = "package a.b\nallow := {\"x\": {\"y\": 1}}\nn := 2\n";
    for (path, want) in [
        ("a/b/allow", r#"{"x":{"y":1}}"#),
        ("a/b/allow/x/y", "1"),
        ("a/b", r#"{"allow":{"x":{"y":1}},"n":2}"#),
        ("a/b/none", "undefined"),
        ("x/y", "undefined"),
    ] {
        assert_eq!(ask(policy, path, Value::empty_object()).as_deref(), Ok(want), "{path}");
    }
}

#[test]
fn unknown_functions_are_refused_with_file_line_and_name() {
    assert_eq!(
        refusal("package p\n\nallow if no.such(input.t)\n"),
        "p.rego:3: rego_type_error: undefined function no.such"
    );
    assert!(
        refusal("package p\nallow if nosuch(1)\n").contains("p.rego:2: rego_type_error: undefined function nosuch")
    );
}

#[test]
fn recursion_is_refused() {
    assert!(refusal("package p\nallow if f(1)\nf(x) := f(x)\n").contains("rule data.p.f is recursive"));
    assert!(refusal("package p\nallow if g(1)\nf(x) := g(x)\ng(x) := f(x)\n").contains("recursive"));
    assert!(refusal("package p\nallow if data.p.allow\n").contains("rule data.p.allow is recursive"));
    assert!(refusal("package p\nallow if count(data.p) > 0\n").contains("recursive"));
}

#[test]
fn an_argument_named_like_a_rule_does_not_make_it_recursive() {
    let policy = "package p\nf(user) := user + 1\nuser := f(1)\nallow := user\n";
    assert_eq!(ask(policy, "p/allow", Value::empty_object()).as_deref(), Ok("2"));
}

#[test]
fn what_the_engine_cannot_schedule_is_refused_at_load() {
    assert!(refusal("package p\nallow if { x > 1 }\n").contains("unsafe"));
}

#[test]
fn operands_of_a_negation_need_their_variables_before_it() {
    let refused = |rule: &str| refusal(&format!("package p\nimport future.keywords.not\n{rule}\n"));
    for (rule, want) in [
        ("allow if not input.a[_]", "var _ is unsafe"),
        ("allow if not input.a[i] == 1", "var i is unsafe"),
        ("allow if not [x, 1] = input.a", "var x is unsafe"),
        ("allow if { not x := 1 }", "cannot assign vars inside negated expression"),
        ("allow if { x = [x | x = 1] }", "var x is unsafe"),
        ("f([input]) := 1", "args must not shadow input"),
    ] {
        assert!(refused(rule).contains(want), "{rule}: {}", refused(rule));
    }
    for rule in [
        "allow if not { input.a[i] == 1 }",
        "allow if not input.a[input.b] + 1 == 2",
        "allow if not count([x | x := input.a[_]]) == 2",
        "allow if { some i in [1]; not input.a[i] == 1 }",
    ] {
        let text = format!("package p\nimport future.keywords.not\n{rule}\n");
        assert_eq!(ask(&text, "p/allow", Value::empty_object()).as_deref(), Ok("true"), "{rule}");
    }
}

#[test]
fn data_under_a_rule_is_refused() {
    // Beside rules with variables in their heads, too: a member would be there or not, depending on who asks for it.
    for rule in ["allow := true", "allow[k] := true if some k in [\"a\"]", "allow contains \"a\""] {
        let text = format!("package p\n{rule}\n");
        let module = Module { path: "p.rego".into(), text, version: RegoVersion::V1 };
        let mut sources = Sources { modules: vec![module], ..Sources::default() };
        let data = [("allow", [("b", Value::Bool(true))].into_iter().collect::<Value>())].into_iter().collect();
        sources.add_data(&["p"], data).expect("no conflict yet");
        let rejections = Snapshot::build(&sources, &Entrypoint::from_path("p/allow"), &host_context())
            .expect_err("it must be refused");
        assert!(rejections[0].to_string().contains("conflicting rule for data path p/allow"), "{rule}");
    }
}

#[test]
fn conflicts_are_errors() {
    let policy = "package p\nallow := 1 if input.a\nallow := 2 if input.a\n";
    let mut members = crate::value::Members::default();
    members.put_text("a", Value::Bool(true));
    assert!(matches!(ask(policy, "p/allow", members.into_value()), Err(EvalError::Conflict(_))));
}

#[test]
fn builtin_errors_are_undefined() {
    assert_eq!(
        ask("package p\nallow := to_number(\"x\")\n", "p/allow", Value::empty_object()).as_deref(),
        Ok("undefined")
    );
}

#[test]
fn the_budget_ends_a_runaway_evaluation() {
    let policy =
        "package p\nallow if { some i in numbers.range(1, 3000); some j in numbers.range(1, 3000); i * j == -1 }\n";
    let snapshot = build(policy, "p/allow").expect("the policy loads");
    let started = Instant::now();
    assert_eq!(
        snapshot
            .eval(&Value::empty_object(), Bounds { budget: Duration::from_millis(20), ..Bounds::within(BUDGET) })
            .map(|e| e.value),
        Err(EvalError::Budget)
    );
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn another_definition_does_not_hide_an_exceeded_budget() {
    for slow in [
        "some i in numbers.range(1, 3000); some j in numbers.range(1, 3000); i * j == -1",
        "count(numbers.range(1, 20000000)) == x",
    ] {
        let policy = format!("package p\nf(x) := 9 if {{ {slow} }}\nf(x) := 0 if x == 1\nallow if f(1) < 5\n");
        let snapshot = build(&policy, "p/allow").expect("the policy loads");
        let outcome = snapshot
            .eval(&Value::empty_object(), Bounds { budget: Duration::from_millis(20), ..Bounds::within(BUDGET) })
            .map(|it| it.value);
        assert_eq!(outcome, Err(EvalError::Budget), "{slow}");
    }
}

#[test]
fn capped_builtins_refuse_at_once() {
    for expression in [
        "count(numbers.range(1, 20000000))",
        "count(net.cidr_expand(\"10.0.0.0/9\"))",
        "count(numbers.range(1, 1000000000000))",
    ] {
        let policy = format!("package p\nallow := {expression}\n");
        let answer = ask(&policy, "p/allow", Value::empty_object());
        assert!(matches!(answer, Err(EvalError::Budget | EvalError::Memory(_))), "{expression}: {answer:?}");
    }
    for (expression, want) in [
        ("count(numbers.range(1, 20))", "20"),
        ("count(net.cidr_expand(\"10.0.0.0/30\"))", "4"),
        ("sprintf(\"%d-%s\", [1, \"a\"])", "\"1-a\""),
        ("glob.match(\"/a/*\", [\"/\"], \"/a/b\")", "true"),
        ("strings.count(\"aaa\", \"\")", "4"),
    ] {
        let policy = format!("package p\nallow := {expression}\n");
        assert_eq!(ask(&policy, "p/allow", Value::empty_object()).as_deref(), Ok(want), "{expression}");
    }
}

#[test]
fn a_panic_spoils_nothing() {
    let policy = "package p\nallow := true if input.n == 1\nallow := true if { input.n == 2; internal.test_panic() }\n";
    let snapshot = build(policy, "p/allow").expect("the policy loads");
    let ask = |n: i64| {
        let mut members = crate::value::Members::default();
        members.put_text("n", Value::from(n));
        let input = members.into_value();
        let outcome =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| snapshot.eval(&input, Bounds::within(BUDGET))));
        outcome.map(|evaluation| evaluation.map(|evaluation| evaluation.value)).ok()
    };
    assert_eq!(ask(1), Some(Ok(Some(Value::Bool(true)))));
    assert!(ask(2).is_none(), "it panics");
    for _ in 0..3 {
        assert_eq!(ask(1), Some(Ok(Some(Value::Bool(true)))), "the next answer is not spoiled");
        assert_eq!(ask(3), Some(Ok(None)));
    }
}

#[test]
fn the_environment_is_shown_only_when_the_configuration_says_so() {
    let policy = "package p\nallow := opa.runtime().env.PATH";
    assert!(refusal(policy).contains("p.rego:2: rego_type_error"), "{}", refusal(policy));
    assert!(refusal(policy).contains("plugins.stepgate.builtins.opa_runtime: true"), "{}", refusal(policy));
    let module = Module { path: "p.rego".into(), text: policy.into(), version: RegoVersion::V1 };
    let sources = Sources { modules: vec![module], ..Sources::default() };
    let open = Arc::new(HostContext::new(&BuiltinSettings { opa_runtime: true, ..BuiltinSettings::default() }));
    let snapshot = Snapshot::build(&sources, &Entrypoint::from_path("p/allow"), &open).expect("the policy loads");
    let value = snapshot.eval(&Value::Null, Bounds::within(BUDGET)).expect("it evaluates").value;
    assert_eq!(value.as_ref().and_then(Value::as_str), std::env::var("PATH").ok().as_deref());
}

#[test]
fn what_chance_and_the_clock_answered_is_kept() {
    let policy = "package p\nallow := {\"now\": time.now_ns(), \"n\": rand.intn(\"x\", 10), \"id\": uuid.rfc4122(\"k\"), \"plain\": count([1])}";
    let module = Module { path: "p.rego".into(), text: policy.into(), version: RegoVersion::V1 };
    let sources = Sources { modules: vec![module], ..Sources::default() };
    let asked = |keeps_answers: bool| {
        let settings = BuiltinSettings { keeps_answers, ..BuiltinSettings::default() };
        let snapshot =
            Snapshot::build(&sources, &Entrypoint::from_path("p/allow"), &Arc::new(HostContext::new(&settings)));
        let snapshot = snapshot.expect("it loads");
        snapshot.eval(&Value::empty_object(), Bounds::within(BUDGET)).expect("an answer")
    };
    let answered = asked(true);
    let (value, answers) = (answered.value.expect("a value"), answered.answers.expect("what was answered"));
    for (member, name, args) in
        [("now", "time.now_ns", "[]"), ("n", "rand.intn", r#"["x",10]"#), ("id", "uuid.rfc4122", r#"["k"]"#)]
    {
        let kept = answers.member(name).and_then(|results| results.member(args));
        assert_eq!(kept, value.member(member), "{name}: {}", json_text(&answers));
    }
    assert!(answers.member("count").is_none());
    assert!(asked(false).answers.is_none(), "only where it is wanted");
}

#[test]
fn references_into_data_find_what_a_number_spells() {
    let policy = r#"package p
default not_blocked := false
not_blocked if not data.blocked[input.id]
by_variable := x if { k := 1; x := data.users[k] }
by_fraction := data.users[1.5]
item := data.list["1"]
deep := [x | x := data.teams[_][input.id]]
copy if { d := data.blocked; d[input.id] }
beside := data.p.extra[input.id]
hidden := data.system.x
"#;
    let data = r#"{"blocked": {"7": true}, "users": {"1": "one", "1.5": "half"}, "list": ["a", "b"], "teams": {"a": {"7": 1}, "b": {"8": 2}},
        "p": {"extra": {"7": "seven"}}, "system": {"x": 1}}"#;
    let limits = crate::value::JsonLimits { depth: 10, duplicates: crate::value::DuplicateKeys::Refuse };
    let module = Module { path: "p.rego".into(), text: policy.into(), version: RegoVersion::V1 };
    let data = crate::value::parse_json(data.as_bytes(), limits).expect("JSON");
    let snapshot =
        Snapshot::build(&Sources { modules: vec![module], data }, &Entrypoint::from_path("p"), &host_context());
    let input = crate::value::parse_json(br#"{"id": 7}"#, limits).expect("JSON");
    let snapshot = snapshot.expect("it loads");
    let question = QueryOptions { input: Some(&input), strict_builtin_errors: false, budget: BUDGET };
    let whole = snapshot.document(&[], &question).expect("an answer").expect("all of it");
    assert!(whole.member("blocked").is_some() && whole.member("system").is_none(), "{}", json_text(&whole));
    let value = snapshot.eval(&input, Bounds::within(BUDGET)).expect("an answer").value;
    // As the real OPA answers.
    let want = r#"{"beside":"seven","by_fraction":"half","by_variable":"one","deep":[1],"extra":{"7":"seven"},"hidden":1,"item":"b","not_blocked":false}"#;
    assert_eq!(value.map(|value| json_text(&value)).as_deref(), Some(want));
}
