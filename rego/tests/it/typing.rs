//! Statements that can never be true are refused when a policy is loaded, as OPA's type checker refuses them.
//!
//! The answers were measured on OPA 1.19.

use stepgate_rego::Options;
use stepgate_rego::{Source, Value, Version, compile};

/// The first error of a policy in package `p`; nothing when it is taken.
fn refusal(rules: &str, options: &Options) -> Option<String> {
    let text = format!("package p\n{rules}");
    let source = Source { path: "p.rego".into(), text, version: Version::V1 };
    let errors = compile(&[source], Value::empty_object(), options).err()?;
    errors.first().map(|error| error.message.lines().next().unwrap_or_default().to_owned())
}

#[test]
fn what_leads_nowhere_is_refused() {
    for (rules, message) in [
        ("b := {\"user\": 1}\nallow if not b.usr", "undefined ref: data.p.b.usr"),
        ("allow if {x := {\"a\": 1}; x.b}", "undefined ref: x.b"),
        ("s := {\"a\"}\nallow if s[1]", "undefined ref: data.p.s[1]"),
        ("allow if {x := split(\"a\", \".\"); x.a}", "undefined ref: x.a"),
        ("allow if count([x | x := b.z]) == 0\nb := {\"a\": 1}", "undefined ref: data.p.b.z"),
        ("b := {\"u\": 1}\nallow if every x in [1] { b.v == x }", "undefined ref: data.p.b.v"),
        ("import future.keywords.not\nb := {\"u\": 1}\nallow if not {b.v}", "undefined ref: data.p.b.v"),
        ("allow if [1, 2] == [1]", "match error"),
        ("allow if {x := \"a\"; x == 1}", "match error"),
        ("allow if startswith(1, \"a\")", "startswith: invalid argument(s)"),
        ("allow if not startswith(input.x, 1)", "startswith: invalid argument(s)"),
        ("f(x) := x + 1\nallow if f(\"a\")", "data.p.f: invalid argument(s)"),
        ("allow if glob.match(\"a\", \"b\", \"c\")", "glob.match: invalid argument(s)"),
        ("f(x) := {k: x | some k in input.ks}\nallow if not f(1) == {\"a\": 1}", "match error"),
        ("f(x) := x\ng(x, y) := x + y\nallow if f(1) with f as g", "data.p.f: arity mismatch"),
        ("allow if { some x; true }", "declared var x unused"),
        ("allow if every k, v in [1] { v == 1 }", "declared var k unused"),
    ] {
        assert_eq!(refusal(rules, &Options::default()).as_deref(), Some(message), "{rules}");
    }
}

#[test]
fn what_may_lead_somewhere_is_taken() {
    for rules in [
        "allow if input.a.b[0].c[1] == \"x\"",
        "allow if data.p.nothing.here",
        "allow if data.elsewhere[input.x].y",
        "v := 1 if input.x else := {\"k\": 1}\nallow if v.k",
        "p[x] := y if some x, y in input.m\nallow if p.a.b.c",
        "x := [1, \"a\"]\nallow if {some i; x[i] == \"a\"}",
        "s := {[1, 2]}\nallow if {some x; s[[1, x]]; x == 2}",
        "f(\"a\") := 1\nf(1) := \"x\"\nallow if f(1) == \"x\"",
        "allow if http == 1\nhttp := input.n",
        "allow if 1 < \"a\"",
        "x := {}\nallow if x.anything",
        // The type of a function's argument is unknown: its result fits anywhere.
        "f(x) := object.union({k: x | some k in input.ks}, {\"a\": 1})\nallow if f(1)",
        "f(x) := count([x | some y in input.ys; y])\nallow if f(1)",
        "f(x) if { s := {x}; count(s) == 1 }\nallow if f(1)",
        "f(x, y) if { z := {x, y}; some w in z; w == 1 }\nallow if f(1, 2)",
        "p[x] := {y: 1 | some y in input.a} if x := input.x\np[x] := 1 if x := input.y\n\
         p[x] := {y: \"s\" | some y in input.a} if x := input.z\nallow if p[_] == {\"a\": 1, \"b\": \"x\"}",
    ] {
        assert_eq!(refusal(rules, &Options::default()), None, "{rules}");
    }
}

#[test]
fn types_stay_small_whatever_a_policy_builds() {
    // Each variable holds the one before twice: the type of the last would have 2^60 parts.
    let doubled: String = (1..60).map(|at| format!("x{at} := [x{}, x{}]\n", at - 1, at - 1)).collect();
    assert_eq!(refusal(&format!("x0 := input.x\n{doubled}allow if x59"), &Options::default()), None);
    let nested = format!("allow := {}1{}", "[x | x := ".repeat(40), "]".repeat(40));
    assert_eq!(refusal(&nested, &Options::default()), None);
    let many: String = (0..3_000).map(|at| format!("s contains {{\"k{at}\": {at}}}\n")).collect();
    assert_eq!(refusal(&format!("{many}allow if s[{{\"k1\": 1}}]"), &Options::default()), None);
}

#[test]
fn strict_refuses_what_nothing_uses() {
    let strict = Options { strict: true, ..Options::default() };
    for (rules, message) in [
        ("import data.zzz\nallow if true", "import data.zzz unused"),
        ("import input.y as z\nallow if true", "import input.y as z unused"),
        ("f(x, q) := x\nallow if f(1, 2)", "unused argument q. (hint: use _ (wildcard variable) instead)"),
        ("allow if { z := 3 }", "assigned var z unused"),
        ("default f(x) := 1\nf(x) if x\nallow if f(1)", "unused argument x. (hint: use _ (wildcard variable) instead)"),
    ] {
        assert_eq!(refusal(rules, &strict).as_deref(), Some(message), "{rules}");
        assert_eq!(refusal(rules, &Options::default()), None, "{rules}");
    }
    assert_eq!(refusal("f(x, x) := 1\nallow if f(1, 1)", &strict), None);
    assert_eq!(refusal("import data.zzz\nf(_, x) := x\nallow if { y := zzz.a; f(1, y) }", &strict), None);
}
