//! Durations such as `180ms`, `30s`, `10m` and `24h`.

use std::time::Duration;

/// Reads a whole number and its unit.
pub fn parse(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (amount, unit) = text.split_at_checked(digits)?;
    let amount: u64 = amount.parse().ok()?;
    Some(match unit {
        "ms" => Duration::from_millis(amount),
        "s" => Duration::from_secs(amount),
        "m" => Duration::from_secs(amount.checked_mul(60)?),
        "h" => Duration::from_secs(amount.checked_mul(3_600)?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_number_and_a_unit() {
        assert_eq!(parse("180ms"), Some(Duration::from_millis(180)));
        assert_eq!(parse("2h"), Some(Duration::from_secs(7_200)));
        for text in ["", "5", "s", "-1s", "1.5s", "1d", "99999999999999999999s"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
