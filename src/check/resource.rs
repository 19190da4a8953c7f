//! The protected resource's metadata (RFC 9728), served by the authorizer itself.

use url::Url;

use crate::opa::input::Http;

/// Where it is, between the host and the path of the resource's identifier (RFC 9728 section 3).
const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";

/// The document, and where it is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceMetadata {
    /// `host` or `host:port`, as clients send it.
    host: String,
    path: String,
    /// Where clients find it, for `resource_metadata` of challenges.
    pub url: String,
    pub body: String,
}

impl ResourceMetadata {
    /// The metadata of `resource`; nothing unless that is an https URL, or an http one of this machine, without query and fragment.
    pub fn new(resource: &str, mut members: serde_json::Map<String, serde_json::Value>) -> Option<Self> {
        let url = Url::parse(resource).ok()?;
        let is_local = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        let is_good = url.scheme() == "https" || (url.scheme() == "http" && is_local);
        if !is_good || url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
            return None;
        }
        let host = match (url.host_str()?, url.port()) {
            (host, None) => host.to_owned(),
            (host, Some(port)) => format!("{host}:{port}"),
        };
        let path = format!("{WELL_KNOWN}{}", url.path().strip_suffix('/').unwrap_or(url.path()));
        members.insert("resource".to_owned(), resource.into());
        let address = format!("{}://{host}{path}", url.scheme());
        Some(Self { host, path, url: address, body: serde_json::Value::Object(members).to_string() })
    }

    /// Whether a request asks for it.
    pub fn is_asked(&self, http: &Http<'_>) -> bool {
        let path = http.path.split_once('?').map_or(http.path, |(path, _)| path);
        http.method == "GET" && path == self.path && http.host.eq_ignore_ascii_case(&self.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_well_known_part_stands_between_host_and_path() {
        for (resource, url) in [
            ("https://api.example.com", "https://api.example.com/.well-known/oauth-protected-resource"),
            ("https://api.example.com/", "https://api.example.com/.well-known/oauth-protected-resource"),
            ("https://api.example.com:8443/v1", "https://api.example.com:8443/.well-known/oauth-protected-resource/v1"),
            ("http://localhost:80/x/y", "http://localhost/.well-known/oauth-protected-resource/x/y"),
        ] {
            let metadata = ResourceMetadata::new(resource, serde_json::Map::new()).expect(resource);
            assert_eq!(metadata.url, url);
            let body: serde_json::Value = serde_json::from_str(&metadata.body).expect("JSON");
            assert_eq!(body["resource"], resource, "byte for byte");
        }
        for bad in ["", "api", "http://api.example.com", "https://a/?q", "https://a/#f", "https://u@a/", "ftp://a/"] {
            assert_eq!(ResourceMetadata::new(bad, serde_json::Map::new()), None, "{bad}");
        }
    }
}
