//! Fetching documents over HTTP, for the control plane. With the files in `remote/`, the only one that names the HTTP client.
//!
//! No redirects are followed. A URL that an operator wrote may lead anywhere; one that was learned from a document may
//! resolve to a private address: an SSRF guard for URLs that an identity provider's metadata contain.

pub mod aws;
pub mod credentials;
pub mod registry;
pub mod send;
pub mod service;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::CACHE_CONTROL;
use reqwest::redirect::Policy;
use url::{Host, Url};

/// The time limit of one fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Fetches documents. The clients are made when they are first needed: with their root certificates they weigh
/// megabytes, and a server whose keys come from files needs none.
#[derive(Clone, Debug, Default)]
pub struct Remote {
    /// For URLs from the configuration.
    unrestricted: Arc<OnceLock<reqwest::Client>>,
    /// For URLs from documents: resolves names to public addresses only.
    public_only: Arc<OnceLock<reqwest::Client>>,
}

/// Where a URL came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Operator,
    Learned,
}

/// A fetched document.
#[derive(Debug)]
pub struct Fetched {
    pub body: Vec<u8>,
    /// `max-age` of `Cache-Control`, if it was given.
    pub max_age: Option<Duration>,
}

/// Why a document could not be fetched. Never holds any of the document.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    #[error("the HTTP client cannot be made")]
    Client(#[source] reqwest::Error),
    #[error("`{0}` is not an http or https URL")]
    Url(String),
    #[error("`{0}` leads to a private address")]
    PrivateAddress(String),
    #[error("the request failed")]
    Request(#[source] reqwest::Error),
    #[error("the server sent nothing for {0:?}")]
    Late(Duration),
    #[error("the server redirects too often, or to something that is no http or https URL")]
    Redirect,
    #[error("`{0}` is no header name, or its value is not valid in a header")]
    Header(String),
    #[error("`{}` cannot be read", .0.display())]
    File(PathBuf, #[source] std::io::Error),
    #[error("the registry's answer is no bundle: {0}")]
    Registry(String),
    #[error("the credentials of the service cannot be had: {0}")]
    Credentials(String),
    #[error("the server answered with status {0}")]
    Status(u16),
    #[error("the document is larger than {0} bytes")]
    TooLarge(usize),
}

impl Remote {
    fn client(&self, origin: Origin) -> Result<&reqwest::Client, RemoteError> {
        let slot = match origin {
            Origin::Operator => &self.unrestricted,
            Origin::Learned => &self.public_only,
        };
        if let Some(client) = slot.get() {
            return Ok(client);
        }
        let mut builder = reqwest::Client::builder()
            .redirect(Policy::none())
            .timeout(FETCH_TIMEOUT)
            .user_agent(concat!("stepgate/", env!("CARGO_PKG_VERSION")));
        if origin == Origin::Learned {
            builder = builder.no_proxy().dns_resolver(Arc::new(PublicOnly));
        }
        let client = builder.build().map_err(RemoteError::Client)?;
        Ok(slot.get_or_init(|| client))
    }

    /// Fetches `url`, reading at most `limit` bytes.
    pub async fn fetch(&self, url: &str, origin: Origin, limit: usize) -> Result<Fetched, RemoteError> {
        let parsed = Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let parsed = parsed.ok_or_else(|| RemoteError::Url(url.to_owned()))?;
        let literal = match parsed.host() {
            Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
            _ => None,
        };
        if origin == Origin::Learned && literal.is_some_and(|address| !is_public(address)) {
            return Err(RemoteError::PrivateAddress(url.to_owned()));
        }
        let client = self.client(origin)?;
        let mut response = client.get(parsed).send().await.map_err(without_url)?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(RemoteError::Status(response.status().as_u16()));
        }
        let cache = response.headers().get(CACHE_CONTROL).and_then(|value| value.to_str().ok());
        let max_age = cache.and_then(max_age);
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(without_url)? {
            if body.len().saturating_add(chunk.len()) > limit {
                return Err(RemoteError::TooLarge(limit));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Fetched { body, max_age })
    }
}

/// URLs may hold credentials; errors must not.
fn without_url(error: reqwest::Error) -> RemoteError {
    RemoteError::Request(error.without_url())
}

fn max_age(cache_control: &str) -> Option<Duration> {
    let directives = cache_control.split(',').map(str::trim);
    let seconds = directives.filter_map(|directive| directive.strip_prefix("max-age=")).next()?;
    seconds.parse().ok().map(Duration::from_secs)
}

/// Resolves names, leaving out addresses that are not public.
#[derive(Debug)]
struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = found.filter(|address| is_public(address.ip())).collect();
            if public.is_empty() {
                return Err("the name leads to private addresses only".into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// An address may be reached on behalf of a document.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => is_public_v4(v4),
            None => is_public_v6(v6),
        },
    }
}

fn is_public_v4(v4: Ipv4Addr) -> bool {
    let [a, b, ..] = v4.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let reserved = a == 0 || a >= 240 || (a == 198 && (18..20).contains(&b)) || (a == 192 && b == 0);
    !(v4.is_private()
        || v4.is_loopback()
        || v4.is_link_local()
        || v4.is_multicast()
        || v4.is_documentation()
        || shared
        || reserved)
}

fn is_public_v6(v6: Ipv6Addr) -> bool {
    let [first, second, ..] = v6.segments();
    // Global unicast is 2000::/3; within it, documentation and the tunnels that hide an IPv4 address are left out.
    (first & 0xe000) == 0x2000 && !(first == 0x2001 && (second == 0x0db8 || second == 0)) && first != 0x2002
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_are_known_in_every_spelling() {
        for text in [
            "10.0.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "0.0.0.0",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "2002:a00:1::",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            assert!(!is_public(text.parse().expect("an address")), "{text}");
        }
        for text in ["8.8.8.8", "1.1.1.1", "2606:4700::1111"] {
            assert!(is_public(text.parse().expect("an address")), "{text}");
        }
    }

    #[tokio::test]
    async fn learned_urls_must_not_lead_inside() {
        let remote = Remote::default();
        for url in ["http://127.0.0.1:1/", "http://[::1]:1/", "http://169.254.169.254/latest", "http://2130706433/"] {
            let outcome = remote.fetch(url, Origin::Learned, 100).await;
            assert!(matches!(outcome, Err(RemoteError::PrivateAddress(_))), "{url}: {outcome:?}");
        }
        let by_name = remote.fetch("http://localhost:1/", Origin::Learned, 100).await;
        assert!(matches!(by_name, Err(RemoteError::Request(_))), "{by_name:?}");
        assert!(matches!(remote.fetch("file:///etc/passwd", Origin::Operator, 100).await, Err(RemoteError::Url(_))));
    }

    #[test]
    fn max_age_is_read_from_among_other_directives() {
        assert_eq!(max_age("public, max-age=60, must-revalidate"), Some(Duration::from_secs(60)));
        assert_eq!(max_age("no-store"), None);
        assert_eq!(max_age("max-age=x"), None);
    }
}
