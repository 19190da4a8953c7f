//! Preflight requests of CORS (the Fetch standard, section 3.2.5), which browsers send without credentials.

use crate::opa::input::Http;

/// Headers that no browser sends with a preflight: they carry a credential, a body, or what makes an upstream read another request.
const FOREIGN: &[&str] = &[
    "authorization",
    "content-encoding",
    "content-type",
    "cookie",
    "dpop",
    "http2-settings",
    "proxy-authorization",
    "transfer-encoding",
    "upgrade",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
];
/// Ends of the names of headers for credentials, such as `x-api-key`.
const CREDENTIALS: &[&str] = &["-key", "-token"];

/// Recognizes a preflight: OPTIONS, with one origin and one method asked for, no body, and no credential. `is_token_header` says
/// whether an issuer's tokens come in the header of a name in lower case.
pub fn is_preflight(http: &Http<'_>, is_token_header: impl Fn(&str) -> bool) -> bool {
    let once = |name: &str| matches!(http.header_values(name).as_slice(), [value] if !value.is_empty());
    let is_foreign = |name: &str| {
        let name = name.to_ascii_lowercase();
        FOREIGN.contains(&name.as_str())
            || CREDENTIALS.iter().any(|end| name.ends_with(end))
            || is_token_header(&name)
            || (name == "content-length" && http.header_values(&name).iter().any(|&value| value != b"0"))
    };
    http.method == "OPTIONS"
        && once("origin")
        && once("access-control-request-method")
        && !http.header_names().any(is_foreign)
        && http.payload().is_empty()
}
