//! The HTTP statuses that a decision may name: those that both Go's `net/http` and Envoy's `StatusCode` know.

use super::{DecisionError, Dialect, wrong_type};
use crate::value::Value;

/// An HTTP status that Envoy can send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpStatus(u16);

impl HttpStatus {
    pub const OK: Self = Self(200);
    pub const NO_CONTENT: Self = Self(204);
    pub const FOUND: Self = Self(302);
    pub const BAD_REQUEST: Self = Self(400);
    pub const UNAUTHORIZED: Self = Self(401);
    pub const FORBIDDEN: Self = Self(403);
    pub const CONTENT_TOO_LARGE: Self = Self(413);
    pub const SERVICE_UNAVAILABLE: Self = Self(503);

    pub fn code(self) -> u16 {
        self.0
    }

    /// The status of this code, if both OPA and Envoy accept it. 425 and 451 are among those that they do not; after an answer of 1xx
    /// the client waits for another one.
    pub fn new(code: u16) -> Option<Self> {
        let known = matches!(code,
            200..=208 | 226 | 300..=305 | 307 | 308 | 400..=417 | 421..=424 | 426 | 428 | 429 | 431
            | 500..=508 | 510 | 511);
        known.then_some(Self(code))
    }

    pub(super) fn from_value(value: &Value, dialect: Dialect) -> Result<Self, DecisionError> {
        let Value::Number(number) = value else { return Err(wrong_type("http_status", "number", value)) };
        let code = number.as_i64().and_then(|code| u16::try_from(code).ok());
        // OPA takes 100 for an answer.
        let of_opa = |code: u16| (code == 100 && dialect == Dialect::Opa).then_some(Self(code));
        code.and_then(|code| Self::new(code).or_else(|| of_opa(code)))
            .ok_or_else(|| DecisionError::Status(number.to_string()))
    }
}
