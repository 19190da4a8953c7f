//! Go's layouts: a time is written as the reference time `Mon Jan 2 15:04:05 MST 2006` would be.
//!
//! Mirrors: Go `time/format.go`.

use chrono::{DateTime, Datelike, NaiveDate, Offset, Timelike, Weekday};
use chrono_tz::{OffsetName, Tz};

use crate::value::quoted;

pub(super) const RFC3339: &str = "2006-01-02T15:04:05Z07:00";
pub(super) const RFC3339_NANO: &str = "2006-01-02T15:04:05.999999999Z07:00";

/// The layout behind one of Go's names for it.
pub(super) fn named(layout: &str) -> &str {
    match layout {
        "ANSIC" => "Mon Jan _2 15:04:05 2006",
        "UnixDate" => "Mon Jan _2 15:04:05 MST 2006",
        "RubyDate" => "Mon Jan 02 15:04:05 -0700 2006",
        "RFC822" => "02 Jan 06 15:04 MST",
        "RFC822Z" => "02 Jan 06 15:04 -0700",
        "RFC850" => "Monday, 02-Jan-06 15:04:05 MST",
        "RFC1123" => "Mon, 02 Jan 2006 15:04:05 MST",
        "RFC1123Z" => "Mon, 02 Jan 2006 15:04:05 -0700",
        "RFC3339" => RFC3339,
        "RFC3339Nano" => RFC3339_NANO,
        other => other,
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

pub(super) fn weekday(day: Weekday) -> &'static str {
    DAYS.get(day.num_days_from_monday() as usize).copied().unwrap_or("")
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum LayoutField {
    LongMonth,
    Month,
    NumMonth,
    ZeroMonth,
    LongWeekday,
    Weekday,
    Day,
    UnderDay,
    ZeroDay,
    UnderYearDay,
    ZeroYearDay,
    Hour,
    Hour12,
    ZeroHour12,
    Minute,
    ZeroMinute,
    Second,
    ZeroSecond,
    LongYear,
    Year,
    UpperPm,
    LowerPm,
    Zone,
    /// Digits, with seconds, with colons, and `Z` for none.
    Offset {
        z: bool,
        colon: bool,
        seconds: bool,
        short: bool,
    },
    /// A fraction of exactly that many digits.
    Fraction0(usize),
    /// A fraction without zeros at the end.
    Fraction9(usize),
}

/// Longer spellings before those that they begin with.
const WORDS: [(&str, LayoutField); 37] = [
    ("January", LayoutField::LongMonth),
    ("Jan", LayoutField::Month),
    ("Monday", LayoutField::LongWeekday),
    ("Mon", LayoutField::Weekday),
    ("MST", LayoutField::Zone),
    ("002", LayoutField::ZeroYearDay),
    ("__2", LayoutField::UnderYearDay),
    ("01", LayoutField::ZeroMonth),
    ("02", LayoutField::ZeroDay),
    ("03", LayoutField::ZeroHour12),
    ("04", LayoutField::ZeroMinute),
    ("05", LayoutField::ZeroSecond),
    ("06", LayoutField::Year),
    ("15", LayoutField::Hour),
    ("2006", LayoutField::LongYear),
    ("_2006", LayoutField::LongYear),
    ("_2", LayoutField::UnderDay),
    ("1", LayoutField::NumMonth),
    ("2", LayoutField::Day),
    ("3", LayoutField::Hour12),
    ("4", LayoutField::Minute),
    ("5", LayoutField::Second),
    ("PM", LayoutField::UpperPm),
    ("pm", LayoutField::LowerPm),
    ("-07:00:00", LayoutField::Offset { z: false, colon: true, seconds: true, short: false }),
    ("-070000", LayoutField::Offset { z: false, colon: false, seconds: true, short: false }),
    ("-07:00", LayoutField::Offset { z: false, colon: true, seconds: false, short: false }),
    ("-0700", LayoutField::Offset { z: false, colon: false, seconds: false, short: false }),
    ("-07", LayoutField::Offset { z: false, colon: false, seconds: false, short: true }),
    ("Z07:00:00", LayoutField::Offset { z: true, colon: true, seconds: true, short: false }),
    ("Z070000", LayoutField::Offset { z: true, colon: false, seconds: true, short: false }),
    ("Z07:00", LayoutField::Offset { z: true, colon: true, seconds: false, short: false }),
    ("Z0700", LayoutField::Offset { z: true, colon: false, seconds: false, short: false }),
    ("Z07", LayoutField::Offset { z: true, colon: false, seconds: false, short: true }),
    // Never matched by their text: fractions are found by rule.
    ("\0a", LayoutField::Fraction0(0)),
    ("\0b", LayoutField::Fraction9(0)),
    ("\0c", LayoutField::Fraction9(0)),
];

/// The text up to the next part, the part, and what follows.
fn next(layout: &str) -> Option<(&str, LayoutField, &str)> {
    for (at, char) in layout.char_indices() {
        let rest = layout.get(at..)?;
        if matches!(char, '.' | ',') {
            let digits = rest.get(1..)?;
            let zeros = digits.len() - digits.trim_start_matches('0').len();
            let nines = digits.len() - digits.trim_start_matches('9').len();
            let count = zeros.max(nines);
            let ends = !digits.get(count..)?.starts_with(|char: char| char.is_ascii_digit());
            if count > 0 && ends {
                let part = if zeros > 0 { LayoutField::Fraction0(count) } else { LayoutField::Fraction9(count) };
                return Some((layout.get(..at)?, part, digits.get(count..)?));
            }
            continue;
        }
        let word = WORDS.iter().find(|(word, _)| rest.starts_with(word));
        let Some((word, part)) = word else { continue };
        if *word == "_2006" {
            // The underscore stands for itself.
            let split = at.saturating_add(1);
            return Some((layout.get(..split)?, LayoutField::LongYear, layout.get(split.saturating_add(4)..)?));
        }
        if *word == "Jan" || *word == "Mon" {
            // `Month` is no month.
            let after = rest.get(3..)?;
            if *word == "Mon" && after.starts_with(|char: char| char.is_ascii_lowercase()) {
                continue;
            }
        }
        return Some((layout.get(..at)?, *part, rest.get(word.len()..)?));
    }
    None
}

pub(super) fn format(layout: &str, time: &DateTime<Tz>) -> String {
    let mut out = String::new();
    let mut rest = layout;
    while let Some((before, part, after)) = next(rest) {
        out.push_str(before);
        out.push_str(&written(part, time));
        rest = after;
    }
    out.push_str(rest);
    out
}

fn written(part: LayoutField, time: &DateTime<Tz>) -> String {
    let month = MONTHS.get(time.month0() as usize).copied().unwrap_or("");
    let day = weekday(time.weekday());
    let hour12 = match time.hour() % 12 {
        0 => 12,
        hour => hour,
    };
    match part {
        LayoutField::LongMonth => month.to_owned(),
        LayoutField::Month => month.chars().take(3).collect(),
        LayoutField::NumMonth => time.month().to_string(),
        LayoutField::ZeroMonth => format!("{:02}", time.month()),
        LayoutField::LongWeekday => day.to_owned(),
        LayoutField::Weekday => day.chars().take(3).collect(),
        LayoutField::Day => time.day().to_string(),
        LayoutField::UnderDay => format!("{:2}", time.day()),
        LayoutField::ZeroDay => format!("{:02}", time.day()),
        LayoutField::UnderYearDay => format!("{:3}", time.ordinal()),
        LayoutField::ZeroYearDay => format!("{:03}", time.ordinal()),
        LayoutField::Hour => format!("{:02}", time.hour()),
        LayoutField::Hour12 => hour12.to_string(),
        LayoutField::ZeroHour12 => format!("{hour12:02}"),
        LayoutField::Minute => time.minute().to_string(),
        LayoutField::ZeroMinute => format!("{:02}", time.minute()),
        LayoutField::Second => time.second().to_string(),
        LayoutField::ZeroSecond => format!("{:02}", time.second()),
        LayoutField::LongYear => format!("{:04}", time.year()),
        LayoutField::Year => format!("{:02}", time.year().rem_euclid(100)),
        LayoutField::UpperPm => if time.hour() >= 12 { "PM" } else { "AM" }.to_owned(),
        LayoutField::LowerPm => if time.hour() >= 12 { "pm" } else { "am" }.to_owned(),
        LayoutField::Zone => time.offset().abbreviation().map_or_else(
            || written(LayoutField::Offset { z: false, colon: false, seconds: false, short: true }, time),
            str::to_owned,
        ),
        LayoutField::Offset { z, colon, seconds, short } => {
            let offset = time.offset().fix().local_minus_utc();
            if z && offset == 0 {
                return "Z".to_owned();
            }
            let sign = if offset < 0 { '-' } else { '+' };
            let offset = offset.abs();
            let dots = if colon { ":" } else { "" };
            let mut text = format!("{sign}{:02}", offset / 3_600);
            if !short {
                text.push_str(&format!("{dots}{:02}", offset / 60 % 60));
            }
            if seconds {
                text.push_str(&format!("{dots}{:02}", offset % 60));
            }
            text
        }
        LayoutField::Fraction0(count) => {
            let digits = format!("{:09}", time.nanosecond() % 1_000_000_000);
            format!(".{}", digits.chars().chain(std::iter::repeat('0')).take(count).collect::<String>())
        }
        LayoutField::Fraction9(count) => {
            let digits = format!("{:09}", time.nanosecond() % 1_000_000_000);
            let cut: String = digits.chars().take(count).collect();
            let cut = cut.trim_end_matches('0');
            if cut.is_empty() { String::new() } else { format!(".{cut}") }
        }
    }
}

#[derive(Default)]
struct Fields {
    year: i32,
    month: Option<u32>,
    day: Option<u32>,
    year_day: Option<u32>,
    hour: u32,
    minute: u32,
    second: u32,
    nano: u32,
    pm: Option<bool>,
    offset: i32,
}

/// The time that `value` spells, in nanoseconds since the epoch.
pub(super) fn parse(layout: &str, value: &str) -> Result<i64, String> {
    let failed = || format!("parsing time {} as {}: cannot parse", quoted(value), quoted(layout));
    let mut fields = Fields::default();
    let (mut layout_rest, mut rest) = (layout, value);
    loop {
        let step = next(layout_rest);
        let literal = step.map_or(layout_rest, |(before, _, _)| before);
        rest = skip(rest, literal).ok_or_else(failed)?;
        let Some((_, part, after)) = step else { break };
        rest = read(part, rest, after, &mut fields).ok_or_else(failed)?;
        layout_rest = after;
    }
    if !rest.is_empty() {
        return Err(format!("parsing time {}: extra text: {}", quoted(value), quoted(rest)));
    }
    let instant = instant(&fields).ok_or_else(|| format!("parsing time {}: out of range", quoted(value)))?;
    instant.timestamp_nanos_opt().ok_or_else(|| "time outside of valid range".to_owned())
}

/// Takes literal text; spaces may be many.
fn skip<'t>(mut text: &'t str, literal: &str) -> Option<&'t str> {
    let mut wanted = literal.chars().peekable();
    while let Some(char) = wanted.next() {
        if char == ' ' {
            if !text.is_empty() && !text.starts_with(' ') {
                return None;
            }
            while wanted.next_if_eq(&' ').is_some() {}
            text = text.trim_start_matches(' ');
            continue;
        }
        text = text.strip_prefix(char)?;
    }
    Some(text)
}

fn digits(text: &str, least: usize, most: usize) -> Option<(u32, &str)> {
    let count = text.bytes().take(most).take_while(u8::is_ascii_digit).count();
    if count < least {
        return None;
    }
    let (digits, rest) = text.split_at(count);
    Some((digits.parse().ok()?, rest))
}

fn name<'t>(text: &'t str, names: &[&str], len: Option<usize>) -> Option<(u32, &'t str)> {
    (0u32..).zip(names).find_map(|(at, name)| {
        let name = len.map_or(*name, |len| name.get(..len).unwrap_or(name));
        let head = text.get(..name.len())?;
        head.eq_ignore_ascii_case(name).then(|| (at, text.get(name.len()..).unwrap_or("")))
    })
}

fn read<'t>(part: LayoutField, text: &'t str, after: &str, fields: &mut Fields) -> Option<&'t str> {
    let (value, rest) = match part {
        LayoutField::LongMonth => name(text, &MONTHS, None).map(|(at, rest)| (at + 1, rest))?,
        LayoutField::Month => name(text, &MONTHS, Some(3)).map(|(at, rest)| (at + 1, rest))?,
        LayoutField::LongWeekday => name(text, &DAYS, None)?,
        LayoutField::Weekday => name(text, &DAYS, Some(3))?,
        LayoutField::LongYear => digits(text, 4, 4)?,
        LayoutField::Year
        | LayoutField::ZeroMonth
        | LayoutField::ZeroDay
        | LayoutField::ZeroHour12
        | LayoutField::ZeroMinute
        | LayoutField::ZeroSecond => digits(text, 2, 2)?,
        LayoutField::UnderDay => digits(text.strip_prefix(' ').unwrap_or(text), 1, 2)?,
        LayoutField::NumMonth
        | LayoutField::Day
        | LayoutField::Hour
        | LayoutField::Hour12
        | LayoutField::Minute
        | LayoutField::Second => digits(text, 1, 2)?,
        LayoutField::UnderYearDay => digits(text.trim_start_matches(' '), 1, 3)?,
        LayoutField::ZeroYearDay => digits(text, 3, 3)?,
        LayoutField::UpperPm | LayoutField::LowerPm => name(text, &["AM", "PM"], None)?,
        LayoutField::Zone => (0, zone(text, fields)?),
        LayoutField::Offset { z, colon, seconds, short } => (0, offset(text, z, colon, seconds, short, fields)?),
        LayoutField::Fraction0(count) => (0, fraction(text, Some(count), fields)?),
        LayoutField::Fraction9(_) => {
            (0, if text.starts_with(['.', ',']) { fraction(text, None, fields)? } else { text })
        }
    };
    let in_range = match part {
        LayoutField::NumMonth | LayoutField::ZeroMonth => (1..=12).contains(&value),
        LayoutField::Hour => value < 24,
        LayoutField::Hour12 | LayoutField::ZeroHour12 => value <= 12,
        LayoutField::Minute | LayoutField::ZeroMinute | LayoutField::Second | LayoutField::ZeroSecond => value < 60,
        _ => true,
    };
    if !in_range {
        return None;
    }
    match part {
        LayoutField::LongMonth | LayoutField::Month | LayoutField::NumMonth | LayoutField::ZeroMonth => {
            fields.month = Some(value)
        }
        LayoutField::LongYear => fields.year = i32::try_from(value).ok()?,
        LayoutField::Year => {
            let year = i32::try_from(value).ok()?;
            fields.year = if year >= 69 { year + 1900 } else { year + 2000 };
        }
        LayoutField::Day | LayoutField::UnderDay | LayoutField::ZeroDay => fields.day = Some(value),
        LayoutField::UnderYearDay | LayoutField::ZeroYearDay => fields.year_day = Some(value),
        LayoutField::Hour | LayoutField::Hour12 | LayoutField::ZeroHour12 => fields.hour = value,
        LayoutField::Minute | LayoutField::ZeroMinute => fields.minute = value,
        LayoutField::Second | LayoutField::ZeroSecond => {
            fields.second = value;
            // A fraction may follow the seconds though the layout has none.
            let expects = next(after).is_some_and(|(before, part, _)| {
                before.is_empty() && matches!(part, LayoutField::Fraction0(_) | LayoutField::Fraction9(_))
            });
            let has = rest.strip_prefix(['.', ',']).is_some_and(|it| it.starts_with(|c: char| c.is_ascii_digit()));
            if has && !expects {
                return fraction(rest, None, fields);
            }
        }
        LayoutField::UpperPm | LayoutField::LowerPm => fields.pm = Some(value == 1),
        _ => {}
    }
    Some(rest)
}

fn fraction<'t>(text: &'t str, exact: Option<usize>, fields: &mut Fields) -> Option<&'t str> {
    let rest = text.strip_prefix(['.', ','])?;
    let count = rest.bytes().take_while(u8::is_ascii_digit).count();
    let count = exact.map_or(count, |exact| if count >= exact { exact } else { 0 });
    if count == 0 {
        return None;
    }
    let (digits, rest) = rest.split_at(count);
    let nanos: String = digits.chars().chain(std::iter::repeat('0')).take(9).collect();
    fields.nano = nanos.parse().ok()?;
    Some(rest)
}

/// An abbreviation. Go knows no offset for it, unless it says `GMT+3`.
fn zone<'t>(text: &'t str, fields: &mut Fields) -> Option<&'t str> {
    if let Some(rest) = text.strip_prefix("UTC") {
        return Some(rest);
    }
    if let Some(signed) = text.strip_prefix("GMT")
        && let Some(digits) = signed.strip_prefix(['+', '-'])
    {
        let (hours, rest) = self::digits(digits, 1, 2)?;
        let hours = i32::try_from(hours).ok().filter(|hours| *hours <= 23)?;
        fields.offset = if signed.starts_with('-') { -hours } else { hours } * 3_600;
        return Some(rest);
    }
    if text.starts_with(['+', '-']) {
        let (hours, rest) = self::digits(text.get(1..)?, 2, 2)?;
        return (hours <= 23).then_some(rest);
    }
    let count = text.bytes().take(6).take_while(u8::is_ascii_uppercase).count();
    let valid = match count {
        3 => true,
        4 => text.get(..4).is_some_and(|name| name.ends_with('T') || name == "WITA"),
        5 => text.get(..5).is_some_and(|name| name.ends_with('T')),
        _ => false,
    };
    if valid { text.get(count..) } else { None }
}

fn offset<'t>(text: &'t str, z: bool, colon: bool, seconds: bool, short: bool, fields: &mut Fields) -> Option<&'t str> {
    if z && let Some(rest) = text.strip_prefix('Z') {
        return Some(rest);
    }
    let rest = text.strip_prefix(['+', '-'])?;
    let (hours, mut rest) = digits(rest, 2, 2)?;
    let (mut minute, mut second) = (0, 0);
    let more = |rest: &'t str, value: &mut u32| -> Option<&'t str> {
        let rest = if colon { rest.strip_prefix(':')? } else { rest };
        let (found, rest) = digits(rest, 2, 2)?;
        *value = found;
        Some(rest)
    };
    if !short {
        rest = more(rest, &mut minute)?;
    }
    if seconds {
        rest = more(rest, &mut second)?;
    }
    if hours > 24 || minute >= 60 || second >= 60 {
        return None;
    }
    let total = i32::try_from(hours * 3_600 + minute * 60 + second).ok()?;
    fields.offset = if text.starts_with('-') { -total } else { total };
    Some(rest)
}

fn instant(fields: &Fields) -> Option<DateTime<chrono::Utc>> {
    let mut hour = fields.hour;
    match fields.pm {
        Some(true) if hour < 12 => hour += 12,
        Some(false) if hour == 12 => hour = 0,
        _ => {}
    }
    let date = match fields.year_day {
        Some(day) => {
            let date = NaiveDate::from_yo_opt(fields.year, day)?;
            let fits = fields.month.is_none_or(|month| month == date.month())
                && fields.day.is_none_or(|day| day == date.day());
            fits.then_some(date)?
        }
        None => NaiveDate::from_ymd_opt(fields.year, fields.month.unwrap_or(1), fields.day.unwrap_or(1))?,
    };
    let local = date.and_hms_nano_opt(hour, fields.minute, fields.second, fields.nano)?;
    let utc = local.checked_sub_signed(chrono::TimeDelta::seconds(i64::from(fields.offset)))?;
    Some(utc.and_utc())
}
