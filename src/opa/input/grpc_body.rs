//! gRPC request bodies, decoded by the descriptors that `proto-descriptor` names, printed as protojson.
//!
//! Mirrors: opa-envoy-plugin `envoyauth/request.go` `getGRPCBody`. Only the first frame is read, only from `rawBody`.

use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};

use super::body::ParsedBody;
use crate::value::{JsonError, JsonLimits, parse_json};

/// The length of the prefix of a gRPC frame: a flag and a 32-bit length.
const FRAME_PREFIX: usize = 5;

/// The services whose bodies can be read.
#[derive(Clone, Debug)]
pub struct Descriptors(DescriptorPool);

/// A descriptor set that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("not a binary FileDescriptorSet with all its imports: {0}")]
pub struct DescriptorsError(String);

/// Why a gRPC body cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum GrpcBodyError {
    #[error("invalid parsed path")]
    Path,
    #[error("less than 5 bytes")]
    Short,
    #[error("cannot parse invalid wire-format data")]
    Wire(#[source] prost::DecodeError),
    #[error("the message cannot be written as JSON")]
    Unprintable(#[source] serde_json::Error),
    #[error("the message cannot be written as JSON: {0}")]
    Json(#[from] JsonError),
}

impl Descriptors {
    /// Reads the bytes of a `FileDescriptorSet`.
    pub fn decode(bytes: &[u8]) -> Result<Self, DescriptorsError> {
        DescriptorPool::decode(bytes).map(Self).map_err(|error| DescriptorsError(error.to_string()))
    }
}

/// Reads the first frame of `raw`. `path` is `parsed_path`: service and method.
pub(super) fn parse(
    raw: &[u8],
    path: &[String],
    descriptors: Option<&Descriptors>,
    json: JsonLimits,
) -> Result<ParsedBody, GrpcBodyError> {
    let (Some(Descriptors(pool)), false) = (descriptors, raw.is_empty()) else { return Ok(ParsedBody::absent()) };
    let [service, method] = path else { return Err(GrpcBodyError::Path) };
    let (prefix, rest) = raw.split_at_checked(FRAME_PREFIX).ok_or(GrpcBodyError::Short)?;
    let &[compressed, a, b, c, d] = prefix else { return Err(GrpcBodyError::Short) };
    if compressed != 0 {
        return Ok(ParsedBody::absent());
    }
    let len = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    let Some(frame) = rest.get(..len) else { return Ok(ParsedBody::cut()) };

    let service = pool.get_service_by_name(service);
    let method = service.and_then(|service| service.methods().find(|known| known.name() == method));
    let Some(method) = method.filter(|method| !method.is_client_streaming()) else { return Ok(ParsedBody::absent()) };

    let message = DynamicMessage::decode(method.input(), frame).map_err(GrpcBodyError::Wire)?;
    let mut text = Vec::new();
    let mut writer = serde_json::Serializer::with_formatter(&mut text, GoFloats);
    message.serialize_with_options(&mut writer, &SerializeOptions::new()).map_err(GrpcBodyError::Unprintable)?;
    Ok(ParsedBody { value: parse_json(&text, json)?, truncated: false })
}

/// Writes floats as Go's protojson does: whole ones without a fraction, very small and very large ones with an exponent.
struct GoFloats;

impl serde_json::ser::Formatter for GoFloats {
    fn write_f32<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, value: f32) -> std::io::Result<()> {
        let plain = (1e-6..1e21).contains(&value.abs()) || value == 0.0;
        if plain { write!(writer, "{value}") } else { write!(writer, "{value:e}") }
    }

    fn write_f64<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, value: f64) -> std::io::Result<()> {
        let plain = (1e-6..1e21).contains(&value.abs()) || value == 0.0;
        if plain { write!(writer, "{value}") } else { write!(writer, "{value:e}") }
    }
}
