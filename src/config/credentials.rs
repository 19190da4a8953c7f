//! Credentials for services.
//!
//! Mirrors: OPA `v1/plugins/rest/{auth,auth_tls,aws,gcp,azure}.go`, v1.19.0.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use url::Url;

use super::resolve::Resolver;
use super::section::Section;
use crate::remote::aws::{AwsSettings, AwsSource};
use crate::remote::credentials::{AssertionKey, AzureSettings, ClientProof, Credentials, GcpSettings, OAuth2Settings};
use crate::remote::service::ClientCertificate;
use crate::secret::Secret;

const ASSERTION_KIND: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
const KINDS: [&str; 6] = ["bearer", "client_tls", "oauth2", "s3_signing", "gcp_metadata", "azure_managed_identity"];

/// A variable of the environment that is not empty.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

fn query(pairs: &[(&str, &str)]) -> String {
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

impl Resolver<'_> {
    pub(super) fn credentials(
        &mut self,
        place: &str,
        item: Section<'_>,
        document: &Value,
        is_registry: bool,
    ) -> Credentials {
        let place = format!("{place}.credentials");
        let given: Vec<&str> = KINDS.into_iter().filter(|kind| item.at(kind).is_some()).collect();
        let kind = match given.as_slice() {
            [] => return Credentials::None,
            [kind] => *kind,
            _ => {
                self.problems.error(place, format!("give one kind, not {}", given.join(" and ")));
                return Credentials::None;
            }
        };
        let (place, item) = (format!("{place}.{kind}"), item.section(kind));
        let made = match kind {
            "bearer" => self.bearer(&place, item, is_registry),
            "oauth2" => self.oauth2(&place, item, document).map(|settings| Credentials::OAuth2(Box::new(settings))),
            _ if is_registry => {
                self.problems.error(place, "a registry takes `bearer`: with `scheme: Basic`, `token` is user:password");
                None
            }
            "s3_signing" => self.aws(&place, item).map(Credentials::Aws),
            "gcp_metadata" => self.gcp(&place, item).map(Credentials::Gcp),
            "azure_managed_identity" => Some(Credentials::Azure(azure(item))),
            _ => Some(Credentials::None),
        };
        made.unwrap_or(Credentials::None)
    }

    pub(super) fn client_certificate(&mut self, place: &str, item: Section<'_>) -> Option<ClientCertificate> {
        item.value?;
        let place = format!("{place}.credentials.client_tls");
        if item.text("private_key_passphrase").is_some_and(|text| !text.is_empty()) {
            let message = "encrypted private keys are not read; decrypt the file, and guard it by its permissions";
            self.problems.error(format!("{place}.private_key_passphrase"), message);
        }
        match (item.text("cert"), item.text("private_key")) {
            (Some(certificate), Some(key)) => {
                Some(ClientCertificate { certificate: certificate.into(), key: key.into() })
            }
            _ => {
                self.problems.error(place, "give both `cert` and `private_key`, paths of PEM files");
                None
            }
        }
    }

    fn bearer(&mut self, place: &str, item: Section<'_>, is_registry: bool) -> Option<Credentials> {
        let scheme = item.text_or_default("scheme").to_owned();
        match (item.text("token"), item.text("token_path")) {
            (Some(token), None) => {
                let token = self.secret(place, "token", token);
                // As OPA has it, so that `user:password` with the scheme `Basic` is what registries want.
                let token = if is_registry { Secret::new(STANDARD.encode(token.expose())) } else { token };
                Some(Credentials::Bearer { scheme, token })
            }
            (None, Some(path)) => Some(Credentials::BearerFile { scheme, path: path.into(), is_encoded: is_registry }),
            _ => {
                self.problems.error(place, "give either `token` or `token_path`");
                None
            }
        }
    }

    /// A credential, which an environment variable that is not set must not become.
    fn secret(&mut self, place: &str, name: &str, text: &str) -> Secret<String> {
        if text.is_empty() || text.contains("${") {
            self.problems.error(format!("{place}.{name}"), "empty, or a `${…}` in it was not replaced");
        }
        Secret::new(text.to_owned())
    }

    fn oauth2(&mut self, place: &str, item: Section<'_>, document: &Value) -> Option<OAuth2Settings> {
        let token_url = item.text("token_url").and_then(|text| Url::parse(text).ok());
        let token_url = token_url.filter(|url| url.scheme() == "https");
        if token_url.is_none() {
            self.problems.error(format!("{place}.token_url"), "token_url required to use https scheme");
        }
        let is_grant = item.text("grant_type") == Some("jwt_bearer");
        let kind = match item.text_or_default("client_assertion_type") {
            "" => ASSERTION_KIND,
            kind => kind,
        };
        let given = |name: &str| item.text(name).filter(|text| !text.is_empty());
        let proofs = ["client_secret", "signing_key", "client_assertion", "client_assertion_path"];
        let named: Vec<&str> = proofs.into_iter().filter(|name| given(name).is_some()).collect();
        let proof = match (named.as_slice(), is_grant) {
            (["signing_key"], _) | (_, true) => {
                self.assertion_key(place, item, document).map(|key| ClientProof::Key { key, is_grant })
            }
            ([name], false) => given(name).map(|text| match *name {
                "client_secret" => ClientProof::Secret(self.secret(place, name, text)),
                "client_assertion" => {
                    ClientProof::Assertion { assertion: self.secret(place, name, text), kind: kind.to_owned() }
                }
                _ => ClientProof::AssertionFile { path: text.into(), kind: kind.to_owned() },
            }),
            _ => {
                self.problems.error(place, format!("give exactly one of {}", proofs.join(", ")));
                None
            }
        };
        let needs_id = !matches!(proof, Some(ClientProof::Key { .. }) | None);
        if needs_id && given("client_id").is_none() {
            self.problems.error(format!("{place}.client_id"), "required");
        }
        let texts = |name: &str| {
            let members = item.members(name);
            members.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
        };
        Some(OAuth2Settings {
            token_url: token_url?,
            client_id: item.text("client_id").unwrap_or_default().to_owned(),
            proof: proof?,
            scopes: item.texts("scopes").into_iter().map(str::to_owned).collect(),
            headers: texts("additional_headers"),
            parameters: texts("additional_parameters"),
        })
    }

    fn assertion_key(&mut self, place: &str, item: Section<'_>, document: &Value) -> Option<AssertionKey> {
        let place = format!("{place}.signing_key");
        let id = item.text("signing_key").unwrap_or_default();
        let key = Section::of("keys[]", Section::root(document).section("keys").at(id));
        let Some(private) = key.text("private_key").filter(|text| !text.is_empty()) else {
            self.problems.error(place, format!("there is no key `{id}` with a `private_key` under `keys`"));
            return None;
        };
        let algorithm = key.text_or_default("algorithm").to_owned();
        // A key that cannot sign is found now, not with the first request.
        if let Err(error) = stepgate_jose::sign_configured(&algorithm, private, b"") {
            self.problems.error(format!("keys.{id}.private_key"), error.to_string());
        }
        let claims = item.at("additional_claims").and_then(Value::as_object).cloned().unwrap_or_else(Map::new);
        Some(AssertionKey {
            algorithm,
            key: Secret::new(private.to_owned()),
            thumbprint: item.text("thumbprint").filter(|text| !text.is_empty()).map(str::to_owned),
            claims,
            has_jti: item.is_on("include_jti_claim"),
        })
    }

    fn gcp(&mut self, place: &str, item: Section<'_>) -> Option<GcpSettings> {
        let endpoint = item.text_or_default("endpoint").trim_end_matches('/');
        let path = |name: &str, default: &str| format!("{endpoint}{}", item.text(name).unwrap_or(default));
        let base = "/computeMetadata/v1/instance/service-accounts/default";
        match (item.text("audience").filter(|text| !text.is_empty()), item.texts("scopes")) {
            (Some(audience), scopes) if scopes.is_empty() => Some(GcpSettings {
                url: format!(
                    "{}?{}",
                    path("identity_token_path", &format!("{base}/identity")),
                    query(&[("audience", audience)])
                ),
                is_identity: true,
            }),
            (None, scopes) if !scopes.is_empty() => Some(GcpSettings {
                url: format!(
                    "{}?{}",
                    path("access_token_path", &format!("{base}/token")),
                    query(&[("scopes", &scopes.join(","))])
                ),
                is_identity: false,
            }),
            _ => {
                self.problems.error(place, "give exactly one of `audience` and `scopes`");
                None
            }
        }
    }

    fn aws(&mut self, place: &str, item: Section<'_>) -> Option<AwsSettings> {
        if item.text("signature_version").is_some_and(|version| !matches!(version, "" | "4")) {
            self.problems.error(format!("{place}.signature_version"), "only version `4` is offered");
        }
        let sources = aws_sources(item);
        if sources.is_empty() {
            self.problems.error(place, "name where the credentials are, such as `environment_credentials: {}`");
            return None;
        }
        let sections = AWS_SOURCES.iter().filter_map(|name| item.section(name).text("aws_region"));
        let region = sections.map(str::to_owned).next().or_else(|| variable("AWS_REGION"));
        if region.is_none() {
            self.problems.error(place, "no region: give `aws_region`, or set AWS_REGION");
        }
        Some(AwsSettings {
            region: region?,
            service: item.text("service").filter(|service| !service.is_empty()).unwrap_or("s3").to_owned(),
            sources,
        })
    }
}

/// In the order in which OPA looks.
const AWS_SOURCES: [&str; 6] = [
    "environment_credentials",
    "assume_role_credentials",
    "web_identity_credentials",
    "profile_credentials",
    "metadata_credentials",
    "sso_credentials",
];

fn aws_sources(item: Section<'_>) -> Vec<AwsSource> {
    let owned = |section: Section<'_>, name: &str| section.text(name).map(str::to_owned);
    let source = |name: &&str| {
        let section = item.section(name);
        section.value?;
        Some(match *name {
            "environment_credentials" => AwsSource::Environment,
            "assume_role_credentials" => AwsSource::AssumeRole {
                role: owned(section, "iam_role_arn").or_else(|| variable("AWS_ROLE_ARN"))?,
                session: owned(section, "session_name"),
                base: aws_sources(section.section("aws_signing")),
            },
            "web_identity_credentials" => AwsSource::WebIdentity { session: owned(section, "session_name") },
            "profile_credentials" => {
                AwsSource::Profile { path: owned(section, "path"), profile: owned(section, "profile") }
            }
            "metadata_credentials" => AwsSource::Metadata,
            _ => AwsSource::Sso { profile: owned(section, "profile") },
        })
    };
    AWS_SOURCES.iter().filter_map(source).collect()
}

fn azure(item: Section<'_>) -> AzureSettings {
    let app_service = variable("IDENTITY_ENDPOINT").zip(variable("IDENTITY_HEADER"));
    let app_service = app_service.filter(|_| item.flag_or("use_app_service_msi", true));
    let default = ("http://169.254.169.254/metadata/identity/oauth2/token", "2018-02-01");
    let (endpoint, version, headers) = match app_service {
        Some((endpoint, header)) => (endpoint, "2019-08-01", vec![("x-identity-header", Secret::new(header))]),
        None => (default.0.to_owned(), default.1, vec![("metadata", Secret::new("true".to_owned()))]),
    };
    let endpoint = item.text("endpoint").map_or(endpoint, str::to_owned);
    let version = item.text("api_version").unwrap_or(version);
    let mut pairs = vec![("api-version", version), ("resource", item.text_or_default("resource"))];
    for name in ["object_id", "client_id", "mi_res_id"] {
        pairs.extend(item.text(name).filter(|text| !text.is_empty()).map(|text| (name, text)));
    }
    AzureSettings { url: format!("{endpoint}?{}", query(&pairs)), headers }
}
