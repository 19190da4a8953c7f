//! The metadata of protected resources (RFC 9728), served by the authorizer itself to anybody, also to pages of other origins.

use url::Url;

use super::canonical::canonical_path;
use crate::opa::input::Http;

/// Where they are, between the host and the path of a resource's identifier (RFC 9728 section 3).
const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";

/// One document, and where it is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceMetadata {
    /// The hosts of the resource, without the scheme's own port; the first is that of its identifier.
    hosts: Vec<String>,
    /// The port that clients may add or leave out.
    default_port: &'static str,
    /// The path below which requests are for this resource, without a slash at its end.
    prefix: String,
    path: String,
    /// Where clients find it, for `resource_metadata` of challenges.
    pub url: String,
    /// The identifier, which tokens for it have as their audience (RFC 8707 section 2).
    pub id: String,
    pub body: String,
    /// The scopes of a challenge where no route names any.
    pub scope: Option<String>,
}

/// The answer to a request for a metadata document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted<'a> {
    Document(&'a str),
    /// The preflight of a page of another origin.
    Preflight,
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
        let prefix = url.path().strip_suffix('/').unwrap_or(url.path()).to_owned();
        // Only the slash after the host is left out (RFC 9728 section 3.1).
        let path = format!("{WELL_KNOWN}{}", if url.path() == "/" { "" } else { url.path() });
        members.insert("resource".to_owned(), resource.into());
        let scopes = members.get("scopes_supported").and_then(serde_json::Value::as_array);
        let scope = scopes.map(|scopes| scopes.iter().filter_map(|scope| scope.as_str()).collect::<Vec<_>>().join(" "));
        let address = format!("{}://{host}{path}", url.scheme());
        Some(Self {
            hosts: vec![host],
            default_port: if url.scheme() == "https" { ":443" } else { ":80" },
            prefix,
            path,
            url: address,
            id: resource.to_owned(),
            body: serde_json::Value::Object(members).to_string(),
            scope,
        })
    }

    /// The same, for requests to these hosts, too, and below this path in the place of the identifier's own.
    pub fn at(mut self, hosts: Vec<String>, prefix: Option<&str>) -> Self {
        self.hosts.extend(hosts);
        if let Some(prefix) = prefix {
            self.prefix = prefix.trim_end_matches('/').to_owned();
        }
        self
    }

    /// Where clients reach it, such as `https://api.example.com`.
    pub fn origins(&self) -> impl Iterator<Item = String> {
        let scheme = if self.default_port == ":443" { "https" } else { "http" };
        self.hosts.iter().map(move |host| format!("{scheme}://{host}"))
    }

    /// Both are served at the same URL.
    pub fn collides_with(&self, other: &Self) -> bool {
        self.path.trim_end_matches('/') == other.path.trim_end_matches('/')
            && self.hosts.iter().any(|host| other.hosts.contains(host))
    }

    fn is_host(&self, host: &str) -> bool {
        let host = host.strip_suffix(self.default_port).unwrap_or(host);
        self.hosts.iter().any(|own| own.eq_ignore_ascii_case(host))
    }

    /// The kind of a request for the document; `None` for other requests.
    pub fn wanted(&self, http: &Http<'_>) -> Option<Wanted<'_>> {
        let path = http.path.split_once('?').map_or(http.path, |(path, _)| path);
        let without_slash = |path: &'_ str| path.strip_suffix('/').unwrap_or(path).len();
        let is_path = path.get(..without_slash(path)) == self.path.get(..without_slash(&self.path));
        if !is_path || !self.is_host(http.host) {
            return None;
        }
        match http.method {
            "GET" | "HEAD" => Some(Wanted::Document(&self.body)),
            "OPTIONS" => Some(Wanted::Preflight),
            _ => None,
        }
    }

    /// The length of the prefix, where a request is for this resource.
    fn covers(&self, host: &str, path: &str) -> Option<usize> {
        let rest = path.strip_prefix(&self.prefix)?;
        ((rest.is_empty() || rest.starts_with('/')) && self.is_host(host)).then_some(self.prefix.len())
    }
}

/// The resource that a request is for: that with the longest path.
pub fn covering<'a>(resources: &'a [ResourceMetadata], http: &Http<'_>) -> Option<&'a ResourceMetadata> {
    if resources.is_empty() {
        return None;
    }
    let path = canonical_path(http.path).ok()?;
    let covering = resources.iter().filter_map(|resource| Some((resource.covers(http.host, &path)?, resource)));
    covering.max_by_key(|(length, _)| *length).map(|(_, resource)| resource)
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

    #[test]
    fn a_request_is_for_the_resource_with_the_longest_path() {
        let resource = |id: &str| ResourceMetadata::new(id, serde_json::Map::new()).expect(id);
        let resources = [
            resource("https://a.test/mcp"),
            resource("https://a.test/mcp/b/").at(vec!["b.test".to_owned()], Some("/x/")),
        ];
        for (host, path, want) in [
            ("a.test", "/mcp", Some("https://a.test/.well-known/oauth-protected-resource/mcp")),
            ("A.test:443", "/mcp/y?q", Some("https://a.test/.well-known/oauth-protected-resource/mcp")),
            ("a.test:8443", "/mcp", None),
            ("a.test", "/mcpx", None),
            ("b.test", "/x/1", Some("https://a.test/.well-known/oauth-protected-resource/mcp/b/")),
            ("b.test", "/mcp", None),
            ("a.test", "/mcp/%2e%2e/x", None),
        ] {
            let mut http = Http::default();
            (http.host, http.path) = (host, path);
            assert_eq!(covering(&resources, &http).map(|it| it.url.as_str()), want, "{host} {path}");
        }
    }
}
