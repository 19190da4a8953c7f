//! Changes of resources, each with what it means for tokens, in one change of the file.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::Provider;
use super::answer::{ScimAnswer, location, shown};
use super::directory::{self, Stored};
use super::error::ScimError;
use super::links::{Linker, Outcome, Standing};
use super::patch::{self, MemberEdit, member_ids};
use super::schema::ResourceType;
use super::search::Query;
use crate::clock::rfc3339;
use crate::hub::Hub;
use crate::hub::ledger::Batch;

/// A resource before and after a change.
struct Changed<'a> {
    kind: ResourceType,
    id: Uuid,
    before: Option<&'a Stored>,
    after: Stored,
    edits: Vec<MemberEdit>,
}

fn absent(kind: ResourceType, id: Uuid) -> ScimError {
    ScimError::absent(&format!("{} `{id}`", kind.name()))
}

fn standing(user: &Stored) -> Standing {
    if user.is_active() { Standing::Active } else { Standing::Inactive }
}

/// The attributes of a resource that every one must have.
fn check(kind: ResourceType, attributes: &Map<String, Value>) -> Result<(), ScimError> {
    let name = match kind {
        ResourceType::User => "userName",
        ResourceType::Group => "displayName",
    };
    match attributes.get(name).and_then(Value::as_str) {
        Some(text) if !text.trim().is_empty() => Ok(()),
        _ => Err(ScimError::value(format!("`{name}` is required"))),
    }
}

impl Hub {
    /// POST.
    pub(super) fn create(
        &self,
        provider: &Provider,
        kind: ResourceType,
        body: &Map<String, Value>,
    ) -> Result<ScimAnswer, ScimError> {
        let mut attributes = provider.schemas.read(kind, body)?;
        check(kind, &attributes)?;
        let edits = take_members(kind, &mut attributes)?;
        if kind == ResourceType::User {
            attributes.entry("active").or_insert(json!(true));
        }
        let id = Uuid::now_v7();
        let now = rfc3339(self.clock.now_ns());
        let after = Stored { created: now.clone(), modified: now, attributes };
        let changed = Changed { kind, id, before: None, after, edits };
        self.change("provision", |batch| {
            let outcome = self.carry_out(batch, provider, &changed)?;
            log(provider, "create", &changed, outcome);
            let shown = shown(batch, provider, kind, id, &changed.after, &Query::whole())?;
            Ok(ScimAnswer { location: Some(location(provider, kind, &id.to_string())), ..ScimAnswer::of(201, shown) })
        })
    }

    /// PUT.
    pub(super) fn replace(
        &self,
        provider: &Provider,
        kind: ResourceType,
        id: Uuid,
        body: &Map<String, Value>,
        query: &Query,
    ) -> Result<ScimAnswer, ScimError> {
        let mut attributes = provider.schemas.read(kind, body)?;
        check(kind, &attributes)?;
        let mut edits = take_members(kind, &mut attributes)?;
        // A replacement that forgets them must not revoke the tokens of every member.
        let has_members = body.keys().any(|name| name.eq_ignore_ascii_case("members"));
        edits.splice(..0, (kind == ResourceType::Group && has_members).then_some(MemberEdit::Clear));
        self.modify(provider, kind, id, query, |before| {
            let mut attributes = attributes.clone();
            if kind == ResourceType::User && !attributes.contains_key("active") {
                // A replacement that forgets it must not enable the user.
                tracing::warn!(provider = provider.settings.name, %id, "a user was replaced without `active`: it stays as it is");
                attributes.insert("active".to_owned(), json!(before.is_active()));
            }
            Ok((attributes, edits.clone()))
        })
    }

    /// PATCH.
    pub(super) fn patch(
        &self,
        provider: &Provider,
        kind: ResourceType,
        id: Uuid,
        body: &Map<String, Value>,
        query: &Query,
    ) -> Result<ScimAnswer, ScimError> {
        let answer = self.modify(provider, kind, id, query, |before| {
            let mut attributes = before.attributes.clone();
            let edits = patch::apply(&provider.schemas, kind, &mut attributes, body)?;
            check(kind, &attributes)?;
            Ok((attributes, edits))
        })?;
        // As Entra wants it: the members of a group are not sent back.
        let is_short = kind == ResourceType::Group && answer.status == 200 && !query.names_attributes();
        Ok(if is_short { ScimAnswer::empty() } else { answer })
    }

    fn modify(
        &self,
        provider: &Provider,
        kind: ResourceType,
        id: Uuid,
        query: &Query,
        edit: impl Fn(&Stored) -> Result<(Map<String, Value>, Vec<MemberEdit>), ScimError>,
    ) -> Result<ScimAnswer, ScimError> {
        self.change("provision", |batch| {
            let before = directory::get(batch, provider.source, kind, id)?.ok_or_else(|| absent(kind, id))?;
            let (attributes, edits) = edit(&before)?;
            let after = Stored { attributes, modified: rfc3339(self.clock.now_ns()), ..before.clone() };
            let mut changed = Changed { kind, id, before: Some(&before), after, edits };
            let outcome = self.carry_out(batch, provider, &changed)?;
            match outcome {
                None => changed.after.modified.clone_from(&before.modified),
                Some(_) => log(provider, "change", &changed, outcome),
            }
            let is_inactive = kind == ResourceType::User && !changed.after.is_active();
            let is_mapped = match outcome {
                Some(outcome) => outcome.is_mapped,
                None => !is_inactive || !self.linker(provider).keys(&changed.after).is_empty(),
            };
            if is_inactive && !is_mapped && provider.settings.refuses_unmapped {
                return Ok(unmapped());
            }
            Ok(ScimAnswer::of(200, shown(batch, provider, kind, id, &changed.after, query)?))
        })
    }

    /// DELETE.
    pub(super) fn delete(&self, provider: &Provider, kind: ResourceType, id: Uuid) -> Result<ScimAnswer, ScimError> {
        self.change("provision", |batch| {
            let source = provider.source;
            let before = directory::get(batch, source, kind, id)?.ok_or_else(|| absent(kind, id))?;
            let linker = self.linker(provider);
            if kind == ResourceType::Group {
                for member in directory::members(batch, source, id)? {
                    directory::set_member(batch, source, id, &member, false)?;
                    if is_watched(provider, &before) {
                        revoke(&linker, batch, &member)?;
                    }
                }
            } else {
                let is_unmapped = before.is_active() && linker.keys(&before).is_empty();
                if is_unmapped && provider.settings.refuses_unmapped {
                    // Kept as inactive: the next attempt deletes it.
                    let mut after = before.clone();
                    after.attributes.insert("active".to_owned(), json!(false));
                    directory::put(batch, source, kind, id, Some(&before), Some(&after))?;
                    return Ok(unmapped());
                }
                linker.relink(batch, id, &before, Some(standing(&before)), Standing::Deleted)?;
                for group in directory::groups(batch, source, id)? {
                    directory::set_member(batch, source, group, &id.to_string(), false)?;
                }
            }
            directory::put(batch, source, kind, id, Some(&before), None)?;
            tracing::info!(provider = provider.settings.name, kind = kind.name(), %id, "deleted by its provider");
            Ok(ScimAnswer::empty())
        })
    }

    /// Writes a change with its effects; `None` where nothing has changed.
    fn carry_out(
        &self,
        batch: &mut Batch<'_>,
        provider: &Provider,
        changed: &Changed<'_>,
    ) -> Result<Option<Outcome>, ScimError> {
        let Changed { kind, id, before, after, edits } = changed;
        let (kind, id, source) = (*kind, *id, provider.source);
        let (added, removed) = edited(batch, source, id, edits)?;
        let is_same = before.is_some_and(|before| before.attributes == after.attributes);
        if is_same && added.is_empty() && removed.is_empty() {
            return Ok(None);
        }
        let linker = self.linker(provider);
        let mut outcome = Outcome { is_mapped: true, still_disabled: 0 };
        if kind == ResourceType::User {
            let name = after.text("userName").unwrap_or_default();
            let same = directory::find(batch, source, kind, "userName", name)?.unwrap_or_default();
            if same.iter().any(|other| *other != id) {
                return Err(ScimError::taken("`userName` belongs to another user"));
            }
            outcome = linker.relink(batch, id, after, before.map(standing), standing(after))?;
        }
        for member in &added {
            directory::set_member(batch, source, id, member, true)?;
        }
        for member in &removed {
            directory::set_member(batch, source, id, member, false)?;
            // By the name that it had, too: a group that is renamed stays watched for this change.
            if is_watched(provider, after) || before.is_some_and(|before| is_watched(provider, before)) {
                revoke(&linker, batch, member)?;
            }
        }
        directory::put(batch, source, kind, id, *before, Some(after))?;
        Ok(Some(outcome))
    }
}

/// The members that edits add to a group, and those that they remove.
fn edited(
    batch: &Batch<'_>,
    source: u8,
    group: Uuid,
    edits: &[MemberEdit],
) -> Result<(BTreeSet<String>, BTreeSet<String>), ScimError> {
    if edits.is_empty() {
        return Ok((BTreeSet::new(), BTreeSet::new()));
    }
    let known: BTreeSet<String> = directory::members(batch, source, group)?.into_iter().collect();
    let mut members = known.clone();
    for edit in edits {
        match edit {
            MemberEdit::Clear => members.clear(),
            MemberEdit::Remove(ids) => ids.iter().for_each(|id| {
                members.remove(id);
            }),
            MemberEdit::Add(ids) => members.extend(ids.iter().cloned()),
        }
    }
    if members.len() > directory::MAX_MEMBERS {
        let detail = format!("`members`: more than {}", directory::MAX_MEMBERS);
        return Err(ScimError::new(400, Some("tooMany"), detail));
    }
    let is_good = |id: &String| !id.is_empty() && id.len() <= directory::MAX_MEMBER_BYTES;
    if !members.iter().all(is_good) {
        return Err(ScimError::value(format!("`members`: a `value` has 1 to {} bytes", directory::MAX_MEMBER_BYTES)));
    }
    let added = members.difference(&known).cloned().collect();
    Ok((added, known.difference(&members).cloned().collect()))
}

/// Revokes the tokens of a member, if it is a user of the provider: a group may be written before its users.
fn revoke(linker: &Linker<'_>, batch: &mut Batch<'_>, member: &str) -> Result<(), ScimError> {
    let user = Uuid::parse_str(member).ok();
    Ok(user.map(|user| linker.revoke(batch, user)).transpose().map(|_| ())?)
}

/// The answer to a change that would be a lie as a success.
fn unmapped() -> ScimAnswer {
    ScimAnswer::error(400, Some("invalidValue"), "no link maps this user to a token claim")
}

/// Takes the members out of the attributes of a group: they are rows of their own.
fn take_members(kind: ResourceType, attributes: &mut Map<String, Value>) -> Result<Vec<MemberEdit>, ScimError> {
    if kind != ResourceType::Group {
        return Ok(Vec::new());
    }
    let ids = member_ids(attributes.remove("members").as_ref())?;
    Ok(if ids.is_empty() { Vec::new() } else { vec![MemberEdit::Add(ids)] })
}

/// True for a group whose members need new tokens when they leave it.
fn is_watched(provider: &Provider, group: &Stored) -> bool {
    let watched = &provider.settings.watched_groups;
    let is_named = |name: &str| group.text(name).is_some_and(|text| watched.iter().any(|known| known == text));
    provider.settings.revokes_members && (watched.is_empty() || is_named("displayName") || is_named("externalId"))
}

/// Names no user: a change is found by its identifier.
fn log(provider: &Provider, action: &'static str, changed: &Changed<'_>, outcome: Option<Outcome>) {
    let (provider, kind, id) = (&provider.settings.name, changed.kind.name(), changed.id);
    let is_active = changed.after.is_active();
    tracing::info!(provider, kind, %id, action, is_active, "changed by its provider");
    let Some(outcome) = outcome else { return };
    if !outcome.is_mapped {
        tracing::warn!(provider, %id, "no link maps this user to a token claim: disabling it will have no effect");
    }
    if outcome.still_disabled > 0 {
        let keys = outcome.still_disabled;
        tracing::warn!(provider, %id, keys, "the user stays rejected: another user with the same value is inactive or deleted");
    }
}
