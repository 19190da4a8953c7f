//! The description of the service: RFC 7643 sections 5 to 7.

use serde_json::{Value, json};

use super::Provider;
use super::answer::ScimAnswer;
use super::error::ScimError;
use super::schema::ResourceType;
use super::search::{MAX_RESULTS, list};

/// Answers `/ServiceProviderConfig`, `/ResourceTypes` and `/Schemas`, or one of the latter.
pub fn answer(provider: &Provider, endpoint: &str, name: Option<&str>) -> Result<ScimAnswer, ScimError> {
    let all = match (endpoint, name) {
        ("ServiceProviderConfig", None) => return Ok(ScimAnswer::of(200, configuration(&provider.base))),
        ("ResourceTypes", _) => ResourceType::ALL.map(|kind| resource_type(provider, kind)).to_vec(),
        ("Schemas", _) => provider.schemas.described(&provider.base),
        _ => return Err(ScimError::absent("such address")),
    };
    match name {
        None => {
            let total = all.len();
            Ok(ScimAnswer::of(200, list(total, 1, all)))
        }
        Some(name) => {
            let is_wanted = |item: &Value| item.get("id").and_then(Value::as_str) == Some(name);
            let found = all.into_iter().find(is_wanted).ok_or_else(|| ScimError::absent("such description"))?;
            Ok(ScimAnswer::of(200, found))
        }
    }
}

fn configuration(base: &str) -> Value {
    let off = json!({"supported": false});
    json!({
        "schemas": ["urn:ietf:params:scim:schemas:core:2.0:ServiceProviderConfig"],
        "patch": {"supported": true},
        "bulk": {"supported": false, "maxOperations": 0, "maxPayloadSize": 0},
        "filter": {"supported": true, "maxResults": MAX_RESULTS},
        "changePassword": off,
        "sort": off,
        "etag": off,
        "authenticationSchemes": [{
            "type": "oauthbearertoken",
            "name": "OAuth Bearer Token",
            "description": "The header Authorization with a bearer token of this provider",
            "specUri": "https://www.rfc-editor.org/info/rfc6750",
            "primary": true,
        }],
        "meta": {"resourceType": "ServiceProviderConfig", "location": format!("{base}/ServiceProviderConfig")},
    })
}

fn resource_type(provider: &Provider, kind: ResourceType) -> Value {
    let extensions = provider.schemas.extensions(kind).iter();
    let extensions: Vec<_> = extensions.map(|schema| json!({"schema": schema.urn, "required": false})).collect();
    json!({
        "schemas": ["urn:ietf:params:scim:schemas:core:2.0:ResourceType"],
        "id": kind.name(),
        "name": kind.name(),
        "description": kind.name(),
        "endpoint": format!("/{}", kind.endpoint()),
        "schema": provider.schemas.of(kind).urn,
        "schemaExtensions": extensions,
        "meta": {"resourceType": "ResourceType", "location": format!("{}/ResourceTypes/{}", provider.base, kind.name())},
    })
}
