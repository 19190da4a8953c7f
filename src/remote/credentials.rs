//! Credentials for services beyond static headers: tokens that are requested, cached, and renewed.
//!
//! Mirrors: OPA `v1/plugins/rest/{auth,gcp,azure}.go`, v1.19.0. What differs, on purpose: tokens of GCP and Azure are kept until
//! shortly before they end, where OPA asks for one with every request.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Map, Value, json};
use stepgate_jose::{sign_configured, signing_input};
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::Url;

use super::aws::AwsSettings;
use super::{RemoteError, without_url};
use crate::clock::Clock;
use crate::secret::Secret;

/// The minimum remaining lifetime of a token.
const MARGIN: Duration = Duration::from_secs(10);
/// The lifetime of a token without an expiry.
const UNKNOWN_LIFETIME: Duration = Duration::from_secs(60);
/// The time limit of a token request.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a token's answer.
const MAX_ANSWER: usize = 1 << 20;
/// Seconds that an assertion is good for, as in OPA.
const ASSERTION_LIFETIME: i64 = 600;

/// A credential of ours.
#[derive(Clone, Debug)]
pub enum Credentials {
    None,
    Bearer {
        scheme: String,
        token: Secret<String>,
    },
    /// Read again for every request.
    BearerFile {
        scheme: String,
        path: PathBuf,
        /// It is sent in base64, as registries want it.
        is_encoded: bool,
    },
    OAuth2(Box<OAuth2Settings>),
    Gcp(GcpSettings),
    Azure(AzureSettings),
    Aws(AwsSettings),
}

/// A key that signs assertions.
#[derive(Clone, Debug)]
pub struct AssertionKey {
    pub algorithm: String,
    /// A private key in PEM, or a secret.
    pub key: Secret<String>,
    /// Hexadecimal, for `x5t`.
    pub thumbprint: Option<String>,
    pub claims: Map<String, Value>,
    pub has_jti: bool,
}

/// The authentication of a client at a token endpoint.
#[derive(Clone, Debug)]
pub enum ClientProof {
    Secret(Secret<String>),
    /// A signed assertion; as the grant itself (RFC 7523 section 2.1), or for the client (section 2.2).
    Key {
        key: AssertionKey,
        is_grant: bool,
    },
    Assertion {
        assertion: Secret<String>,
        kind: String,
    },
    AssertionFile {
        path: PathBuf,
        kind: String,
    },
}

/// OAuth 2.0 for machines (RFC 6749 section 4.4, RFC 7523).
#[derive(Clone, Debug)]
pub struct OAuth2Settings {
    pub token_url: Url,
    pub client_id: String,
    pub proof: ClientProof,
    pub scopes: Vec<String>,
    pub headers: BTreeMap<String, String>,
    pub parameters: BTreeMap<String, String>,
}

/// The metadata server of Google's cloud.
#[derive(Clone, Debug)]
pub struct GcpSettings {
    /// With its query.
    pub url: String,
    /// The answer is the token itself, not JSON.
    pub is_identity: bool,
}

/// A managed identity of Azure.
#[derive(Clone, Debug)]
pub struct AzureSettings {
    pub url: String,
    pub headers: Vec<(&'static str, Secret<String>)>,
}

/// A token, and when it must be asked for again.
#[derive(Clone, Debug)]
struct Token {
    text: Secret<String>,
    end: Instant,
}

/// Keeps the token of one service.
#[derive(Debug, Default)]
pub struct Tokens {
    current: Mutex<Option<Token>>,
}

impl Tokens {
    /// The value of `Authorization`; nothing where the credentials are no token.
    pub async fn authorization(
        &self,
        credentials: &Credentials,
        client: &reqwest::Client,
    ) -> Result<Option<String>, RemoteError> {
        match credentials {
            Credentials::None | Credentials::Aws(_) => Ok(None),
            Credentials::Bearer { scheme, token } => Ok(Some(format!("{scheme} {}", token.expose()))),
            Credentials::BearerFile { scheme, path, is_encoded } => {
                let token = read(path)?.trim().to_owned();
                let token = if *is_encoded { STANDARD.encode(token) } else { token };
                Ok(Some(format!("{scheme} {token}")))
            }
            other => Ok(Some(format!("Bearer {}", self.token(other, client).await?.expose()))),
        }
    }

    /// Drops the cached credential.
    pub async fn forget(&self) {
        *self.current.lock().await = None;
    }

    async fn token(&self, credentials: &Credentials, client: &reqwest::Client) -> Result<Secret<String>, RemoteError> {
        let mut current = self.current.lock().await;
        if let Some(token) = current.as_ref().filter(|token| Instant::now() + MARGIN < token.end) {
            return Ok(token.text.clone());
        }
        let request = match credentials {
            Credentials::OAuth2(settings) => settings.request(client)?,
            Credentials::Gcp(settings) => client.get(&settings.url).header("metadata-flavor", "Google"),
            Credentials::Azure(settings) => {
                let headers = settings.headers.iter();
                headers.fold(client.get(&settings.url), |request, (name, value)| request.header(*name, value.expose()))
            }
            _ => return Err(failed("there is no token to ask for")),
        };
        let answer = tokio::time::timeout(TOKEN_TIMEOUT, answer(request)).await;
        let bytes = answer.map_err(|_| RemoteError::Late(TOKEN_TIMEOUT))??;
        let token = match credentials {
            Credentials::Gcp(settings) if settings.is_identity => {
                let text = String::from_utf8(bytes).map_err(|_| failed("the token is not text"))?;
                Token { text: Secret::new(text.trim().to_owned()), end: Instant::now() + UNKNOWN_LIFETIME }
            }
            _ => parsed(&bytes)?,
        };
        let text = token.text.clone();
        *current = Some(token);
        Ok(text)
    }
}

fn failed(why: impl Into<String>) -> RemoteError {
    RemoteError::Credentials(why.into())
}

fn read(path: &std::path::Path) -> Result<String, RemoteError> {
    std::fs::read_to_string(path).map_err(|error| RemoteError::File(path.to_owned(), error))
}

pub(super) async fn answer(request: reqwest::RequestBuilder) -> Result<Vec<u8>, RemoteError> {
    let mut response = request.send().await.map_err(without_url)?;
    if response.status() != reqwest::StatusCode::OK {
        return Err(failed(format!("the token endpoint answered with status {}", response.status().as_u16())));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(without_url)? {
        if body.len().saturating_add(chunk.len()) > MAX_ANSWER {
            return Err(RemoteError::TooLarge(MAX_ANSWER));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// An access token response (RFC 6749 section 5.1). Azure writes its numbers as text.
fn parsed(bytes: &[u8]) -> Result<Token, RemoteError> {
    let answer: Value = serde_json::from_slice(bytes).map_err(|_| failed("the token's answer is not JSON"))?;
    let text = |name: &str| answer.get(name).and_then(Value::as_str);
    if !text("token_type").is_some_and(|kind| kind.eq_ignore_ascii_case("bearer")) {
        return Err(failed("the token is not of the type `bearer`"));
    }
    let token = text("access_token").filter(|token| !token.is_empty()).ok_or_else(|| failed("there is no token"))?;
    let seconds = answer.get("expires_in").and_then(|value| value.as_u64().or_else(|| value.as_str()?.parse().ok()));
    let lifetime = seconds.map_or(UNKNOWN_LIFETIME, Duration::from_secs);
    // A lifetime beyond all reason must not overflow the clock.
    let end = Instant::now() + lifetime.min(Duration::from_secs(86_400 * 365));
    Ok(Token { text: Secret::new(token.to_owned()), end })
}

impl OAuth2Settings {
    fn request(&self, client: &reqwest::Client) -> Result<reqwest::RequestBuilder, RemoteError> {
        let mut form: Vec<(String, String)> = Vec::new();
        let mut put = |name: &str, value: &str| form.push((name.to_owned(), value.to_owned()));
        if !self.scopes.is_empty() {
            put("scope", &self.scopes.join(" "));
        }
        self.parameters.iter().for_each(|(name, value)| put(name, value));
        let mut request = client.post(self.token_url.clone());
        let client_assertion = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
        let mut assert = |kind: &str, assertion: &str| {
            put("grant_type", "client_credentials");
            put("client_assertion_type", kind);
            put("client_assertion", assertion);
            if !self.client_id.is_empty() {
                put("client_id", &self.client_id);
            }
        };
        match &self.proof {
            ClientProof::Secret(secret) => {
                put("grant_type", "client_credentials");
                // Encoded first, as RFC 6749 section 2.3.1 says.
                let encoded = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
                let pair = format!("{}:{}", encoded(&self.client_id), encoded(secret.expose()));
                request = request.header("authorization", format!("Basic {}", STANDARD.encode(pair)));
            }
            ClientProof::Key { key, is_grant: true } => {
                put("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer");
                put("assertion", &key.assertion(&self.scopes, Clock::System.now())?);
            }
            ClientProof::Key { key, is_grant: false } => {
                assert(client_assertion, &key.assertion(&self.scopes, Clock::System.now())?);
            }
            ClientProof::Assertion { assertion, kind } => assert(kind, assertion.expose()),
            ClientProof::AssertionFile { path, kind } => assert(kind, read(path)?.trim()),
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        Ok(request.header("content-type", "application/x-www-form-urlencoded").body(body))
    }
}

impl AssertionKey {
    fn assertion(&self, scopes: &[String], now: i64) -> Result<String, RemoteError> {
        let mut claims = Map::new();
        claims.insert("iat".to_owned(), now.into());
        claims.insert("exp".to_owned(), now.saturating_add(ASSERTION_LIFETIME).into());
        claims.extend(self.claims.clone());
        if !scopes.is_empty() {
            claims.insert("scope".to_owned(), scopes.join(" ").into());
        }
        if self.has_jti {
            claims.insert("jti".to_owned(), uuid::Uuid::new_v4().to_string().into());
        }
        let mut header = json!({"typ": "JWT", "alg": self.algorithm});
        if let (Some(thumbprint), Some(members)) = (&self.thumbprint, header.as_object_mut()) {
            let bytes = hex::decode(thumbprint).map_err(|_| failed("`thumbprint` is not hexadecimal"))?;
            members.insert("x5t".to_owned(), URL_SAFE_NO_PAD.encode(bytes).into());
        }
        let signed = signing_input(&header.to_string(), &Value::Object(claims).to_string());
        let signature = sign_configured(&self.algorithm, self.key.expose(), signed.as_bytes());
        let signature = signature.map_err(|error| failed(error.to_string()))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// The SHA-256 of `bytes` in hexadecimal.
pub fn hex_sha256(bytes: &[u8]) -> String {
    hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_the_standards_and_azure_write_them() {
        let seconds =
            |text: &str| parsed(text.as_bytes()).map(|token| (token.end - Instant::now()).as_secs_f64().round());
        assert_eq!(seconds(r#"{"access_token":"t","token_type":"Bearer","expires_in":3600}"#).ok(), Some(3600.0));
        assert_eq!(seconds(r#"{"access_token":"t","token_type":"bearer","expires_in":"90"}"#).ok(), Some(90.0));
        assert_eq!(seconds(r#"{"access_token":"t","token_type":"Bearer"}"#).ok(), Some(60.0));
        assert!(seconds(r#"{"access_token":"t","token_type":"Bearer","expires_in":18446744073709551615}"#).is_ok());
        for bad in
            ["{", "{}", r#"{"access_token":"t","token_type":"mac"}"#, r#"{"access_token":"","token_type":"Bearer"}"#]
        {
            assert!(parsed(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_assertion_says_what_was_configured() {
        let claims = json!({"iss": "me", "exp": 5}).as_object().cloned().unwrap_or_default();
        let key = AssertionKey {
            algorithm: "HS256".to_owned(),
            key: Secret::new("s3cret".to_owned()),
            thumbprint: Some("00ff".to_owned()),
            claims,
            has_jti: true,
        };
        let made = key.assertion(&["a".to_owned(), "b".to_owned()], 100).expect("it signs");
        let parts: Vec<Value> = made
            .split('.')
            .take(2)
            .map(|part| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).expect("base64")).expect("JSON"))
            .collect();
        assert_eq!(parts[0], json!({"typ": "JWT", "alg": "HS256", "x5t": "AP8"}));
        assert_eq!((&parts[1]["iat"], &parts[1]["exp"], &parts[1]["scope"]), (&json!(100), &json!(5), &json!("a b")));
        assert!(parts[1]["jti"].is_string());
    }
}
