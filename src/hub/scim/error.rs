//! Errors in the form of RFC 7644 section 3.12.

use serde_json::{Value, json};

use crate::hub::LedgerError;

const ERROR: &str = "urn:ietf:params:scim:api:messages:2.0:Error";

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ScimError {
    #[error("{detail}")]
    Request { status: u16, scim_type: Option<&'static str>, detail: String },
    /// Nothing has changed: the client has to come again.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl ScimError {
    pub fn new(status: u16, scim_type: Option<&'static str>, detail: impl Into<String>) -> Self {
        Self::Request { status, scim_type, detail: detail.into() }
    }

    /// 400 `invalidValue`.
    pub fn value(detail: impl Into<String>) -> Self {
        Self::new(400, Some("invalidValue"), detail)
    }

    /// 400 `invalidSyntax`.
    pub fn syntax(detail: impl Into<String>) -> Self {
        Self::new(400, Some("invalidSyntax"), detail)
    }

    /// 400 `invalidFilter`.
    pub fn filter(detail: impl Into<String>) -> Self {
        Self::new(400, Some("invalidFilter"), detail)
    }

    /// 400 `invalidPath`.
    pub fn path(detail: impl Into<String>) -> Self {
        Self::new(400, Some("invalidPath"), detail)
    }

    /// 409 `uniqueness`.
    pub fn taken(detail: impl Into<String>) -> Self {
        Self::new(409, Some("uniqueness"), detail)
    }

    pub fn absent(what: &str) -> Self {
        Self::new(404, None, format!("there is no {what}"))
    }
}

/// The body of an error. The status is a string.
pub fn body(status: u16, scim_type: Option<&str>, detail: &str) -> Value {
    let mut body = json!({"schemas": [ERROR], "status": status.to_string(), "detail": detail});
    if let (Some(members), Some(scim_type)) = (body.as_object_mut(), scim_type) {
        members.insert("scimType".to_owned(), scim_type.into());
    }
    body
}

impl From<crate::state::StateError> for ScimError {
    fn from(error: crate::state::StateError) -> Self {
        Self::Ledger(error.into())
    }
}
