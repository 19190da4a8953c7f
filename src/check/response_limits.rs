//! Limits of an answer, so that Envoy can read and use it: an answer that it cannot use counts as an error, which `failure_mode_allow` turns
//! into an allow.

use envoy_types::pb::envoy::config::core::v3::HeaderValueOption;
use envoy_types::pb::envoy::service::auth::v3::CheckResponse;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value};

use crate::opa::decision::DecisionError;

/// The bounds of one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseLimits {
    /// Headers and query parameters, set or removed.
    pub headers: usize,
    /// Bytes of their names and values.
    pub header_bytes: usize,
    pub body_bytes: usize,
    /// Levels of objects and arrays in `dynamic_metadata`.
    pub metadata_depth: usize,
}

/// Protobuf reads messages that are nested up to 100 deep; a level of an object takes three of them.
pub const MAX_METADATA_DEPTH: usize = 33;

impl Default for ResponseLimits {
    fn default() -> Self {
        Self { headers: 2_000, header_bytes: 256 << 10, body_bytes: 1 << 20, metadata_depth: 32 }
    }
}

impl ResponseLimits {
    /// Checks an answer against the limits.
    ///
    /// # Errors
    /// The first bound that it exceeds.
    pub fn check(&self, response: &CheckResponse) -> Result<(), DecisionError> {
        let exceeded = |what, limit| Err(DecisionError::Response { what, limit });
        let mut headers = Headers::default();
        let mut body_bytes = 0;
        match &response.http_response {
            Some(HttpResponse::OkResponse(ok)) => {
                headers.add_options(&ok.headers);
                headers.add_options(&ok.response_headers_to_add);
                headers.add(ok.headers_to_remove.iter().map(|name| (name.len(), 0)));
                headers.add(ok.query_parameters_to_set.iter().map(|pair| (pair.key.len(), pair.value.len())));
                headers.add(ok.query_parameters_to_remove.iter().map(|name| (name.len(), 0)));
            }
            Some(HttpResponse::DeniedResponse(denied)) => {
                headers.add_options(&denied.headers);
                body_bytes = denied.body.len();
            }
            Some(HttpResponse::ErrorResponse(_)) | None => {}
        }
        if headers.count > self.headers {
            return exceeded("limits.response_headers", self.headers);
        }
        if headers.bytes > self.header_bytes {
            return exceeded("limits.response_header_bytes", self.header_bytes);
        }
        if body_bytes > self.body_bytes {
            return exceeded("limits.response_body_bytes", self.body_bytes);
        }
        if response.dynamic_metadata.as_ref().is_some_and(|metadata| !is_shallow(metadata, self.metadata_depth)) {
            return exceeded("limits.response_metadata_depth", self.metadata_depth);
        }
        Ok(())
    }
}

#[derive(Default)]
struct Headers {
    count: usize,
    bytes: usize,
}

impl Headers {
    fn add(&mut self, pairs: impl Iterator<Item = (usize, usize)>) {
        for (name, value) in pairs {
            self.count = self.count.saturating_add(1);
            self.bytes = self.bytes.saturating_add(name).saturating_add(value);
        }
    }

    fn add_options(&mut self, options: &[HeaderValueOption]) {
        self.add(options.iter().filter_map(|option| option.header.as_ref()).map(|it| (it.key.len(), it.value.len())));
    }
}

/// There are at most `levels` levels. Values of policies are nested less deeply than the stack allows.
fn is_shallow(object: &Struct, levels: usize) -> bool {
    levels > 0 && object.fields.values().all(|value| fits(value, levels.saturating_sub(1)))
}

fn fits(value: &Value, levels: usize) -> bool {
    match &value.kind {
        Some(Kind::StructValue(object)) => is_shallow(object, levels),
        Some(Kind::ListValue(list)) => {
            levels > 0 && list.values.iter().all(|value| fits(value, levels.saturating_sub(1)))
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::opa::decision::metadata_for_tests;
    use crate::value::Value as Document;

    fn of(metadata: &Document) -> CheckResponse {
        CheckResponse { dynamic_metadata: metadata_for_tests(metadata), ..CheckResponse::default() }
    }

    /// An object around so many levels, of arrays or of objects as the bits say.
    fn nested(levels: usize, bits: u64) -> Document {
        let wrap = |inner: Document, level: usize| match bits >> (level % 64) & 1 {
            0 => Document::array(vec![inner]),
            _ => [("a", inner)].into_iter().collect(),
        };
        let inner = (1..levels).fold(Document::from(1), wrap);
        [("a", inner)].into_iter().collect()
    }

    proptest! {
        /// prost has the recursion limit of protobuf in C++, 100 messages.
        #[test]
        fn what_keeps_the_bounds_is_read_by_protobuf(levels in 1usize..60, bits: u64) {
            let response = of(&nested(levels, bits));
            let limits = ResponseLimits { metadata_depth: MAX_METADATA_DEPTH, ..ResponseLimits::default() };
            let is_good = limits.check(&response).is_ok();
            prop_assert_eq!(is_good, levels <= MAX_METADATA_DEPTH);
            if is_good {
                prop_assert!(CheckResponse::decode(response.encode_to_vec().as_slice()).is_ok());
            }
        }
    }

    #[test]
    fn one_level_more_is_not_read() {
        let response = of(&nested(MAX_METADATA_DEPTH + 1, u64::MAX));
        assert!(CheckResponse::decode(response.encode_to_vec().as_slice()).is_err());
    }
}
