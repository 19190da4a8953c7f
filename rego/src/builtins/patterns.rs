//! Regular expressions in Go's flavour, and globs.
//!
//! Mirrors: OPA `v1/topdown/{regex,regex_template,glob}.go`, v1.19.0.

mod glob;
mod intersection;
mod re2;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::thread::LocalKey;

use regex::{Regex, RegexBuilder};

use super::{
    Builtin, BuiltinError, Context, Outcome, failed, function, integer, operand, text, wrong_item, wrong_type,
};
use crate::eval::EvalError;
use crate::value::Value;

pub const TABLE: &[Builtin] = &[
    function("regex.match", 2, matches),
    function("re_match", 2, matches),
    function("regex.is_valid", 1, |_, args| {
        Ok(Value::Bool(
            operand(args, 1)?
                .as_str()
                .is_some_and(|pattern| re2::translate(pattern).is_ok_and(|it| compile(&it).is_ok())),
        ))
    }),
    function("regex.split", 2, split),
    function("regex.find_n", 3, find_n),
    function("regex.find_all_string_submatch_n", 3, find_submatches),
    function("regex.replace", 3, replace),
    function("regex.template_match", 4, template_match),
    function("regex.globs_match", 2, |context, args| {
        intersection::meet(context, text(args, 1)?, text(args, 2)?).map(Value::Bool)
    }),
    function("glob.match", 3, glob_match),
    function("glob.quote_meta", 1, |_, args| Ok(Value::from(glob::quote(text(args, 1)?)))),
];

/// Patterns that a thread remembers; past that it forgets them all.
const MAX_REMEMBERED: usize = 1_000;
/// The longest pattern.
const MAX_PATTERN_BYTES: usize = 64 << 10;
/// Bytes that a compiled pattern may take.
const MAX_COMPILED_BYTES: usize = 16 << 20;

type Remembered<T> = HashMap<(Kind, String), Result<T, String>, ahash::RandomState>;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Regex,
    Glob,
    Template,
}

thread_local! {
    /// Compiled patterns. Each thread has its own: sharing them would make threads wait for each other's scratch space.
    static REGEXES: RefCell<Remembered<Regex>> = RefCell::default();
    static GLOBS: RefCell<Remembered<Rc<glob::Matcher>>> = RefCell::default();
}

fn compile(translated: &str) -> Result<Regex, String> {
    RegexBuilder::new(translated)
        .size_limit(MAX_COMPILED_BYTES)
        .dfa_size_limit(MAX_COMPILED_BYTES)
        .nest_limit(200)
        .build()
        .map_err(|error| error.to_string())
}

/// The compiled pattern, made by `make` when it is new.
fn remembered<T: Clone>(
    all: &'static LocalKey<RefCell<Remembered<T>>>,
    kind: Kind,
    key: &str,
    make: impl FnOnce() -> Result<T, String>,
) -> Result<T, BuiltinError> {
    if key.len() > MAX_PATTERN_BYTES {
        return Err(failed("the pattern is too long"));
    }
    all.with_borrow_mut(|known| {
        // The key is looked up by value; patterns are short.
        let key = (kind, key.to_owned());
        if let Some(found) = known.get(&key) {
            return found.clone();
        }
        let made = make();
        if known.len() >= MAX_REMEMBERED {
            known.clear();
        }
        known.insert(key, made.clone());
        made
    })
    .map_err(failed)
}

/// The compiled regular expression, put in our words by `translate`.
fn remembered_regex(
    kind: Kind,
    key: &str,
    translate: impl FnOnce() -> Result<String, String>,
) -> Result<Regex, BuiltinError> {
    remembered(&REGEXES, kind, key, || translate().and_then(|translated| compile(&translated)))
}

fn regex(pattern: &str) -> Result<Regex, BuiltinError> {
    remembered_regex(Kind::Regex, pattern, || {
        re2::translate(pattern).map_err(|why| format!("error parsing regexp: {why}"))
    })
}

/// A call whose pattern is constant.
#[derive(Debug)]
pub enum Prepared {
    /// `regex.match(pattern, subject)`.
    Regex(Regex),
    /// `glob.match(pattern, delimiters, subject)`.
    Glob(glob::Matcher),
}

impl Prepared {
    /// Compiles the pattern of a call of `name`; nothing where there is none, or where it is wrong.
    pub fn of(name: &str, args: &[Option<&Value>]) -> Option<Self> {
        match (name, args) {
            ("regex.match" | "re_match", [Some(Value::String(pattern)), _]) => Some(Self::Regex(regex(pattern).ok()?)),
            ("glob.match", [Some(Value::String(pattern)), Some(delimiters), _]) => {
                let delimiters = glob_delimiters(delimiters).ok()?;
                Some(Self::Glob(glob::Matcher::new(pattern, &delimiters).ok()?))
            }
            _ => None,
        }
    }

    /// Whether the subject, the last of `args`, matches; nothing where it is no string.
    pub(crate) fn run(&self, context: &mut Context<'_>, args: &[&Value]) -> Result<Option<bool>, EvalError> {
        let Some(subject) = args.last().and_then(|subject| subject.as_str()) else { return Ok(None) };
        context.work(subject.len() / 32)?;
        Ok(Some(match self {
            Self::Regex(regex) => regex.is_match(subject),
            Self::Glob(glob) => glob.is_match(subject).map_err(|_| glob_is_too_slow())?,
        }))
    }
}

pub use self::glob::literal_prefix as glob_prefix;

/// Charges for looking at a text: matching is linear in it.
fn charge(context: &mut Context<'_>, text: &str) -> Result<(), BuiltinError> {
    Ok(context.work(text.len() / 32)?)
}

fn matches(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (pattern, subject) = (text(args, 1)?, text(args, 2)?);
    charge(context, subject)?;
    Ok(Value::Bool(regex(pattern)?.is_match(subject)))
}

fn limit(count: i64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

fn split(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (pattern, subject) = (text(args, 1)?, text(args, 2)?);
    charge(context, subject)?;
    let regex = regex(pattern)?;
    if !pattern.is_empty() && subject.is_empty() {
        return Ok(Value::array(vec![Value::from("")]));
    }
    let (mut pieces, mut start, mut end) = (Vec::new(), 0, 0);
    for found in regex.find_iter(subject) {
        end = found.start();
        if found.end() != 0 {
            pieces.push(Value::from(subject.get(start..end).unwrap_or("")));
        }
        start = found.end();
    }
    if end != subject.len() {
        pieces.push(Value::from(subject.get(start..).unwrap_or("")));
    }
    Ok(Value::array(pieces))
}

fn find_n(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (pattern, subject, count) = (text(args, 1)?, text(args, 2)?, integer(args, 3)?);
    charge(context, subject)?;
    let regex = regex(pattern)?;
    Ok(Value::array(regex.find_iter(subject).take(limit(count)).map(|it| Value::from(it.as_str())).collect()))
}

fn find_submatches(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (pattern, subject, count) = (text(args, 1)?, text(args, 2)?, integer(args, 3)?);
    charge(context, subject)?;
    let regex = regex(pattern)?;
    let found = regex.captures_iter(subject).take(limit(count)).map(|captures| {
        Value::array(captures.iter().map(|group| Value::from(group.map_or("", |it| it.as_str()))).collect())
    });
    Ok(Value::array(found.collect()))
}

fn replace(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (base, pattern, with) = (text(args, 1)?, text(args, 2)?, text(args, 3)?);
    charge(context, base)?;
    let regex = regex(pattern)?;
    let mut out = String::new();
    let mut last = 0;
    for captures in regex.captures_iter(base) {
        let Some(whole) = captures.get(0) else { continue };
        out.push_str(base.get(last..whole.start()).unwrap_or(""));
        captures.expand(with, &mut out);
        last = whole.end();
        context.work(1)?;
        if out.len() > super::strings::MAX_TEXT_BYTES {
            return Err(crate::eval::EvalError::budget("a string grew too long").into());
        }
    }
    out.push_str(base.get(last..).unwrap_or(""));
    Ok(Value::from(out))
}

fn template_match(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (template, subject) = (text(args, 1)?, text(args, 2)?);
    let delimiter = |position: usize, what: &str| {
        let given = text(args, position)?;
        match given.as_bytes() {
            [one] => Ok(char::from(*one)),
            other => Err(failed(format!(
                "{what} delimiter has to be exactly one character long but is {} long",
                other.len()
            ))),
        }
    };
    let (start, end) = (delimiter(3, "start")?, delimiter(4, "end")?);
    charge(context, subject)?;
    let key = format!("{start}{end}{template}");
    let regex = remembered_regex(Kind::Template, &key, || template_pattern(template, start, end))?;
    Ok(Value::Bool(regex.is_match(subject)))
}

/// Text is literal, what stands between the delimiters is a pattern.
fn template_pattern(template: &str, start: char, end: char) -> Result<String, String> {
    let unbalanced = || format!("unbalanced braces in {template:?}");
    let mut pattern = "^".to_owned();
    let (mut depth, mut piece) = (0u32, String::new());
    for char in template.chars() {
        if char == start {
            depth += 1;
            if depth == 1 {
                pattern.push_str(&regex::escape(&std::mem::take(&mut piece)));
                continue;
            }
        } else if char == end {
            depth = depth.checked_sub(1).ok_or_else(unbalanced)?;
            if depth == 0 {
                pattern.push_str(&format!("({})", re2::translate(&std::mem::take(&mut piece))?));
                continue;
            }
        }
        piece.push(char);
    }
    if depth != 0 {
        return Err(unbalanced());
    }
    Ok(format!("{pattern}{}$", regex::escape(&piece)))
}

fn glob_match(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let pattern = text(args, 1)?;
    let delimiters = glob_delimiters(operand(args, 2)?)?;
    let subject = text(args, 3)?;
    charge(context, subject)?;
    let key: String = delimiters.iter().chain(&['\0']).copied().chain(pattern.chars()).collect();
    let glob = remembered(&GLOBS, Kind::Glob, &key, || glob::Matcher::new(pattern, &delimiters).map(Rc::new))?;
    Ok(Value::Bool(glob.is_match(subject).map_err(|_| glob_is_too_slow())?))
}

fn glob_is_too_slow() -> EvalError {
    EvalError::budget("a glob took too many steps")
}

fn glob_delimiters(given: &Value) -> Result<Vec<char>, BuiltinError> {
    match given {
        Value::Null => Ok(Vec::new()),
        Value::Array(list) if list.is_empty() => Ok(vec!['.']),
        Value::Array(list) => list
            .iter()
            .map(|item| {
                let text = item.as_str().ok_or_else(|| wrong_item(2, given, item, &["string"]))?;
                let mut chars = text.chars();
                match (chars.next(), chars.next()) {
                    (Some(one), None) => Ok(one),
                    _ => Err(wrong_item(2, given, item, &["rune"])),
                }
            })
            .collect(),
        other => Err(wrong_type(2, other, &["array", "null"])),
    }
}
