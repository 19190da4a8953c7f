//! `multipart/form-data` bodies, as Go's `mime/multipart` reads them.
//!
//! Own code, because what counts as a boundary (line ends, white space after it, a missing last one) decides whether a
//! request is a 400, and policies were written against Go's answer.

use super::form::hex_pair;
use super::media;
use crate::value::{JsonError, JsonLimits, Lists, Value, lossy, parse_json};

/// Parts that one body may have.
const MAX_PARTS: usize = 1_000;
/// Header lines that one part may have.
const MAX_PART_HEADERS: usize = 100;

/// Why a multipart body cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MultipartError {
    #[error("no boundary line")]
    NoBoundary,
    #[error("unexpected end before the last boundary")]
    End,
    #[error("a part has a malformed header")]
    Header,
    #[error("a part is not valid quoted-printable")]
    QuotedPrintable,
    #[error("a JSON part is malformed: {0}")]
    Json(#[from] JsonError),
    #[error("more than {MAX_PARTS} parts")]
    TooManyParts,
}

/// Reads the parts that have a form name: an object from name to array, in order.
pub(super) fn parse(body: &[u8], boundary: &str, json: JsonLimits) -> Result<Value, MultipartError> {
    let dash_boundary = format!("--{boundary}").into_bytes();
    let mut members = Lists::default();
    let Some((mut rest, newline)) = first_part(body, &dash_boundary)? else { return Ok(members.into_value()) };
    let delimiter = [newline, &dash_boundary].concat();

    for _ in 0..MAX_PARTS {
        let (headers, content) = headers(rest)?;
        let (content, after) = content_until(content, &dash_boundary, &delimiter)?;
        if let Some((name, value)) = headers.field(content, json)? {
            members.push(name, value);
        }
        match boundary_end(after) {
            Some(Ends::Body) => return Ok(members.into_value()),
            Some(Ends::Part(next)) => rest = next,
            None => return Err(MultipartError::End),
        }
    }
    Err(MultipartError::TooManyParts)
}

/// The text after a boundary.
enum Ends<'a> {
    /// `--`: nothing more follows.
    Body,
    /// A line end: the next part.
    Part(&'a [u8]),
}

/// Skips the preamble. Gives the first part and the line end in use, or nothing when the body closes at once.
type FirstPart<'a> = Option<(&'a [u8], &'static [u8])>;

fn first_part<'a>(body: &'a [u8], dash_boundary: &[u8]) -> Result<FirstPart<'a>, MultipartError> {
    let mut rest = body;
    while !rest.is_empty() {
        let (line, after) = line(rest);
        if let Some(tail) = line.strip_prefix(dash_boundary) {
            if tail.trim_ascii().is_empty() && line.len() < rest.len() {
                let newline: &[u8] = if line.ends_with(b"\r") { b"\r\n" } else { b"\n" };
                return Ok(Some((after, newline)));
            }
            if tail.strip_prefix(b"--").is_some_and(|tail| tail.trim_ascii().is_empty()) {
                return Ok(None);
            }
        }
        rest = after;
    }
    Err(MultipartError::NoBoundary)
}

/// The first line without its `\n`, and what follows it.
fn line(text: &[u8]) -> (&[u8], &[u8]) {
    match text.iter().position(|&byte| byte == b'\n') {
        Some(at) => {
            let (line, rest) = text.split_at(at);
            (line, rest.strip_prefix(b"\n").unwrap_or(rest))
        }
        None => (text, &[]),
    }
}

/// The headers of one part that matter here.
#[derive(Default)]
struct PartHeaders {
    disposition: Option<String>,
    content_type: String,
    quoted_printable: bool,
}

fn headers(part: &[u8]) -> Result<(PartHeaders, &[u8]), MultipartError> {
    let mut headers = PartHeaders::default();
    let mut rest = part;
    for _ in 0..MAX_PART_HEADERS {
        if rest.is_empty() {
            return Err(MultipartError::End);
        }
        let (header, after) = line(rest);
        rest = after;
        let header = header.strip_suffix(b"\r").unwrap_or(header);
        if header.is_empty() {
            return Ok((headers, rest));
        }
        let colon = header.iter().position(|&byte| byte == b':').ok_or(MultipartError::Header)?;
        let (name, value) = header.split_at(colon);
        let value = lossy(value.strip_prefix(b":").unwrap_or(value).trim_ascii());
        match lossy(name).to_ascii_lowercase().as_str() {
            "content-disposition" => headers.disposition = Some(value),
            "content-type" => headers.content_type = value,
            "content-transfer-encoding" => headers.quoted_printable = value.eq_ignore_ascii_case("quoted-printable"),
            _ => {}
        }
    }
    Err(MultipartError::Header)
}

impl PartHeaders {
    /// The form field that this part carries; nothing when it has no name or is not form data.
    fn field(&self, content: &[u8], json: JsonLimits) -> Result<Option<(String, Value)>, MultipartError> {
        let Some(disposition) = self.disposition.as_deref().and_then(|text| media::parse(text).ok()) else {
            return Ok(None);
        };
        let Some(name) = disposition.parameter("name").filter(|_| disposition.name == "form-data") else {
            return Ok(None);
        };
        let decoded = if self.quoted_printable { quoted_printable(content)? } else { content.to_vec() };
        let value = if self.content_type.contains("application/json") {
            parse_json(&decoded, json)?
        } else {
            Value::from(lossy(&decoded))
        };
        Ok(Some((name.to_owned(), value)))
    }
}

/// The part's content and what follows the boundary that ends it.
fn content_until<'a>(
    text: &'a [u8],
    dash_boundary: &[u8],
    delimiter: &[u8],
) -> Result<(&'a [u8], &'a [u8]), MultipartError> {
    if let Some(after) = text.strip_prefix(dash_boundary).filter(|after| may_follow_boundary(after)) {
        return Ok((&[], after));
    }
    let mut from = 0usize;
    while let Some(at) = find(text.get(from..).unwrap_or_default(), delimiter) {
        let start = from.saturating_add(at);
        let after = text.get(start.saturating_add(delimiter.len())..).unwrap_or_default();
        if may_follow_boundary(after) {
            return Ok((text.get(..start).unwrap_or_default(), after));
        }
        from = start.saturating_add(1);
    }
    Err(MultipartError::End)
}

fn may_follow_boundary(after: &[u8]) -> bool {
    matches!(after.first(), None | Some(b' ' | b'\t' | b'\r' | b'\n')) || after.starts_with(b"--")
}

fn boundary_end(after: &[u8]) -> Option<Ends<'_>> {
    let (tail, next) = line(after);
    if tail.strip_prefix(b"--").is_some_and(|rest| rest.trim_ascii().is_empty()) {
        return Some(Ends::Body);
    }
    (tail.trim_ascii().is_empty() && tail.len() < after.len()).then_some(Ends::Part(next))
}

fn find(text: &[u8], needle: &[u8]) -> Option<usize> {
    text.windows(needle.len()).position(|window| window == needle)
}

/// Decodes quoted-printable (RFC 2045 section 6.7), with Go's leniency for white space before a line end.
fn quoted_printable(text: &[u8]) -> Result<Vec<u8>, MultipartError> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let (whole, after) = line(rest);
        let ended = whole.len() < rest.len();
        rest = after;
        let carriage = whole.ends_with(b"\r");
        let content = whole.trim_ascii_end();
        let (content, soft) = match content.strip_suffix(b"=") {
            Some(content) => (content, true),
            None => (content, false),
        };
        let mut bytes = content;
        while let Some((&byte, tail)) = bytes.split_first() {
            bytes = tail;
            if byte == b'=' {
                let (digits, tail) = tail.split_at_checked(2).ok_or(MultipartError::QuotedPrintable)?;
                out.push(hex_pair(digits).ok_or(MultipartError::QuotedPrintable)?);
                bytes = tail;
            } else {
                out.push(byte);
            }
        }
        if ended && !soft {
            out.extend_from_slice(if carriage { b"\r\n" } else { b"\n" });
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::{DuplicateKeys, json_text};

    const JSON: JsonLimits = JsonLimits { depth: 100, duplicates: DuplicateKeys::LastWins };

    fn read(body: &str) -> Result<String, MultipartError> {
        parse(body.as_bytes(), "B", JSON).map(|value| json_text(&value))
    }

    #[test]
    fn parts_become_arrays_in_order() {
        let body = "preamble\r\n--B\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n--B \r\n\
                    Content-Disposition: form-data; name=a\r\n\r\n\r\n--B\r\nContent-Disposition: attachment; name=x\r\n\
                    \r\nskipped\r\n--B\r\nContent-Disposition: form-data; name=j\r\nContent-Type: application/json\r\n\r\n\
                    {\"k\":1}\r\n--B--\r\nepilogue";
        assert_eq!(read(body).as_deref(), Ok(r#"{"a":["1",""],"j":[{"k":1}]}"#));
    }

    #[test]
    fn line_feeds_alone_are_accepted_and_a_boundary_must_end_its_line() {
        let body = "--B\nContent-Disposition: form-data; name=a\n\nx\n--Bogus\ny\n--B--";
        assert_eq!(read(body).as_deref(), Ok(r#"{"a":["x\n--Bogus\ny"]}"#));
    }

    #[test]
    fn an_empty_part_may_be_followed_by_its_boundary_at_once() {
        let body = "--B\r\nContent-Disposition: form-data; name=a\r\n\r\n--B--";
        assert_eq!(read(body).as_deref(), Ok(r#"{"a":[""]}"#));
    }

    #[test]
    fn quoted_printable_is_decoded() {
        let body = "--B\r\nContent-Disposition: form-data; name=a\r\nContent-Transfer-Encoding: Quoted-Printable\r\n\r\n\
                    =41=\r\nb  \r\nc\r\n--B--";
        assert_eq!(read(body).as_deref(), Ok("{\"a\":[\"Ab\\r\\nc\"]}"));
    }

    #[test]
    fn malformed_bodies_are_refused() {
        for (name, body, want) in [
            ("no boundary", "hello", MultipartError::NoBoundary),
            ("nothing", "", MultipartError::NoBoundary),
            ("cut in headers", "--B\r\nContent-Disposition: form-data", MultipartError::End),
            ("no last boundary", "--B\r\nContent-Disposition: form-data; name=a\r\n\r\nx", MultipartError::End),
            ("header without colon", "--B\r\nnonsense\r\n\r\nx\r\n--B--", MultipartError::Header),
        ] {
            assert_eq!(read(body), Err(want), "{name}");
        }
        assert!(matches!(
            read("--B\r\nContent-Disposition: form-data; name=a\r\nContent-Type: application/json\r\n\r\n{\r\n--B--"),
            Err(MultipartError::Json(_))
        ));
    }

    #[test]
    fn the_number_of_parts_is_bounded() {
        let body = "--B\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n".repeat(MAX_PARTS + 1) + "--B--";
        assert_eq!(read(&body), Err(MultipartError::TooManyParts));
    }
}
