//! `parsed_body` and `truncated_body`.
//!
//! Mirrors: opa-envoy-plugin `envoyauth/request.go`, main branch. The content type is matched by substring and letter
//! case, in OPA's order, because policies rely on what is *not* parsed as much as on what is.

use super::attributes::{Attributes, Http};
use super::document::Options;
use super::form::{QueryError, parse_query};
use super::grpc_body::{self, GrpcBodyError};
use super::media::MediaTypeError;
use super::multipart::{self, MultipartError};
use crate::value::{JsonError, JsonLimits, JsonReadError, Meter, Value, parse_json_metered};

/// The two keys that describe a body.
#[derive(Debug, PartialEq)]
pub struct ParsedBody {
    pub value: Value,
    pub truncated: bool,
}

/// Why a body cannot be handed to a policy.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("content-length is not a number")]
    ContentLength,
    #[error("the header `{0}` stands more than once or is no text")]
    Description(&'static str),
    #[error("the body is not acceptable JSON: {0}")]
    Json(#[from] JsonError),
    #[error("the body is not an acceptable form: {0}")]
    Form(#[from] QueryError),
    #[error("the media type cannot be read: {0}")]
    MediaType(#[from] MediaTypeError),
    #[error("the body is not an acceptable multipart form: {0}")]
    Multipart(#[from] MultipartError),
    #[error("the body is not an acceptable gRPC message: {0}")]
    Grpc(#[from] GrpcBodyError),
    #[error("the body takes too much memory when it is parsed")]
    Memory(#[from] OutOfMemory),
}

/// No more memory is granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no more memory is granted")]
pub struct OutOfMemory;

impl From<JsonReadError<OutOfMemory>> for BodyError {
    fn from(error: JsonReadError<OutOfMemory>) -> Self {
        match error {
            JsonReadError::Json(error) => error.into(),
            JsonReadError::Limit(error) => error.into(),
        }
    }
}

/// The memory that a parsed body may take. What is small needs no grant.
pub struct BodyMemory<'g> {
    room: usize,
    grant: &'g dyn Fn(usize) -> bool,
}

/// Bytes that every body may take.
const FREE_BYTES: usize = 128 << 10;
/// Bytes that are asked for at once.
const GRANT_BYTES: usize = 128 << 10;
/// Bytes for each byte of a multipart body: its parts may be JSON, of which the smallest values take most.
const PART_FACTOR: usize = 32;
/// The same of a gRPC message.
const FIELD_FACTOR: usize = 64;
/// The memory of one pair of a form: its texts, an array, and an entry in a map while that grows.
const PAIR_BYTES: usize = 256;

impl std::fmt::Debug for BodyMemory<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BodyMemory").field("room", &self.room).finish_non_exhaustive()
    }
}

impl<'g> BodyMemory<'g> {
    /// Asks `grant` for what goes beyond the first bytes.
    pub fn new(grant: &'g dyn Fn(usize) -> bool) -> Self {
        Self { room: FREE_BYTES, grant }
    }

    /// Without bounds, for tests and for requests that were logged.
    pub fn unbounded() -> BodyMemory<'static> {
        BodyMemory { room: usize::MAX, grant: &|_| true }
    }
}

impl Meter for BodyMemory<'_> {
    type Error = OutOfMemory;

    fn work(&mut self, _steps: usize) -> Result<(), OutOfMemory> {
        Ok(())
    }

    fn allocate(&mut self, bytes: usize) -> Result<(), OutOfMemory> {
        if let Some(missing) = bytes.checked_sub(self.room).filter(|missing| *missing > 0) {
            let granted = missing.max(GRANT_BYTES);
            if !(self.grant)(granted) {
                return Err(OutOfMemory);
            }
            self.room = self.room.saturating_add(granted);
        }
        self.room = self.room.saturating_sub(bytes);
        Ok(())
    }

    fn release(&mut self, bytes: usize) {
        self.room = self.room.saturating_add(bytes);
    }
}

/// Charges the pairs of a form or the parts of a message, before they are taken apart.
fn charge_pairs(memory: &mut BodyMemory<'_>, body: &[u8], separator: u8) -> Result<(), OutOfMemory> {
    let pairs = body.iter().filter(|byte| **byte == separator).count().saturating_add(1);
    memory.allocate(pairs.saturating_mul(PAIR_BYTES).saturating_add(body.len().saturating_mul(4)))
}

impl BodyError {
    /// An object has a member twice, which `input.duplicate_members: reject` refuses.
    pub fn is_ambiguous(&self) -> bool {
        matches!(
            self,
            Self::Json(JsonError::Duplicate(_)) | Self::Multipart(MultipartError::Json(JsonError::Duplicate(_)))
        )
    }
}

impl ParsedBody {
    fn complete(value: Value) -> Self {
        Self { value, truncated: false }
    }

    pub(super) fn absent() -> Self {
        Self::complete(Value::Null)
    }

    pub(super) fn cut() -> Self {
        Self { value: Value::Null, truncated: true }
    }
}

/// Reads the body of the request, if it is of a kind that OPA reads. `path` is `parsed_path`.
pub(super) fn parse(
    attributes: &Attributes<'_>,
    path: &[String],
    options: &Options,
    memory: &mut BodyMemory<'_>,
) -> Result<ParsedBody, BodyError> {
    let Some(http) = &attributes.http else { return Ok(ParsedBody::absent()) };
    let header = |name| description(http, name, options.raw_headers_count);
    if header("x-envoy-auth-partial-body")? == Some("true") {
        return Ok(ParsedBody::cut());
    }
    let Some(content_type) = header("content-type")? else { return Ok(ParsedBody::absent()) };
    let length = header("content-length")?;
    let json = JsonLimits { depth: options.depth, duplicates: options.duplicate_members };

    if content_type.contains("application/json") {
        whole(http, length, |body| Ok(parse_json_metered(body, json, memory)?))
    } else if content_type.contains("application/grpc") {
        // An element of a list may be one byte long.
        memory.allocate(http.raw_body.len().saturating_mul(FIELD_FACTOR))?;
        Ok(grpc_body::parse(http.raw_body, path, options.descriptors.as_ref(), json)?)
    } else if content_type.contains("application/x-www-form-urlencoded") {
        whole(http, length, |body| {
            charge_pairs(memory, body, b'&')?;
            Ok(parse_query(body)?)
        })
    } else if content_type.contains("multipart/form-data") {
        let media = super::media::parse(content_type)?;
        let Some(boundary) = media.parameter("boundary") else { return Ok(ParsedBody::absent()) };
        whole(http, length, |body| {
            // Parts are texts, or JSON of no more than their bytes.
            memory.allocate(body.len().saturating_mul(PART_FACTOR))?;
            charge_pairs(memory, body, b'\n')?;
            Ok(multipart::parse(body, boundary, json)?)
        })
    } else {
        Ok(ParsedBody::absent())
    }
}

/// A header that describes the body. OPA looks at joined headers only, so that with `encode_raw_headers` every body is
/// null to it; here the raw ones count as well, unless `compat: strict` says otherwise.
fn description<'a>(http: &Http<'a>, name: &'static str, raw_headers_count: bool) -> Result<Option<&'a str>, BodyError> {
    if let Some(value) = http.joined_header(name) {
        return Ok(Some(value));
    }
    match http.header_values(name).as_slice() {
        [value] if raw_headers_count => std::str::from_utf8(value).map(Some).map_err(|_| BodyError::Description(name)),
        [_, ..] if raw_headers_count => Err(BodyError::Description(name)),
        _ => Ok(None),
    }
}

/// Reads a body that is present and, by its declared length, complete.
fn whole(
    http: &Http<'_>,
    length: Option<&str>,
    read: impl FnOnce(&[u8]) -> Result<Value, BodyError>,
) -> Result<ParsedBody, BodyError> {
    let body = http.payload();
    if body.is_empty() {
        return Ok(ParsedBody::absent());
    }
    if is_cut(length, body.len())? {
        return Ok(ParsedBody::cut());
    }
    read(body).map(ParsedBody::complete)
}

/// Fewer bytes arrived than `content-length` declares. A length of -1 declares nothing.
fn is_cut(length: Option<&str>, arrived: usize) -> Result<bool, BodyError> {
    let Some(declared) = length else { return Ok(false) };
    let declared: i64 = declared.parse().map_err(|_| BodyError::ContentLength)?;
    Ok(declared != -1 && i128::from(declared) > i128::try_from(arrived).unwrap_or(i128::MAX))
}
