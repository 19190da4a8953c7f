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
use crate::value::{DuplicateKeys, JsonError, JsonLimits, Value, parse_json};

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
pub(super) fn parse(attributes: &Attributes<'_>, path: &[String], options: &Options) -> Result<ParsedBody, BodyError> {
    let Some(http) = &attributes.http else { return Ok(ParsedBody::absent()) };
    let header = |name| description(http, name, options.raw_headers_count);
    if header("x-envoy-auth-partial-body")? == Some("true") {
        return Ok(ParsedBody::cut());
    }
    let Some(content_type) = header("content-type")? else { return Ok(ParsedBody::absent()) };
    let length = header("content-length")?;
    let json = JsonLimits { depth: options.depth, duplicates: DuplicateKeys::LastWins };

    if content_type.contains("application/json") {
        whole(http, length, |body| Ok(parse_json(body, json)?))
    } else if content_type.contains("application/grpc") {
        Ok(grpc_body::parse(http.raw_body, path, options.descriptors.as_ref(), json)?)
    } else if content_type.contains("application/x-www-form-urlencoded") {
        whole(http, length, |body| Ok(parse_query(body)?))
    } else if content_type.contains("multipart/form-data") {
        let media = super::media::parse(content_type)?;
        let Some(boundary) = media.parameter("boundary") else { return Ok(ParsedBody::absent()) };
        whole(http, length, |body| Ok(multipart::parse(body, boundary, json)?))
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

/// Whether fewer bytes arrived than `content-length` declares. A length of -1 declares nothing.
fn is_cut(length: Option<&str>, arrived: usize) -> Result<bool, BodyError> {
    let Some(declared) = length else { return Ok(false) };
    let declared: i64 = declared.parse().map_err(|_| BodyError::ContentLength)?;
    Ok(declared != -1 && i128::from(declared) > i128::try_from(arrived).unwrap_or(i128::MAX))
}
