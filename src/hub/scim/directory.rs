//! Resources of a provider in the file of the ledger, with what finds them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::error::ScimError;
use super::schema::ResourceType;
use crate::hub::LedgerError;
use crate::hub::ledger::{Batch, Ledger};
use crate::state::{Row, Table};

/// Source, type and identifier to the resource.
pub const RESOURCES: Table = Table("scim_resource");
/// Source, type, attribute, value and identifier.
pub const INDEX: Table = Table("scim_index");
/// Source, `G`, group and member; and source, `U`, member and group. A member is named by its `value`: usually a user of the provider.
pub const MEMBERS: Table = Table("scim_member");

/// Rows of an index that are read for one value.
const MAX_FOUND: usize = 10_000;
/// Bytes of the `value` of a member.
pub const MAX_MEMBER_BYTES: usize = 256;
/// Members of one group.
pub const MAX_MEMBERS: usize = 100_000;

/// Tables as they are, or as a change has them so far.
pub trait Rows {
    fn row(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, LedgerError>;
    /// Rows whose keys begin with `prefix`.
    fn rows(&self, table: Table, prefix: &[u8], limit: usize) -> Result<Vec<Row>, LedgerError>;
}

impl Rows for Ledger {
    fn row(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, LedgerError> {
        self.get(table, key)
    }

    fn rows(&self, table: Table, prefix: &[u8], limit: usize) -> Result<Vec<Row>, LedgerError> {
        let mut rows = Vec::new();
        self.scan(table, prefix, |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            rows.len() < limit
        })?;
        Ok(rows)
    }
}

impl Rows for Batch<'_> {
    fn row(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, LedgerError> {
        Ok(self.writing.get(table, key)?)
    }

    fn rows(&self, table: Table, prefix: &[u8], limit: usize) -> Result<Vec<Row>, LedgerError> {
        Ok(self.writing.rows_of(table, prefix, limit)?)
    }
}

/// A resource as it is kept. The members of a group are rows of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    pub created: String,
    pub modified: String,
    pub attributes: Map<String, Value>,
}

impl Stored {
    /// # Errors
    /// The row is none.
    pub fn parse(row: &[u8]) -> Result<Self, LedgerError> {
        serde_json::from_slice(row).map_err(|_| LedgerError::Format)
    }

    /// False for a user whose tokens are rejected.
    pub fn is_active(&self) -> bool {
        self.attributes.get("active") != Some(&Value::Bool(false))
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.attributes.get(name).and_then(Value::as_str)
    }
}

/// Attributes with an index, each with its byte; true for those that are compared with case.
const INDEXED: [(&str, u8, bool); 4] =
    [("userName", b'u', false), ("externalId", b'x', true), ("emails", b'e', false), ("displayName", b'd', false)];

fn resource_key(source: u8, kind: ResourceType, id: Uuid) -> Vec<u8> {
    [&[source, kind.code()], id.as_bytes().as_slice()].concat()
}

/// The key of a value in the index, without the identifier.
fn index_prefix(source: u8, kind: ResourceType, code: u8, is_exact: bool, value: &str) -> Vec<u8> {
    let value = if is_exact { value.to_owned() } else { value.to_lowercase() };
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes();
    [&[source, kind.code(), code], length.as_slice(), value.as_bytes()].concat()
}

/// The keys of a resource in the index.
fn index_keys(source: u8, kind: ResourceType, id: Uuid, attributes: &Map<String, Value>) -> Vec<Vec<u8>> {
    let mut keys = Vec::new();
    for (name, code, is_exact) in INDEXED {
        let values = match attributes.get(name) {
            Some(Value::String(text)) => vec![text.as_str()],
            Some(Value::Array(items)) => items.iter().filter_map(|item| item.get("value")?.as_str()).collect(),
            _ => Vec::new(),
        };
        let key = |value: &str| [index_prefix(source, kind, code, is_exact, value), id.as_bytes().to_vec()].concat();
        keys.extend(values.into_iter().map(key));
    }
    keys
}

/// The identifier at the end of a key.
fn last_id(key: &[u8]) -> Option<Uuid> {
    key.last_chunk::<16>().map(|bytes| Uuid::from_bytes(*bytes))
}

/// A resource.
pub fn get(rows: &impl Rows, source: u8, kind: ResourceType, id: Uuid) -> Result<Option<Stored>, LedgerError> {
    rows.row(RESOURCES, &resource_key(source, kind, id))?.as_deref().map(Stored::parse).transpose()
}

/// The resources whose indexed attribute has this value, oldest first; `None` for an attribute without an index.
pub fn find(
    rows: &impl Rows,
    source: u8,
    kind: ResourceType,
    attribute: &str,
    value: &str,
) -> Result<Option<Vec<Uuid>>, LedgerError> {
    let prefix_and_table = match (attribute, INDEXED.iter().find(|(name, ..)| *name == attribute)) {
        ("id", _) => return Ok(Some(Uuid::parse_str(value).into_iter().collect())),
        ("members", _) => (MEMBERS, member_prefix(source, value)),
        (_, Some((_, code, is_exact))) => (INDEX, index_prefix(source, kind, *code, *is_exact, value)),
        (_, None) => return Ok(None),
    };
    let (table, prefix) = prefix_and_table;
    let length = prefix.len().saturating_add(16);
    let rows = rows.rows(table, &prefix, MAX_FOUND)?;
    let mut found: Vec<Uuid> =
        rows.iter().filter(|(key, _)| key.len() == length).filter_map(|(key, _)| last_id(key)).collect();
    found.sort_unstable();
    Ok(Some(found))
}

/// Writes a resource and its places in the index, in the place of `before`.
pub fn put(
    batch: &Batch<'_>,
    source: u8,
    kind: ResourceType,
    id: Uuid,
    before: Option<&Stored>,
    after: Option<&Stored>,
) -> Result<(), LedgerError> {
    let keys = |stored: Option<&Stored>| {
        stored.map(|stored| index_keys(source, kind, id, &stored.attributes)).unwrap_or_default()
    };
    for key in keys(before) {
        batch.writing.remove(INDEX, &key)?;
    }
    for key in keys(after) {
        batch.writing.put(INDEX, &key, &[])?;
    }
    let key = resource_key(source, kind, id);
    match after {
        Some(after) => {
            let row = serde_json::to_vec(after).map_err(|_| LedgerError::Format)?;
            batch.writing.put(RESOURCES, &key, &row)?;
        }
        None => batch.writing.remove(RESOURCES, &key)?,
    }
    Ok(())
}

/// Visits the rows of a type, oldest first, until `visit` says no.
///
/// # Errors
/// That of `visit`, or the file cannot be read.
pub fn each(
    ledger: &Ledger,
    source: u8,
    kind: ResourceType,
    mut visit: impl FnMut(Uuid, &[u8]) -> Result<bool, ScimError>,
) -> Result<(), ScimError> {
    let mut outcome = Ok(true);
    ledger.scan(RESOURCES, &[source, kind.code()], |key, row| {
        outcome = last_id(key).map_or(Ok(true), |id| visit(id, row));
        matches!(outcome, Ok(true))
    })?;
    outcome.map(|_| ())
}

/// The key of a member, without the group.
fn member_prefix(source: u8, member: &str) -> Vec<u8> {
    let length = u16::try_from(member.len()).unwrap_or(u16::MAX).to_be_bytes();
    [&[source, b'U'], length.as_slice(), member.as_bytes()].concat()
}

/// The members of a group, by their `value`.
pub fn members(rows: &impl Rows, source: u8, group: Uuid) -> Result<Vec<String>, LedgerError> {
    let prefix = [&[source, b'G'], group.as_bytes().as_slice()].concat();
    let rows = rows.rows(MEMBERS, &prefix, MAX_MEMBERS.saturating_add(1))?;
    let value = |(key, _): &Row| key.get(prefix.len()..).and_then(|text| String::from_utf8(text.to_vec()).ok());
    rows.iter().map(|row| value(row).ok_or(LedgerError::Format)).collect()
}

/// The groups of a user, oldest first.
pub fn groups(rows: &impl Rows, source: u8, user: Uuid) -> Result<Vec<Uuid>, LedgerError> {
    Ok(find(rows, source, ResourceType::Group, "members", &user.to_string())?.unwrap_or_default())
}

/// Makes someone a member of a group, or no member.
pub fn set_member(
    batch: &Batch<'_>,
    source: u8,
    group: Uuid,
    member: &str,
    is_member: bool,
) -> Result<(), LedgerError> {
    let keys = [
        [&[source, b'G'], group.as_bytes().as_slice(), member.as_bytes()].concat(),
        [member_prefix(source, member).as_slice(), group.as_bytes()].concat(),
    ];
    keys.iter().try_for_each(|key| match is_member {
        true => batch.writing.put(MEMBERS, key, &[]),
        false => batch.writing.remove(MEMBERS, key),
    })?;
    Ok(())
}
