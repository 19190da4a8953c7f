//! Preflight requests of CORS (the Fetch standard, section 3.2.5), which browsers send without credentials.

use crate::opa::input::Http;

/// Whether it is one: OPTIONS, with one origin and one method asked for, and nothing that says who sends it.
pub fn is_preflight(http: &Http<'_>) -> bool {
    let once = |name: &str| matches!(http.header_values(name).as_slice(), [value] if !value.is_empty());
    let has = |name: &str| !http.header_values(name).is_empty();
    http.method == "OPTIONS"
        && once("origin")
        && once("access-control-request-method")
        && !has("authorization")
        && !has("cookie")
        && http.payload().is_empty()
}
