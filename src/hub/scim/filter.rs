//! Filters of RFC 7644 section 3.4.2.2: what they match, and the index that finds it.

use std::cmp::Ordering;
use std::str::FromStr as _;
use std::sync::LazyLock;

use regex::Regex;
use scim_v2::filter::{AttrExp, AttrPath, CompValue, CompareOp, ValFilter};
use serde_json::Value;

use super::error::ScimError;
use super::schema::{Attribute, AttributeType, ResourceType, Schemas};
use crate::clock::from_rfc3339;

/// Bytes of a filter or path.
pub const MAX_FILTER_BYTES: usize = 4 << 10;

/// A condition on a part of the elements that brackets select.
static AFTER_BRACKETS: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let value = r#""(?:[^"\\]|\\.)*"|true|false|null"#;
    let pattern =
        format!(r#"(?i)([a-z][\w:.-]*)\[([^\[\]]*)\]\.([a-z]\w* (?:eq|ne|co|sw|ew|gt|ge|lt|le) (?:{value}))"#);
    Regex::new(&pattern).ok()
});

/// A filter that was read.
#[derive(Clone, Debug)]
pub struct Filter {
    expression: scim_v2::filter::Filter,
    /// In small letters.
    text: String,
}

/// A condition that an index answers: the attribute, under its own name, and the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Indexed {
    pub attribute: String,
    pub value: String,
}

impl Filter {
    /// # Errors
    /// It is none, too long or too deep.
    pub fn parse(text: &str) -> Result<Self, ScimError> {
        if text.len() > MAX_FILTER_BYTES {
            return Err(ScimError::filter(format!("the filter has more than {MAX_FILTER_BYTES} bytes")));
        }
        let parsed = scim_v2::filter::Filter::from_str(text).or_else(|error| {
            // As Entra writes them: `emails[type eq "work"].value eq "x"`, which the grammar has only for paths.
            let within = AFTER_BRACKETS.as_ref().map(|form| form.replace_all(text, "$1[($2) and $3]"));
            match within.filter(|within| within != text) {
                None => Err(error),
                Some(within) => scim_v2::filter::Filter::from_str(&within),
            }
        });
        let expression =
            parsed.map_err(|error| ScimError::filter(format!("`filter`: {}", one_line(&error.to_string()))))?;
        Ok(Self { expression, text: text.to_lowercase() })
    }

    /// True for a resource, as it is answered, that has what the filter asks for.
    ///
    /// # Errors
    /// It compares what has no order.
    pub fn matches(&self, schemas: &Schemas, kind: ResourceType, resource: &Value) -> Result<bool, ScimError> {
        matches(&self.expression, schemas, kind, resource)
    }

    /// True for a filter that may read an attribute, named in small letters.
    pub fn reads(&self, name: &str) -> bool {
        self.text.contains(name)
    }

    /// A condition that every match fulfils and that an index answers.
    pub fn indexed(&self, schemas: &Schemas, kind: ResourceType) -> Option<Indexed> {
        indexed(&self.expression, schemas, kind)
    }
}

/// The first line of a parser's message, without the text of the filter.
fn one_line(message: &str) -> &str {
    message.lines().next().unwrap_or_default()
}

fn indexed(filter: &scim_v2::filter::Filter, schemas: &Schemas, kind: ResourceType) -> Option<Indexed> {
    use scim_v2::filter::Filter::{And, Attr, Not, Or, ValuePath};
    let condition = |path: &AttrPath, part: Option<&str>, operator: &CompareOp, value: &CompValue| {
        let (_, attribute) = schemas.find(kind, path.uri.as_deref(), &path.name)?;
        let (CompareOp::Eq, CompValue::Str(value)) = (operator, value) else { return None };
        // The value of a list is its part of that name.
        let part = part.or(path.sub_attr.as_deref()).unwrap_or("value");
        let is_whole = attribute.parts().is_empty() || part.eq_ignore_ascii_case("value");
        is_whole.then(|| Indexed { attribute: attribute.name.clone(), value: value.clone() })
    };
    match filter {
        Attr(AttrExp::Comparison(path, operator, value)) => condition(path, None, operator, value),
        And(operands) => operands.iter().find_map(|operand| indexed(operand, schemas, kind)),
        ValuePath(path) => match &*path.filter {
            ValFilter::Attr(AttrExp::Comparison(part, operator, value)) => {
                condition(&path.attr, Some(&part.name), operator, value)
            }
            ValFilter::And(operands) => operands.iter().find_map(|operand| match operand {
                ValFilter::Attr(AttrExp::Comparison(part, operator, value)) => {
                    condition(&path.attr, Some(&part.name), operator, value)
                }
                _ => None,
            }),
            _ => None,
        },
        Attr(AttrExp::Present(_)) | Not(_) | Or(_) => None,
    }
}

fn matches(
    filter: &scim_v2::filter::Filter,
    schemas: &Schemas,
    kind: ResourceType,
    resource: &Value,
) -> Result<bool, ScimError> {
    use scim_v2::filter::Filter::{And, Attr, Not, Or, ValuePath};
    let found = |path: &AttrPath| {
        let (schema, attribute) = schemas.find(kind, path.uri.as_deref(), &path.name)?;
        let is_own = *schema == *schemas.of(kind);
        let holder = if is_own { Some(resource) } else { resource.get(&schema.urn) };
        Some((attribute, holder.and_then(|holder| holder.get(&attribute.name))))
    };
    Ok(match filter {
        Attr(expression) => {
            let path = path_of(expression);
            let Some((attribute, value)) = found(path) else { return Ok(is_true_of_nothing(expression)) };
            match (attribute.parts(), path.sub_attr.as_deref()) {
                ([], _) => is_met(expression, attribute, value)?,
                (_, part) => {
                    let Some(part) = attribute.part(part.unwrap_or("value")) else {
                        // The attribute as a whole is there, or not.
                        return Ok(is_met(expression, attribute, value)? && path.sub_attr.is_none());
                    };
                    any(value, expression, |item| is_met(expression, part, item.get(&part.name)))?
                }
            }
        }
        ValuePath(path) => match found(&path.attr) {
            Some((attribute, Some(value))) => {
                let items = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
                let each = items.iter().map(|item| matches_value(&path.filter, attribute, item));
                each.collect::<Result<Vec<_>, _>>()?.contains(&true)
            }
            _ => false,
        },
        Not(inner) => !matches(inner, schemas, kind, resource)?,
        And(operands) => {
            for operand in operands.iter() {
                if !matches(operand, schemas, kind, resource)? {
                    return Ok(false);
                }
            }
            true
        }
        Or(operands) => {
            for operand in operands.iter() {
                if matches(operand, schemas, kind, resource)? {
                    return Ok(true);
                }
            }
            false
        }
    })
}

/// True for an element of a list that has what a filter in brackets asks for.
///
/// # Errors
/// It compares what has no order.
pub fn matches_value(filter: &ValFilter, attribute: &Attribute, item: &Value) -> Result<bool, ScimError> {
    let all = |operands: &[ValFilter]| {
        operands.iter().map(|operand| matches_value(operand, attribute, item)).collect::<Result<Vec<_>, _>>()
    };
    Ok(match filter {
        ValFilter::Attr(expression) => match attribute.part(&path_of(expression).name) {
            Some(part) => is_met(expression, part, item.get(&part.name))?,
            None => is_true_of_nothing(expression),
        },
        ValFilter::Not(inner) => !matches_value(inner, attribute, item)?,
        ValFilter::And(operands) => !all(operands)?.contains(&false),
        ValFilter::Or(operands) => all(operands)?.contains(&true),
    })
}

fn path_of(expression: &AttrExp) -> &AttrPath {
    match expression {
        AttrExp::Present(path) | AttrExp::Comparison(path, ..) => path,
    }
}

/// True where there is no value.
fn is_true_of_nothing(expression: &AttrExp) -> bool {
    match expression {
        AttrExp::Present(_) => false,
        AttrExp::Comparison(_, CompareOp::Eq, value) => *value == CompValue::Null,
        AttrExp::Comparison(_, CompareOp::Ne, value) => *value != CompValue::Null,
        AttrExp::Comparison(..) => false,
    }
}

/// True if one of the values fulfils it.
fn any(
    value: Option<&Value>,
    expression: &AttrExp,
    is_met: impl Fn(&Value) -> Result<bool, ScimError>,
) -> Result<bool, ScimError> {
    match value {
        None => Ok(is_true_of_nothing(expression)),
        Some(Value::Array(items)) => Ok(items.iter().map(is_met).collect::<Result<Vec<_>, _>>()?.contains(&true)),
        Some(one) => is_met(one),
    }
}

fn is_met(expression: &AttrExp, attribute: &Attribute, value: Option<&Value>) -> Result<bool, ScimError> {
    let Some(value) = value else { return Ok(is_true_of_nothing(expression)) };
    let (operator, wanted) = match expression {
        AttrExp::Present(_) => return Ok(true),
        AttrExp::Comparison(_, operator, wanted) => (operator, wanted),
    };
    let wrong = |message: &str| Err(ScimError::filter(format!("`{}`: {message}", attribute.name)));
    match (value, wanted) {
        (_, CompValue::Null) => Ok(*operator == CompareOp::Ne),
        (Value::Bool(value), CompValue::True | CompValue::False) => {
            let is_same = *value == (*wanted == CompValue::True);
            match operator {
                CompareOp::Eq => Ok(is_same),
                CompareOp::Ne => Ok(!is_same),
                _ => wrong("true and false have no order"),
            }
        }
        (Value::Bool(_), CompValue::Str(text)) if text.parse::<bool>().is_ok() => {
            wrong("true and false are written without quotation marks")
        }
        (Value::String(value), CompValue::Str(wanted)) if attribute.kind == AttributeType::DateTime => {
            let (Some(value), Some(wanted)) = (from_rfc3339(value), from_rfc3339(wanted)) else {
                return wrong("expected a time such as 2026-01-31T12:00:00Z");
            };
            ordered(operator, value.cmp(&wanted)).map_or_else(|| wrong("times are compared as a whole"), Ok)
        }
        (Value::String(value), CompValue::Str(wanted)) => {
            let fold = |text: &str| if attribute.is_case_exact { text.to_owned() } else { text.to_lowercase() };
            let (value, wanted) = (fold(value), fold(wanted));
            Ok(match operator {
                CompareOp::Co => value.contains(&wanted),
                CompareOp::Sw => value.starts_with(&wanted),
                CompareOp::Ew => value.ends_with(&wanted),
                _ => ordered(operator, value.cmp(&wanted)).unwrap_or(false),
            })
        }
        // Values of different types differ, and have no order.
        _ => Ok(*operator == CompareOp::Ne),
    }
}

/// True if the comparison holds; `None` for one of parts of a text.
fn ordered(operator: &CompareOp, order: Ordering) -> Option<bool> {
    Some(match operator {
        CompareOp::Eq => order.is_eq(),
        CompareOp::Ne => order.is_ne(),
        CompareOp::Gt => order.is_gt(),
        CompareOp::Ge => order.is_ge(),
        CompareOp::Lt => order.is_lt(),
        CompareOp::Le => order.is_le(),
        CompareOp::Co | CompareOp::Sw | CompareOp::Ew => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ENTERPRISE: &str = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User";

    #[test]
    fn filters_match_as_the_standard_says() {
        let schemas = Schemas::new(&[format!("{ENTERPRISE}:employeeNumber")]);
        let ada = json!({
            "id": "1", "userName": "Ada", "externalId": "E1", "active": true,
            "name": {"givenName": "Ada"},
            "emails": [{"type": "work", "value": "ada@example.com"}, {"type": "home", "value": "ada@home.example"}],
            "meta": {"created": "2026-01-31T12:00:00Z"},
            (ENTERPRISE): {"employeeNumber": "17"},
        });
        for (text, want) in [
            ("userName eq \"ada\"", true),
            ("USERNAME EQ \"ADA\"", true),
            ("externalId eq \"e1\"", false),
            ("externalId eq \"E1\"", true),
            ("userName ne \"ada\"", false),
            ("userName co \"d\" and userName sw \"a\" and userName ew \"A\"", true),
            ("userName gt \"abc\"", true),
            ("active eq true", true),
            ("active eq false or name.givenName eq \"ada\"", true),
            ("not (active eq false)", true),
            ("emails eq \"ADA@example.com\"", true),
            ("emails.value ew \"home.example\"", true),
            ("emails[type eq \"work\"].value eq \"x\"", false),
            ("emails[type eq \"work\"].value eq \"ada@example.com\" and active eq true", true),
            ("emails[type eq \"home\"].value eq \"ada@example.com\"", false),
            ("emails[type eq \"work\" and value co \"example\"]", true),
            ("emails[type eq \"work\" and value co \"home\"]", false),
            ("emails pr and not (displayName pr)", true),
            ("displayName eq null", true),
            ("userName eq null", false),
            ("nothing eq \"x\"", false),
            ("nothing ne \"x\"", true),
            ("meta.created gt \"2026-01-31T12:59:00+01:00\"", true),
            ("meta.created lt \"2026-01-31T12:00:00Z\"", false),
            ("urn:ietf:params:scim:schemas:core:2.0:User:userName eq \"ada\"", true),
            ("urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:employeeNumber eq \"17\"", true),
        ] {
            let found = Filter::parse(text).and_then(|filter| filter.matches(&schemas, ResourceType::User, &ada));
            assert_eq!(found.ok(), Some(want), "{text}");
        }
        for text in ["active gt true", "meta.created eq \"yesterday\"", "active eq \"true\""] {
            let filter = Filter::parse(text).expect("it is a filter");
            filter.matches(&schemas, ResourceType::User, &ada).expect_err(text);
        }
        let deep = format!("{}userName pr{}", "(".repeat(100), ")".repeat(100));
        let long = format!("userName eq \"{}\"", "x".repeat(MAX_FILTER_BYTES));
        for text in ["", "userName", "userName eq", "userName is \"x\"", "userName eq \"x\" and", &deep, &long] {
            let error = Filter::parse(text).expect_err(text);
            assert!(matches!(error, ScimError::Request { status: 400, scim_type: Some("invalidFilter"), .. }));
        }
    }

    #[test]
    fn an_index_finds_what_every_match_has() {
        let schemas = Schemas::new(&[]);
        let of = |text: &str, kind| {
            let found = Filter::parse(text).expect("a filter").indexed(&schemas, kind);
            found.map(|found| format!("{}={}", found.attribute, found.value))
        };
        for (text, want) in [
            ("userName eq \"Ada\"", Some("userName=Ada")),
            ("active eq true and USERNAME eq \"Ada\"", Some("userName=Ada")),
            ("emails.value eq \"a\"", Some("emails=a")),
            ("emails[value eq \"a\"]", Some("emails=a")),
            ("emails[type eq \"work\"].value eq \"a\"", Some("emails=a")),
            ("emails.type eq \"a\"", None),
            ("userName eq \"a\" or userName eq \"b\"", None),
            ("not (userName eq \"a\")", None),
            ("userName sw \"a\"", None),
            ("userName pr", None),
        ] {
            assert_eq!(of(text, ResourceType::User).as_deref(), want, "{text}");
        }
        assert_eq!(of("members eq \"u\"", ResourceType::Group).as_deref(), Some("members=u"));
    }
}
