//! Go's layouts: a time is written as the reference time `Mon Jan 2 15:04:05 MST 2006` would be.
//!
//! Mirrors: Go `time/format.go`.

use chrono::{DateTime, Datelike, NaiveDate, Offset, Timelike, Weekday};
use chrono_tz::{OffsetName, Tz};

use crate::value::quoted;

pub const RFC3339: &str = "2006-01-02T15:04:05Z07:00";
pub const RFC3339_NANO: &str = "2006-01-02T15:04:05.999999999Z07:00";

/// The layout behind one of Go's names for it.
pub fn named(layout: &str) -> &str {
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

pub fn weekday(day: Weekday) -> &'static str {
    DAYS.get(day.num_days_from_monday() as usize).copied().unwrap_or("")
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
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
const WORDS: [(&str, Part); 37] = [
    ("January", Part::LongMonth),
    ("Jan", Part::Month),
    ("Monday", Part::LongWeekday),
    ("Mon", Part::Weekday),
    ("MST", Part::Zone),
    ("002", Part::ZeroYearDay),
    ("__2", Part::UnderYearDay),
    ("01", Part::ZeroMonth),
    ("02", Part::ZeroDay),
    ("03", Part::ZeroHour12),
    ("04", Part::ZeroMinute),
    ("05", Part::ZeroSecond),
    ("06", Part::Year),
    ("15", Part::Hour),
    ("2006", Part::LongYear),
    ("_2006", Part::LongYear),
    ("_2", Part::UnderDay),
    ("1", Part::NumMonth),
    ("2", Part::Day),
    ("3", Part::Hour12),
    ("4", Part::Minute),
    ("5", Part::Second),
    ("PM", Part::UpperPm),
    ("pm", Part::LowerPm),
    ("-07:00:00", Part::Offset { z: false, colon: true, seconds: true, short: false }),
    ("-070000", Part::Offset { z: false, colon: false, seconds: true, short: false }),
    ("-07:00", Part::Offset { z: false, colon: true, seconds: false, short: false }),
    ("-0700", Part::Offset { z: false, colon: false, seconds: false, short: false }),
    ("-07", Part::Offset { z: false, colon: false, seconds: false, short: true }),
    ("Z07:00:00", Part::Offset { z: true, colon: true, seconds: true, short: false }),
    ("Z070000", Part::Offset { z: true, colon: false, seconds: true, short: false }),
    ("Z07:00", Part::Offset { z: true, colon: true, seconds: false, short: false }),
    ("Z0700", Part::Offset { z: true, colon: false, seconds: false, short: false }),
    ("Z07", Part::Offset { z: true, colon: false, seconds: false, short: true }),
    // Never matched by their text: fractions are found by rule.
    ("\0a", Part::Fraction0(0)),
    ("\0b", Part::Fraction9(0)),
    ("\0c", Part::Fraction9(0)),
];

/// The text up to the next part, the part, and what follows.
fn next(layout: &str) -> Option<(&str, Part, &str)> {
    for (at, char) in layout.char_indices() {
        let rest = layout.get(at..)?;
        if matches!(char, '.' | ',') {
            let digits = rest.get(1..)?;
            let zeros = digits.len() - digits.trim_start_matches('0').len();
            let nines = digits.len() - digits.trim_start_matches('9').len();
            let count = zeros.max(nines);
            let ends = !digits.get(count..)?.starts_with(|char: char| char.is_ascii_digit());
            if count > 0 && ends {
                let part = if zeros > 0 { Part::Fraction0(count) } else { Part::Fraction9(count) };
                return Some((layout.get(..at)?, part, digits.get(count..)?));
            }
            continue;
        }
        let word = WORDS.iter().find(|(word, _)| rest.starts_with(word));
        let Some((word, part)) = word else { continue };
        if *word == "_2006" {
            // The underscore stands for itself.
            let split = at.saturating_add(1);
            return Some((layout.get(..split)?, Part::LongYear, layout.get(split.saturating_add(4)..)?));
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

pub fn format(layout: &str, time: &DateTime<Tz>) -> String {
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

fn written(part: Part, time: &DateTime<Tz>) -> String {
    let month = MONTHS.get(time.month0() as usize).copied().unwrap_or("");
    let day = weekday(time.weekday());
    let hour12 = match time.hour() % 12 {
        0 => 12,
        hour => hour,
    };
    match part {
        Part::LongMonth => month.to_owned(),
        Part::Month => month.chars().take(3).collect(),
        Part::NumMonth => time.month().to_string(),
        Part::ZeroMonth => format!("{:02}", time.month()),
        Part::LongWeekday => day.to_owned(),
        Part::Weekday => day.chars().take(3).collect(),
        Part::Day => time.day().to_string(),
        Part::UnderDay => format!("{:2}", time.day()),
        Part::ZeroDay => format!("{:02}", time.day()),
        Part::UnderYearDay => format!("{:3}", time.ordinal()),
        Part::ZeroYearDay => format!("{:03}", time.ordinal()),
        Part::Hour => format!("{:02}", time.hour()),
        Part::Hour12 => hour12.to_string(),
        Part::ZeroHour12 => format!("{hour12:02}"),
        Part::Minute => time.minute().to_string(),
        Part::ZeroMinute => format!("{:02}", time.minute()),
        Part::Second => time.second().to_string(),
        Part::ZeroSecond => format!("{:02}", time.second()),
        Part::LongYear => format!("{:04}", time.year()),
        Part::Year => format!("{:02}", time.year().rem_euclid(100)),
        Part::UpperPm => if time.hour() >= 12 { "PM" } else { "AM" }.to_owned(),
        Part::LowerPm => if time.hour() >= 12 { "pm" } else { "am" }.to_owned(),
        Part::Zone => time.offset().abbreviation().map_or_else(
            || written(Part::Offset { z: false, colon: false, seconds: false, short: true }, time),
            str::to_owned,
        ),
        Part::Offset { z, colon, seconds, short } => {
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
        Part::Fraction0(count) => {
            let digits = format!("{:09}", time.nanosecond() % 1_000_000_000);
            format!(".{}", digits.chars().chain(std::iter::repeat('0')).take(count).collect::<String>())
        }
        Part::Fraction9(count) => {
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
pub fn parse(layout: &str, value: &str) -> Result<i64, String> {
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

fn read<'t>(part: Part, text: &'t str, after: &str, fields: &mut Fields) -> Option<&'t str> {
    let (value, rest) = match part {
        Part::LongMonth => name(text, &MONTHS, None).map(|(at, rest)| (at + 1, rest))?,
        Part::Month => name(text, &MONTHS, Some(3)).map(|(at, rest)| (at + 1, rest))?,
        Part::LongWeekday => name(text, &DAYS, None)?,
        Part::Weekday => name(text, &DAYS, Some(3))?,
        Part::LongYear => digits(text, 4, 4)?,
        Part::Year | Part::ZeroMonth | Part::ZeroDay | Part::ZeroHour12 | Part::ZeroMinute | Part::ZeroSecond => {
            digits(text, 2, 2)?
        }
        Part::UnderDay => digits(text.strip_prefix(' ').unwrap_or(text), 1, 2)?,
        Part::NumMonth | Part::Day | Part::Hour | Part::Hour12 | Part::Minute | Part::Second => digits(text, 1, 2)?,
        Part::UnderYearDay => digits(text.trim_start_matches(' '), 1, 3)?,
        Part::ZeroYearDay => digits(text, 3, 3)?,
        Part::UpperPm | Part::LowerPm => name(text, &["AM", "PM"], None)?,
        Part::Zone => (0, zone(text, fields)?),
        Part::Offset { z, colon, seconds, short } => (0, offset(text, z, colon, seconds, short, fields)?),
        Part::Fraction0(count) => (0, fraction(text, Some(count), fields)?),
        Part::Fraction9(_) => (0, if text.starts_with(['.', ',']) { fraction(text, None, fields)? } else { text }),
    };
    let in_range = match part {
        Part::NumMonth | Part::ZeroMonth => (1..=12).contains(&value),
        Part::Hour => value < 24,
        Part::Hour12 | Part::ZeroHour12 => value <= 12,
        Part::Minute | Part::ZeroMinute | Part::Second | Part::ZeroSecond => value < 60,
        _ => true,
    };
    if !in_range {
        return None;
    }
    match part {
        Part::LongMonth | Part::Month | Part::NumMonth | Part::ZeroMonth => fields.month = Some(value),
        Part::LongYear => fields.year = i32::try_from(value).ok()?,
        Part::Year => {
            let year = i32::try_from(value).ok()?;
            fields.year = if year >= 69 { year + 1900 } else { year + 2000 };
        }
        Part::Day | Part::UnderDay | Part::ZeroDay => fields.day = Some(value),
        Part::UnderYearDay | Part::ZeroYearDay => fields.year_day = Some(value),
        Part::Hour | Part::Hour12 | Part::ZeroHour12 => fields.hour = value,
        Part::Minute | Part::ZeroMinute => fields.minute = value,
        Part::Second | Part::ZeroSecond => {
            fields.second = value;
            // A fraction may follow the seconds though the layout has none.
            let expects = next(after).is_some_and(|(before, part, _)| {
                before.is_empty() && matches!(part, Part::Fraction0(_) | Part::Fraction9(_))
            });
            let has = rest.strip_prefix(['.', ',']).is_some_and(|it| it.starts_with(|c: char| c.is_ascii_digit()));
            if has && !expects {
                return fraction(rest, None, fields);
            }
        }
        Part::UpperPm | Part::LowerPm => fields.pm = Some(value == 1),
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
