//! Bundles in container registries.
//!
//! Mirrors: OPA `v1/download/oci_download.go`, v1.19.0; the OCI distribution specification 1.1 section 4.3 (pull), and its usual token
//! exchange. Built on [`Service`], so that credentials, limits and redirects are as everywhere else.

use serde_json::Value;
use url::Url;

use super::RemoteError;
use super::credentials::hex_sha256;
use super::service::{RequestOptions, Service};

/// Bytes of a manifest.
const MAX_MANIFEST: usize = 4 << 20;
const MANIFESTS: &str =
    "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";
/// The media types of a layer with a bundle.
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Which artifact, in which repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// `host` or `host:port`.
    pub registry: String,
    pub repository: String,
    /// A tag, or a digest.
    pub version: String,
}

impl Reference {
    /// Reads `host/repository[:tag|@digest]`.
    pub fn parse(text: &str) -> Option<Self> {
        let (registry, rest) = text.trim_start_matches('/').split_once('/')?;
        let (repository, version) = match rest.split_once('@') {
            Some((repository, digest)) => (repository.split(':').next()?, digest),
            None => rest.rsplit_once(':').unwrap_or((rest, "latest")),
        };
        let plain = |text: &str, more: &str| {
            !text.is_empty() && text.chars().all(|char| char.is_ascii_alphanumeric() || more.contains(char))
        };
        let is_path = plain(repository, "/._-") && !repository.split('/').any(|part| part.is_empty() || part == "..");
        (plain(registry, ".-:[]") && is_path && plain(version, ":._-")).then(|| Self {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            version: version.to_owned(),
        })
    }
}

/// The answer of a registry.
#[derive(Debug)]
pub enum PullResult {
    /// The layer is the one that is known.
    Same,
    /// The archive, and its digest.
    New { archive: Vec<u8>, digest: String },
    /// Another status than 200, and its words.
    Refused(u16, &'static str),
}

fn malformed(what: &str) -> RemoteError {
    RemoteError::Registry(what.to_owned())
}

/// Pulls the bundle's layer of at most `limit` bytes, unless its digest is `known`.
pub async fn pull(
    service: &Service,
    reference: &Reference,
    known: Option<&str>,
    limit: usize,
) -> Result<PullResult, RemoteError> {
    let base = format!("/v2/{}", reference.repository);
    let path = format!("{base}/manifests/{}", reference.version);
    let headers = [("accept", MANIFESTS)];
    let ask = |authorization| RequestOptions {
        headers: &headers,
        limit: MAX_MANIFEST,
        authorization,
        ..RequestOptions::default()
    };
    let mut reply = service.get(&path, &ask(None)).await?;
    let mut token = None;
    if let (401, Some(challenge)) = (reply.status, &reply.challenge) {
        let realm = realm(challenge, reference).ok_or_else(|| malformed("its challenge names no token service"))?;
        token = Some(format!("Bearer {}", service.exchange(&realm).await?));
        reply = service.get(&path, &ask(token.as_deref())).await?;
    }
    if reply.status != 200 {
        return Ok(PullResult::Refused(reply.status, reply.reason));
    }
    let is_wanted = |bytes: &[u8], digest: &str| {
        digest.strip_prefix("sha256:").is_some_and(|hash| hash.eq_ignore_ascii_case(&hex_sha256(bytes)))
    };
    // A digest in the reference is a promise about the manifest.
    if reference.version.contains(':') && !is_wanted(&reply.body, &reference.version) {
        return Err(malformed("the manifest does not have the digest that was asked for"));
    }
    let manifest: Value = serde_json::from_slice(&reply.body).map_err(|_| malformed("the manifest is not JSON"))?;
    let layers = manifest.get("layers").and_then(Value::as_array).into_iter().flatten();
    let layer = layers.filter(|layer| layer.get("mediaType").and_then(Value::as_str) == Some(LAYER));
    let digest = layer.filter_map(|layer| layer.get("digest")?.as_str()).next();
    let digest = digest.ok_or_else(|| malformed("no tarball descriptor found in the layers"))?;
    if !digest.chars().all(|char| char.is_ascii_alphanumeric() || char == ':') {
        return Err(malformed("a digest is malformed"));
    }
    if known == Some(digest) {
        return Ok(PullResult::Same);
    }
    let ask = RequestOptions { limit, authorization: token.as_deref(), ..RequestOptions::default() };
    let blob = service.get(&format!("{base}/blobs/{digest}"), &ask).await?;
    if blob.status != 200 {
        return Ok(PullResult::Refused(blob.status, blob.reason));
    }
    if !is_wanted(&blob.body, digest) {
        return Err(malformed("the layer does not have the digest that the manifest names"));
    }
    Ok(PullResult::New { archive: blob.body, digest: digest.to_owned() })
}

/// The URL of the token service that a challenge names, with its query.
fn realm(challenge: &str, reference: &Reference) -> Option<Url> {
    let parameters = challenge.strip_prefix("Bearer ").or_else(|| challenge.strip_prefix("bearer "))?;
    let parameter = |name: &str| {
        parameters.split(',').find_map(|part| {
            let (key, value) = part.trim().split_once('=')?;
            (key.eq_ignore_ascii_case(name)).then(|| value.trim_matches('"').to_owned())
        })
    };
    let mut url = Url::parse(&parameter("realm")?).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
    let scope = format!("repository:{}:pull", reference.repository);
    url.query_pairs_mut().append_pair("scope", &scope);
    if let Some(service) = parameter("service") {
        url.query_pairs_mut().append_pair("service", &service);
    }
    Some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_host_repository_and_version() {
        for (text, want) in [
            ("ghcr.io/org/repo:v1", Some(("ghcr.io", "org/repo", "v1"))),
            ("localhost:5000/repo", Some(("localhost:5000", "repo", "latest"))),
            ("ghcr.io/org/repo@sha256:ab", Some(("ghcr.io", "org/repo", "sha256:ab"))),
            ("ghcr.io/org/repo:v1@sha256:ab", Some(("ghcr.io", "org/repo", "sha256:ab"))),
            ("repo", None),
            ("ghcr.io/../x", None),
            ("ghcr.io/a?b:c", None),
            ("ghcr.io/a:b c", None),
        ] {
            let want = want.map(|(registry, repository, version)| Reference {
                registry: registry.to_owned(),
                repository: repository.to_owned(),
                version: version.to_owned(),
            });
            assert_eq!(Reference::parse(text), want, "{text}");
        }
    }

    #[test]
    fn a_challenge_names_its_token_service() {
        let reference = Reference::parse("ghcr.io/org/repo:v1").expect("a reference");
        let url = realm(r#"Bearer realm="https://auth.test/token",service="registry.test",scope="x""#, &reference);
        let want = "https://auth.test/token?scope=repository%3Aorg%2Frepo%3Apull&service=registry.test";
        assert_eq!(url.map(String::from).as_deref(), Some(want));
        assert_eq!(realm("Basic realm=\"x\"", &reference), None);
        assert_eq!(realm("Bearer realm=\"file:///x\"", &reference), None);
    }
}
