//! The form of each field of `envoy.service.auth.v3.CheckRequest` in the document.
//!
//! Keys are the proto's JSON names. Zero scalars are absent, members of a oneof are present once set, a `Timestamp` is
//! an object `{seconds, nanos}`, a `Struct` is plain JSON, an `Any` stays packed. Source: Envoy's
//! `api/envoy/service/auth/v3/attribute_context.proto` and what it imports; behaviour: `opa-envoy-plugin` v1.9.0, run.

use crate::value::Key;

/// One message type.
pub struct Message {
    pub fields: &'static [Field],
}

/// One field of a message.
pub struct Field {
    pub number: u32,
    pub key: Key,
    pub kind: Kind,
}

/// The type of a field.
pub enum Kind {
    Text,
    /// A member of a oneof: written even when it is empty.
    OneofText,
    Bytes,
    Bool,
    /// A signed or unsigned integer of any width, or an enum: written as a number.
    Integer,
    /// A member of a oneof: written even when it is zero.
    OneofInteger,
    Message(&'static Message),
    Repeated(&'static Message),
    TextMap,
    StructMap,
    AnyMap,
}

macro_rules! field {
    ($number:literal, $name:literal, $kind:expr) => {
        Field { number: $number, key: crate::key!($name), kind: $kind }
    };
}

pub static CHECK_REQUEST: Message = Message { fields: &CHECK_REQUEST_FIELDS };
static CHECK_REQUEST_FIELDS: [Field; 1] = [field!(1, "attributes", Kind::Message(&ATTRIBUTE_CONTEXT))];

static ATTRIBUTE_CONTEXT: Message = Message { fields: &ATTRIBUTE_CONTEXT_FIELDS };
static ATTRIBUTE_CONTEXT_FIELDS: [Field; 7] = [
    field!(1, "source", Kind::Message(&PEER)),
    field!(2, "destination", Kind::Message(&PEER)),
    field!(4, "request", Kind::Message(&REQUEST)),
    field!(10, "contextExtensions", Kind::TextMap),
    field!(11, "metadataContext", Kind::Message(&METADATA)),
    field!(12, "tlsSession", Kind::Message(&TLS_SESSION)),
    field!(13, "routeMetadataContext", Kind::Message(&METADATA)),
];

static PEER: Message = Message { fields: &PEER_FIELDS };
static PEER_FIELDS: [Field; 5] = [
    field!(1, "address", Kind::Message(&ADDRESS)),
    field!(2, "service", Kind::Text),
    field!(3, "labels", Kind::TextMap),
    field!(4, "principal", Kind::Text),
    field!(5, "certificate", Kind::Text),
];

static ADDRESS: Message = Message { fields: &ADDRESS_FIELDS };
static ADDRESS_FIELDS: [Field; 3] = [
    field!(1, "socketAddress", Kind::Message(&SOCKET_ADDRESS)),
    field!(2, "pipe", Kind::Message(&PIPE)),
    field!(3, "envoyInternalAddress", Kind::Message(&ENVOY_INTERNAL_ADDRESS)),
];

static SOCKET_ADDRESS: Message = Message { fields: &SOCKET_ADDRESS_FIELDS };
static SOCKET_ADDRESS_FIELDS: [Field; 7] = [
    field!(1, "protocol", Kind::Integer),
    field!(2, "address", Kind::Text),
    field!(3, "portValue", Kind::OneofInteger),
    field!(4, "namedPort", Kind::OneofText),
    field!(5, "resolverName", Kind::Text),
    field!(6, "ipv4Compat", Kind::Bool),
    field!(7, "networkNamespaceFilepath", Kind::Text),
];

static PIPE: Message = Message { fields: &PIPE_FIELDS };
static PIPE_FIELDS: [Field; 2] = [field!(1, "path", Kind::Text), field!(2, "mode", Kind::Integer)];

static ENVOY_INTERNAL_ADDRESS: Message = Message { fields: &ENVOY_INTERNAL_ADDRESS_FIELDS };
static ENVOY_INTERNAL_ADDRESS_FIELDS: [Field; 2] =
    [field!(1, "serverListenerName", Kind::OneofText), field!(2, "endpointId", Kind::Text)];

static REQUEST: Message = Message { fields: &REQUEST_FIELDS };
static REQUEST_FIELDS: [Field; 2] =
    [field!(1, "time", Kind::Message(&TIMESTAMP)), field!(2, "http", Kind::Message(&HTTP_REQUEST))];

static TIMESTAMP: Message = Message { fields: &TIMESTAMP_FIELDS };
static TIMESTAMP_FIELDS: [Field; 2] = [field!(1, "seconds", Kind::Integer), field!(2, "nanos", Kind::Integer)];

static HTTP_REQUEST: Message = Message { fields: &HTTP_REQUEST_FIELDS };
static HTTP_REQUEST_FIELDS: [Field; 13] = [
    field!(1, "id", Kind::Text),
    field!(2, "method", Kind::Text),
    field!(3, "headers", Kind::TextMap),
    field!(4, "path", Kind::Text),
    field!(5, "host", Kind::Text),
    field!(6, "scheme", Kind::Text),
    field!(7, "query", Kind::Text),
    field!(8, "fragment", Kind::Text),
    field!(9, "size", Kind::Integer),
    field!(10, "protocol", Kind::Text),
    field!(11, "body", Kind::Text),
    field!(12, "rawBody", Kind::Bytes),
    field!(13, "headerMap", Kind::Message(&HEADER_MAP)),
];

static HEADER_MAP: Message = Message { fields: &HEADER_MAP_FIELDS };
static HEADER_MAP_FIELDS: [Field; 1] = [field!(1, "headers", Kind::Repeated(&HEADER_VALUE))];

static HEADER_VALUE: Message = Message { fields: &HEADER_VALUE_FIELDS };
static HEADER_VALUE_FIELDS: [Field; 3] =
    [field!(1, "key", Kind::Text), field!(2, "value", Kind::Text), field!(3, "rawValue", Kind::Bytes)];

static METADATA: Message = Message { fields: &METADATA_FIELDS };
static METADATA_FIELDS: [Field; 2] =
    [field!(1, "filterMetadata", Kind::StructMap), field!(2, "typedFilterMetadata", Kind::AnyMap)];

pub static ANY: Message = Message { fields: &ANY_FIELDS };
static ANY_FIELDS: [Field; 2] = [field!(1, "typeUrl", Kind::Text), field!(2, "value", Kind::Bytes)];

static TLS_SESSION: Message = Message { fields: &TLS_SESSION_FIELDS };
static TLS_SESSION_FIELDS: [Field; 1] = [field!(1, "sni", Kind::Text)];
