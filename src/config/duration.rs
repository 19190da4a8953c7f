//! Durations as Go has them: `180ms`, `0.5s`, `1h30m`; none are negative.

use std::time::Duration;

/// Reads numbers with their units.
pub fn parse(text: &str) -> Option<Duration> {
    let mut total = (!text.is_empty()).then_some(Duration::ZERO)?;
    let mut rest = text;
    while !rest.is_empty() {
        let (amount, after) = rest.split_at_checked(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?)?;
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at_checked(end)?;
        total = total.checked_add(part(amount, unit)?)?;
        rest = next;
    }
    Some(total)
}

fn part(amount: &str, unit: &str) -> Option<Duration> {
    let nanoseconds: u64 = match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60 * 1_000_000_000,
        "h" => 3_600 * 1_000_000_000,
        _ => return None,
    };
    let (whole, fraction) = amount.split_once('.').unwrap_or((amount, "0"));
    let whole: u64 = whole.parse().ok()?;
    // Fractions below a nanosecond of an hour are ignored.
    let digits = fraction.get(..fraction.len().min(13))?;
    let scale = 10_u128.checked_pow(u32::try_from(digits.len()).ok()?)?;
    let rest = digits.parse::<u128>().ok()?.checked_mul(nanoseconds.into())?.checked_div(scale)?;
    Some(Duration::from_nanos(whole.checked_mul(nanoseconds)?.checked_add(u64::try_from(rest).ok()?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_numbers_and_units() {
        for (text, milliseconds) in
            [("180ms", 180), ("2h", 7_200_000), ("0.5s", 500), ("1m30s", 90_000), ("1.25m", 75_000)]
        {
            assert_eq!(parse(text), Some(Duration::from_millis(milliseconds)), "{text}");
        }
        assert_eq!(parse("3us7ns"), Some(Duration::from_nanos(3_007)));
        for text in
            ["", "5", "s", "-1s", "+1s", "1.5", "1..5s", ".s", "1s5", "1d", "99999999999999999999s", "9999999999999h"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
