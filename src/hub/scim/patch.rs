//! PATCH of RFC 7644 section 3.5.2, in the shapes that Entra and Okta send.

use std::str::FromStr as _;

use scim_v2::filter::{AttrExp, CompValue, CompareOp, PatchPath, ValFilter};
use serde_json::{Map, Value, json};

use super::error::ScimError;
use super::filter::{MAX_FILTER_BYTES, matches_value};
use super::schema::{Attribute, AttributeType, ResourceType, Schemas};

/// Operations of one request.
const MAX_OPERATIONS: usize = 1_000;

/// A change of the members of a group, in the order of the operations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberEdit {
    /// All are removed.
    Clear,
    Add(Vec<String>),
    Remove(Vec<String>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Add,
    Replace,
    Remove,
}

/// The place that an operation changes.
struct Target<'a> {
    /// The extension that has the attribute; `None`: the resource itself.
    extension: Option<&'a str>,
    attribute: &'a Attribute,
    filter: Option<&'a ValFilter>,
    part: Option<&'a Attribute>,
}

/// Applies the operations of a body to the attributes of a resource, and gives what they change of a group's members.
///
/// # Errors
/// An operation is none, or its value is of another type.
pub fn apply(
    schemas: &Schemas,
    kind: ResourceType,
    attributes: &mut Map<String, Value>,
    body: &Map<String, Value>,
) -> Result<Vec<MemberEdit>, ScimError> {
    let member = |members: &Map<String, Value>, wanted: &str| {
        members.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.clone())
    };
    let Some(Value::Array(operations)) = member(body, "Operations") else {
        return Err(ScimError::syntax("`Operations`: expected a list"));
    };
    if operations.is_empty() || operations.len() > MAX_OPERATIONS {
        return Err(ScimError::syntax(format!("`Operations`: expected 1 to {MAX_OPERATIONS}")));
    }
    let mut edits = Vec::new();
    for operation in &operations {
        let Some(operation) = operation.as_object() else {
            return Err(ScimError::syntax("`Operations`: expected objects"));
        };
        let name = member(operation, "op");
        let operator = match name.as_ref().and_then(Value::as_str).map(str::to_ascii_lowercase).as_deref() {
            Some("add") => Operator::Add,
            Some("replace") => Operator::Replace,
            Some("remove") => Operator::Remove,
            _ => return Err(ScimError::syntax("`op`: expected add, replace or remove")),
        };
        let value = member(operation, "value");
        let path = match member(operation, "path") {
            None | Some(Value::Null) => None,
            Some(Value::String(path)) => Some(path).filter(|path| !path.is_empty()),
            Some(_) => return Err(ScimError::path("`path`: expected a string")),
        };
        match (path, value) {
            (Some(path), value) => {
                let Some(parsed) = parse(&path) else {
                    return Err(ScimError::path("`path`: it is no attribute path"));
                };
                change(schemas, kind, attributes, &mut edits, operator, &parsed, value.as_ref(), true)?;
            }
            (None, Some(Value::Object(members))) if operator != Operator::Remove => {
                for (name, value) in expanded(schemas, kind, &members) {
                    let Some(parsed) = parse(&name) else { continue };
                    change(schemas, kind, attributes, &mut edits, operator, &parsed, Some(&value), false)?;
                }
            }
            (None, _) if operator == Operator::Remove => {
                return Err(ScimError::new(400, Some("noTarget"), "`remove` needs a path"));
            }
            (None, _) => return Err(ScimError::syntax("`value`: without a path, expected an object")),
        }
    }
    // Again as a whole: lists have a limit.
    *attributes = schemas.read(kind, attributes)?;
    Ok(edits)
}

fn parse(path: &str) -> Option<PatchPath> {
    if path.len() > MAX_FILTER_BYTES {
        return None;
    }
    PatchPath::from_str(path).ok()
}

/// Members of a value without a path; those of an extension by their whole names.
fn expanded(schemas: &Schemas, kind: ResourceType, members: &Map<String, Value>) -> Vec<(String, Value)> {
    let of_schema = |name: &str| {
        let all = std::iter::once(schemas.of(kind)).chain(schemas.extensions(kind));
        all.map(|schema| &schema.urn).find(|urn| urn.eq_ignore_ascii_case(name)).cloned()
    };
    let mut all = Vec::new();
    for (name, value) in members {
        match (of_schema(name), value) {
            (Some(urn), Value::Object(inner)) => {
                all.extend(inner.iter().map(|(name, value)| (format!("{urn}:{name}"), value.clone())));
            }
            _ => all.push((name.clone(), value.clone())),
        }
    }
    all
}

#[expect(clippy::too_many_arguments, reason = "one operation with its place")]
fn change(
    schemas: &Schemas,
    kind: ResourceType,
    attributes: &mut Map<String, Value>,
    edits: &mut Vec<MemberEdit>,
    operator: Operator,
    path: &PatchPath,
    value: Option<&Value>,
    is_named: bool,
) -> Result<(), ScimError> {
    let (uri, name, filter, part) = match path {
        PatchPath::Attr(path) => (path.uri.as_deref(), &path.name, None, path.sub_attr.as_deref()),
        PatchPath::Value(path) => {
            (path.attr.uri.as_deref(), &path.attr.name, Some(&path.filter), path.sub_attr.as_deref())
        }
    };
    // Attributes that are not kept are accepted and dropped.
    let Some((schema, attribute)) = schemas.find(kind, uri, name) else { return Ok(()) };
    if attribute.is_read_only {
        return match is_named {
            true => Err(ScimError::new(400, Some("mutability"), format!("`{}` cannot be changed", attribute.name))),
            false => Ok(()),
        };
    }
    let part = match part {
        None => None,
        Some(part) => match attribute.part(part) {
            Some(part) => Some(part),
            None => return Ok(()),
        },
    };
    if filter.is_some() && attribute.many.is_none() {
        return Err(ScimError::path(format!("`{}` is no list", attribute.name)));
    }
    let is_own = *schema == *schemas.of(kind);
    let extension = (!is_own).then_some(schema.urn.as_str());
    let target = Target { extension, attribute, filter, part };
    if kind == ResourceType::Group && attribute.name == "members" {
        return change_members(&target, operator, value, edits);
    }
    // `active` that is taken away is false: nothing enables by accident.
    let is_gone = operator == Operator::Remove || matches!(value, None | Some(Value::Null));
    if is_own && attribute.name == "active" && is_gone {
        attributes.insert("active".to_owned(), json!(false));
        return Ok(());
    }
    let holder = match target.extension {
        None => attributes,
        Some(urn) => match attributes.entry(urn).or_insert_with(|| json!({})) {
            Value::Object(members) => members,
            _ => return Ok(()),
        },
    };
    let operator = if is_gone { Operator::Remove } else { operator };
    let changed = changed(&target, operator, holder.get(&attribute.name), value)?;
    match changed {
        Some(value) => holder.insert(attribute.name.clone(), value),
        None => holder.remove(&attribute.name),
    };
    Ok(())
}

/// The value of an attribute after an operation.
fn changed(
    target: &Target<'_>,
    operator: Operator,
    known: Option<&Value>,
    value: Option<&Value>,
) -> Result<Option<Value>, ScimError> {
    let attribute = target.attribute;
    let given = value.unwrap_or(&Value::Null);
    match (&attribute.kind, attribute.many) {
        (AttributeType::Complex(_), None) => Ok(match (target.part, operator) {
            (None, Operator::Remove) => None,
            (None, _) => merged(known, attribute.read(given)?),
            (Some(part), _) => with_part(known, part, given)?,
        }),
        (AttributeType::Complex(_), Some(_)) => {
            changed_list(target, operator, known.and_then(Value::as_array).cloned().unwrap_or_default(), given)
        }
        _ if operator == Operator::Remove => Ok(None),
        _ => attribute.read(given),
    }
}

/// An object with the members of another, over its own.
fn merged(known: Option<&Value>, given: Option<Value>) -> Option<Value> {
    let mut members = known.and_then(Value::as_object).cloned().unwrap_or_default();
    members.extend(given.as_ref().and_then(Value::as_object).cloned().unwrap_or_default());
    (!members.is_empty()).then_some(Value::Object(members))
}

/// An object with one member set; null takes it away.
fn with_part(known: Option<&Value>, part: &Attribute, given: &Value) -> Result<Option<Value>, ScimError> {
    let mut members = known.and_then(Value::as_object).cloned().unwrap_or_default();
    match part.read(given)? {
        Some(value) => members.insert(part.name.clone(), value),
        None => members.remove(&part.name),
    };
    Ok((!members.is_empty()).then_some(Value::Object(members)))
}

fn changed_list(
    target: &Target<'_>,
    operator: Operator,
    mut items: Vec<Value>,
    given: &Value,
) -> Result<Option<Value>, ScimError> {
    let attribute = target.attribute;
    if target.filter.is_none() && target.part.is_none() {
        let read = attribute.read(given)?;
        let read: Vec<Value> = read.as_ref().and_then(Value::as_array).cloned().unwrap_or_default();
        match operator {
            // With values, as Entra sends it, these alone are removed.
            Operator::Remove if read.is_empty() => items.clear(),
            Operator::Remove => items.retain(|item| !read.iter().any(|gone| is_same_value(gone, item))),
            Operator::Replace => items = read,
            Operator::Add => {
                let is_known = |items: &[Value], new: &Value| items.contains(new);
                for new in read {
                    if !is_known(&items, &new) {
                        items.push(new);
                    }
                    attribute.check_count(items.len())?;
                }
            }
        }
        return Ok(as_list(items));
    }
    let mut selected = Vec::with_capacity(items.len());
    for item in &items {
        selected.push(match target.filter {
            Some(filter) => matches_value(filter, attribute, item)?,
            None => true,
        });
    }
    if operator != Operator::Remove && !selected.contains(&true) {
        // An address that is replaced before there was one, as Entra sends it.
        let Some(new) = described(target.filter, attribute) else {
            return Err(ScimError::new(400, Some("noTarget"), format!("no value of `{}` matches", attribute.name)));
        };
        items.push(new);
        attribute.check_count(items.len())?;
        selected.push(true);
    }
    let mut kept = Vec::with_capacity(items.len());
    for (item, is_selected) in items.into_iter().zip(selected) {
        let changed = match (is_selected, target.part, operator) {
            (false, ..) => Some(item),
            (true, None, Operator::Remove) => None,
            (true, None, _) => {
                let read = attribute.read(given)?;
                let first = read.as_ref().and_then(Value::as_array).and_then(|read| read.first()).cloned();
                merged(Some(&item), first)
            }
            (true, Some(part), _) => with_part(Some(&item), part, given)?,
        };
        kept.extend(changed);
    }
    Ok(as_list(kept))
}

fn as_list(items: Vec<Value>) -> Option<Value> {
    (!items.is_empty()).then_some(Value::Array(items))
}

fn is_same_value(one: &Value, other: &Value) -> bool {
    one.get("value").is_some() && one.get("value") == other.get("value")
}

/// The element that a filter in brackets describes: `type eq "work"`, or several of these with `and`.
fn described(filter: Option<&ValFilter>, attribute: &Attribute) -> Option<Value> {
    let mut members = Map::new();
    let conditions = match filter {
        None => return Some(json!({})),
        Some(ValFilter::And(operands)) => operands.iter().collect(),
        Some(one) => vec![one],
    };
    for condition in conditions {
        let ValFilter::Attr(AttrExp::Comparison(path, CompareOp::Eq, value)) = condition else { return None };
        let part = attribute.part(&path.name)?;
        let value = match value {
            CompValue::Str(text) => json!(text),
            CompValue::True => json!(true),
            CompValue::False => json!(false),
            CompValue::Null | CompValue::Number(_) => return None,
        };
        members.insert(part.name.clone(), value);
    }
    Some(Value::Object(members))
}

fn change_members(
    target: &Target<'_>,
    operator: Operator,
    value: Option<&Value>,
    edits: &mut Vec<MemberEdit>,
) -> Result<(), ScimError> {
    if let Some(filter) = target.filter {
        let Some(ids) = ids_of(filter).filter(|_| operator == Operator::Remove) else {
            return Err(ScimError::filter("`members`: expected `remove` of `value eq \"…\"`, alone or with `or`"));
        };
        edits.push(MemberEdit::Remove(ids));
        return Ok(());
    }
    let read = target.attribute.read(value.unwrap_or(&Value::Null))?;
    let ids = member_ids(read.as_ref())?;
    match operator {
        // RFC 7644 removes all; with values, as Entra sends it, these alone.
        Operator::Remove if ids.is_empty() => edits.push(MemberEdit::Clear),
        Operator::Remove => edits.push(MemberEdit::Remove(ids)),
        Operator::Add => edits.push(MemberEdit::Add(ids)),
        Operator::Replace => edits.extend([MemberEdit::Clear, MemberEdit::Add(ids)]),
    }
    Ok(())
}

/// The identifiers in a list of members.
///
/// # Errors
/// A member has none.
pub fn member_ids(members: Option<&Value>) -> Result<Vec<String>, ScimError> {
    let members = members.and_then(Value::as_array).into_iter().flatten();
    let id = |member: &Value| member.get("value").and_then(Value::as_str).map(str::to_owned);
    members.map(|member| id(member).ok_or_else(|| ScimError::value("`members`: a member has no `value`"))).collect()
}

/// The identifiers that a filter names.
fn ids_of(filter: &ValFilter) -> Option<Vec<String>> {
    match filter {
        ValFilter::Attr(AttrExp::Comparison(path, CompareOp::Eq, CompValue::Str(id)))
            if path.name.eq_ignore_ascii_case("value") =>
        {
            Some(vec![id.clone()])
        }
        ValFilter::Or(operands) => {
            let each: Option<Vec<_>> = operands.iter().map(ids_of).collect();
            each.map(|each| each.concat())
        }
        ValFilter::Attr(_) | ValFilter::Not(_) | ValFilter::And(_) => None,
    }
}
