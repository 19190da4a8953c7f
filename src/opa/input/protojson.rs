//! A check request as people write it: in protojson, as Envoy's and OPA's documentation show it.

use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage};

use super::{Attributes, BodyMemory, BodyUse, Document, InputError, Options, build};

const CHECK_REQUEST: &str = "envoy.service.auth.v3.CheckRequest";

/// Why a text is no check request.
#[derive(Debug, thiserror::Error)]
pub enum ProtojsonError {
    #[error("it is no check request in protojson: {0}")]
    Text(String),
    #[error("it cannot be turned into input")]
    Input(#[from] InputError),
}

/// The document of the request that `text` is, as a check would build it; and how it was asked, the method and the raw path.
///
/// # Errors
/// The text is not protojson of a `CheckRequest`, or a check of it would fail.
pub fn from_protojson(text: &str, options: &Options) -> Result<(Document, String, String), ProtojsonError> {
    let wrong = |error: &dyn std::fmt::Display| ProtojsonError::Text(error.to_string());
    let pool = DescriptorPool::decode(stepgate_proto::EXT_AUTHZ_DESCRIPTORS).map_err(|error| wrong(&error))?;
    let kind = pool.get_message_by_name(CHECK_REQUEST).ok_or_else(|| wrong(&CHECK_REQUEST))?;
    let mut json = serde_json::Deserializer::from_str(text);
    let message = DynamicMessage::deserialize(kind, &mut json).map_err(|error| wrong(&error))?.encode_to_vec();
    let attributes = Attributes::parse(&message).map_err(InputError::from)?;
    let document = build(&message, &attributes, options, BodyUse::Decision, &mut BodyMemory::unbounded())?;
    let asked = attributes.http.as_ref().map(|http| (http.method.to_owned(), http.path.to_owned()));
    let (method, path) = asked.unwrap_or_default();
    Ok((document, method, path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::json_text;

    #[test]
    fn a_request_is_what_a_check_of_it_would_be() {
        let options = Options {
            skip_body: false,
            depth: 100,
            descriptors: None,
            raw_headers_count: false,
            expose_body_errors: false,
            duplicate_members: crate::value::DuplicateKeys::LastWins,
        };
        let text = r#"{"attributes": {"request": {"http": {"method": "POST", "path": "/a/b?c=1", "body": "{\"d\": 2}",
            "headers": {"content-type": "application/json"}}}, "source": {"principal": "spiffe://d/ns/n/sa/s"}}}"#;
        let (document, method, path) = from_protojson(text, &options).expect("a request");
        assert_eq!((method.as_str(), path.as_str()), ("POST", "/a/b?c=1"));
        let document = json_text(&document.members.into_value());
        for part in
            [r#""parsed_path":["a","b"]"#, r#""parsed_query":{"c":["1"]}"#, r#""parsed_body":{"d":2}"#, "spiffe://d/"]
        {
            assert!(document.contains(part), "{part}: {document}");
        }
        for text in ["", "[]", r#"{"attribute": {}}"#, r#"{"attributes": {"request": 1}}"#] {
            assert!(matches!(from_protojson(text, &options), Err(ProtojsonError::Text(_))), "{text}");
        }
    }
}
