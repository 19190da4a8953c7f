//! Random policies: our engine against itself and against regorus.
//!
//! A policy is asked as it is, with every constant hidden behind a function (so that no rule index can see it), and with
//! its rules shuffled; the three must agree on every input, errors included. regorus must agree where it can be trusted:
//! on inputs that have every member, since it lets negations of undefined operands succeed.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use stepgate_rego::Options;
use stepgate_rego::{EvalOptions, Policy, Reads, Source, Value, Version, compile};

use crate::test_host::TestHost;

/// Texts that are prefixes of each other, and one that is a glob of others.
const TEXTS: &[&str] = &["", "a", "ab", "abc", "a/b", "b", "b/c"];
const MEMBERS: &[&str] = &["m", "n", "o", "p"];

/// A condition of a body. `@"text"@` is a constant that may be hidden, `$` a variable of its own.
fn condition() -> impl Strategy<Value = String> {
    let member = || {
        prop_oneof![
            6 => select(MEMBERS).prop_map(|name| format!("input.{name}")),
            1 => select(MEMBERS).prop_map(|name| format!("input.deep.{name}")),
            1 => select(MEMBERS).prop_map(|name| format!("input.deep.inner.{name}")),
            1 => select(MEMBERS).prop_map(|name| format!("input.deep[input.{name}]")),
            1 => select(MEMBERS).prop_map(|name| format!("object.get(input.deep, @\"{name}\"@, @\"a\"@)")),
            1 => select(MEMBERS).prop_map(|name| format!("[$ | $ := input][0].deep.{name}")),
        ]
    };
    let text = || select(TEXTS).prop_map(|text| format!("@\"{text}\"@"));
    prop_oneof![
        4 => (member(), text()).prop_map(|(member, text)| format!("{member} == {text}")),
        1 => (member(), text()).prop_map(|(member, text)| format!("{text} == {member}")),
        1 => (member(), text()).prop_map(|(member, text)| format!("{member} = {text}")),
        2 => (member(), text()).prop_map(|(member, text)| format!("{member} != {text}")),
        1 => (member(), text()).prop_map(|(member, text)| format!("{member} < {text}")),
        2 => (member(), text()).prop_map(|(member, text)| format!("startswith({member}, {text})")),
        1 => (member(), text()).prop_map(|(member, text)| format!("not startswith({member}, {text})")),
        1 => (member(), text()).prop_map(|(member, text)| format!("endswith({member}, {text})")),
        2 => (member(), text(), text()).prop_map(|(member, a, b)| format!("{member} in {{{a}, {b}}}")),
        1 => (member(), text()).prop_map(|(member, text)| format!("not {member} == {text}")),
        1 => (member(), member()).prop_map(|(a, b)| format!("{a} == {b}")),
        1 => member().prop_map(|member| format!("glob.match(@\"a*\"@, [\"/\"], {member})")),
        1 => (member(), text()).prop_map(|(member, text)| format!("some $ in input.list; $ == {member}; $ != {text}")),
        1 => text().prop_map(|text| format!("every $ in input.list {{ $ != {text} }}")),
        1 => (member(), text()).prop_map(|(member, text)| format!("count([$ | $ := input.list[_]; $ < {member}; $ != {text}]) > 1")),
        1 => (member(), text()).prop_map(|(member, text)| format!("is({member}, {text})")),
        1 => member().prop_map(|member| format!("named[{member}]")),
        1 => member().prop_map(|member| format!("not named[{member}]")),
        1 => (member(), text()).prop_map(|(member, text)| format!("sizes[{member}] == count({text})")),
        1 => text().prop_map(|text| format!("sizes.a == count({text})")),
        1 => text().prop_map(|text| format!("not sizes.ab == count({text})")),
        // Where data is replaced, all of an object is evaluated for one of its members.
        1 => text().prop_map(|text| format!("sizes.ab == count({text}) with data.other as 1")),
    ]
}

/// Bodies of three rules that hang together, and values of the decision.
#[derive(Clone, Debug)]
struct Rules {
    decisions: Vec<(Option<bool>, Vec<String>)>,
    levels: Vec<(u8, Vec<String>, Option<u8>)>,
    has_default: bool,
}

fn rules() -> impl Strategy<Value = Rules> {
    let own = |(at, condition): (usize, String)| condition.replace('$', &format!("x{at}"));
    let body = move || vec(condition(), 1..4).prop_map(move |body| body.into_iter().enumerate().map(own).collect());
    (
        vec((proptest::option::of(any::<bool>()), body()), 1..8),
        vec((0u8..3, body(), proptest::option::of(0u8..3)), 0..4),
        any::<bool>(),
    )
        .prop_map(|(decisions, levels, has_default)| Rules { decisions, levels, has_default })
}

impl Rules {
    /// The rules in order, each a text of its own.
    fn texts(&self) -> Vec<String> {
        let mut out: Vec<String> = [
            "is(a, b) if a == b",
            "named contains x if some x in input.list",
            "sizes[x] := count(x) if some x in input.list",
            "hidden(x) := y if { y := input.nothing } else := x",
        ]
        .map(str::to_owned)
        .to_vec();
        if self.has_default {
            out.push("default allow := \"unknown\"".to_owned());
        }
        for (value, body) in &self.decisions {
            let value = value.map_or("true".to_owned(), |value| value.to_string());
            out.push(format!("allow := {value} if {{ {} }}", body.join("; ")));
        }
        for (value, body, other) in &self.levels {
            let other = other.map(|other| format!(" else := {other} if {{ input.m == @\"a\"@ }}")).unwrap_or_default();
            out.push(format!("level := {value} if {{ {} }}{other}", body.join("; ")));
        }
        out
    }
}

fn load(rules: &[String], hide: bool) -> Policy {
    let (open, close) = if hide { ("hidden(\"", "\")") } else { ("\"", "\"") };
    let text = format!("package p\n{}\n", rules.join("\n")).replace("@\"", open).replace("\"@", close);
    let source = Source { path: "p.rego".into(), text, version: Version::V1 };
    compile(&[source], Value::empty_object(), &Options::default()).expect("the policy compiles")
}

fn ask(policy: &Policy, rule: &str, input: &Value) -> String {
    match policy.eval(
        &[Value::from("p"), Value::from(rule)],
        Some(input),
        &EvalOptions::default(),
        &TestHost::default(),
    ) {
        Ok(value) => value.map_or("undefined".to_owned(), |value| value.to_string()),
        Err(error) => error.kind.code().to_owned(),
    }
}

/// The input with nothing but the places that the policy says it looks at.
fn restricted(input: &Value, reads: &Reads) -> Value {
    reads.places().fold(Value::empty_object(), |kept, place| {
        let names: Vec<&str> = place.iter().map(|name| name.as_str()).collect();
        match input.at(names.iter().copied()) {
            Some(value) => with(&kept, &names, value),
            None => kept,
        }
    })
}

/// `object` with `value` at the end of `names`.
fn with(object: &Value, names: &[&str], value: &Value) -> Value {
    let [name, rest @ ..] = names else { return value.clone() };
    let inner = with(object.member(name).unwrap_or(&Value::empty_object()), rest, value);
    let members = object.as_object().into_iter().flat_map(|members| members.iter());
    let members = members.map(|(name, value)| (name.clone(), value.clone()));
    Value::object(members.chain([(Value::from(*name), inner)]).collect())
}

fn input() -> impl Strategy<Value = Value> {
    let member =
        || prop_oneof![6 => select(TEXTS).prop_map(Value::from), 1 => Just(Value::from(1)), 1 => Just(Value::Null)];
    let members = move || vec(proptest::option::of(member()), MEMBERS.len());
    let list = vec(select(TEXTS).prop_map(Value::from), 0..4);
    let named = |members: Vec<Option<Value>>| {
        MEMBERS.iter().zip(members).filter_map(|(name, member)| member.map(|member| (*name, member)))
    };
    (members(), members(), proptest::option::of(members()), list).prop_map(move |(members, deep, inner, list)| {
        let inner = inner.map(|inner| ("inner", named(inner).collect::<Value>()));
        let deep = named(deep).chain(inner).collect::<Value>();
        named(members).chain([("list", Value::array(list)), ("deep", deep)]).collect()
    })
}

/// An input with every member, all of them texts.
fn whole_input() -> impl Strategy<Value = Value> {
    let text = || select(TEXTS).prop_map(Value::from);
    let members = || vec(text(), MEMBERS.len()).prop_map(|members| MEMBERS.iter().copied().zip(members));
    (members(), members(), members(), vec(text(), 1..4)).prop_map(|(members, deep, inner, list)| {
        // Every text is a member, too, so that no reference by one is undefined.
        let by_text = TEXTS.iter().map(|text| (*text, Value::from(*text)));
        let deep = deep.chain(by_text).chain([("inner", inner.collect())]).collect::<Value>();
        members.chain([("list", Value::array(list)), ("deep", deep)]).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn neither_the_index_nor_the_order_of_rules_decides(
        rules in rules(),
        inputs in vec(input(), 1..12),
        order in vec(any::<Index>(), 32),
    ) {
        let texts = rules.texts();
        let mut shuffled = texts.clone();
        for (at, other) in order.iter().enumerate().take(shuffled.len()) {
            let other = other.index(shuffled.len());
            shuffled.swap(at, other);
        }
        let (plain, hidden, shuffled) = (load(&texts, false), load(&texts, true), load(&shuffled, false));
        for input in &inputs {
            for rule in ["allow", "level"] {
                let want = ask(&plain, rule, input);
                prop_assert_eq!(&ask(&hidden, rule, input), &want, "without the index: {} {}", rule, input);
                prop_assert_eq!(&ask(&shuffled, rule, input), &want, "in another order: {} {}", rule, input);
            }
        }
    }

    #[test]
    fn nothing_is_looked_at_but_what_the_policy_says(rules in rules(), inputs in vec(input(), 1..12)) {
        let mut texts = rules.texts();
        // Rules beside one with a variable in its head, of the same object: two values for one member are an error.
        texts.push("sizes.a := count(input.o) if input.n".to_owned());
        texts.push("sizes.abc := count(input.p) if not input.n == @\"a\"@".to_owned());
        let policy = load(&texts, false);
        for input in &inputs {
            for rule in ["allow", "level"] {
                let read = restricted(input, &policy.reads(&[Value::from("p"), Value::from(rule)]));
                prop_assert_eq!(ask(&policy, rule, &read), ask(&policy, rule, input), "{} {}", rule, input);
            }
        }
    }

    #[test]
    fn regorus_agrees_where_nothing_is_undefined(rules in rules(), inputs in vec(whole_input(), 1..6)) {
        let texts = rules.texts();
        let ours = load(&texts, false);
        let mut engine = regorus::Engine::new();
        let text = format!("package p\n{}\n", texts.join("\n")).replace("@\"", "\"").replace("\"@", "\"");
        engine.add_policy("p.rego".to_owned(), text).expect("regorus takes the policy");
        for input in &inputs {
            engine.set_input(regorus::Value::from_json_str(&input.to_json()).expect("JSON"));
            let want = match engine.eval_rule("data.p.allow".to_owned()) {
                Ok(regorus::Value::Undefined) => "undefined".to_owned(),
                Ok(value) => value.to_string(),
                Err(_) => "eval_conflict_error".to_owned(),
            };
            prop_assert_eq!(ask(&ours, "allow", input), want, "{}", input);
        }
    }
}
