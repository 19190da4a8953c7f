//! `dynamic_metadata`: from a policy's object to the `google.protobuf.Struct` that Envoy takes.

use std::collections::HashMap;

use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{ListValue, Struct, Value as Field};

use super::{DecisionError, wrong_type};
use crate::value::{Value, as_text, json_text};

/// Metadata as Envoy takes it.
pub type Metadata = Struct;

/// Converts an object; sets become arrays, keys that are not strings their JSON text.
pub fn metadata(value: &Value) -> Result<Metadata, DecisionError> {
    let Value::Object(members) = value else { return Err(wrong_type("dynamic_metadata", "object", value)) };
    let mut fields = HashMap::with_capacity(members.len());
    for (key, value) in members.iter() {
        let key = match as_text(key) {
            Some(key) => key.to_owned(),
            None => json_text(key),
        };
        fields.insert(key, field(value)?);
    }
    Ok(Struct { fields })
}

fn field(value: &Value) -> Result<Field, DecisionError> {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(flag) => Kind::BoolValue(*flag),
        Value::Number(number) => {
            let double = Some(number.as_f64()).filter(|double| double.is_finite());
            Kind::NumberValue(double.ok_or(DecisionError::MetadataNumber)?)
        }
        Value::String(text) => Kind::StringValue(text.to_string()),
        Value::Array(items) => list(items.iter())?,
        Value::Set(items) => list(items.iter())?,
        Value::Object(_) => Kind::StructValue(metadata(value)?),
    };
    Ok(Field { kind: Some(kind) })
}

fn list<'a>(items: impl Iterator<Item = &'a Value>) -> Result<Kind, DecisionError> {
    Ok(Kind::ListValue(ListValue { values: items.map(field).collect::<Result<_, _>>()? }))
}
