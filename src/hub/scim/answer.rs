//! Answers, and resources as they are shown.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::Provider;
use super::directory::{self, Rows, Stored};
use super::error::{self, ScimError};
use super::schema::ResourceType;
use super::search::Query;

/// An answer to a provider.
#[derive(Clone, Debug, PartialEq)]
pub struct ScimAnswer {
    pub status: u16,
    pub body: Option<Value>,
    pub location: Option<String>,
    /// The methods of this address, with 405.
    pub allow: Option<&'static str>,
    /// Seconds.
    pub retry_after: Option<u64>,
}

impl ScimAnswer {
    pub fn of(status: u16, body: Value) -> Self {
        Self { status, body: Some(body), location: None, allow: None, retry_after: None }
    }

    pub fn empty() -> Self {
        Self { status: 204, body: None, location: None, allow: None, retry_after: None }
    }

    pub fn error(status: u16, scim_type: Option<&str>, detail: &str) -> Self {
        Self::of(status, error::body(status, scim_type, detail))
    }

    pub fn not_allowed(allow: &'static str) -> Self {
        Self { allow: Some(allow), ..Self::error(405, None, &format!("expected {allow}")) }
    }
}

/// A resource as it is shown, with what the query asks for. The rows have members and groups.
///
/// # Errors
/// The file cannot be read.
pub fn shown(
    rows: &impl Rows,
    provider: &Provider,
    kind: ResourceType,
    id: Uuid,
    stored: &Stored,
    query: &Query,
) -> Result<Value, ScimError> {
    let location = location(provider, kind, id);
    let extensions = provider.schemas.extensions(kind).iter().map(|schema| &schema.urn);
    let schemas: Vec<&String> = std::iter::once(&provider.schemas.of(kind).urn)
        .chain(extensions.filter(|urn| stored.attributes.contains_key(*urn)))
        .collect();
    let mut members = stored.attributes.clone();
    members.insert("schemas".to_owned(), json!(schemas));
    members.insert("id".to_owned(), json!(id.to_string()));
    let meta = json!({
        "resourceType": kind.name(),
        "created": stored.created,
        "lastModified": stored.modified,
        "location": location,
    });
    members.insert("meta".to_owned(), meta);
    let (name, other) = match kind {
        ResourceType::User => ("groups", ResourceType::Group),
        ResourceType::Group => ("members", ResourceType::User),
    };
    if query.wants(name) {
        let related = directory::related(rows, provider.source, kind, id)?;
        let items = related.into_iter().map(|related| related_item(rows, provider, other, related));
        let items = items.collect::<Result<Vec<_>, ScimError>>()?;
        if !items.is_empty() {
            members.insert(name.to_owned(), Value::Array(items));
        }
    }
    query.project(&mut members);
    Ok(Value::Object(members))
}

/// A member of a group, or a group of a user.
fn related_item(rows: &impl Rows, provider: &Provider, kind: ResourceType, id: Uuid) -> Result<Value, ScimError> {
    let mut item = Map::new();
    item.insert("value".to_owned(), json!(id.to_string()));
    item.insert("$ref".to_owned(), json!(location(provider, kind, id)));
    if let Some(stored) = directory::get(rows, provider.source, kind, id)?
        && let Some(name) = stored.text("displayName").or(stored.text("userName"))
    {
        item.insert("display".to_owned(), json!(name));
    }
    if kind == ResourceType::User {
        item.insert("type".to_owned(), json!("User"));
    }
    Ok(Value::Object(item))
}

pub fn location(provider: &Provider, kind: ResourceType, id: Uuid) -> String {
    format!("{}/{}/{id}", provider.base, kind.endpoint())
}
