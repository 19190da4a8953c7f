//! From the bytes of a `CheckRequest` to the document: the walk, and the keys that OPA adds beside `attributes`.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::attributes::Attributes;
use super::body::{self, BodyError, BodyMemory, ParsedBody};
use super::form::{QueryError, parse_query};
use super::grpc_body::Descriptors;
use super::path::parse_path;
use super::schema::{ANY, CHECK_REQUEST, Field, Kind, Message};
use super::wire::{Fields, Payload, WireError, entry};
use crate::value::{DuplicateKeys, Key, Members, Number, Value, texts};

static PARSED_PATH: Key = crate::key!("parsed_path");
static PARSED_QUERY: Key = crate::key!("parsed_query");
static PARSED_BODY: Key = crate::key!("parsed_body");
static TRUNCATED_BODY: Key = crate::key!("truncated_body");
static BODY_ERROR: Key = crate::key!("body_error");
static SOURCE_PRINCIPAL: Key = crate::key!("source_principal");
static VERSION: Key = crate::key!("version");

/// `encoding` still says protojson although OPA has not used it since v1.1.0; policies may compare it.
static VERSION_VALUE: LazyLock<Value> = LazyLock::new(|| {
    let mut members = Members::default();
    members.put_text("ext_authz", Value::from("v3"));
    members.put_text("encoding", Value::from("protojson"));
    members.into_value()
});

/// Settings of documents; fixed for the life of the process.
#[derive(Clone, Debug)]
pub struct Options {
    /// `skip-request-body-parse`: leave out `parsed_body` and `truncated_body`.
    pub skip_body: bool,
    /// Levels of nesting that bodies and metadata may have.
    pub depth: usize,
    /// `proto-descriptor`: how to read gRPC bodies; without it they stay null.
    pub descriptors: Option<Descriptors>,
    /// Unjoined headers (`encode_raw_headers`) describe the body too; OPA does not look at them.
    pub raw_headers_count: bool,
    /// Hand the policy `parsed_body: null` and `body_error` instead of refusing an unreadable body.
    pub expose_body_errors: bool,
    /// The reading of an object with a member twice: OPA takes the last one, other readers the first.
    pub duplicate_members: DuplicateKeys,
}

/// The document under construction: what OPA gives; more keys may be added before it is handed to a policy.
#[derive(Debug)]
pub struct Document {
    pub members: Members,
}

/// Why a request has no document.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error("the message cannot be read")]
    Wire(#[from] WireError),
    #[error("the path or query cannot be read")]
    Target(#[from] QueryError),
    #[error("the body cannot be read")]
    Body(BodyError),
    #[error("the body takes too much memory when it is parsed")]
    Memory,
}

impl From<BodyError> for InputError {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Memory(_) => Self::Memory,
            other => Self::Body(other),
        }
    }
}

/// Members that only the parsed body gives.
pub const OF_BODY: [&str; 3] = ["parsed_body", "truncated_body", "body_error"];

/// Members that identify the connection and the client.
pub const OF_CALLER: [&str; 2] = ["peer", "client"];

/// The parsing of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyUse {
    /// The policy can read it: one that is broken has no document.
    Decision,
    /// Only the decision log shows it: one that is broken is left out.
    Log,
    Nothing,
}

/// Builds the document of `message`, whose typed view is `attributes`; without the members [`OF_BODY`] when they are for nothing.
pub fn build(
    message: &[u8],
    attributes: &Attributes<'_>,
    options: &Options,
    body: BodyUse,
    memory: &mut BodyMemory<'_>,
) -> Result<Document, InputError> {
    let mut members = Walk { depth: options.depth }.members(&CHECK_REQUEST, message, 0)?;

    let target = attributes.http.as_ref().map_or("", |http| http.path);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path = parse_path(path).map_err(QueryError::Escape)?;
    let query = parse_query(query.as_bytes())?;
    if body != BodyUse::Nothing && !options.skip_body {
        let parsed = match body::parse(attributes, &path, options, memory) {
            Ok(parsed) => Some(parsed),
            Err(error @ BodyError::Memory(_)) => return Err(error.into()),
            Err(_) if body == BodyUse::Log => None,
            // An ambiguous body is never the policy's to forgive: it would see none of what the upstream reads.
            Err(error) if options.expose_body_errors && !error.is_ambiguous() => {
                members.put(&BODY_ERROR, Value::from(error.to_string()));
                Some(ParsedBody { value: Value::Null, truncated: false })
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(parsed) = parsed {
            members.put(&PARSED_BODY, parsed.value);
            members.put(&TRUNCATED_BODY, Value::Bool(parsed.truncated));
        }
    }
    members.put(&PARSED_PATH, texts(path.iter().map(String::as_str)));
    members.put(&PARSED_QUERY, query);
    if !attributes.source_principal.is_empty() {
        members.put(&SOURCE_PRINCIPAL, Value::from(attributes.source_principal));
    }
    members.put(&VERSION, VERSION_VALUE.clone());
    Ok(Document { members })
}

/// Turns messages into objects by their schema.
struct Walk {
    depth: usize,
}

impl Walk {
    fn members(&self, schema: &'static Message, bytes: &[u8], depth: usize) -> Result<Members, WireError> {
        let mut members = Members::default();
        let mut gathered = Gathered::default();
        for field in Fields::of(bytes) {
            let (number, payload) = field?;
            let Some(field) = schema.fields.iter().find(|field| field.number == number) else { continue };
            let value = match field.kind {
                Kind::Text => non_empty(payload.text()?).map(Value::from),
                Kind::OneofText => Some(Value::from(payload.text()?)),
                Kind::Bytes => non_empty(payload.bytes()?).map(|bytes| Value::from(STANDARD.encode(bytes))),
                Kind::Bool => (payload.varint()? != 0).then_some(Value::Bool(true)),
                Kind::Integer => Some(integer(payload)?).filter(|&number| number != 0).map(Value::from),
                Kind::OneofInteger => Some(Value::from(integer(payload)?)),
                Kind::Message(inner) => Some(self.members(inner, payload.bytes()?, depth)?.into_value()),
                Kind::Repeated(inner) => {
                    let item = self.members(inner, payload.bytes()?, depth)?.into_value();
                    gathered.append(field, item);
                    continue;
                }
                Kind::TextMap => {
                    let (key, value) = entry(payload.bytes()?)?;
                    let value = std::str::from_utf8(value).map_err(|_| WireError::Utf8)?;
                    gathered.insert(field, key, Value::from(value));
                    continue;
                }
                Kind::StructMap => {
                    let (key, value) = entry(payload.bytes()?)?;
                    let value = self.structure(value, depth)?;
                    gathered.insert(field, key, value);
                    continue;
                }
                Kind::AnyMap => {
                    let (key, value) = entry(payload.bytes()?)?;
                    let value = self.members(&ANY, value, depth)?.into_value();
                    gathered.insert(field, key, value);
                    continue;
                }
            };
            let Some(value) = value else { continue };
            // Protobuf would merge or overwrite; no encoder writes a field twice, and two readers that pick
            // different halves are how checks get bypassed.
            if members.put(&field.key, value).is_some() {
                return Err(WireError::Repeated);
            }
        }
        gathered.put_into(&mut members);
        Ok(members)
    }

    /// A `google.protobuf.Struct` as plain JSON.
    fn structure(&self, bytes: &[u8], depth: usize) -> Result<Value, WireError> {
        let depth = self.deeper(depth)?;
        let mut members = Vec::new();
        for field in Fields::of(bytes) {
            if let (1, payload) = field? {
                let (key, value) = entry(payload.bytes()?)?;
                members.push((Value::from(key), self.value(value, depth)?));
            }
        }
        Ok(Value::object(members))
    }

    /// A `google.protobuf.Value`; one with nothing set is null, as Go prints it.
    fn value(&self, bytes: &[u8], depth: usize) -> Result<Value, WireError> {
        let mut value = Value::Null;
        for field in Fields::of(bytes) {
            value = match field? {
                (1, _) => Value::Null,
                (2, payload) => number(payload.double()?),
                (3, payload) => Value::from(payload.text()?),
                (4, payload) => Value::Bool(payload.varint()? != 0),
                (5, payload) => self.structure(payload.bytes()?, depth)?,
                (6, payload) => self.list(payload.bytes()?, depth)?,
                _ => continue,
            };
        }
        Ok(value)
    }

    fn list(&self, bytes: &[u8], depth: usize) -> Result<Value, WireError> {
        let depth = self.deeper(depth)?;
        let mut items = Vec::new();
        for field in Fields::of(bytes) {
            if let (1, payload) = field? {
                items.push(self.value(payload.bytes()?, depth)?);
            }
        }
        Ok(Value::from(items))
    }

    fn deeper(&self, depth: usize) -> Result<usize, WireError> {
        if depth >= self.depth {
            return Err(WireError::Depth(self.depth));
        }
        Ok(depth.saturating_add(1))
    }
}

fn non_empty<T: AsRef<[u8]> + ?Sized>(content: &T) -> Option<&T> {
    (!content.as_ref().is_empty()).then_some(content)
}

/// Negative integers travel as 64-bit two's complement, whatever their declared width.
fn integer(payload: Payload<'_>) -> Result<i64, WireError> {
    payload.varint().map(u64::cast_signed)
}

/// A double of a `Struct`, spelled as Go's `%g` does (`1e+06`); what JSON has no number for becomes the text that
/// protojson uses.
fn number(double: f64) -> Value {
    if double.is_nan() {
        return Value::from("NaN");
    }
    if double.is_infinite() {
        return Value::from(if double > 0.0 { "Infinity" } else { "-Infinity" });
    }
    Value::Number(Number::spelled_general(double))
}

/// The repeated fields and maps of one message, whose parts come one by one.
#[derive(Default)]
struct Gathered {
    lists: Vec<(&'static Field, Vec<Value>)>,
    /// The last of two entries with one key counts, as protocol buffers have it.
    maps: Vec<(&'static Field, Vec<(Value, Value)>)>,
}

impl Gathered {
    fn append(&mut self, field: &'static Field, item: Value) {
        match self.lists.iter_mut().find(|(known, _)| known.number == field.number) {
            Some((_, items)) => items.push(item),
            None => self.lists.push((field, vec![item])),
        }
    }

    fn insert(&mut self, field: &'static Field, name: &str, value: Value) {
        let entry = (Value::from(name), value);
        match self.maps.iter_mut().find(|(known, _)| known.number == field.number) {
            Some((_, entries)) => entries.push(entry),
            None => self.maps.push((field, vec![entry])),
        }
    }

    fn put_into(self, members: &mut Members) {
        for (field, items) in self.lists {
            members.put(&field.key, Value::from(items));
        }
        for (field, entries) in self.maps {
            members.put(&field.key, Value::object(entries));
        }
    }
}
