//! `sprintf` as Go's `fmt` prints.
//!
//! Mirrors: Go `fmt/{print,format}.go` for the values that OPA hands to it: integers, floats, and text for all others.

use num_bigint::BigInt;
use num_traits::Signed;

use super::super::arithmetic::conversion;
use super::super::{BuiltinError, Context, Outcome, TextBuilder, array, text};
use crate::meter::{HEADER_BYTES, Meter as _};
use crate::value::{Float, Value, json_bytes, quoted, spell_plain, spell_scientific};

/// The greatest width and precision that Go reads.
const MAX_WIDTH: usize = 1_000_000;

/// The Go value that OPA passes for one value.
enum Arg {
    Int(BigInt, &'static str),
    Float(f64),
    Text(String),
}

impl Arg {
    fn of(context: &mut Context<'_>, value: &Value) -> Result<Self, BuiltinError> {
        context.step()?;
        context.allocate(HEADER_BYTES)?;
        Ok(match value {
            Value::String(text) => {
                context.allocate(text.len())?;
                Self::Text(text.to_string())
            }
            Value::Number(number) => {
                if let Some(int) = number.as_i64() {
                    return Ok(Self::Int(BigInt::from(int), "int64"));
                }
                let bytes = number.text_bytes();
                conversion(context, bytes)?;
                context.allocate(bytes.saturating_mul(2))?;
                let spelled = number.to_string();
                if spelled.contains('.') {
                    let float = number.as_f64();
                    return Ok(if float.is_finite() { Self::Float(float) } else { Self::Text(spelled) });
                }
                match BigInt::parse_bytes(spelled.as_bytes(), 10) {
                    Some(int) => Self::Int(int, "*big.Int"),
                    None => Self::Text(spelled),
                }
            }
            other => {
                // Printing escapes more characters than JSON does.
                let bytes = json_bytes(other, context)?.saturating_mul(3);
                context.allocate(bytes)?;
                Self::Text(other.to_string())
            }
        })
    }

    /// At least as many bytes as the argument takes in any form without width and precision.
    fn max_bytes(&self) -> usize {
        match self {
            // In binary.
            Self::Int(int, _) => usize::try_from(int.bits()).unwrap_or(usize::MAX).saturating_add(16),
            // All digits of the largest one, and of the fraction of the smallest one.
            Self::Float(_) => 1_500,
            // Quoted, every byte escaped.
            Self::Text(text) => text.len().saturating_mul(6).saturating_add(16),
        }
    }

    fn type_name(&self) -> &'static str {
        match self {
            Self::Int(_, name) => name,
            Self::Float(_) => "float64",
            Self::Text(_) => "string",
        }
    }
}

#[derive(Clone, Default)]
#[expect(clippy::struct_excessive_bools, reason = "the flags of a verb, each on its own")]
struct Flags {
    plus: bool,
    minus: bool,
    sharp: bool,
    space: bool,
    zero: bool,
    width: Option<usize>,
    precision: Option<usize>,
}

pub(super) fn sprintf(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let format = text(args, 1)?;
    let mut values: Vec<Arg> = Vec::new();
    for value in array(args, 2)? {
        values.push(Arg::of(context, value)?);
    }
    context.work(format.len() / 16)?;
    context.allocate(format.len().saturating_mul(size_of::<char>()))?;
    let mut chars = Vec::with_capacity(format.len());
    chars.extend(format.chars());
    let mut printer =
        Printer { format: chars, at: 0, values: &values, next: 0, reordered: false, good: true, passing: 0 };
    printer.run(context)
}

struct Printer<'a> {
    format: Vec<char>,
    at: usize,
    values: &'a [Arg],
    next: usize,
    reordered: bool,
    good: bool,
    /// Bytes that are charged for the piece which is printed.
    passing: usize,
}

impl Printer<'_> {
    fn peek(&self) -> Option<char> {
        self.format.get(self.at).copied()
    }

    fn step(&mut self) {
        self.at = self.at.saturating_add(1);
    }

    fn run(&mut self, context: &mut Context<'_>) -> Outcome {
        let mut out = TextBuilder::new(context)?;
        while let Some(char) = self.peek() {
            self.step();
            if char != '%' {
                out.reserve(context, char.len_utf8())?;
                out.text().push(char);
                continue;
            }
            let piece = self.verb(context)?;
            out.push(context, &piece)?;
            context.release(std::mem::take(&mut self.passing));
        }
        if !self.reordered && self.next < self.values.len() {
            out.push(context, "%!(EXTRA ")?;
            for (at, arg) in self.values.get(self.next..).unwrap_or_default().iter().enumerate() {
                out.push(context, if at > 0 { ", " } else { "" })?;
                out.push(context, arg.type_name())?;
                let (shown, passing) = printed(context, 'v', arg, &Flags::default())?;
                out.push(context, "=")?;
                out.push(context, &shown)?;
                context.release(passing);
            }
            out.push(context, ")")?;
        }
        out.finish(context)
    }

    fn verb(&mut self, context: &mut Context<'_>) -> Result<String, BuiltinError> {
        let mut flags = Flags::default();
        self.good = true;
        loop {
            match self.peek() {
                Some('#') => flags.sharp = true,
                Some('0') => flags.zero = true,
                Some('+') => flags.plus = true,
                Some('-') => flags.minus = true,
                Some(' ') => flags.space = true,
                _ => break,
            }
            self.step();
        }
        let mut indexed = self.index();
        if self.peek() == Some('*') {
            self.step();
            match self.count() {
                Some(width) if width < 0 => {
                    flags.minus = true;
                    flags.zero = false;
                    flags.width = usize::try_from(width.unsigned_abs()).ok();
                }
                Some(width) => flags.width = usize::try_from(width).ok(),
                None => return Ok("%!(BADWIDTH)".to_owned() + &self.after_bad(context, flags)?),
            }
            indexed = false;
        } else {
            flags.width = self.digits();
            if indexed && flags.width.is_some() {
                self.good = false;
            }
        }
        if self.peek() == Some('.') {
            self.step();
            if indexed {
                self.good = false;
            }
            indexed = self.index();
            if self.peek() == Some('*') {
                self.step();
                match self.count() {
                    Some(precision) if precision >= 0 => flags.precision = usize::try_from(precision).ok(),
                    _ => return Ok("%!(BADPREC)".to_owned() + &self.after_bad(context, flags)?),
                }
                indexed = false;
            } else {
                flags.precision = Some(self.digits().unwrap_or(0));
            }
        }
        if !indexed {
            self.index();
        }
        self.finish(context, flags)
    }

    fn after_bad(&mut self, context: &mut Context<'_>, flags: Flags) -> Result<String, BuiltinError> {
        self.index();
        self.finish(context, flags)
    }

    fn finish(&mut self, context: &mut Context<'_>, flags: Flags) -> Result<String, BuiltinError> {
        let Some(verb) = self.peek() else { return Ok("%!(NOVERB)".to_owned()) };
        self.step();
        if verb == '%' {
            return Ok("%".to_owned());
        }
        if !self.good {
            return Ok(format!("%!{verb}(BADINDEX)"));
        }
        let Some(arg) = self.values.get(self.next) else { return Ok(format!("%!{verb}(MISSING)")) };
        self.next = self.next.saturating_add(1);
        let (piece, passing) = printed(context, verb, arg, &flags)?;
        self.passing = self.passing.saturating_add(passing);
        Ok(piece)
    }

    /// `[n]`: which value comes next.
    fn index(&mut self) -> bool {
        if self.peek() != Some('[') {
            return false;
        }
        self.reordered = true;
        let close = self.format.get(self.at..).and_then(|rest| rest.iter().position(|&char| char == ']'));
        let Some(close) = close else {
            self.good = false;
            self.step();
            return false;
        };
        let inner: String = self
            .format
            .get(self.at.saturating_add(1)..self.at.saturating_add(close))
            .unwrap_or_default()
            .iter()
            .collect();
        self.at = self.at.saturating_add(close).saturating_add(1);
        match inner.parse::<usize>().ok().and_then(|index| index.checked_sub(1)) {
            Some(index) if index < self.values.len() => {
                self.next = index;
                true
            }
            _ => {
                self.good = false;
                true
            }
        }
    }

    fn count(&mut self) -> Option<i64> {
        let arg = self.values.get(self.next)?;
        self.next = self.next.saturating_add(1);
        match arg {
            Arg::Int(int, _) => i64::try_from(int).ok().filter(|it| it.unsigned_abs() <= MAX_WIDTH as u64),
            _ => None,
        }
    }

    fn digits(&mut self) -> Option<usize> {
        let mut found = None;
        while let Some(digit) = self.peek().and_then(|char| char.to_digit(10)) {
            let value: usize = found.unwrap_or(0);
            if value > MAX_WIDTH {
                // Go gives up on the whole format.
                while self.peek().is_some() {
                    self.step();
                }
                return None;
            }
            found = Some(value.saturating_mul(10).saturating_add(digit as usize));
            self.step();
        }
        found
    }
}

/// One argument, and the bytes that were charged before it was printed.
fn printed(context: &mut Context<'_>, verb: char, arg: &Arg, flags: &Flags) -> Result<(String, usize), BuiltinError> {
    if let Arg::Int(int, _) = arg {
        conversion(context, usize::try_from(int.bits() / 3).unwrap_or(usize::MAX))?;
    }
    let padding = flags.width.unwrap_or(0).saturating_add(flags.precision.unwrap_or(0));
    let bytes = arg.max_bytes().saturating_add(padding.saturating_mul(2)).saturating_mul(3);
    context.work(bytes / 64 + 1)?;
    context.allocate(bytes)?;
    Ok((print(verb, arg, flags), bytes))
}

/// `%v`.
fn plain(arg: &Arg, flags: &Flags) -> String {
    print('v', arg, flags)
}

fn print(verb: char, arg: &Arg, flags: &Flags) -> String {
    if verb == 'T' {
        return pad(arg.type_name().to_owned(), flags);
    }
    match arg {
        Arg::Int(int, name) => print_int(verb, int, name, flags),
        Arg::Float(float) => print_float(verb, *float, flags),
        Arg::Text(text) => print_text(verb, text, flags),
    }
}

fn bad(verb: char, arg: &Arg, flags: &Flags) -> String {
    format!("%!{verb}({}={})", arg.type_name(), plain(arg, flags))
}

fn print_int(verb: char, int: &BigInt, name: &'static str, flags: &Flags) -> String {
    let magnitude = int.magnitude();
    let (mut digits, prefix) = match verb {
        'v' | 'd' => (magnitude.to_string(), ""),
        'b' => (magnitude.to_str_radix(2), if flags.sharp { "0b" } else { "" }),
        'o' => (magnitude.to_str_radix(8), if flags.sharp { "0" } else { "" }),
        'O' => (magnitude.to_str_radix(8), "0o"),
        'x' => (magnitude.to_str_radix(16), if flags.sharp { "0x" } else { "" }),
        'X' => (magnitude.to_str_radix(16).to_uppercase(), if flags.sharp { "0X" } else { "" }),
        'c' | 'q' | 'U' if name == "int64" => {
            let code = u32::try_from(int).unwrap_or(0xfffd);
            let char = char::from_u32(code).unwrap_or('\u{fffd}');
            let shown = match verb {
                'c' => char.to_string(),
                'q' => format!("'{char}'"),
                _ => format!("U+{code:04X}"),
            };
            return pad(shown, &Flags { zero: false, ..flags.clone() });
        }
        's' if name == "*big.Int" => (magnitude.to_string(), ""),
        _ => return bad(verb, &Arg::Int(int.clone(), name), &Flags::default()),
    };
    let sign = if int.is_negative() {
        "-"
    } else if flags.plus {
        "+"
    } else if flags.space {
        " "
    } else {
        ""
    };
    match flags.precision {
        Some(0) if magnitude.bits() == 0 => digits.clear(),
        Some(precision) if digits.len() < precision => {
            digits = format!("{}{digits}", "0".repeat(precision.saturating_sub(digits.len())));
        }
        None if flags.zero && !flags.minus => {
            let taken = digits.len().saturating_add(sign.len()).saturating_add(prefix.len());
            let missing = flags.width.unwrap_or(0).saturating_sub(taken);
            digits = format!("{}{digits}", "0".repeat(missing));
        }
        _ => {}
    }
    pad(format!("{sign}{prefix}{digits}"), &Flags { zero: false, ..flags.clone() })
}

fn print_float(verb: char, float: f64, flags: &Flags) -> String {
    let Some(exact) = Float::from_f64(float.abs()) else { return float.to_string() };
    let (digits, point) = if float == 0.0 { ("0".to_owned(), 1) } else { exact.shortest() };
    let body = match (verb, flags.precision) {
        ('v' | 'g' | 'G', None) => {
            // `%v` goes over to exponents at 21 digits, `%g` at six.
            let exponent = point.saturating_sub(1);
            let limit = 21;
            if (-4..limit).contains(&exponent) { spell_plain(&digits, point) } else { spell_scientific(&digits, point) }
        }
        ('v' | 'g' | 'G', Some(precision)) => general(float.abs(), precision.max(1)),
        ('f' | 'F', precision) => format!("{:.*}", precision.unwrap_or(6), float.abs()),
        ('e' | 'E', precision) => {
            let shown = format!("{:.*e}", precision.unwrap_or(6), float.abs());
            let (mantissa, exponent) = shown.split_once('e').unwrap_or((&shown, "0"));
            let exponent: i64 = exponent.parse().unwrap_or(0);
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{mantissa}e{sign}{:02}", exponent.abs())
        }
        _ => return bad(verb, &Arg::Float(float), &Flags::default()),
    };
    let body = if verb.is_ascii_uppercase() { body.to_uppercase() } else { body };
    let sign = if float.is_sign_negative() {
        "-"
    } else if flags.plus {
        "+"
    } else if flags.space {
        " "
    } else {
        ""
    };
    if flags.zero && !flags.minus {
        let missing = flags.width.unwrap_or(0).saturating_sub(body.len().saturating_add(sign.len()));
        return format!("{sign}{}{body}", "0".repeat(missing));
    }
    pad(format!("{sign}{body}"), flags)
}

/// `%.ng`: that many significant digits, without zeros at the end.
fn general(float: f64, precision: usize) -> String {
    let shown = format!("{:.*e}", precision.saturating_sub(1), float);
    let (mantissa, exponent) = shown.split_once('e').unwrap_or((&shown, "0"));
    let exponent: i64 = exponent.parse().unwrap_or(0);
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let digits = digits.trim_end_matches('0');
    let digits = if digits.is_empty() { "0" } else { digits };
    let limit = i64::try_from(precision).unwrap_or(i64::MAX);
    let point = exponent.saturating_add(1);
    if (-4..limit).contains(&exponent) { spell_plain(digits, point) } else { spell_scientific(digits, point) }
}

fn print_text(verb: char, text: &str, flags: &Flags) -> String {
    let cut: String = match flags.precision {
        Some(precision) => text.chars().take(precision).collect(),
        None => text.to_owned(),
    };
    let shown = match verb {
        'v' if flags.sharp => quoted(&cut),
        'v' | 's' => cut,
        'q' if flags.sharp && !cut.contains('`') => format!("`{cut}`"),
        'q' => quoted(&cut),
        'x' => hex(&cut, flags),
        'X' => hex(&cut, flags).to_uppercase(),
        _ => return bad(verb, &Arg::Text(text.to_owned()), &Flags::default()),
    };
    pad(shown, flags)
}

fn hex(text: &str, flags: &Flags) -> String {
    let bytes: Vec<String> = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    let joined = bytes.join(if flags.space { " " } else { "" });
    if flags.sharp { format!("0x{joined}") } else { joined }
}

fn pad(text: String, flags: &Flags) -> String {
    let missing = flags.width.unwrap_or(0).saturating_sub(text.chars().count());
    if missing == 0 {
        return text;
    }
    if flags.minus {
        return text + &" ".repeat(missing);
    }
    let filler = if flags.zero { "0" } else { " " };
    filler.repeat(missing) + &text
}
