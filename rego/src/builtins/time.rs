//! Times, in nanoseconds since the epoch, and durations.
//!
//! Mirrors: OPA `v1/topdown/time.go`, v1.19.0.

mod layout;

use chrono::{DateTime, Datelike, NaiveDate, TimeDelta, TimeZone, Timelike, Utc};
use chrono_tz::Tz;

use super::{
    Builtin, BuiltinError, Context, Outcome, changing, excerpt, failed, function, integer, operand, text, wrong_type,
};
use crate::eval::EvalError;
use crate::meter::Meter as _;
use crate::value::{Value, quoted};

pub(super) const TABLE: &[Builtin] = &[
    changing("time.now_ns", 0, |context, _| Ok(Value::from(context.now_ns()))),
    function("time.parse_ns", 2, |context, args| {
        let (layout, value) = (text(args, 1)?, text(args, 2)?);
        linear(context, layout.len().saturating_add(value.len()))?;
        layout::parse(layout::named(layout), value).map(Value::from).map_err(failed)
    }),
    function("time.parse_rfc3339_ns", 1, |context, args| {
        linear(context, text(args, 1)?.len())?;
        layout::parse(layout::RFC3339, text(args, 1)?).map(Value::from).map_err(failed)
    }),
    function("time.parse_duration_ns", 1, |context, args| {
        let given = text(args, 1)?;
        linear(context, given.len())?;
        duration(given).map(Value::from)
    }),
    function("time.format", 1, |context, args| {
        let (time, layout) = zoned(args, 1)?;
        linear(context, layout.len())?;
        let layout = match layout.as_str() {
            "" => layout::RFC3339_NANO,
            given => layout::named(given),
        };
        // The longest names are `September` and `Wednesday`, of a few letters each.
        context.made_text(layout.len().saturating_mul(16).saturating_add(64), || layout::format(layout, &time))
    }),
    function("time.date", 1, |_, args| {
        let (time, _) = zoned(args, 1)?;
        Ok(numbers(&[i64::from(time.year()), i64::from(time.month()), i64::from(time.day())]))
    }),
    function("time.clock", 1, |_, args| {
        let (time, _) = zoned(args, 1)?;
        Ok(numbers(&[i64::from(time.hour()), i64::from(time.minute()), i64::from(time.second())]))
    }),
    function("time.weekday", 1, |_, args| {
        let (time, _) = zoned(args, 1)?;
        Ok(Value::from(layout::weekday(time.weekday())))
    }),
    function("time.add_date", 4, add_date),
    function("time.diff", 2, diff),
];

/// The longest text of a time, a duration or a layout.
const MAX_TIME_BYTES: usize = 64 << 10;

/// Counts work that is linear in the length of a text, which cannot be interrupted.
fn linear(context: &mut Context<'_>, bytes: usize) -> Result<(), BuiltinError> {
    if bytes > MAX_TIME_BYTES {
        return Err(EvalError::budget("the text of a time is too long").into());
    }
    context.work(bytes)?;
    context.allocate(bytes.saturating_mul(8))?;
    context.release(bytes.saturating_mul(8));
    Ok(())
}

fn numbers(parts: &[i64]) -> Value {
    Value::array(parts.iter().map(|part| Value::from(*part)).collect())
}

/// A time in its zone, and the layout that was given with it.
fn zoned(args: &[&Value], position: usize) -> Result<(DateTime<Tz>, String), BuiltinError> {
    let given = operand(args, position)?;
    let wrong = || wrong_type(1, given, &["either number (ns) or [number (ns), string (tz)]"]);
    let (number, zone, layout) = match given {
        Value::Number(_) => (given, "", String::new()),
        Value::Array(parts) => {
            let text = |at: usize| match parts.get(at) {
                None => Ok(""),
                Some(part) => part.as_str().ok_or_else(|| wrong_type(1, part, &["string"])),
            };
            let layout = text(2)?;
            if layout.len() > MAX_TIME_BYTES {
                return Err(EvalError::budget("the text of a time is too long").into());
            }
            (parts.first().ok_or_else(wrong)?, text(1)?, layout.to_owned())
        }
        _ => return Err(wrong()),
    };
    let number = number.as_number().ok_or_else(|| wrong_type(1, number, &["number"]))?;
    let ns = number.as_whole().ok_or_else(|| failed("timestamp too big"))?;
    let zone: Tz = match zone {
        "" | "UTC" | "Local" => Tz::UTC,
        name => name.parse().map_err(|_| failed(format!("unknown time zone {}", excerpt(name))))?,
    };
    Ok((DateTime::<Utc>::from_timestamp_nanos(ns).with_timezone(&zone), layout))
}

fn add_date(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (time, _) = zoned(args, 1)?;
    let out_of_range = || failed("time outside of valid range");
    let (years, months, days) = (integer(args, 2)?, integer(args, 3)?, integer(args, 4)?);
    let month0 = i64::from(time.month0()).checked_add(months).ok_or_else(out_of_range)?;
    let year = i64::from(time.year())
        .checked_add(years)
        .and_then(|year| year.checked_add(month0.div_euclid(12)))
        .and_then(|year| i32::try_from(year).ok())
        .ok_or_else(out_of_range)?;
    let month = u32::try_from(month0.rem_euclid(12)).unwrap_or(0).saturating_add(1);
    // Days beyond the month run over into the next one.
    let date = NaiveDate::from_ymd_opt(year, month, 1)
        .and_then(|date| {
            let days = days.checked_add(i64::from(time.day0()))?;
            date.checked_add_signed(TimeDelta::try_days(days)?)
        })
        .ok_or_else(out_of_range)?;
    let local = date.and_time(time.time());
    let resolved = match time.timezone().from_local_datetime(&local) {
        chrono::LocalResult::Single(it) | chrono::LocalResult::Ambiguous(it, _) => it.with_timezone(&Utc),
        // In a gap Go takes the offset before it.
        chrono::LocalResult::None => (local - TimeDelta::hours(1))
            .and_local_timezone(time.timezone())
            .earliest()
            .map(|it| it.with_timezone(&Utc) + TimeDelta::hours(1))
            .ok_or_else(out_of_range)?,
    };
    resolved.timestamp_nanos_opt().map(Value::from).ok_or_else(out_of_range)
}

fn diff(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (first, _) = zoned(args, 1)?;
    let (second, _) = zoned(args, 2)?;
    let second = second.with_timezone(&first.timezone());
    let (from, to) = if first > second { (second, first) } else { (first, second) };
    let fields = |it: &DateTime<Tz>| {
        [
            i64::from(it.year()),
            i64::from(it.month()),
            i64::from(it.day()),
            i64::from(it.hour()),
            i64::from(it.minute()),
            i64::from(it.second()),
        ]
    };
    let [y1, m1, d1, h1, n1, s1] = fields(&from);
    let [y2, m2, d2, h2, n2, s2] = fields(&to);
    let (mut year, mut month, mut day) = (y2 - y1, m2 - m1, d2 - d1);
    let (mut hour, mut minute, mut second) = (h2 - h1, n2 - n1, s2 - s1);
    let carry = |low: &mut i64, size: i64, high: &mut i64| {
        if *low < 0 {
            *low += size;
            *high -= 1;
        }
    };
    carry(&mut second, 60, &mut minute);
    carry(&mut minute, 60, &mut hour);
    carry(&mut hour, 24, &mut day);
    let length = i64::from(days_in_month(from.year(), from.month()));
    carry(&mut day, length, &mut month);
    carry(&mut month, 12, &mut year);
    Ok(numbers(&[year, month, day, hour, minute, second]))
}

fn days_in_month(year: i32, month: u32) -> u32 {
    let next =
        if month == 12 { NaiveDate::from_ymd_opt(year + 1, 1, 1) } else { NaiveDate::from_ymd_opt(year, month + 1, 1) };
    next.and_then(|next| next.pred_opt()).map_or(31, |last| last.day())
}

/// Go's durations, and days, weeks and years of 365 days.
pub(super) fn duration(given: &str) -> Result<i64, BuiltinError> {
    let invalid = || failed(format!("time: invalid duration {}", quoted(excerpt(given))));
    let (negative, mut rest) = match given.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, given.strip_prefix('+').unwrap_or(given)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0i128;
    while !rest.is_empty() {
        let at = rest.find(|char: char| !char.is_ascii_digit() && char != '.').unwrap_or(rest.len());
        let (digits, after) = rest.split_at(at);
        let end = after.find(|char: char| char.is_ascii_digit() || char == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(invalid());
        }
        let hour = 3_600_000_000_000i128;
        let size = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => hour,
            "d" => hour * 24,
            "w" => hour * 24 * 7,
            "y" => hour * 24 * 365,
            "" => return Err(failed(format!("time: missing unit in duration {}", quoted(excerpt(given))))),
            other => {
                let message =
                    format!("time: unknown unit {} in duration {}", quoted(excerpt(other)), quoted(excerpt(given)));
                return Err(failed(message));
            }
        };
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
        total = whole.checked_mul(size).and_then(|part| total.checked_add(part)).ok_or_else(invalid)?;
        let kept: String = fraction.chars().take(18).collect();
        if !kept.is_empty() {
            let part: i128 = kept.parse().map_err(|_| invalid())?;
            let scale = 10i128.pow(u32::try_from(kept.len()).unwrap_or(0));
            total = total.saturating_add(part.saturating_mul(size) / scale);
        }
        rest = next;
    }
    i64::try_from(if negative { -total } else { total }).map_err(|_| invalid())
}
