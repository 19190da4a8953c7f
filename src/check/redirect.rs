//! Sending a person's browser to where it can authenticate, in place of a challenge that it could not read.
//!
//! stepgate is no relying party: the redirect carries nothing that would have to be redeemed here. It says what is asked
//! for, and where to come back to, which is always a place of the configured list.

use url::Url;

use crate::opa::decision::StepUp;
use crate::opa::input::Http;

/// A longer target of the request is not returned to; the browser comes back to the start.
const MAX_TARGET_BYTES: usize = 2_048;

/// `plugins.stepgate.step_up.redirect`.
#[derive(Clone, Debug)]
pub struct Redirect {
    pub login_url: Url,
    /// The query parameter that says where to come back to.
    pub return_parameter: String,
    /// Where it may be, as origins such as `https://app.example.com`.
    pub return_origins: Vec<Url>,
}

impl Redirect {
    /// Where to send this request; nothing unless a browser navigates, with GET, to a place that it may come back to.
    pub fn location(&self, http: &Http<'_>, step_up: &StepUp) -> Option<String> {
        if !is_navigation(http) {
            return None;
        }
        let origin = self.return_origins.iter().find(|origin| is_origin_of(origin, http.host))?;
        let target = if http.path.starts_with('/') && http.path.len() <= MAX_TARGET_BYTES { http.path } else { "/" };
        let back = format!("{}{target}", origin.origin().ascii_serialization());
        let mut url = self.login_url.clone();
        {
            let mut query = url.query_pairs_mut();
            if !step_up.acr_values.is_empty() {
                query.append_pair("acr_values", &step_up.acr_values.join(" "));
            }
            if let Some(max_age) = step_up.max_age {
                query.append_pair("max_age", &max_age.to_string());
            }
            if let Some(scope) = &step_up.scope {
                query.append_pair("scope", scope);
            }
            query.append_pair(&self.return_parameter, &back);
        }
        Some(url.into())
    }
}

/// Whether a browser navigates: it says so itself, or, where it is too old to, asks for a page.
fn is_navigation(http: &Http<'_>) -> bool {
    let one = |name: &str| match http.header_values(name).as_slice() {
        [value] => Some(*value),
        _ => None,
    };
    let has = |name: &str| !http.header_values(name).is_empty();
    let is_page = || {
        one("accept").is_some_and(|accept| {
            accept.split(|&byte| byte == b',').any(|kind| {
                let kind = kind.split(|&byte| byte == b';').next().unwrap_or_default();
                kind.trim_ascii().eq_ignore_ascii_case(b"text/html")
            })
        })
    };
    let says_so = match one("sec-fetch-mode") {
        Some(mode) => mode == b"navigate",
        None => !has("sec-fetch-mode") && is_page(),
    };
    let is_script = one("x-requested-with").is_some_and(|with| with.eq_ignore_ascii_case(b"xmlhttprequest"));
    http.method == "GET" && says_so && !is_script && !has("upgrade") && !has("sec-websocket-key")
}

fn is_origin_of(origin: &Url, host: &str) -> bool {
    let Some(name) = origin.host_str() else { return false };
    let with_port = |port: u16| format!("{name}:{port}");
    match origin.port() {
        Some(port) => host.eq_ignore_ascii_case(&with_port(port)),
        None => {
            host.eq_ignore_ascii_case(name)
                || origin.port_or_known_default().is_some_and(|port| host.eq_ignore_ascii_case(&with_port(port)))
        }
    }
}
