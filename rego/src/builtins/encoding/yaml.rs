//! YAML as Go's `yaml.v2` reads and writes it: version 1.1, where `yes` and `y` are true and `010` is eight.
//!
//! Mirrors: `sigs.k8s.io/yaml`, which turns documents into JSON.

use std::cell::RefCell;
use std::collections::HashMap;

use base64::Engine as _;
use saphyr_parser::{Event, Input, Parser, ScalarStyle, Tag};

use super::super::{BuiltinError, CHUNK_BYTES, Context, Outcome, TextBuilder, excerpt, failed};
use super::STANDARD;
use crate::eval::EvalError;
use crate::meter::{HEADER_BYTES, ITEM_BYTES, MEMBER_BYTES, Meter, Unmetered};
use crate::value::{Number, Value, chunks, json_bytes, lossy, metered, quoted};

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

/// The boolean of an unquoted `y` or `n`, in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Letters {
    /// True or false, as YAML 1.1 and OPA have it.
    Booleans,
    /// Text: the modulus of an RSA key in a configuration is called `n`.
    Text,
}

/// The first document of `text`.
///
/// # Errors
/// It is no YAML 1.1, or not of the kind that JSON can express.
pub(super) fn parse(text: &str, letters: Letters) -> Result<Value, String> {
    load(Parser::new_from_str(text), letters, &RefCell::new(&mut Unmetered)).map_err(|error| match error {
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
        load(Parser::new_from_iter(chars.flatten()), Letters::Booleans, &meter)
    };
    if let Some(error) = refused.into_inner() {
        return Err(error.into());
    }
    let value = result.map_err(|error| match error {
        YamlError::Invalid(why) => failed(why),
        YamlError::TooManyValues => EvalError::budget("a YAML document has too many values").into(),
        YamlError::Limit(error) => error.into(),
    })?;
    context.release(passing);
    Ok(value)
}

fn load<M: Meter, I: Input>(
    parser: Parser<'_, I>,
    letters: Letters,
    meter: &RefCell<&mut M>,
) -> Result<Value, YamlError<M::Error>> {
    let mut loader = Loader { open: Vec::new(), anchors: HashMap::new(), root: None, values: 0, letters, meter };
    for event in parser {
        let (event, _) = event.map_err(invalid)?;
        if matches!(event, Event::DocumentEnd) {
            break;
        }
        loader.event(event)?;
    }
    Ok(loader.root.unwrap_or(Value::Null))
}

enum Open {
    Sequence(usize, Vec<Value>),
    Mapping(usize, Vec<(Value, Value)>, Option<Value>),
}

struct Loader<'m, 'c, M> {
    open: Vec<Open>,
    anchors: HashMap<usize, Value>,
    root: Option<Value>,
    values: usize,
    letters: Letters,
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
                    None if self.letters == Letters::Text
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
            Event::MappingStart(anchor, _) => self.begin(Open::Mapping(anchor, Vec::new(), None)),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::Sequence(anchor, items)) => {
                    self.charge(HEADER_BYTES)?;
                    self.put(Value::array(items), anchor)
                }
                Some(Open::Mapping(anchor, members, _)) => {
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
        let mut merged = None;
        match self.open.last_mut() {
            None => self.root = Some(value),
            Some(Open::Sequence(_, items)) => items.push(value),
            Some(Open::Mapping(_, members, key)) => match key.take() {
                None => *key = Some(key_text(&value).map_err(invalid)?),
                Some(name) if name.as_str() == Some("<<") => merged = Some(value),
                Some(name) => members.push((name, value)),
            },
        }
        if let Some(value) = merged {
            self.merge(&value)?;
        }
        Ok(())
    }

    /// Members of another mapping, or of several, of which the first counts most. What follows them wins, as do they over what went before.
    fn merge(&mut self, value: &Value) -> Result<(), YamlError<M::Error>> {
        match value {
            Value::Object(object) => {
                self.charge(object.len().saturating_mul(MEMBER_BYTES))?;
                self.meter.borrow_mut().work(object.len()).map_err(YamlError::Limit)?;
                self.values = self.values.saturating_add(object.len());
                if let Some(Open::Mapping(_, members, _)) = self.open.last_mut() {
                    members.extend(object.iter().map(|(key, value)| (key.clone(), value.clone())));
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

/// The value of a scalar without quotes.
enum Scalar {
    Null,
    Bool(bool),
    Number(Number),
    /// Infinities and what is no number, which JSON cannot express.
    NotFinite,
    /// A date: read as text, but no plain one.
    Timestamp,
    Text,
}

impl Scalar {
    fn value(self, text: &str) -> Result<Value, String> {
        match self {
            Self::Null => Ok(Value::Null),
            Self::Bool(it) => Ok(Value::Bool(it)),
            Self::Number(number) => Ok(Value::Number(number)),
            Self::NotFinite => Err(format!("json: unsupported value: {text}")),
            Self::Timestamp | Self::Text => Ok(Value::from(text)),
        }
    }
}

/// A scalar whose kind is written before it.
fn tagged(text: &str, tag: &Tag) -> Result<Value, String> {
    let name = format!("{}{}", tag.handle, tag.suffix);
    let kind = name.strip_prefix("tag:yaml.org,2002:").or_else(|| name.strip_prefix("!!")).unwrap_or("");
    let wrong = || Err(format!("cannot decode `{}` as a !!{kind}", excerpt(text)));
    match (kind, plain_scalar(text)) {
        ("int", Scalar::Number(number)) if number.is_spelled_int() => Ok(Value::Number(number)),
        ("float", scalar @ (Scalar::Number(_) | Scalar::NotFinite))
        | ("bool", scalar @ Scalar::Bool(_))
        | ("null", scalar @ Scalar::Null) => scalar.value(text),
        ("timestamp", Scalar::Timestamp) => Ok(Value::from(text)),
        ("int" | "float" | "bool" | "null" | "timestamp", _) => wrong(),
        ("binary", _) => {
            let plain: String = text.chars().filter(|char| !char.is_ascii_whitespace()).collect();
            let bytes = STANDARD.decode(plain).map_err(|_| "!!binary value contains invalid base64 data".to_owned())?;
            Ok(Value::from(lossy(&bytes)))
        }
        _ => Ok(Value::from(text)),
    }
}

fn plain_scalar(text: &str) -> Scalar {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Scalar::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Scalar::Bool(true),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => Scalar::Bool(false),
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf" | "-.Inf"
        | "-.INF" => Scalar::NotFinite,
        text if is_timestamp(text) => Scalar::Timestamp,
        text => number(text).map_or(Scalar::Text, Scalar::Number),
    }
}

/// The longest text that can be a number: one as long as a 64-bit integer in binary, or a fraction with many digits.
const MAX_NUMBER_BYTES: usize = 1_024;

fn number(text: &str) -> Option<Number> {
    let first = text.bytes().next()?;
    if text.len() > MAX_NUMBER_BYTES || (!first.is_ascii_digit() && !matches!(first, b'+' | b'-' | b'.')) {
        return None;
    }
    let plain: String = text.chars().filter(|char| *char != '_').collect();
    let (sign, digits) = match plain.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", plain.strip_prefix('+').unwrap_or(&plain)),
    };
    if let Some(int) = integer(sign, digits) {
        return Some(int);
    }
    // `08` is no octal number, but a fraction without one.
    let (mantissa, exponent) = digits.split_once(['e', 'E']).map_or((digits, None), |(m, e)| (m, Some(e)));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let exponent_is_good = exponent.is_none_or(|exponent| {
        let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        !digits.is_empty() && are_digits(digits)
    });
    if !are_digits(whole) || !are_digits(fraction) || (whole.is_empty() && fraction.is_empty()) || !exponent_is_good {
        return None;
    }
    let float: f64 = digits.parse().ok()?;
    float.is_finite().then(|| Number::from_f64(if sign == "-" { -float } else { float }))
}

/// An integer of 64 bits, in the spellings of Go: with a prefix for its base, where a leading zero alone means octal.
fn integer(sign: &str, digits: &str) -> Option<Number> {
    let lower = digits.get(..2).map(str::to_ascii_lowercase);
    let (radix, rest) = match lower.as_deref() {
        Some("0x") => (16, digits.get(2..)?),
        Some("0b") => (2, digits.get(2..)?),
        Some("0o") => (8, digits.get(2..)?),
        Some(two) if two.starts_with('0') => (8, digits.get(1..)?),
        _ => (10, digits),
    };
    if rest.starts_with(['+', '-']) {
        return None;
    }
    let value = u64::from_str_radix(rest, radix).ok()?;
    if sign == "-" && value > 1 << 63 {
        return None;
    }
    Number::parse(&format!("{}{value}", if value == 0 { "" } else { sign }))
}

/// `2006-1-2`, perhaps with a time of day and a zone.
fn is_timestamp(text: &str) -> bool {
    let digits = |text: &str, min: usize, max: usize| {
        (min..=max).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    let (date, time) = text.split_at(text.find(['T', 't', ' ']).unwrap_or(text.len()));
    let mut parts = date.split('-');
    let (Some(year), Some(month), Some(day), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let is_date = digits(year, 4, 4)
        && digits(month, 1, 2)
        && digits(day, 1, 2)
        && month
            .parse::<u32>()
            .ok()
            .zip(day.parse().ok())
            .zip(year.parse().ok())
            .is_some_and(|((month, day), year)| chrono::NaiveDate::from_ymd_opt(year, month, day).is_some());
    if !is_date || time.is_empty() {
        return is_date;
    }
    let (clock, zone) = match time.strip_prefix(' ') {
        Some(clock) => (clock, None),
        None => {
            let rest = time.get(1..).unwrap_or_default();
            let (clock, zone) = rest.split_at(rest.find(['Z', '+', '-']).unwrap_or(rest.len()));
            (clock, Some(zone))
        }
    };
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let below = |text: &str, limit: u32| digits(text, 1, 2) && text.parse().is_ok_and(|it: u32| it < limit);
    let limits = [24, 60, 60];
    let is_clock =
        clock.split(':').count() == 3 && clock.split(':').zip(limits).all(|(part, limit)| below(part, limit));
    let is_zone = zone.is_none_or(|zone| {
        zone == "Z"
            || zone.get(1..).and_then(|rest| rest.split_once(':')).is_some_and(|(hours, minutes)| {
                hours.len() == 2 && minutes.len() == 2 && below(hours, 25) && below(minutes, 61)
            })
    });
    is_clock && is_zone && !fraction.is_empty() && digits(fraction, 1, 64)
}

// Writing

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
