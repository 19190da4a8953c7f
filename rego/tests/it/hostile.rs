//! Policies that try to use up time, memory or the stack: each is refused when it is compiled, or ends over its budget.

use std::time::{Duration, Instant};

use stepgate_rego::Options;
use stepgate_rego::{ErrorKind, EvalError, EvalOptions, Limits, Policy, Source, Value, Version, compile};

use crate::test_host::TestHost;

/// The time limit of an evaluation; ten times that of a check.
const BUDGET: Duration = Duration::from_millis(500);
/// The overrun of a development build on a busy machine.
const SLACK: Duration = Duration::from_secs(5);

/// The policy, or everything that is wrong with it.
fn load(rules: &str) -> Result<Policy, String> {
    let text = format!("package p\n{rules}\n");
    let source = Source { path: "p.rego".into(), text, version: Version::V1 };
    compile(&[source], Value::empty_object(), &Options::default())
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

/// Asks for `allow` on a thread with as much stack as those of the server.
fn ask_about(policy: &Policy, input: &Value) -> Result<Option<Value>, EvalError> {
    let ask = || {
        let end = Instant::now() + BUDGET;
        let world = TestHost::until(end);
        let path = [Value::from("p"), Value::from("allow")];
        let answer = policy.eval(&path, Some(input), &EvalOptions::default(), &world);
        assert!(Instant::now() < end + SLACK, "the budget did not end it");
        answer
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(8 << 20).spawn_scoped(scope, ask);
        thread.expect("a thread starts").join().expect("nothing panics")
    })
}

fn ask(policy: &Policy) -> Result<Option<Value>, EvalError> {
    ask_about(policy, &Value::empty_object())
}

/// The evaluation ends over its budget.
fn is_bounded(rules: &str) {
    let answer = load(rules).map(|policy| ask(&policy));
    let kind = answer.as_ref().ok().and_then(|answer| answer.as_ref().err()).map(|error| error.kind);
    let is_over = matches!(kind, Some(ErrorKind::Budget | ErrorKind::Steps | ErrorKind::Memory));
    assert!(is_over, "{rules:.80}: {answer:.200?}");
}

/// The policy is refused with these words.
fn is_refused(rules: &str, words: &str) {
    let errors = load(rules).expect_err("it must be refused");
    assert!(errors.contains(words), "{rules:.80}: {errors:.200}");
}

#[test]
fn work_without_end_goes_over_the_budget() {
    for rules in [
        "allow := count(numbers.range(1, 1000000000000))",
        "allow := count(numbers.range_step(1, 1000000000000, 3))",
        "allow := count(net.cidr_expand(\"10.0.0.0/1\"))",
        "allow := count([1 | some i in numbers.range(1, 100000); some j in numbers.range(1, 100000)])",
        "allow := n if { n := count({[i, j] | some i in numbers.range(1, 9999); some j in numbers.range(1, 9999)}) }",
        "allow if { every i in numbers.range(1, 90000) { every j in numbers.range(1, 90000) { i + j > 0 } } }",
        "allow := count([1 | walk(numbers.range(1, 900000), _); walk(numbers.range(1, 900000), _)])",
        "allow if regex.match(`^(a|aa)+$`, concat(\"\", [\"a\" | some _ in numbers.range(1, 90000000)]))",
        "allow := x if { x := concat(\"\", [s | s := \"aaaaaaaaaa\"; some _ in numbers.range(1, 90000000)]) }",
        "f(0) := 0\nf(n) := n if n > 0\nallow := sum([f(n) | some n in numbers.range(1, 90000000)])",
    ] {
        is_bounded(rules);
    }
}

#[test]
fn values_that_double_go_over_the_budget() {
    let doubling = |start: &str, step: &str| {
        let rules: String =
            (1..60).map(|at| format!("x{at} := {}\n", step.replace('@', &format!("x{}", at - 1)))).collect();
        format!("x0 := {start}\n{rules}allow := x59")
    };
    is_bounded(&doubling("99999999999999999999", "@ * @"));
    is_bounded(&doubling("\"ab\"", "concat(\"\", [@, @])"));
    is_bounded(&doubling("\"ab\"", "replace(@, \"a\", @)"));
    is_bounded(&doubling("[1, 2]", "array.concat(@, @)"));
    is_bounded(&doubling("\"ab\"", "sprintf(\"%s%s\", [@, @])"));
    // Shared, not copied: cheap until it is written, compared or walked.
    for step in ["[@, @]", "{\"a\": @, \"b\": @}", "{@, [@]}"] {
        is_bounded(&doubling("[1]", step));
    }
    let deep = |at: usize| format!("x{at} := {}x{}{}\n", "[".repeat(150), at - 1, "]".repeat(150));
    is_bounded(&format!("x0 := 1\n{}allow := x99", (1..100).map(deep).collect::<String>()));
}

#[test]
fn nesting_is_bounded_by_words_and_not_by_the_stack() {
    for (open, inner, close) in [
        ("[", "", "]"),
        ("{\"a\": ", "1", "}"),
        ("(", "1", ")"),
        ("{", "1", "}"),
        ("count(", "[]", ")"),
        ("[x | x := ", "1", "]"),
        ("input[", "1", "]"),
    ] {
        let text = format!("allow := {}{inner}{}", open.repeat(1_000), close.repeat(1_000));
        is_refused(&text, "nesting is deeper than 200");
    }
    is_refused(&format!("allow := {}", ["1"; 20_000].join(" + ")), "more than 1000 operators depend on each other");
    is_refused(&format!("allow := {}", ["{1}"; 20_000].join(" | ")), "more than 1000 operators depend on each other");
    assert!(load(&format!("allow := {}", ["1"; 900].join(" + "))).is_ok());
}

#[test]
fn long_lists_of_anything_are_no_nesting() {
    let elses: String = (0..5_000).map(|at| format!(" else := {at} if input.a == {at}")).collect();
    assert!(ask(&load(&format!("allow := 1 if input.b\n{elses}")).expect("it loads")).is_ok());
    let line: Vec<String> = (0..50_000).map(|at| format!("\"{at}\"")).collect();
    assert!(ask(&load(&format!("allow if input.a in {{{}}}", line.join(", "))).expect("it loads")).is_ok());
    let sums: Vec<String> = (0..5_000).map(|at| format!("{at} + 1")).collect();
    assert!(ask(&load(&format!("allow := [{}]", sums.join(", "))).expect("it loads")).is_ok());
}

#[test]
fn a_hundred_thousand_rules_load_and_the_index_finds_one() {
    let rules: String = (0..100_000).map(|at| format!("allow if input.x == \"v{at}\"\n")).collect();
    let policy = load(&rules).expect("it loads");
    // A few steps are enough for the index; looking at every rule would take a hundred thousand.
    let limits = Limits { steps: 1_000, ..Limits::default() };
    let options = EvalOptions { limits, ..EvalOptions::default() };
    let input = [("x", Value::from("v77777"))].into_iter().collect();
    let world = TestHost::until(Instant::now() + BUDGET);
    let answer = policy.eval(&[Value::from("p"), Value::from("allow")], Some(&input), &options, &world);
    assert_eq!(answer.expect("within the budget"), Some(Value::Bool(true)));
}

#[test]
fn rules_that_call_each_other_too_deeply_go_over_the_budget() {
    let rules: String = (1..50_000).map(|at| format!("r{at} if r{}\n", at - 1)).collect();
    is_bounded(&format!("r0 := true\n{rules}allow if r49999"));
    let nested = |open: &dyn Fn(usize) -> String, inner: String, close: &str| {
        (0..60).fold(inner, |inner, at| format!("{}{inner}{close}", open(at)))
    };
    let rules: String = (1..390)
        .map(|at| format!("r{at} := {}\n", nested(&|it| format!("[x{it} | x{it} := "), format!("r{}", at - 1), "]")))
        .collect();
    is_bounded(&format!("r0 := true\n{rules}allow if r389"));
    let rules: String = (1..390)
        .map(|at| format!("r{at} if {}\n", nested(&|_| "every _ in [1] { ".to_owned(), format!("r{}", at - 1), " }")))
        .collect();
    is_bounded(&format!("r0 := true\n{rules}allow if r389"));
}

#[test]
fn functions_that_call_one_another_twice_do_their_work_once() {
    let chain: String = (1..50).map(|at| format!("f{at}(x) := f{}(x) + f{}(x)\n", at - 1, at - 1)).collect();
    let policy = load(&format!("f0(x) := x\n{chain}allow if f49(1) == 562949953421312")).expect("it compiles");
    assert_eq!(ask(&policy), Ok(Some(Value::from(true))));
}

#[test]
fn recursion_is_refused_with_its_path() {
    is_refused(
        "allow if b\nb if c\nc if allow",
        "rule data.p.allow is recursive: data.p.allow -> data.p.b -> data.p.c",
    );
    is_refused("f(x) := f(x - 1)\nallow := f(10)", "rego_recursion_error");
    is_refused("allow if data.p[input.x]", "rego_recursion_error");
}
