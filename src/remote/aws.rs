//! Requests signed for AWS (Signature Version 4). How it is done, and where credentials come from, is the `reqsign` crates'.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use reqsign_aws_v4::{
    AssumeRoleCredentialProvider, AssumeRoleWithWebIdentityCredentialProvider, Credential, ECSCredentialProvider,
    EnvCredentialProvider, IMDSv2CredentialProvider, ProfileCredentialProvider, RequestSigner, SSOCredentialProvider,
};
use reqsign_core::{Context, Error, FileRead, HttpSend, OsEnv, ProvideCredentialChain, Signer};
use url::Url;

use super::{RemoteError, credentials::hex_sha256};

/// Bytes of an answer of a credential service.
const MAX_ANSWER: usize = 1 << 20;

/// Where credentials are looked for, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AwsSource {
    /// `AWS_ACCESS_KEY_ID` and its kin.
    Environment,
    AssumeRole {
        role: String,
        session: Option<String>,
        /// The credentials that assume the role.
        base: Vec<AwsSource>,
    },
    WebIdentity {
        session: Option<String>,
    },
    Profile {
        path: Option<String>,
        profile: Option<String>,
    },
    /// The container's endpoint, or else that of the machine.
    Metadata,
    Sso {
        profile: Option<String>,
    },
}

/// The settings of request signing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AwsSettings {
    pub region: String,
    /// `s3`, `ecr` and so on.
    pub service: String,
    pub sources: Vec<AwsSource>,
}

/// Signs requests.
#[derive(Clone)]
pub struct AwsSigner(Signer<Credential>);

impl fmt::Debug for AwsSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwsSigner").finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Files;

impl FileRead for Files {
    async fn file_read(&self, path: &str) -> Result<Vec<u8>, Error> {
        std::fs::read(path).map_err(|error| Error::config_invalid(format!("`{path}`: {error}")))
    }
}

/// Asks the services that give credentials.
struct Client(Arc<dyn Fn() -> Result<reqwest::Client, RemoteError> + Send + Sync>);

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl HttpSend for Client {
    async fn http_send(&self, request: http::Request<Bytes>) -> Result<http::Response<Bytes>, Error> {
        let failed = |what: &dyn fmt::Display| Error::unexpected(format!("the request failed: {what}"));
        let client = (self.0)().map_err(|error| failed(&error))?;
        let (parts, body) = request.into_parts();
        let sent = client.request(parts.method, parts.uri.to_string()).headers(parts.headers).body(body).send().await;
        let mut answer = sent.map_err(|error| failed(&error.without_url()))?;
        let mut back = http::Response::builder().status(answer.status());
        if let Some(headers) = back.headers_mut() {
            *headers = answer.headers().clone();
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| failed(&error.without_url()))? {
            if body.len().saturating_add(chunk.len()) > MAX_ANSWER {
                return Err(Error::unexpected("the answer is too large"));
            }
            body.extend_from_slice(&chunk);
        }
        back.body(Bytes::from(body)).map_err(|error| failed(&error))
    }
}

fn chain(sources: &[AwsSource], region: &str, context: &Context) -> ProvideCredentialChain<Credential> {
    let mut chain = ProvideCredentialChain::new();
    for source in sources {
        chain = match source {
            AwsSource::Environment => chain.push(EnvCredentialProvider::new()),
            AwsSource::AssumeRole { role, session, base } => {
                let base = self::chain(base, region, context);
                let signer = Signer::new(context.clone(), base, RequestSigner::new("sts", region));
                let mut provider = AssumeRoleCredentialProvider::new(role.clone(), signer)
                    .with_region(region.to_owned())
                    .with_regional_sts_endpoint();
                if let Some(session) = session {
                    provider = provider.with_role_session_name(session.clone());
                }
                chain.push(provider)
            }
            AwsSource::WebIdentity { session } => {
                let mut provider = AssumeRoleWithWebIdentityCredentialProvider::new().with_region(region.to_owned());
                if let Some(session) = session {
                    provider = provider.with_role_session_name(session.clone());
                }
                chain.push(provider)
            }
            AwsSource::Profile { path, profile } => {
                let mut provider = ProfileCredentialProvider::new();
                if let Some(path) = path {
                    provider = provider.with_credentials_file(path.clone());
                }
                if let Some(profile) = profile {
                    provider = provider.with_profile(profile.clone());
                }
                chain.push(provider)
            }
            AwsSource::Metadata => chain.push(ECSCredentialProvider::new()).push(IMDSv2CredentialProvider::new()),
            AwsSource::Sso { profile } => {
                let mut provider = SSOCredentialProvider::new();
                if let Some(profile) = profile {
                    provider = provider.with_profile(profile.clone());
                }
                chain.push(provider)
            }
        };
    }
    chain
}

impl AwsSigner {
    /// `client` is what credential services are asked with.
    pub fn new(
        settings: &AwsSettings,
        client: impl Fn() -> Result<reqwest::Client, RemoteError> + Send + Sync + 'static,
    ) -> Self {
        let context = Context::new().with_file_read(Files).with_http_send(Client(Arc::new(client))).with_env(OsEnv);
        let provider = chain(&settings.sources, &settings.region, &context);
        let signer = RequestSigner::new(&settings.service, &settings.region);
        Self(Signer::new(context, provider, signer))
    }

    /// The headers that sign a request.
    pub async fn sign(&self, method: &http::Method, url: &Url, body: &[u8]) -> Result<http::HeaderMap, RemoteError> {
        let failed = |error: &dyn fmt::Display| RemoteError::Credentials(error.to_string());
        let request = http::Request::builder()
            .method(method)
            .uri(url.as_str())
            .header("x-amz-content-sha256", hex_sha256(body))
            .body(())
            .map_err(|error| failed(&error))?;
        let (mut parts, ()) = request.into_parts();
        self.0.sign(&mut parts, None).await.map_err(|error| failed(&error))?;
        Ok(parts.headers)
    }
}
