//! Blocks of PEM (RFC 7468), as Go reads them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Characters of a line of the body.
const LINE: usize = 64;

/// The first PEM block: its label, its bytes, and the text after its last line. As in Go, its boundaries are whole lines.
pub fn pem_block(text: &str) -> Option<(&str, Vec<u8>, &str)> {
    let begin = "-----BEGIN ";
    let start = if text.starts_with(begin) { 0 } else { text.find(&format!("\n{begin}"))?.saturating_add(1) };
    let (first, rest) = text.get(start..)?.split_once('\n')?;
    let label = first.trim_end().strip_prefix(begin)?.strip_suffix("-----")?;
    let end = format!("-----END {label}-----");
    let at = if rest.starts_with(&end) { 0 } else { rest.find(&format!("\n{end}"))?.saturating_add(1) };
    let (body, tail) = rest.split_at_checked(at)?;
    let (last, after) = tail.split_once('\n').unwrap_or((tail, ""));
    if last.trim_end() != end {
        return None;
    }
    // Headers such as `Proc-Type` end at an empty line.
    let body = match body.split_once("\n\n") {
        Some((headers, body)) if headers.contains(':') => body,
        _ => body,
    };
    let plain: String = body.chars().filter(|char| !char.is_ascii_whitespace()).collect();
    Some((label, STANDARD.decode(plain).ok()?, after))
}

/// One block with these bytes.
pub(crate) fn encode(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let lines: Vec<_> = body.as_bytes().chunks(LINE).map(|line| String::from_utf8_lossy(line)).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_blocks_are_whole_lines() {
        let block = |text: &str| pem_block(text).map(|(label, der, rest)| (label.to_owned(), der, rest.to_owned()));
        let good = Some(("KEY".to_owned(), b"hi".to_vec(), String::new()));
        assert_eq!(block("-----BEGIN KEY-----\naGk=\n-----END KEY-----\n"), good);
        assert_eq!(block("words\n-----BEGIN KEY-----\r\naG\r\nk=\r\n-----END KEY-----"), good);
        assert_eq!(pem_block("-----BEGIN KEY-----\naGk=\n-----END KEY-----\n\n").map(|(_, _, rest)| rest), Some("\n"));
        for bad in [
            "  -----BEGIN KEY-----\naGk=\n  -----END KEY-----",
            "-----BEGIN KEY-----aGk=-----END KEY-----",
            "words -----BEGIN KEY-----\naGk=\n-----END KEY-----",
            "-----BEGIN KEY-----\naGk=\n-----END KEY----- words",
            "-----BEGIN KEY-----\naGk=\n-----END OTHER-----",
        ] {
            assert_eq!(block(bad), None, "{bad}");
        }
    }
}
