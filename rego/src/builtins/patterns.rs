//! Regular expressions in Go's flavour, and globs.
//!
//! Mirrors: OPA `v1/topdown/{regex,regex_template,glob}.go`, v1.19.0.

mod glob;
mod intersection;
mod pattern;
mod re2;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::thread::LocalKey;

use self::pattern::Pattern;
use super::{
    Builtin, BuiltinError, Context, Outcome, TextBuilder, excerpt, failed, function, integer, operand, text,
    wrong_item, wrong_type,
};
use crate::eval::EvalError;
use crate::meter::Meter as _;
use crate::value::Value;

pub(super) const TABLE: &[Builtin] = &[
    function("regex.match", 2, matches),
    function("re_match", 2, matches),
    function("regex.is_valid", 1, is_valid),
    function("regex.split", 2, split),
    function("regex.find_n", 3, find_n),
    function("regex.find_all_string_submatch_n", 3, find_submatches),
    function("regex.replace", 3, replace),
    function("regex.template_match", 4, template_match),
    function("regex.globs_match", 2, |context, args| {
        intersection::meet(context, text(args, 1)?, text(args, 2)?).map(Value::Bool)
    }),
    function("glob.match", 3, glob_match),
    function("glob.quote_meta", 1, |context, args| {
        context.mapped_text(std::iter::once(text(args, 1)?), 2, |out, part| out.push_str(&glob::quote(part)))
    }),
];

/// Patterns that a thread remembers, and bytes that they may take; past that it forgets them all.
const MAX_REMEMBERED: usize = 1_000;
const MAX_REMEMBERED_BYTES: usize = 4 << 20;
/// The longest pattern.
const MAX_PATTERN_BYTES: usize = 64 << 10;
/// The longest glob: compiling it takes more than its length.
const MAX_GLOB_BYTES: usize = 16 << 10;
/// Bytes for each byte of a glob.
const GLOB_BYTES_FACTOR: usize = 64;

/// Patterns, or why they are none.
struct Remembered<T> {
    patterns: HashMap<(Kind, String), Result<T, String>, ahash::RandomState>,
    bytes: usize,
}

impl<T> Default for Remembered<T> {
    fn default() -> Self {
        Self { patterns: HashMap::default(), bytes: 0 }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Regex,
    Glob,
    Template,
}

thread_local! {
    /// Compiled patterns. Each thread has its own: sharing them would make threads wait for each other's scratch space.
    static REGEXES: RefCell<Remembered<Pattern>> = RefCell::default();
    static GLOBS: RefCell<Remembered<Rc<glob::Matcher>>> = RefCell::default();
}

/// The compiled pattern, made by `make` when it is new; that also says how many bytes it takes.
fn remembered<T: Clone>(
    all: &'static LocalKey<RefCell<Remembered<T>>>,
    kind: Kind,
    key: String,
    make: impl FnOnce() -> Result<Result<(T, usize), String>, BuiltinError>,
) -> Result<T, BuiltinError> {
    let key = (kind, key);
    if let Some(found) = all.with_borrow(|known| known.patterns.get(&key).cloned()) {
        return found.map_err(failed);
    }
    let (made, bytes) = match make()? {
        Ok((made, bytes)) => (Ok(made), bytes),
        Err(why) => (Err(why), 0),
    };
    let bytes = key.1.len().saturating_mul(2).saturating_add(256).saturating_add(bytes);
    all.with_borrow_mut(|known| {
        if known.patterns.len() >= MAX_REMEMBERED || known.bytes.saturating_add(bytes) > MAX_REMEMBERED_BYTES {
            known.patterns.clear();
            known.bytes = 0;
        }
        known.bytes = known.bytes.saturating_add(bytes);
        known.patterns.insert(key, made.clone());
    });
    made.map_err(failed)
}

/// The compiled regular expression, put in our words by `translate`.
fn remembered_regex(
    context: &mut Context<'_>,
    kind: Kind,
    key: &str,
    translate: impl FnOnce() -> Result<String, String>,
) -> Result<Pattern, BuiltinError> {
    if key.len() > MAX_PATTERN_BYTES {
        return Err(failed("the pattern is too long"));
    }
    context.work(key.len() / 64)?;
    remembered(&REGEXES, kind, key.to_owned(), || {
        pattern::charge_compilation(context, key)?;
        let made = translate().and_then(|translated| Pattern::untrusted(&translated));
        Ok(made.map(|made| (made.clone(), made.bytes())))
    })
}

fn translated(pattern: &str) -> Result<String, String> {
    re2::translate(pattern).map_err(|why| format!("error parsing regexp: {why}"))
}

fn regex(context: &mut Context<'_>, pattern: &str) -> Result<Pattern, BuiltinError> {
    remembered_regex(context, Kind::Regex, pattern, || translated(pattern))
}

/// A call whose pattern is constant.
#[derive(Debug)]
pub enum Prepared {
    /// `regex.match(pattern, subject)`.
    Regex(Pattern),
    /// `glob.match(pattern, delimiters, subject)`.
    Glob(glob::Matcher),
}

impl Prepared {
    /// Compiles the pattern of a call of `name`; nothing where there is none, or where it is wrong.
    pub fn of(name: &str, args: &[Option<&Value>]) -> Option<Self> {
        match (name, args) {
            ("regex.match" | "re_match", [Some(Value::String(pattern)), _]) => {
                Some(Self::Regex(Pattern::trusted(&translated(pattern).ok()?).ok()?))
            }
            ("glob.match", [Some(Value::String(pattern)), Some(delimiters), _]) => {
                let delimiters = glob_delimiters(delimiters).ok()?;
                Some(Self::Glob(glob::Matcher::new(pattern, &delimiters).ok()?))
            }
            _ => None,
        }
    }

    /// Matches the subject, the last of `args`; `None` where it is no string.
    pub(crate) fn run(&self, context: &mut Context<'_>, args: &[&Value]) -> Result<Option<bool>, EvalError> {
        let Some(subject) = args.last().and_then(|subject| subject.as_str()) else { return Ok(None) };
        Ok(Some(match self {
            Self::Regex(pattern) => pattern.charged(context, subject.len())?.is_match(subject),
            Self::Glob(glob) => glob_matches(context, glob, subject)?,
        }))
    }
}

pub(crate) use self::glob::literal_prefix as glob_prefix;

fn is_valid(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let Some(given) = operand(args, 1)?.as_str() else { return Ok(Value::Bool(false)) };
    match regex(context, given) {
        Err(BuiltinError::Halt(error)) => Err(error.into()),
        made => Ok(Value::Bool(made.is_ok())),
    }
}

fn matches(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (pattern, subject) = (text(args, 1)?, text(args, 2)?);
    let pattern = regex(context, pattern)?;
    Ok(Value::Bool(pattern.charged(context, subject.len())?.is_match(subject)))
}

fn limit(count: i64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

fn split(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (given, subject) = (text(args, 1)?, text(args, 2)?);
    let pattern = regex(context, given)?;
    if !given.is_empty() && subject.is_empty() {
        return Ok(Value::array(vec![Value::from("")]));
    }
    let (mut pieces, mut start, mut end) = (Vec::new(), 0, 0);
    for found in pattern.charged(context, subject.len())?.find_iter(subject) {
        pattern.charge_next(context, subject.len().saturating_sub(found.end()))?;
        end = found.start();
        if found.end() != 0 {
            let piece = context.text(subject.get(start..end).unwrap_or(""))?;
            context.push(&mut pieces, piece)?;
        }
        start = found.end();
    }
    if end != subject.len() {
        let piece = context.text(subject.get(start..).unwrap_or(""))?;
        context.push(&mut pieces, piece)?;
    }
    context.array(pieces)
}

fn find_n(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (pattern, subject, count) = (text(args, 1)?, text(args, 2)?, integer(args, 3)?);
    let pattern = regex(context, pattern)?;
    let mut items = Vec::new();
    for found in pattern.charged(context, subject.len())?.find_iter(subject).take(limit(count)) {
        pattern.charge_next(context, subject.len().saturating_sub(found.end()))?;
        let item = context.text(found.as_str())?;
        context.push(&mut items, item)?;
    }
    context.array(items)
}

fn find_submatches(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (pattern, subject, count) = (text(args, 1)?, text(args, 2)?, integer(args, 3)?);
    let pattern = regex(context, pattern)?;
    let mut items = Vec::new();
    for captures in pattern.charged_for_groups(context, subject.len())?.captures_iter(subject).take(limit(count)) {
        let end = captures.get(0).map_or(0, |whole| whole.end());
        pattern.charge_next(context, subject.len().saturating_sub(end))?;
        context.allocate(captures.len().saturating_mul(2 * size_of::<usize>()))?;
        let mut groups = Vec::new();
        for group in captures.iter() {
            let group = context.text(group.map_or("", |it| it.as_str()))?;
            context.push(&mut groups, group)?;
        }
        let groups = context.array(groups)?;
        context.push(&mut items, groups)?;
    }
    context.array(items)
}

fn replace(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (base, pattern, with) = (text(args, 1)?, text(args, 2)?, text(args, 3)?);
    let pattern = regex(context, pattern)?;
    let mut out = TextBuilder::new(context)?;
    let mut last = 0;
    // Each reference is at least two bytes long, and stands for the whole text at most.
    let references = with.matches('$').count();
    for captures in pattern.charged_for_groups(context, base.len())?.captures_iter(base) {
        let Some(whole) = captures.get(0) else { continue };
        pattern.charge_next(context, base.len().saturating_sub(whole.end()))?;
        out.push(context, base.get(last..whole.start()).unwrap_or(""))?;
        out.reserve(context, with.len().saturating_add(references.saturating_mul(whole.len())))?;
        captures.expand(with, out.text());
        last = whole.end();
    }
    out.push(context, base.get(last..).unwrap_or(""))?;
    out.finish(context)
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
    if template.len() > MAX_PATTERN_BYTES - 2 {
        return Err(failed("the pattern is too long"));
    }
    let key = format!("{start}{end}{template}");
    let pattern = remembered_regex(context, Kind::Template, &key, || template_pattern(template, start, end))?;
    Ok(Value::Bool(pattern.charged(context, subject.len())?.is_match(subject)))
}

/// Text is literal, what stands between the delimiters is a pattern.
fn template_pattern(template: &str, start: char, end: char) -> Result<String, String> {
    let unbalanced = || format!("unbalanced braces in {:?}", excerpt(template));
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
    if pattern.len() > MAX_GLOB_BYTES {
        return Err(EvalError::budget("a glob is too long").into());
    }
    context.work(pattern.len().saturating_add(delimiters.len()) / 16)?;
    let key: String = delimiters.iter().chain(&['\0']).copied().chain(pattern.chars()).collect();
    let breadth = pattern.len().min(glob::MAX_BREADTH);
    let bytes = breadth.saturating_pow(3).saturating_mul(6).saturating_add(key.len().saturating_mul(GLOB_BYTES_FACTOR));
    let glob = remembered(&GLOBS, Kind::Glob, key, || {
        context.work(pattern.len().saturating_mul(16))?;
        context.allocate(bytes)?;
        context.release(bytes);
        Ok(glob::Matcher::new(pattern, &delimiters).map(|made| (Rc::new(made), bytes)))
    })?;
    Ok(Value::Bool(glob_matches(context, &glob, subject)?))
}

fn glob_matches(context: &mut Context<'_>, glob: &glob::Matcher, subject: &str) -> Result<bool, EvalError> {
    context.work(subject.len() / 32)?;
    if let glob::Matcher::Regex(pattern) = glob {
        return Ok(pattern.charged(context, subject.len())?.is_match(subject));
    }
    let (result, steps) = glob.is_match(subject);
    context.work(steps / 16)?;
    result.map_err(|_| EvalError::budget("a glob took too many steps"))
}

/// Delimiters of a glob; more are none that a policy means.
const MAX_DELIMITERS: usize = 256;

fn glob_delimiters(given: &Value) -> Result<Vec<char>, BuiltinError> {
    match given {
        Value::Null => Ok(Vec::new()),
        Value::Array(list) if list.is_empty() => Ok(vec!['.']),
        Value::Array(list) if list.len() > MAX_DELIMITERS => {
            Err(EvalError::budget("too many delimiters of a glob").into())
        }
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
