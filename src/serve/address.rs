//! Listen addresses and peers.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// A listen address: `host:port`, `:port`, `grpc://host:port`, `unix:///path` or `unix://@abstract`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp { host: String, port: u16 },
    UnixPath(PathBuf),
    UnixAbstract(String),
}

/// A listen address of HTTP. As in OPA, `http://` is plain whatever certificates there are, `https://` needs one, and an address
/// without either is plain where there is none.
///
/// Mirrors: OPA `v1/server/server.go` `getListener`, v1.9.0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpAddress {
    pub address: Address,
    pub security: Security,
}

/// HTTP is served over TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    Plain,
    Tls,
    /// TLS where there is a certificate.
    AsPossible,
}

impl HttpAddress {
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let (rest, security) = match text.split_once("://") {
            // TLS is for TCP: what follows is a host.
            Some(("https", rest)) if !rest.contains("://") => (rest, Security::Tls),
            Some(("http" | "unix", _)) => (text, Security::Plain),
            _ => (text, Security::AsPossible),
        };
        let address = Address::parse(rest).map_err(|_| AddressError(text.to_owned()))?;
        Ok(Self { address, security })
    }
}

/// Text that is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not an address; write host:port, grpc://host:port, unix:///path or unix://@name; for HTTP also https://host:port"
)]
pub struct AddressError(String);

impl Address {
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let refused = || AddressError(text.to_owned());
        if let Some(name) = text.strip_prefix("unix://@") {
            return if name.is_empty() { Err(refused()) } else { Ok(Self::UnixAbstract(name.to_owned())) };
        }
        if let Some(path) = text.strip_prefix("unix://") {
            return if path.is_empty() { Err(refused()) } else { Ok(Self::UnixPath(PathBuf::from(path))) };
        }
        let rest = text.strip_prefix("grpc://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
        let (host, port) = rest.rsplit_once(':').ok_or_else(refused)?;
        let port = port.parse().map_err(|_| refused())?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if host.contains('/') {
            return Err(refused());
        }
        Ok(Self::Tcp { host: if host.is_empty() { "::".to_owned() } else { host.to_owned() }, port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::UnixPath(path) => write!(f, "unix://{}", path.display()),
            Self::UnixAbstract(name) => write!(f, "unix://@{name}"),
        }
    }
}

/// The other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: String,
    /// The certificate of the peer, verified.
    pub subject: Option<String>,
    /// That one, and those that vouch for it, in DER.
    pub certificates: Arc<[Vec<u8>]>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_say_whether_http_is_served_over_tls() {
        for (text, security) in [
            ("127.0.0.1:1", Security::AsPossible),
            (":1", Security::AsPossible),
            ("http://127.0.0.1:1", Security::Plain),
            ("https://127.0.0.1:1", Security::Tls),
            ("unix:///x", Security::Plain),
        ] {
            assert_eq!(HttpAddress::parse(text).expect("an address").security, security, "{text}");
        }
        for text in ["https://", "https://x", "https://a/b:1", "ftp://a:1", "https://unix:///x", "https://http://a:1"] {
            assert!(HttpAddress::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_have_these_forms() {
        let tcp = |host: &str, port| Ok(Address::Tcp { host: host.to_owned(), port });
        for (text, want) in [
            (":9191", tcp("::", 9191)),
            ("127.0.0.1:9191", tcp("127.0.0.1", 9191)),
            ("grpc://localhost:1", tcp("localhost", 1)),
            ("[::1]:5", tcp("::1", 5)),
            ("unix:///run/a.sock", Ok(Address::UnixPath("/run/a.sock".into()))),
            ("unix://@authz", Ok(Address::UnixAbstract("authz".to_owned()))),
        ] {
            assert_eq!(Address::parse(text), want, "{text}");
        }
        for text in ["", "9191", "host", "host:port", "host:99999", "tcp://a:1", "unix://", "unix://@"] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }
}
