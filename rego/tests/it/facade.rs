//! The short way: `Policy::compile`, `Policy::query`, `Query::eval`.

use stepgate_rego::{ErrorKind, Limits, Policy, Value};

use crate::test_host::TestHost;

const POLICY: &str = "package p
allow if input.user == \"alice\"
no := false
ids contains i if some i in [1, 2, 3]
t := time.now_ns()
bad := to_number(\"x\")
slow := count([1 | some i in numbers.range(1, 2000); some j in numbers.range(1, 2000); i == j])
";

fn policy() -> Policy {
    Policy::compile([("p.rego", POLICY)]).expect("it compiles")
}

fn ask(query: &str, input: &str) -> Option<Value> {
    let input: Value = input.parse().expect("JSON");
    policy().query(query).expect("it compiles").with_host(&TestHost::default()).eval(&input).expect("no error")
}

#[test]
fn queries_have_the_value_of_their_last_statement() {
    let alice = r#"{"user": "alice"}"#;
    assert_eq!(ask("data.p.allow", alice), Some(Value::Bool(true)));
    assert_eq!(ask("data.p.allow", "{}"), None);
    assert_eq!(ask("data.p.no", "{}"), Some(Value::Bool(false)));
    assert_eq!(ask("data.p.t", "{}"), Some(Value::from(0)));
    assert_eq!(ask("data.p.nothing", "{}"), None);
    assert_eq!(ask("x := 40; x + 2", "{}"), Some(Value::from(42)));
    assert_eq!(ask("data.p.ids[3]; false", "{}"), None);
}

#[test]
fn every_solution_has_its_bindings() {
    let policy = policy();
    let found = policy.query("data.p.ids[x]; x > 1").expect("a query").solutions(&Value::Null).expect("no error");
    let bound: Vec<_> = found.iter().flat_map(|solution| &solution.bindings).map(|(_, value)| value.clone()).collect();
    assert_eq!(bound, [Value::from(2), Value::from(3)]);
}

#[test]
fn errors_come_all_at_once_and_limits_hold() {
    let errors = Policy::compile([("a.rego", "package a\nallow if x"), ("b.rego", "package b\nallow if y")]).err();
    let text = errors.expect("two errors").to_string();
    assert!(text.contains("a.rego:2: rego_unsafe_var_error: var x is unsafe"), "{text}");
    assert!(text.contains("b.rego:2: rego_unsafe_var_error: var y is unsafe"), "{text}");
    let policy = policy();
    assert!(policy.query("data.p.allow; y").is_err() && policy.query("][").is_err());
    let query = policy.query("data.p.slow").expect("a query");
    let error =
        query.with_limits(Limits { steps: 10_000, ..Limits::default() }).eval(&Value::Null).expect_err("a limit");
    assert!(matches!(error.kind, ErrorKind::Steps), "{error}");
    let query = policy.query("data.p.bad").expect("a query");
    assert_eq!(query.eval(&Value::Null).expect("undefined"), None);
    assert!(policy.query("data.p.bad").expect("a query").with_strict_builtin_errors().eval(&Value::Null).is_err());
}
