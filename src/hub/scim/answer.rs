//! Answers, and resources as they are shown.

use serde_json::{Value, json};
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
    let location = location(provider, kind, &id.to_string());
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
    let (name, items) = match kind {
        ResourceType::User if query.wants("groups") => ("groups", groups(rows, provider, id)?),
        ResourceType::Group if query.wants("members") => ("members", group_members(rows, provider, id)?),
        _ => ("", Vec::new()),
    };
    if !items.is_empty() {
        members.insert(name.to_owned(), Value::Array(items));
    }
    query.project(&mut members);
    Ok(Value::Object(members))
}

fn groups(rows: &impl Rows, provider: &Provider, user: Uuid) -> Result<Vec<Value>, ScimError> {
    let item = |id| {
        let group = directory::get(rows, provider.source, ResourceType::Group, id)?;
        let name = group.as_ref().and_then(|group| group.text("displayName")).unwrap_or_default();
        let location = location(provider, ResourceType::Group, &id.to_string());
        Ok(json!({"value": id.to_string(), "$ref": location, "display": name}))
    };
    directory::groups(rows, provider.source, user)?.into_iter().map(item).collect()
}

fn group_members(rows: &impl Rows, provider: &Provider, group: Uuid) -> Result<Vec<Value>, ScimError> {
    let item = |id: &String| json!({"value": id, "$ref": location(provider, ResourceType::User, id), "type": "User"});
    Ok(directory::members(rows, provider.source, group)?.iter().map(item).collect())
}

/// The address of a resource.
pub fn location(provider: &Provider, kind: ResourceType, id: &str) -> String {
    format!("{}/{}/{id}", provider.base, kind.endpoint())
}
