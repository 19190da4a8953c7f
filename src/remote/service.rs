//! A service of the configuration: a server that is asked again and again, with the credentials that it was given.
//!
//! Mirrors: OPA `v1/plugins/rest`, v1.19.0. Redirects are followed; what proves who we are never goes to another origin.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;
use reqwest::header::{
    AUTHORIZATION, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, LOCATION, WWW_AUTHENTICATE,
};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Identity, Method};
use url::Url;

use super::aws::AwsSigner;
use super::credentials::{self, Credentials, Tokens};
use super::{RemoteError, without_url};
use crate::secret::Secret;

/// Redirects that are followed, as in Go.
const MAX_REDIRECTS: usize = 10;
/// The idle timeout in the middle of a body.
const BODY_PAUSE: Duration = Duration::from_secs(30);

/// The settings of a service's client.
#[derive(Clone, Debug)]
pub struct ServiceSettings {
    pub url: Url,
    /// A container registry (`type: oci`).
    pub is_registry: bool,
    /// HTTP/2 with prior knowledge, as gRPC without TLS.
    pub is_http2: bool,
    pub headers: Vec<(String, Secret<String>)>,
    pub credentials: Credentials,
    /// For the head of an answer.
    pub header_timeout: Duration,
    /// Roots in PEM that are trusted, alone or beside those of the system.
    pub ca_cert: Option<PathBuf>,
    pub system_roots: bool,
    pub client_certificate: Option<ClientCertificate>,
    pub skip_verification: bool,
}

/// The files of a client certificate, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// A service, with connections that are kept.
#[derive(Debug)]
pub struct Service {
    transport: Arc<Transport>,
    tokens: Tokens,
    aws: Option<AwsSigner>,
}

/// The connections of a service: made anew when a file that they lean on has changed.
#[derive(Debug)]
struct Transport {
    settings: ServiceSettings,
    clients: Mutex<Option<(Vec<Option<SystemTime>>, Clients)>>,
}

/// Connections to the service, which may see our certificate, and to wherever it sends us.
#[derive(Clone, Debug)]
struct Clients {
    own: reqwest::Client,
    elsewhere: reqwest::Client,
}

/// The options of a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestOptions<'a> {
    pub headers: &'a [(&'static str, &'a str)],
    /// Bytes of the body at most.
    pub limit: usize,
    /// The extra time for the head of the answer: the server was asked to wait.
    pub wait: Duration,
    /// In the place of what the service's credentials say.
    pub authorization: Option<&'a str>,
}

/// The result of a gRPC call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrpcStatus {
    pub http: u16,
    pub grpc: u32,
}

/// The answer.
#[derive(Debug)]
pub struct ServiceReply {
    pub status: u16,
    /// The words of the status, such as `Not Found`.
    pub reason: &'static str,
    pub etag: Option<String>,
    pub content_type: Option<String>,
    /// The credentials, when they are needed.
    pub challenge: Option<String>,
    /// Empty unless the status is 200.
    pub body: Vec<u8>,
}

impl Transport {
    /// When the files were last changed.
    fn stamps(&self) -> Vec<Option<SystemTime>> {
        let certificate = self.settings.client_certificate.as_ref();
        let own = certificate.into_iter().flat_map(|files| [&files.certificate, &files.key]);
        let changed = |path: &PathBuf| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
        self.settings.ca_cert.iter().chain(own).map(changed).collect()
    }

    fn client(&self) -> Result<reqwest::Client, RemoteError> {
        self.clients().map(|clients| clients.own)
    }

    fn clients(&self) -> Result<Clients, RemoteError> {
        let stamps = self.stamps();
        let mut known = self.clients.lock();
        if let Some((_, clients)) = known.as_ref().filter(|(at, _)| *at == stamps) {
            return Ok(clients.clone());
        }
        match self.build() {
            Ok(clients) => {
                *known = Some((stamps, clients.clone()));
                Ok(clients)
            }
            // Files that are being replaced: the connections that there are still serve.
            Err(error) => known.as_ref().map(|(_, clients)| clients.clone()).ok_or(error),
        }
    }

    fn build(&self) -> Result<Clients, RemoteError> {
        let elsewhere = self.builder()?.build().map_err(RemoteError::Client)?;
        let Some(files) = &self.settings.client_certificate else {
            return Ok(Clients { own: elsewhere.clone(), elsewhere });
        };
        let pem = [read(&files.certificate)?, b"\n".to_vec(), read(&files.key)?].concat();
        let identity = Identity::from_pem(&pem).map_err(RemoteError::Client)?;
        let own = self.builder()?.identity(identity).build().map_err(RemoteError::Client)?;
        Ok(Clients { own, elsewhere })
    }

    fn builder(&self) -> Result<reqwest::ClientBuilder, RemoteError> {
        let settings = &self.settings;
        let mut builder = reqwest::Client::builder()
            .redirect(Policy::none())
            .user_agent(concat!("stepgate/", env!("CARGO_PKG_VERSION")))
            .danger_accept_invalid_certs(settings.skip_verification);
        if settings.is_http2 {
            builder = builder.http2_prior_knowledge();
        }
        if let Some(path) = &settings.ca_cert {
            let roots = Certificate::from_pem_bundle(&read(path)?).map_err(RemoteError::Client)?;
            builder = match settings.system_roots {
                true => builder.tls_certs_merge(roots),
                false => builder.tls_certs_only(roots),
            };
        }
        Ok(builder)
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>, RemoteError> {
    std::fs::read(path).map_err(|error| RemoteError::File(path.clone(), error))
}

/// An answer that is read line by line, for as long as the server writes.
#[derive(Debug)]
pub struct LineStream {
    response: reqwest::Response,
    /// Bytes that were read and are no line yet.
    rest: Vec<u8>,
}

impl LineStream {
    /// The next bytes, as they come; `None` when the answer has ended.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn next_bytes(&mut self) -> Result<Option<Bytes>, RemoteError> {
        if !self.rest.is_empty() {
            return Ok(Some(std::mem::take(&mut self.rest).into()));
        }
        self.response.chunk().await.map_err(without_url)
    }

    pub fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// The next line without its end; `None` when the answer has ended.
    ///
    /// # Errors
    /// The connection broke, or the line is longer than `limit`.
    pub async fn next_line(&mut self, limit: usize) -> Result<Option<Vec<u8>>, RemoteError> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let after = self.rest.split_off(end.saturating_add(1));
                let mut line = std::mem::replace(&mut self.rest, after);
                line.pop();
                return Ok(Some(line));
            }
            if self.rest.len() > limit {
                return Err(RemoteError::TooLarge(limit));
            }
            match self.response.chunk().await.map_err(without_url)? {
                Some(chunk) => self.rest.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }
}

impl Service {
    pub fn new(settings: ServiceSettings) -> Self {
        let transport = Arc::new(Transport { settings, clients: Mutex::new(None) });
        let aws = match &transport.settings.credentials {
            Credentials::Aws(aws) => {
                let transport = Arc::clone(&transport);
                Some(AwsSigner::new(aws, move || transport.client()))
            }
            _ => None,
        };
        Self { transport, tokens: Tokens::default(), aws }
    }

    fn settings(&self) -> &ServiceSettings {
        &self.transport.settings
    }

    /// Asks for `path` below the service's URL, reading at most `limit` bytes.
    pub async fn get(&self, path: &str, ask: &RequestOptions<'_>) -> Result<ServiceReply, RemoteError> {
        let (limit, patience) = (ask.limit, self.settings().header_timeout.saturating_add(ask.wait));
        let mut url = self.url(path)?;
        let origin = url.origin();
        let clients = self.transport.clients()?;
        for _ in 0..=MAX_REDIRECTS {
            let is_own = url.origin() == origin;
            let client = if is_own { &clients.own } else { &clients.elsewhere };
            let mut request = client.get(url.clone());
            if is_own {
                let mut own = self.own_headers(client, &Method::GET, &url, b"").await?;
                if let Some(authorization) = ask.authorization {
                    own.insert(AUTHORIZATION, secret_header(AUTHORIZATION.as_str(), authorization)?);
                }
                request = request.headers(own);
            }
            for (name, value) in ask.headers {
                request = request.header(*name, *value);
            }
            let head = tokio::time::timeout(patience, request.send());
            let mut response = head.await.map_err(|_| RemoteError::Late(patience))?.map_err(without_url)?;
            let status = response.status();
            self.learn(status.as_u16()).await;
            if let (301 | 302 | 303 | 307 | 308, Some(to)) = (status.as_u16(), response.headers().get(LOCATION)) {
                let to = to.to_str().ok().and_then(|to| url.join(to).ok());
                url = to.filter(|to| matches!(to.scheme(), "http" | "https")).ok_or(RemoteError::Redirect)?;
                continue;
            }
            let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
            let (etag, content_type) = (header(ETAG), header(CONTENT_TYPE));
            // Another origin does not say where our credentials go.
            let challenge = header(WWW_AUTHENTICATE).filter(|_| is_own);
            let mut body = Vec::new();
            while status.as_u16() == 200 {
                let chunk = tokio::time::timeout(BODY_PAUSE, response.chunk()).await;
                let chunk = chunk.map_err(|_| RemoteError::Late(BODY_PAUSE))?.map_err(without_url)?;
                let Some(chunk) = chunk else { break };
                if body.len().saturating_add(chunk.len()) > limit {
                    return Err(RemoteError::TooLarge(limit));
                }
                body.extend_from_slice(&chunk);
            }
            let reason = status.canonical_reason().unwrap_or("an unknown status");
            return Ok(ServiceReply { status: status.as_u16(), reason, etag, content_type, challenge, body });
        }
        Err(RemoteError::Redirect)
    }

    /// Opens `path` below the service's URL as lines. Redirects are not followed.
    ///
    /// # Errors
    /// The service cannot be reached in time.
    pub async fn open(&self, path: &str) -> Result<LineStream, RemoteError> {
        let (url, patience) = (self.url(path)?, self.settings().header_timeout);
        let clients = self.transport.clients()?;
        let headers = self.own_headers(&clients.own, &Method::GET, &url, b"").await?;
        let head = tokio::time::timeout(patience, clients.own.get(url).headers(headers).send());
        let response = head.await.map_err(|_| RemoteError::Late(patience))?.map_err(without_url)?;
        self.learn(response.status().as_u16()).await;
        Ok(LineStream { response, rest: Vec::new() })
    }

    /// Sends `body` to `path` below the service's URL; gives the status. Redirects are not followed.
    pub async fn post(&self, path: &str, headers: &[(&'static str, &str)], body: Vec<u8>) -> Result<u16, RemoteError> {
        Ok(self.send(path, headers, body).await?.status().as_u16())
    }

    /// Calls a method of gRPC with one message; gives the status of the call where its head has one, as that of a refused call has. One
    /// that comes after a message is not seen: zero is what is known then.
    pub async fn call(&self, method: &str, message: &[u8]) -> Result<GrpcStatus, RemoteError> {
        let mut frame = vec![0];
        frame.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
        frame.extend_from_slice(message);
        let response = self.send(method, &[("content-type", "application/grpc"), ("te", "trailers")], frame).await?;
        let told = response.headers().get("grpc-status").and_then(|value| value.to_str().ok()?.parse().ok());
        Ok(GrpcStatus { http: response.status().as_u16(), grpc: told.unwrap_or(0) })
    }

    /// The same as `post`, reading an answer of at most `limit` bytes.
    pub async fn post_for(
        &self,
        path: &str,
        headers: &[(&'static str, &str)],
        body: Vec<u8>,
        limit: usize,
    ) -> Result<(u16, Vec<u8>), RemoteError> {
        let mut response = self.send(path, headers, body).await?;
        let (status, mut answer) = (response.status().as_u16(), Vec::new());
        let patience = self.settings().header_timeout;
        let reading = async {
            while let Some(chunk) = response.chunk().await.map_err(without_url)? {
                if answer.len().saturating_add(chunk.len()) > limit {
                    return Err(RemoteError::TooLarge(limit));
                }
                answer.extend_from_slice(&chunk);
            }
            Ok(())
        };
        tokio::time::timeout(patience, reading).await.map_err(|_| RemoteError::Late(patience))??;
        Ok((status, answer))
    }

    async fn send(
        &self,
        path: &str,
        headers: &[(&'static str, &str)],
        body: Vec<u8>,
    ) -> Result<reqwest::Response, RemoteError> {
        let (client, url) = (self.transport.client()?, self.url(path)?);
        let own = self.own_headers(&client, &Method::POST, &url, &body).await?;
        let mut request = client.post(url).headers(own).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let head = tokio::time::timeout(self.settings().header_timeout, request.send());
        let response = head.await.map_err(|_| RemoteError::Late(self.settings().header_timeout))?;
        let response = response.map_err(without_url)?;
        self.learn(response.status().as_u16()).await;
        Ok(response)
    }

    fn url(&self, path: &str) -> Result<Url, RemoteError> {
        let base = self.settings().url.as_str().trim_end_matches('/');
        let text = format!("{base}/{}", path.trim_start_matches('/'));
        Url::parse(&text).map_err(|_| RemoteError::Url(text))
    }

    /// A token of the service that a registry names. Our credentials are sent to it only over TLS.
    pub async fn exchange(&self, url: &Url) -> Result<String, RemoteError> {
        let client = self.transport.client()?;
        let mut request = client.get(url.clone());
        if url.scheme() == "https" || url.origin() == self.settings().url.origin() {
            let authorization = self.tokens.authorization(&self.settings().credentials, &client).await?;
            if let Some(authorization) = authorization {
                request = request.header(AUTHORIZATION, secret_header(AUTHORIZATION.as_str(), &authorization)?);
            }
        }
        let patience = self.settings().header_timeout;
        let bytes = tokio::time::timeout(patience, credentials::answer(request)).await;
        let bytes = bytes.map_err(|_| RemoteError::Late(patience))??;
        let malformed = || RemoteError::Registry("its token service gives no token".to_owned());
        let answer: serde_json::Value = serde_json::from_slice(&bytes).map_err(|_| malformed())?;
        let token = answer.get("token").or_else(|| answer.get("access_token")).and_then(|token| token.as_str());
        token.map(str::to_owned).ok_or_else(malformed)
    }

    /// A token that was refused is not shown again.
    async fn learn(&self, status: u16) {
        if status == 401 {
            self.tokens.forget().await;
        }
    }

    /// The headers that only the service itself may see.
    async fn own_headers(
        &self,
        client: &reqwest::Client,
        method: &Method,
        url: &Url,
        body: &[u8],
    ) -> Result<HeaderMap, RemoteError> {
        let mut headers = match &self.aws {
            Some(aws) => aws.sign(method, url, body).await?,
            None => HeaderMap::new(),
        };
        let authorization = self.tokens.authorization(&self.settings().credentials, client).await?;
        let mut put = |name: HeaderName, value: &str| {
            let value = secret_header(name.as_str(), value)?;
            headers.insert(name, value);
            Ok(())
        };
        for (name, value) in &self.settings().headers {
            let known = HeaderName::from_bytes(name.as_bytes()).map_err(|_| RemoteError::Header(name.clone()))?;
            put(known, value.expose())?;
        }
        if let Some(authorization) = authorization {
            put(AUTHORIZATION, &authorization)?;
        }
        Ok(headers)
    }
}

/// A header's value that no log shows.
fn secret_header(name: &str, value: &str) -> Result<HeaderValue, RemoteError> {
    let mut value = HeaderValue::from_str(value).map_err(|_| RemoteError::Header(name.to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that gives every connection the next answer, and keeps what it was asked.
    async fn server(answers: Vec<String>) -> (String, Arc<parking_lot::Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let asked = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        tokio::spawn(async move {
            for answer in answers {
                let Ok((mut stream, _)) = listener.accept().await else { return };
                let mut bytes = vec![0; 4_096];
                let read = stream.read(&mut bytes).await.unwrap_or(0);
                log.lock().push(String::from_utf8_lossy(&bytes[..read]).into_owned());
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (address, asked)
    }

    fn service(url: &str) -> Service {
        Service::new(ServiceSettings {
            url: Url::parse(url).expect("a URL"),
            is_registry: false,
            is_http2: false,
            headers: vec![("x-team".to_owned(), Secret::new("blue".to_owned()))],
            credentials: Credentials::Bearer { scheme: "Bearer".to_owned(), token: Secret::new("s3cret".to_owned()) },
            header_timeout: Duration::from_millis(300),
            ca_cert: None,
            system_roots: true,
            client_certificate: None,
            skip_verification: false,
        })
    }

    fn ask<'a>(headers: &'a [(&'static str, &'a str)]) -> RequestOptions<'a> {
        RequestOptions { headers, limit: 100, ..RequestOptions::default() }
    }

    fn answer(head: &str, body: &str) -> String {
        format!("HTTP/1.1 {head}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn credentials_stay_with_their_origin() {
        let (elsewhere, asked_elsewhere) = server(vec![answer("200 OK\r\netag: \"e\"", "bundle")]).await;
        let hop = answer("302 Found\r\nlocation: /b", "");
        let away = answer(&format!("307 Temporary Redirect\r\nlocation: {elsewhere}/c"), "");
        let (own, asked) = server(vec![hop, away]).await;
        let reply = service(&format!("{own}/base/")).get("/a.tar.gz", &ask(&[("if-none-match", "\"old\"")])).await;
        let reply = reply.expect("an answer");
        assert_eq!((reply.status, reply.etag.as_deref(), reply.body.as_slice()), (200, Some("\"e\""), &b"bundle"[..]));
        let asked = asked.lock();
        assert!(asked[0].starts_with("GET /base/a.tar.gz ") && asked[1].starts_with("GET /b "), "{asked:?}");
        assert!(asked.iter().all(|text| text.contains("Bearer s3cret") && text.contains("x-team: blue")), "{asked:?}");
        let elsewhere = asked_elsewhere.lock();
        assert!(!elsewhere[0].contains("s3cret") && !elsewhere[0].contains("blue"), "{elsewhere:?}");
        assert!(elsewhere[0].contains("if-none-match: \"old\""), "{elsewhere:?}");
    }

    #[tokio::test]
    async fn another_origin_does_not_say_where_credentials_go() {
        let asks = || answer("401 Unauthorized\r\nwww-authenticate: Bearer realm=\"https://thief.test/token\"", "");
        let (elsewhere, _) = server(vec![asks()]).await;
        let (own, _) = server(vec![answer(&format!("307 Away\r\nlocation: {elsewhere}/c"), ""), asks()]).await;
        let service = service(&own);
        assert_eq!(service.get("/a", &ask(&[])).await.expect("an answer").challenge, None);
        assert!(service.get("/a", &ask(&[])).await.expect("an answer").challenge.is_some(), "its own counts");
    }

    #[tokio::test]
    async fn bad_answers_are_errors_of_their_own() {
        let cut = "HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhalf".to_owned();
        let lie = "HTTP/1.1 200 OK\r\ncontent-length: 10000000000\r\n\r\nlittle".to_owned();
        let (url, _) = server(vec![answer("200 OK", &"x".repeat(101)), cut, lie, answer("503 Busy", "ignored")]).await;
        let service = service(&url);
        assert!(matches!(service.get("a", &ask(&[])).await, Err(RemoteError::TooLarge(100))));
        assert!(matches!(service.get("a", &ask(&[])).await, Err(RemoteError::Request(_))));
        assert!(matches!(service.get("a", &ask(&[])).await, Err(RemoteError::Request(_))));
        let busy = service.get("a", &ask(&[])).await.expect("an answer");
        assert_eq!((busy.status, busy.reason, busy.body.len()), (503, "Service Unavailable", 0));
        let (url, _) = server(vec![answer("302 Found\r\nlocation: file:///etc/passwd", "")]).await;
        assert!(matches!(self::service(&url).get("a", &ask(&[])).await, Err(RemoteError::Redirect)));
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", silent.local_addr().expect("an address"));
        assert!(matches!(self::service(&url).get("a", &ask(&[])).await, Err(RemoteError::Late(_))));
    }
}
