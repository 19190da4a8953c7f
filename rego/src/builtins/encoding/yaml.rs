//! YAML as Go's `yaml.v2` reads and writes it: version 1.1, where `yes` and `y` are true and `010` is eight.
//!
//! Mirrors: `sigs.k8s.io/yaml`, which turns documents into JSON.

mod scalars;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use saphyr_parser::{Event, Input, Parser, ScalarStyle};

use self::scalars::{Scalar, plain_scalar, tagged};
use super::super::{BuiltinError, CHUNK_BYTES, Context, Outcome, TextBuilder, failed};
use crate::eval::EvalError;
use crate::meter::{HEADER_BYTES, ITEM_BYTES, MEMBER_BYTES, Meter, Unmetered};
use crate::value::{Value, chunks, json_bytes, metered, quoted};

/// Values of one document; aliases multiply.
const MAX_VALUES: usize = 1_000_000;
const MAX_DEPTH: usize = 200;
/// The memory of one token of the parser while their queue grows.
const TOKEN_BYTES: usize = 192;
/// Steps for each byte that is read: the parser looks at characters many times.
const STEPS_PER_BYTE: usize = 2;

/// Why a text was not read.
#[derive(Debug)]
pub(super) enum YamlError<E> {
    Invalid(String),
    TooManyValues,
    /// The meter refused to go on.
    Limit(E),
}

fn invalid<E>(why: impl std::fmt::Display) -> YamlError<E> {
    YamlError::Invalid(format!("yaml: {why}"))
}

/// The use of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// As OPA reads policies' data: an unquoted `y` or `n` is a boolean, and the last of two equal keys wins.
    Data,
    /// `y` and `n` are text (the modulus of an RSA key is called `n`), and keys that stand twice are reported.
    Configuration,
}

/// A key that stands twice in one mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DuplicateKey {
    /// Such as `services[0].url`.
    pub path: String,
    /// The line of the second one, from 1.
    pub line: usize,
}

/// The first document of `text`.
///
/// # Errors
/// It is no YAML 1.1, or not of the kind that JSON can express.
pub fn parse_yaml(text: &str) -> Result<Value, String> {
    unmetered(text, Use::Data).map(|(value, _)| value)
}

/// The first document of a configuration, and the keys that stand twice in it. Unquoted `y` and `n` are text.
///
/// # Errors
/// As of [`parse_yaml`].
pub fn parse_yaml_configuration(text: &str) -> Result<(Value, Vec<DuplicateKey>), String> {
    unmetered(text, Use::Configuration)
}

fn unmetered(text: &str, used_as: Use) -> Result<(Value, Vec<DuplicateKey>), String> {
    load(Parser::new_from_str(text), used_as, &RefCell::new(&mut Unmetered)).map_err(|error| match error {
        YamlError::Invalid(why) => why,
        YamlError::TooManyValues => "yaml: the document has too many values".to_owned(),
        YamlError::Limit(never) => match never {},
    })
}

pub(crate) fn unmarshal(context: &mut Context<'_>, text: &str) -> Outcome {
    // A scalar is gathered, copied and kept; of flow collections the parser keeps all tokens until a line ends.
    let mut tokens = 0usize;
    for chunk in chunks(text, CHUNK_BYTES) {
        context.work(chunk.len() / 64)?;
        let is_token = |byte: &u8| matches!(byte, b'[' | b']' | b'{' | b'}' | b',' | b':' | b'?');
        tokens = tokens.saturating_add(chunk.as_bytes().iter().filter(|byte| is_token(byte)).count());
    }
    let passing = text.len().saturating_mul(8).saturating_add(tokens.saturating_mul(TOKEN_BYTES));
    context.allocate(passing)?;
    let refused = RefCell::new(None);
    let result = {
        let meter = RefCell::new(&mut *context);
        // The parser cannot be interrupted, but what it reads can end.
        let chars = chunks(text, 64).map_while(|chunk| {
            let counted = meter.borrow_mut().work(chunk.len().saturating_mul(STEPS_PER_BYTE));
            counted.map_err(|error| *refused.borrow_mut() = Some(error)).ok()?;
            Some(chunk.chars())
        });
        load(Parser::new_from_iter(chars.flatten()), Use::Data, &meter)
    };
    if let Some(error) = refused.into_inner() {
        return Err(error.into());
    }
    let (value, _) = result.map_err(|error| match error {
        YamlError::Invalid(why) => failed(why),
        YamlError::TooManyValues => EvalError::budget("a YAML document has too many values").into(),
        YamlError::Limit(error) => error.into(),
    })?;
    context.release(passing);
    Ok(value)
}

fn load<M: Meter, I: Input>(
    parser: Parser<'_, I>,
    used_as: Use,
    meter: &RefCell<&mut M>,
) -> Result<(Value, Vec<DuplicateKey>), YamlError<M::Error>> {
    let (open, anchors, duplicates) = (Vec::new(), HashMap::new(), Vec::new());
    let mut loader = Loader { open, anchors, root: None, values: 0, used_as, line: 0, duplicates, meter };
    for event in parser {
        let (event, span) = event.map_err(invalid)?;
        if matches!(event, Event::DocumentEnd) {
            break;
        }
        loader.line = span.start.line();
        loader.event(event)?;
    }
    Ok((loader.root.unwrap_or(Value::Null), loader.duplicates))
}

enum Open {
    Sequence(usize, Vec<Value>),
    Mapping(usize, Mapping),
}

#[derive(Default)]
struct Mapping {
    members: Vec<(Value, Value)>,
    /// The key whose value comes next.
    key: Option<Value>,
    /// The keys of a configuration so far, without merged ones.
    keys: HashSet<Value>,
}

struct Loader<'m, 'c, M> {
    open: Vec<Open>,
    anchors: HashMap<usize, Value>,
    root: Option<Value>,
    values: usize,
    used_as: Use,
    /// The line of the event.
    line: usize,
    duplicates: Vec<DuplicateKey>,
    meter: &'m RefCell<&'c mut M>,
}

impl<M: Meter> Loader<'_, '_, M> {
    fn charge(&self, bytes: usize) -> Result<(), YamlError<M::Error>> {
        let mut meter = self.meter.borrow_mut();
        meter.work(4).map_err(YamlError::Limit)?;
        meter.allocate(bytes).map_err(YamlError::Limit)
    }

    fn event(&mut self, event: Event<'_>) -> Result<(), YamlError<M::Error>> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.charge(text.len().saturating_add(HEADER_BYTES))?;
                let value = match tag {
                    Some(tag) => tagged(&text, &tag).map_err(invalid)?,
                    None if self.used_as == Use::Configuration
                        && text.len() == 1
                        && matches!(&*text, "y" | "Y" | "n" | "N") =>
                    {
                        Value::from(&*text)
                    }
                    None if style == ScalarStyle::Plain => plain_scalar(&text).value(&text).map_err(invalid)?,
                    None => Value::from(&*text),
                };
                self.put(value, anchor)
            }
            Event::Alias(anchor) => {
                let value = self.anchors.get(&anchor).cloned().ok_or_else(|| invalid("unknown anchor"))?;
                self.put(value, 0)
            }
            Event::SequenceStart(anchor, _) => self.begin(Open::Sequence(anchor, Vec::new())),
            Event::MappingStart(anchor, _) => self.begin(Open::Mapping(anchor, Mapping::default())),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::Sequence(anchor, items)) => {
                    self.charge(HEADER_BYTES)?;
                    self.put(Value::array(items), anchor)
                }
                Some(Open::Mapping(anchor, Mapping { members, .. })) => {
                    self.charge(HEADER_BYTES)?;
                    // The last of two equal keys wins.
                    let made = metered::object(*self.meter.borrow_mut(), members).map_err(YamlError::Limit)?;
                    self.put(made, anchor)
                }
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn begin(&mut self, open: Open) -> Result<(), YamlError<M::Error>> {
        if self.open.len() >= MAX_DEPTH {
            return Err(invalid("exceeded max depth"));
        }
        self.open.push(open);
        Ok(())
    }

    fn put(&mut self, value: Value, anchor: usize) -> Result<(), YamlError<M::Error>> {
        self.values = self.values.saturating_add(value.weight());
        if self.values > MAX_VALUES {
            return Err(YamlError::TooManyValues);
        }
        self.charge(MEMBER_BYTES)?;
        if anchor > 0 {
            self.charge(2 * ITEM_BYTES)?;
            self.anchors.insert(anchor, value.clone());
        }
        let (mut merged, mut is_twice) = (None, false);
        match self.open.last_mut() {
            None => self.root = Some(value),
            Some(Open::Sequence(_, items)) => items.push(value),
            Some(Open::Mapping(_, mapping)) => match mapping.key.take() {
                None => {
                    let key = key_text(&value).map_err(invalid)?;
                    is_twice = self.used_as == Use::Configuration && !mapping.keys.insert(key.clone());
                    mapping.key = Some(key);
                }
                Some(name) if name.as_str() == Some("<<") => merged = Some(value),
                Some(name) => mapping.members.push((name, value)),
            },
        }
        if is_twice {
            self.duplicates.push(DuplicateKey { path: self.path(), line: self.line });
        }
        if let Some(value) = merged {
            self.merge(&value)?;
        }
        Ok(())
    }

    /// The place of what is read.
    fn path(&self) -> String {
        let mut path = String::new();
        for open in &self.open {
            match open {
                Open::Sequence(_, items) => path.push_str(&format!("[{}]", items.len())),
                Open::Mapping(_, Mapping { key: Some(key), .. }) => {
                    path.push_str(if path.is_empty() { "" } else { "." });
                    path.push_str(key.as_str().unwrap_or_default());
                }
                Open::Mapping(..) => {}
            }
        }
        path
    }

    /// Members of another mapping, or of several, of which the first counts most. What follows them wins, as do they over what went before.
    fn merge(&mut self, value: &Value) -> Result<(), YamlError<M::Error>> {
        match value {
            Value::Object(object) => {
                self.charge(object.len().saturating_mul(MEMBER_BYTES))?;
                self.meter.borrow_mut().work(object.len()).map_err(YamlError::Limit)?;
                self.values = self.values.saturating_add(object.len());
                if let Some(Open::Mapping(_, mapping)) = self.open.last_mut() {
                    mapping.members.extend(object.iter().map(|(key, value)| (key.clone(), value.clone())));
                }
                Ok(())
            }
            Value::Array(items) if items.iter().all(|item| item.as_object().is_some()) => {
                items.iter().rev().try_for_each(|item| self.merge(item))
            }
            _ => Err(invalid("map merge requires map or sequence of maps as the value")),
        }
    }
}

/// Keys become text, as JSON wants them.
fn key_text(key: &Value) -> Result<Value, String> {
    match key {
        Value::String(_) => Ok(key.clone()),
        Value::Number(_) | Value::Bool(_) => Ok(Value::from(key.to_string())),
        other => Err(format!("unsupported map key of type {}", other.kind())),
    }
}

pub(super) fn marshal(context: &mut Context<'_>, value: &Value) -> Outcome {
    let mut writer = Writer { out: TextBuilder::new(context)?, context };
    match value {
        Value::Array(_) | Value::Object(_) | Value::Set(_) if !is_empty(value) => writer.write(value, 0, false)?,
        scalar => writer.scalar(scalar, 0)?,
    }
    writer.out.finish(writer.context)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Set(set) => set.is_empty(),
        Value::Object(object) => object.is_empty(),
        _ => false,
    }
}

struct Writer<'w, 'c> {
    out: TextBuilder,
    context: &'w mut Context<'c>,
}

impl Writer<'_, '_> {
    fn push(&mut self, text: &str) -> Result<(), EvalError> {
        self.out.push(self.context, text)
    }

    fn indent(&mut self, depth: usize) -> Result<(), EvalError> {
        self.out.push_repeated(self.context, "  ", depth)
    }

    /// A collection that is not empty; where `is_inline`, its first line is begun already.
    fn write(&mut self, value: &Value, depth: usize, is_inline: bool) -> Result<(), BuiltinError> {
        let mut is_begun = is_inline;
        let items: Box<dyn Iterator<Item = &Value>> = match value {
            Value::Array(items) => Box::new(items.iter()),
            Value::Set(set) => Box::new(set.iter()),
            Value::Object(object) => {
                for (key, member) in object.iter() {
                    self.indent(if std::mem::take(&mut is_begun) { 0 } else { depth })?;
                    self.key(key)?;
                    match member {
                        Value::Object(_) if !is_empty(member) => {
                            self.push("\n")?;
                            self.write(member, depth.saturating_add(1), false)?;
                        }
                        Value::Array(_) | Value::Set(_) if !is_empty(member) => {
                            self.push("\n")?;
                            self.write(member, depth, false)?;
                        }
                        scalar => {
                            self.push(" ")?;
                            self.scalar(scalar, depth.saturating_add(1))?;
                        }
                    }
                }
                return Ok(());
            }
            _ => return Ok(()),
        };
        for item in items {
            self.indent(if std::mem::take(&mut is_begun) { 0 } else { depth })?;
            self.push("- ")?;
            match item {
                Value::Array(_) | Value::Object(_) | Value::Set(_) if !is_empty(item) => {
                    self.write(item, depth.saturating_add(1), true)?;
                }
                scalar => self.scalar(scalar, depth.saturating_add(1))?,
            }
        }
        Ok(())
    }

    fn key(&mut self, key: &Value) -> Result<(), BuiltinError> {
        let text = match key {
            Value::String(text) => text.clone(),
            other => self.context.passing_json(other)?.into(),
        };
        self.flow_text(&text)?;
        Ok(self.push(":")?)
    }

    /// A scalar or an empty collection, and the end of its line.
    fn scalar(&mut self, value: &Value, depth: usize) -> Result<(), BuiltinError> {
        match value {
            Value::String(text) if text.contains('\n') && is_block(text) => return self.block(text, depth),
            Value::String(text) => self.flow_text(text)?,
            Value::Array(_) | Value::Set(_) => self.push("[]")?,
            Value::Object(_) => self.push("{}")?,
            other => {
                let bytes = json_bytes(other, self.context)?;
                self.out.reserve(self.context, bytes)?;
                self.out.text().push_str(&other.to_json());
            }
        }
        Ok(self.push("\n")?)
    }

    /// Quoted where it would be read as something else.
    fn flow_text(&mut self, text: &str) -> Result<(), BuiltinError> {
        self.out.reserve(self.context, text.len().saturating_mul(6).saturating_add(2))?;
        self.out.text().push_str(&flow_scalar(text));
        Ok(())
    }

    /// Lines as they are, after a `|`.
    fn block(&mut self, text: &str, depth: usize) -> Result<(), BuiltinError> {
        self.push("|")?;
        self.push(if text.starts_with([' ', '\n']) { "2" } else { "" })?;
        self.push(match (text.ends_with('\n'), text.ends_with("\n\n") || text == "\n") {
            (false, _) => "-",
            (true, false) => "",
            (true, true) => "+",
        })?;
        self.push("\n")?;
        let body = text.strip_suffix('\n').unwrap_or(text);
        for line in body.split('\n') {
            if !line.is_empty() {
                self.indent(depth.max(1))?;
                self.push(line)?;
            }
            self.push("\n")?;
        }
        Ok(())
    }
}

/// A text of several lines can be written as it is.
fn is_block(text: &str) -> bool {
    let is_special = |char: char| char.is_control() && !matches!(char, '\n' | '\t');
    !text.contains(" \n") && !text.ends_with(' ') && !text.contains(is_special) && !text.contains('\u{feff}')
}

fn flow_scalar(text: &str) -> String {
    let special = text.starts_with(|char: char| "-?:,[]{}#&*!|>'\"%@` ".contains(char))
        && !(text.starts_with(['-', '?', ':'])
            && text.get(1..).is_some_and(|rest| !rest.is_empty() && !rest.starts_with(' ')));
    let is_plain = matches!(plain_scalar(text), Scalar::Text) && !matches!(text, "=" | "<<") && !is_sexagesimal(text);
    if !is_plain || text.contains(char::is_control) {
        return quoted(text);
    }
    if text.is_empty() || special || text.contains(": ") || text.contains(" #") || text.ends_with([' ', ':']) {
        return format!("'{}'", text.replace('\'', "''"));
    }
    text.to_owned()
}

/// `1:20`, which other parsers of YAML 1.1 read as a number.
fn is_sexagesimal(text: &str) -> bool {
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (text, fraction) = text.split_once('.').unwrap_or((text, ""));
    let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
    let mut parts = text.split(':');
    let first = parts.next().unwrap_or_default();
    let mut count = 0usize;
    let mut rest_is_good = true;
    for part in parts {
        count = count.saturating_add(1);
        rest_is_good &= matches!(part.as_bytes(), [b'0'..=b'9'] | [b'0'..=b'5', b'0'..=b'9']);
    }
    first.starts_with(|char: char| char.is_ascii_digit())
        && are_digits(first)
        && count > 0
        && rest_is_good
        && are_digits(fraction)
}
