//! Asks an issuer about a token (RFC 7662 section 2).

use std::sync::Arc;

use crate::lifecycle::Lifecycle;
use crate::remote::service::Service;
use crate::secret::Secret;
use crate::telemetry::chain;
use crate::token::{Done, Endpoint};

/// Bytes of an answer.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// The introspection endpoint of one issuer.
#[derive(Debug)]
pub struct IntrospectionEndpoint {
    pub service: Arc<Service>,
    pub resource: String,
    /// The value of `Authorization`, where the client has credentials of its own.
    pub authorization: Option<Secret<String>>,
    pub lifecycle: Lifecycle,
}

impl Endpoint for IntrospectionEndpoint {
    fn ask(&self, token: &str, done: Done) {
        let form = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("token", token)
            .append_pair("token_type_hint", "access_token")
            .finish();
        let (service, resource) = (Arc::clone(&self.service), self.resource.clone());
        let authorization = self.authorization.clone();
        // A request that stops waiting does not stop the question: its answer serves the next one.
        self.lifecycle.spawn_until_stop(async move {
            let mut headers =
                vec![("content-type", "application/x-www-form-urlencoded"), ("accept", "application/json")];
            headers.extend(authorization.as_ref().map(|value| ("authorization", value.expose().as_str())));
            let body = match service.post_for(&resource, &headers, form.into_bytes(), MAX_ANSWER_BYTES).await {
                Ok((200, body)) => Some(body),
                Ok((status, _)) => {
                    tracing::error!(
                        status,
                        "the introspection endpoint does not answer; tokens of its issuer are refused"
                    );
                    None
                }
                Err(error) => {
                    let error = chain(&error);
                    tracing::error!(
                        error,
                        "the introspection endpoint does not answer; tokens of its issuer are refused"
                    );
                    None
                }
            };
            done(body);
        });
    }
}
