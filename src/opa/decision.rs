//! A policy's result, checked and typed.
//!
//! Mirrors: opa-envoy-plugin `envoyauth/response.go`: the same keys, the same types, the same refusals. Two keys are
//! ours, `step_up` and `reason`; under OPA's dialect they are unknown keys and ignored. Text that could split a header is
//! refused in every dialect, where OPA would pass it on to Envoy.

mod metadata;
mod status;

use crate::value::{Value, as_text};

pub use self::metadata::{Metadata, metadata};
pub use self::status::HttpStatus;

/// Whose keys an object may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// Only OPA's; any other key is ignored.
    Opa,
    /// OPA's, `step_up` and `reason`.
    #[default]
    Stepgate,
}

/// A well-formed decision.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// The bare `true`.
    True,
    /// The bare `false`.
    False,
    Allow(Allow),
    Deny(Deny),
}

/// An object with `allowed: true`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Allow {
    pub headers: Vec<Header>,
    pub response_headers_to_add: Vec<Header>,
    pub request_headers_to_remove: Vec<String>,
    pub query_parameters_to_set: Vec<Header>,
    pub query_parameters_to_remove: Vec<String>,
    pub dynamic_metadata: Option<Metadata>,
    pub reason: Option<String>,
    /// The route requirements do not count.
    pub skip_route_requirements: bool,
}

/// An object with `allowed: false`, or one that asks for a step-up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Deny {
    pub headers: Vec<Header>,
    pub http_status: Option<HttpStatus>,
    pub body: Option<String>,
    pub dynamic_metadata: Option<Metadata>,
    pub step_up: Option<StepUp>,
    pub reason: Option<String>,
}

/// A name and a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub name: String,
    pub value: String,
}

/// The requirements that the caller must meet before the request is allowed (RFC 9470 section 3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepUp {
    /// Authentication context classes, in order of preference; one of them is required.
    pub acr_values: Vec<String>,
    /// The greatest age of the authentication, in seconds.
    pub max_age: Option<u64>,
    pub scope: Option<String>,
    /// A sentence for the person.
    pub description: Option<String>,
    /// A stable word for the client's code.
    pub reason: Option<String>,
}

/// Why a result is not a decision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecisionError {
    #[error("illegal value for policy evaluation result: {0}")]
    Illegal(&'static str),
    #[error("unable to determine evaluation result due to missing \"allowed\" key")]
    NotAllowedKey,
    #[error("type assertion error, expected {key} to be of type '{wanted}' but got '{got}'")]
    Type { key: &'static str, wanted: &'static str, got: &'static str },
    #[error("type assertion error for a value under {0}")]
    Item(&'static str),
    #[error("invalid HTTP status code {0}")]
    Status(String),
    #[error("{0} holds a name or value that no HTTP header can have")]
    HeaderText(&'static str),
    #[error("{0} holds a query parameter that no URL can have")]
    QueryText(&'static str),
    #[error("dynamic_metadata holds a number that no double can hold")]
    MetadataNumber,
    #[error("the answer exceeds {what} ({limit})")]
    Response { what: &'static str, limit: usize },
}

impl DecisionError {
    /// The decision has the right shape, but Envoy could not use the answer to it.
    pub fn is_unusable(&self) -> bool {
        matches!(self, Self::HeaderText(_) | Self::QueryText(_) | Self::Response { .. })
    }
}

impl Decision {
    pub fn is_allow(&self) -> bool {
        matches!(self, Self::True | Self::Allow(_))
    }

    /// It allows whatever the route requires.
    pub fn skips_route_requirements(&self) -> bool {
        matches!(self, Self::Allow(allow) if allow.skip_route_requirements)
    }

    /// Reads the value of the decision's rule.
    pub fn parse(result: &Value, dialect: Dialect) -> Result<Self, DecisionError> {
        match result {
            Value::Bool(true) => Ok(Self::True),
            Value::Bool(false) => Ok(Self::False),
            Value::Object(_) => Keys::of(result, dialect).decision(),
            other => Err(DecisionError::Illegal(type_name(other))),
        }
    }
}

/// The members that mean something, found in one pass.
#[derive(Default)]
struct Keys<'a> {
    allowed: Option<&'a Value>,
    headers: Option<&'a Value>,
    dynamic_metadata: Option<&'a Value>,
    response_headers_to_add: Option<&'a Value>,
    request_headers_to_remove: Option<&'a Value>,
    query_parameters_to_set: Option<&'a Value>,
    query_parameters_to_remove: Option<&'a Value>,
    body: Option<&'a Value>,
    http_status: Option<&'a Value>,
    step_up: Option<&'a Value>,
    reason: Option<&'a Value>,
    skip_route_requirements: Option<&'a Value>,
    /// Its former name, until 0.3.
    ignore_demand: Option<&'a Value>,
    dialect: Dialect,
}

impl<'a> Keys<'a> {
    fn of(result: &'a Value, dialect: Dialect) -> Self {
        let mut keys = Self { dialect, ..Self::default() };
        let Some(object) = result.as_object() else { return keys };
        for (key, value) in object.iter() {
            let slot = match as_text(key) {
                Some("allowed") => &mut keys.allowed,
                Some("headers") => &mut keys.headers,
                Some("dynamic_metadata") => &mut keys.dynamic_metadata,
                Some("response_headers_to_add") => &mut keys.response_headers_to_add,
                Some("request_headers_to_remove") => &mut keys.request_headers_to_remove,
                Some("query_parameters_to_set") => &mut keys.query_parameters_to_set,
                Some("query_parameters_to_remove") => &mut keys.query_parameters_to_remove,
                Some("body") => &mut keys.body,
                Some("http_status") => &mut keys.http_status,
                Some("step_up") if dialect == Dialect::Stepgate => &mut keys.step_up,
                Some("reason") if dialect == Dialect::Stepgate => &mut keys.reason,
                Some("skip_route_requirements") if dialect == Dialect::Stepgate => &mut keys.skip_route_requirements,
                Some("ignore_demand") if dialect == Dialect::Stepgate => &mut keys.ignore_demand,
                _ => continue,
            };
            *slot = Some(value);
        }
        keys
    }

    fn decision(&self) -> Result<Decision, DecisionError> {
        let allowed = match self.allowed {
            None => return Err(DecisionError::NotAllowedKey),
            Some(Value::Bool(allowed)) => *allowed,
            Some(other) => return Err(wrong_type("allowed", "boolean", other)),
        };
        let headers = headers("headers", self.headers)?;
        let dynamic_metadata = self.dynamic_metadata.map(metadata).transpose()?;
        let step_up = self.step_up.map(step_up).transpose()?;
        let reason = optional_text("reason", self.reason)?;
        let flag = |key, value: Option<&Value>| match value {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(wrong_type(key, "boolean", other)),
        };
        let former = flag("ignore_demand", self.ignore_demand)?;
        // Where both names are there, both must say so.
        let skips = flag("skip_route_requirements", self.skip_route_requirements)?;
        let skip_route_requirements =
            (former.is_some() || skips.is_some()) && former != Some(false) && skips != Some(false);

        // `allowed: true` beside `step_up` contradicts itself; the demand for more proof wins.
        if allowed && step_up.is_none() {
            return Ok(Decision::Allow(Allow {
                headers,
                response_headers_to_add: self::headers("response_headers_to_add", self.response_headers_to_add)?,
                request_headers_to_remove: names("request_headers_to_remove", self.request_headers_to_remove)?,
                query_parameters_to_remove: parameter_names(self.query_parameters_to_remove)?,
                query_parameters_to_set: query_parameters(self.query_parameters_to_set)?,
                dynamic_metadata,
                reason,
                skip_route_requirements,
            }));
        }
        Ok(Decision::Deny(Deny {
            headers,
            body: optional_text("body", self.body)?,
            http_status: self.http_status.map(|status| HttpStatus::from_value(status, self.dialect)).transpose()?,
            dynamic_metadata,
            step_up,
            reason,
        }))
    }
}

/// Headers are an object, or an array of objects, from name to a string or a collection of strings.
fn headers(key: &'static str, value: Option<&Value>) -> Result<Vec<Header>, DecisionError> {
    let mut headers = Vec::new();
    match value {
        None => {}
        Some(Value::Array(objects)) => {
            for object in objects.iter() {
                add_pairs(key, object, &mut headers)?;
            }
        }
        Some(object) => add_pairs(key, object, &mut headers)?,
    }
    if headers.iter().all(|header| is_header_name(&header.name) && is_header_value(&header.value)) {
        return Ok(headers);
    }
    Err(DecisionError::HeaderText(key))
}

fn query_parameters(value: Option<&Value>) -> Result<Vec<Header>, DecisionError> {
    let mut pairs = Vec::new();
    if let Some(object) = value {
        add_pairs("query_parameters_to_set", object, &mut pairs)?;
    }
    if pairs.iter().any(|pair| pair.name.chars().chain(pair.value.chars()).any(char::is_control)) {
        return Err(DecisionError::QueryText("query_parameters_to_set"));
    }
    Ok(pairs)
}

fn parameter_names(value: Option<&Value>) -> Result<Vec<String>, DecisionError> {
    let key = "query_parameters_to_remove";
    let names = texts(key, value)?;
    if names.iter().any(|name| name.chars().any(char::is_control)) {
        return Err(DecisionError::QueryText(key));
    }
    Ok(names)
}

fn add_pairs(key: &'static str, object: &Value, pairs: &mut Vec<Header>) -> Result<(), DecisionError> {
    let Value::Object(members) = object else { return Err(wrong_type(key, "object", object)) };
    for (name, value) in members.iter() {
        let name = as_text(name).ok_or(DecisionError::Item(key))?;
        let mut add = |value: &Value| {
            let value = as_text(value).ok_or(DecisionError::Item(key))?.to_owned();
            pairs.push(Header { name: name.to_owned(), value });
            Ok(())
        };
        match items(value) {
            Some(mut values) => values.try_for_each(add)?,
            None => add(value)?,
        }
    }
    Ok(())
}

/// The items of an array or a set.
fn items(value: &Value) -> Option<Box<dyn Iterator<Item = &Value> + '_>> {
    match value {
        Value::Array(items) => Some(Box::new(items.iter())),
        Value::Set(items) => Some(Box::new(items.iter())),
        _ => None,
    }
}

fn texts(key: &'static str, value: Option<&Value>) -> Result<Vec<String>, DecisionError> {
    let Some(value) = value else { return Ok(Vec::new()) };
    let items = items(value).ok_or_else(|| wrong_type(key, "[]string", value))?;
    items.map(|item| as_text(item).map(str::to_owned).ok_or(DecisionError::Item(key))).collect()
}

fn names(key: &'static str, value: Option<&Value>) -> Result<Vec<String>, DecisionError> {
    let names = texts(key, value)?;
    if names.iter().all(|name| is_header_name(name)) { Ok(names) } else { Err(DecisionError::HeaderText(key)) }
}

fn optional_text(key: &'static str, value: Option<&Value>) -> Result<Option<String>, DecisionError> {
    match value {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.to_string())),
        Some(other) => Err(wrong_type(key, "string", other)),
    }
}

fn step_up(value: &Value) -> Result<StepUp, DecisionError> {
    let Value::Object(members) = value else { return Err(wrong_type("step_up", "object", value)) };
    let mut step_up = StepUp::default();
    for (key, value) in members.iter() {
        match as_text(key) {
            Some("acr_values") => step_up.acr_values = texts("step_up.acr_values", Some(value))?,
            Some("max_age") => {
                let age = value.as_i64().and_then(|age| u64::try_from(age).ok());
                let age = age.ok_or_else(|| wrong_type("step_up.max_age", "seconds", value))?;
                step_up.max_age = Some(age);
            }
            Some("scope") => step_up.scope = optional_text("step_up.scope", Some(value))?,
            Some("description") => step_up.description = optional_text("step_up.description", Some(value))?,
            Some("reason") => step_up.reason = optional_text("step_up.reason", Some(value))?,
            // A typo here would weaken the demand without a sign.
            _ => return Err(DecisionError::Item("step_up")),
        }
    }
    Ok(step_up)
}

fn is_header_name(name: &str) -> bool {
    let token = name.strip_prefix(':').unwrap_or(name);
    !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

fn is_header_value(value: &str) -> bool {
    !value.bytes().any(|byte| (byte < 0x20 && byte != b'\t') || byte == 0x7f)
}

fn wrong_type(key: &'static str, wanted: &'static str, got: &Value) -> DecisionError {
    DecisionError::Type { key, wanted, got: type_name(got) }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Set(_) => "set",
        Value::Object(_) => "object",
    }
}

/// The metadata of an object.
#[cfg(test)]
pub fn metadata_for_tests(value: &Value) -> Option<Metadata> {
    metadata::metadata(value).ok()
}

#[cfg(test)]
mod tests;
