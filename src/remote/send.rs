//! Sending requests that a policy makes. Each set of TLS options has a client of its own, made when it is first needed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Identity, Method};

/// The largest response.
const MAX_RESPONSE_BYTES: usize = 16 << 20;
/// Clients that are kept; with more, all are made anew.
const MAX_CLIENTS: usize = 64;
/// Redirects that are followed, as in Go.
const MAX_REDIRECTS: usize = 10;

/// A request to send.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub method: String,
    pub url: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub timeout: Duration,
    pub client: ClientKind,
}

/// The settings of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ClientKind {
    pub follow_redirects: bool,
    /// Roots in PEM. Without any, those of the system count.
    pub roots: Vec<Vec<u8>>,
    pub system_roots: bool,
    /// A certificate with its key, in PEM.
    pub identity: Option<Vec<u8>>,
    pub skip_verification: bool,
}

/// The answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub reason: String,
    /// Names in small letters.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The request cannot be made.
    #[error("{0}")]
    Request(String),
    #[error("{method} {url}: {why}")]
    Network { method: String, url: String, why: String },
}

/// A host may be reached; redirects are subject to it too.
pub type AllowHost = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// Sends requests.
#[derive(Clone)]
pub struct Sender {
    allow: AllowHost,
    clients: Arc<Mutex<HashMap<ClientKind, reqwest::Client>>>,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl Sender {
    pub fn new(allow: AllowHost) -> Self {
        Self { allow, clients: Arc::default() }
    }

    /// Sends once.
    pub async fn send(&self, outgoing: &Outgoing) -> Result<Reply, SendError> {
        let refused = |why: String| SendError::Request(why);
        let url = reqwest::Url::parse(&outgoing.url)
            .map_err(|error| refused(format!("parse {:?}: {error}", outgoing.url)))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(refused(format!("unsupported protocol scheme {:?}", url.scheme())));
        }
        let host = url.host_str().unwrap_or_default();
        if !(self.allow)(host) {
            return Err(refused(format!("disallowed host: {host}")));
        }
        let method = Method::from_bytes(outgoing.method.as_bytes())
            .map_err(|_| refused(format!("net/http: invalid method {:?}", outgoing.method)))?;
        let client = self.client(&outgoing.client)?;
        let mut request = client.request(method, url).headers(headers(&outgoing.headers)?).body(outgoing.body.clone());
        if outgoing.timeout < Duration::MAX {
            request = request.timeout(outgoing.timeout);
        }
        let failed = |error: &reqwest::Error| SendError::Network {
            method: outgoing.method.clone(),
            url: outgoing.url.clone(),
            why: if error.is_timeout() { "request timed out".to_owned() } else { crate::telemetry::chain(error) },
        };
        let mut response = request.send().await.map_err(|error| failed(&error.without_url()))?;
        let status = response.status();
        let headers = response.headers().iter();
        let headers = headers
            .map(|(name, value)| (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| failed(&error.without_url()))? {
            if body.len().saturating_add(chunk.len()) > MAX_RESPONSE_BYTES {
                return Err(SendError::Network {
                    method: outgoing.method.clone(),
                    url: outgoing.url.clone(),
                    why: format!("the response is larger than {MAX_RESPONSE_BYTES} bytes"),
                });
            }
            body.extend_from_slice(&chunk);
        }
        let reason = status.canonical_reason().unwrap_or_default().to_owned();
        Ok(Reply { status: status.as_u16(), reason, headers, body })
    }

    fn client(&self, kind: &ClientKind) -> Result<reqwest::Client, SendError> {
        let mut clients = self.clients.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(client) = clients.get(kind) {
            return Ok(client.clone());
        }
        if clients.len() >= MAX_CLIENTS {
            clients.clear();
        }
        let client = self.build(kind).map_err(|error| SendError::Request(crate::telemetry::chain(&error)))?;
        clients.insert(kind.clone(), client.clone());
        Ok(client)
    }

    fn build(&self, kind: &ClientKind) -> reqwest::Result<reqwest::Client> {
        let allow = Arc::clone(&self.allow);
        let redirects = Policy::custom(move |attempt| {
            let host = attempt.url().host_str().unwrap_or_default().to_owned();
            if attempt.previous().len() >= MAX_REDIRECTS {
                attempt.error("stopped after 10 redirects")
            } else if allow(&host) {
                attempt.follow()
            } else {
                attempt.error(format!("disallowed host: {host}"))
            }
        });
        let mut builder = reqwest::Client::builder()
            .redirect(if kind.follow_redirects { redirects } else { Policy::none() })
            .user_agent(concat!("stepgate/", env!("CARGO_PKG_VERSION")))
            .tls_danger_accept_invalid_certs(kind.skip_verification);
        let mut roots = Vec::new();
        for pem in &kind.roots {
            roots.extend(Certificate::from_pem_bundle(pem)?);
        }
        if !roots.is_empty() {
            builder = if kind.system_roots { builder.tls_certs_merge(roots) } else { builder.tls_certs_only(roots) };
        }
        if let Some(identity) = &kind.identity {
            builder = builder.identity(Identity::from_pem(identity)?);
        }
        builder.build()
    }
}

fn headers(given: &[(String, String)]) -> Result<HeaderMap, SendError> {
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        let refused = || SendError::Request(format!("net/http: invalid header field {name:?}"));
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| refused())?;
        headers.append(name, HeaderValue::from_str(value).map_err(|_| refused())?);
    }
    Ok(headers)
}
