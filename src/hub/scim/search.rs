//! Lists of resources: RFC 7644 section 3.4.2.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::Provider;
use super::answer::{ScimAnswer, shown};
use super::directory::{self, Stored};
use super::error::ScimError;
use super::filter::Filter;
use super::schema::ResourceType;
use crate::hub::{Hub, LedgerError};

const LIST: &str = "urn:ietf:params:scim:api:messages:2.0:ListResponse";

/// Resources of one answer.
pub const MAX_RESULTS: usize = 200;
const DEFAULT_RESULTS: usize = 100;
/// Bytes of one answer, about; further resources are on the next page.
const MAX_PAGE_BYTES: usize = 8 << 20;
/// Resources that a filter without an index looks at.
const MAX_SCANNED: usize = 10_000;

/// The request of a client for resources.
#[derive(Clone, Debug, Default)]
pub struct Query {
    filter: Option<Filter>,
    /// From 1.
    start: usize,
    count: usize,
    /// Only these, in small letters; empty: all.
    attributes: Vec<String>,
    /// Not these, in small letters.
    excluded: Vec<String>,
}

fn names(text: &str) -> Vec<String> {
    // A name may have its schema before it; that of an extension stays.
    let own = |name: &str| match name.rsplit_once(':') {
        Some((urn, name)) if urn.starts_with("urn:ietf:params:scim:schemas:core:2.0:") => name.to_owned(),
        _ => name.to_owned(),
    };
    text.split(',').map(|name| own(name.trim()).to_ascii_lowercase()).filter(|name| !name.is_empty()).collect()
}

impl Query {
    /// The parameters of an address. Others are left alone: clients have some of their own.
    ///
    /// # Errors
    /// The filter is none.
    pub fn of_pairs(pairs: &[(String, String)]) -> Result<Self, ScimError> {
        let find = |wanted: &str| {
            let found = pairs.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
            found.map(|(_, value)| value.as_str())
        };
        let number = |name: &str| find(name).map(|text| text.parse().unwrap_or(i64::MIN));
        Self::new(
            find("filter"),
            number("startIndex"),
            number("count"),
            find("attributes").map(names),
            find("excludedAttributes").map(names),
        )
    }

    /// The members of a search request.
    ///
    /// # Errors
    /// The filter is none.
    pub fn of_body(body: &Map<String, Value>) -> Result<Self, ScimError> {
        let find = |wanted: &str| {
            let found = body.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
            found.map(|(_, value)| value).filter(|value| !value.is_null())
        };
        let number = |name: &str| find(name).map(|value| value.as_i64().unwrap_or(i64::MIN));
        let listed = |name: &str| {
            let items = find(name).and_then(Value::as_array);
            items.map(|items| items.iter().filter_map(Value::as_str).flat_map(names).collect::<Vec<_>>())
        };
        Self::new(
            find("filter").map(|value| value.as_str().unwrap_or_default()),
            number("startIndex"),
            number("count"),
            listed("attributes"),
            listed("excludedAttributes"),
        )
    }

    fn new(
        filter: Option<&str>,
        start: Option<i64>,
        count: Option<i64>,
        attributes: Option<Vec<String>>,
        excluded: Option<Vec<String>>,
    ) -> Result<Self, ScimError> {
        let count = count.map_or(DEFAULT_RESULTS, |count| usize::try_from(count.max(0)).unwrap_or(MAX_RESULTS));
        Ok(Self {
            filter: filter.map(Filter::parse).transpose()?,
            start: usize::try_from(start.unwrap_or(1).max(1)).unwrap_or(usize::MAX),
            count: count.min(MAX_RESULTS),
            attributes: attributes.unwrap_or_default(),
            excluded: excluded.unwrap_or_default(),
        })
    }

    /// All attributes of one resource.
    pub fn whole() -> Self {
        Self::default()
    }

    /// The parts that a filter reads: members and groups are looked up only for one that names them.
    fn of_filter(filter: &Filter) -> Self {
        let excluded = ["members", "groups"].into_iter().filter(|name| !filter.reads(name));
        Self { excluded: excluded.map(str::to_owned).collect(), ..Self::default() }
    }

    /// The client names the attributes that it wants.
    pub fn names_attributes(&self) -> bool {
        !self.attributes.is_empty()
    }

    /// True for an attribute that is answered or that the filter may read.
    pub fn wants(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        let is_part = |wanted: &String| *wanted == name || wanted.starts_with(&format!("{name}."));
        let is_wanted = self.attributes.is_empty() || self.attributes.iter().any(is_part);
        is_wanted && !self.excluded.contains(&name)
    }

    /// Keeps what was asked for; the identifier and the schemas always.
    pub fn project(&self, members: &mut Map<String, Value>) {
        let is_always = |name: &str| name == "id" || name == "schemas";
        if self.attributes.is_empty() {
            members.retain(|name, _| is_always(name) || !self.excluded.contains(&name.to_ascii_lowercase()));
            for excluded in &self.excluded {
                let Some((name, part)) = excluded.split_once('.') else { continue };
                let found = members.iter_mut().find(|(known, _)| known.eq_ignore_ascii_case(name));
                found.into_iter().for_each(|(_, value)| keep_parts(value, |known| !known.eq_ignore_ascii_case(part)));
            }
            return;
        }
        members.retain(|name, value| {
            let lower = name.to_ascii_lowercase();
            if is_always(name) || self.attributes.contains(&lower) {
                return true;
            }
            // Parts of it: `name.givenName`, or an attribute of an extension.
            let before = |separator: &str| format!("{lower}{separator}");
            let parts: Vec<&str> = self
                .attributes
                .iter()
                .filter_map(|wanted| wanted.strip_prefix(&before(".")).or_else(|| wanted.strip_prefix(&before(":"))))
                .collect();
            keep_parts(value, |known| parts.iter().any(|part| known.eq_ignore_ascii_case(part)));
            !parts.is_empty()
        });
    }
}

/// Keeps some members of an object, or of each in a list.
fn keep_parts(value: &mut Value, is_kept: impl Fn(&str) -> bool + Copy) {
    match value {
        Value::Object(members) => members.retain(|name, _| is_kept(name)),
        Value::Array(items) => items.iter_mut().for_each(|item| keep_parts(item, is_kept)),
        _ => {}
    }
}

/// A list as it is answered.
pub fn list(total: usize, start: usize, resources: Vec<Value>) -> Value {
    json!({
        "schemas": [LIST],
        "totalResults": total,
        "startIndex": start,
        "itemsPerPage": resources.len(),
        "Resources": resources,
    })
}

/// A page while it is filled.
struct Page<'a> {
    hub: &'a Hub,
    provider: &'a Provider,
    query: &'a Query,
    total: usize,
    bytes: usize,
    resources: Vec<Value>,
}

impl Page<'_> {
    /// Counts a resource that matches; adds it if it is on this page.
    fn add(
        &mut self,
        kind: ResourceType,
        id: Uuid,
        stored: impl FnOnce() -> Result<Stored, LedgerError>,
    ) -> Result<(), ScimError> {
        self.total = self.total.saturating_add(1);
        let is_before = self.total < self.query.start;
        if is_before || self.resources.len() >= self.query.count || self.bytes >= MAX_PAGE_BYTES {
            return Ok(());
        }
        let stored = &stored()?;
        let resource = shown(&self.hub.ledger, self.provider, kind, id, stored, self.query)?;
        self.bytes = self.bytes.saturating_add(resource.to_string().len());
        self.resources.push(resource);
        Ok(())
    }
}

impl Hub {
    /// The resources of these types that match a query, oldest first.
    pub(super) fn search(
        &self,
        provider: &Provider,
        kinds: &[ResourceType],
        query: &Query,
    ) -> Result<ScimAnswer, ScimError> {
        let mut page = Page { hub: self, provider, query, total: 0, bytes: 0, resources: Vec::new() };
        for &kind in kinds {
            match &query.filter {
                None => directory::each(&self.ledger, provider.source, kind, |id, row| {
                    page.add(kind, id, || Stored::parse(row)).map(|()| true)
                })?,
                Some(filter) => self.matching(&mut page, kind, filter)?,
            }
        }
        Ok(ScimAnswer::of(200, list(page.total, query.start, page.resources)))
    }

    /// Adds the resources that a filter matches.
    fn matching(&self, page: &mut Page<'_>, kind: ResourceType, filter: &Filter) -> Result<(), ScimError> {
        let (provider, ledger) = (page.provider, &self.ledger);
        let read = Query::of_filter(filter);
        let is_match = |id, stored: &Stored| {
            let resource = shown(ledger, provider, kind, id, stored, &read)?;
            filter.matches(&provider.schemas, kind, &resource)
        };
        let indexed = filter.indexed(&provider.schemas, kind);
        let indexed =
            indexed.map(|found| directory::find(ledger, provider.source, kind, &found.attribute, &found.value));
        if let Some(found) = indexed.transpose()?.flatten() {
            for id in found {
                let Some(stored) = directory::get(ledger, provider.source, kind, id)? else { continue };
                if is_match(id, &stored)? {
                    page.add(kind, id, || Ok(stored))?;
                }
            }
            return Ok(());
        }
        let mut scanned = 0usize;
        directory::each(ledger, provider.source, kind, |id, row| {
            scanned = scanned.saturating_add(1);
            if scanned > MAX_SCANNED {
                let detail = format!("the filter would look at more than {MAX_SCANNED} resources");
                return Err(ScimError::new(400, Some("tooMany"), detail));
            }
            let stored = Stored::parse(row)?;
            if is_match(id, &stored)? {
                page.add(kind, id, || Ok(stored))?;
            }
            Ok(true)
        })
    }

    /// One resource.
    pub(super) fn read(
        &self,
        provider: &Provider,
        kind: ResourceType,
        id: Uuid,
        query: &Query,
    ) -> Result<ScimAnswer, ScimError> {
        let stored = directory::get(&self.ledger, provider.source, kind, id)?;
        let stored = stored.ok_or_else(|| ScimError::absent(&format!("{} `{id}`", kind.name())))?;
        Ok(ScimAnswer::of(200, shown(&self.ledger, provider, kind, id, &stored, query)?))
    }
}
