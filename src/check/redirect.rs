//! Redirects of browsers to the login page, where a challenge in a header is of no use.
//!
//! stepgate keeps no session and has no login of its own: the login page belongs to the application, and its answer comes back as a
//! token of its own place. No `state` and no signature is needed: nothing would have to be redeemed here. It says what is asked
//! for, and where to come back to, which is always an origin of the configured list.
//!
//! A provider that never does what is asked would send the browser round for ever. A cookie counts how often the same path demanded more;
//! it is not signed, because changing it only changes when one's own browser stops.

use aws_lc_rs::digest::{SHA256, digest};
use url::Url;

use crate::opa::decision::StepUp;
use crate::opa::input::Http;

/// A longer target of the request is not returned to; the browser comes back to the start.
const MAX_TARGET_BYTES: usize = 2_048;
/// Counts the step-ups for one path in a row; the value has a hash of that path.
const COOKIE: &str = "__Host-stepgate-step-up";
const COOKIE_ATTRIBUTES: &str = "Path=/; Secure; HttpOnly; SameSite=Lax";
/// The lifetime of the cookie, in seconds.
const COOKIE_SECONDS: u64 = 300;
/// Redirects for step-up for one path within that time.
const MAX_STEP_UPS: u32 = 3;

/// `plugins.stepgate.step_up.redirect`.
#[derive(Clone, Debug)]
pub struct Redirect {
    pub login_url: Url,
    /// The query parameter that says where to come back to.
    pub return_parameter: String,
    /// Where it may be, as origins such as `https://app.example.com`.
    pub return_origins: Vec<Url>,
}

/// The answer to a browser in the place of a challenge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Page {
    /// 302, and the value of `Set-Cookie`.
    Login { location: String, cookie: Option<String> },
    /// The end of a loop, as a page for a person, and the value of `Set-Cookie` that begins afresh.
    End { cookie: String },
}

impl Redirect {
    /// The answer to this request; `None` unless a browser navigates, with GET, to an allowed origin. `is_step_up` says
    /// that its token is good and not enough.
    pub fn page(&self, http: &Http<'_>, step_up: &StepUp, is_step_up: bool) -> Option<Page> {
        if !is_navigation(http) {
            return None;
        }
        let origin = self.return_origins.iter().find(|origin| is_origin_of(origin, http.host))?;
        let done = step_ups(http).filter(|(_, path)| *path == hash(http.path)).map_or(0, |(count, _)| count);
        if is_step_up && done >= MAX_STEP_UPS {
            return Some(Self::end());
        }
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
        let count = done.saturating_add(1);
        let value = format!("{count}-{:016x}", hash(http.path));
        let cookie = is_step_up.then(|| format!("{COOKIE}={value}; Max-Age={COOKIE_SECONDS}; {COOKIE_ATTRIBUTES}"));
        Some(Page::Login { location: url.into(), cookie })
    }

    /// The end of a loop for this request, where a browser navigates.
    pub fn end_for(&self, http: &Http<'_>) -> Option<Page> {
        is_navigation(http).then(Self::end)
    }

    fn end() -> Page {
        Page::End { cookie: Self::forgetting() }
    }

    /// The cookie that begins afresh.
    fn forgetting() -> String {
        format!("{COOKIE}=; Max-Age=0; {COOKIE_ATTRIBUTES}")
    }

    /// Ends the count where the browser has counted for this path, which is allowed now.
    pub fn met(&self, http: &Http<'_>) -> Option<String> {
        step_ups(http).filter(|(_, path)| *path == hash(http.path)).map(|_| Self::forgetting())
    }
}

/// The page at the end of a loop. Nothing in it comes from the request.
pub const END_OF_LOOP: &str = "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Signing in did not help</title></head><body>\n\
    <h1>Signing in did not help</h1>\n\
    <p>This page needs a stronger or a more recent sign-in than the one that came back, several times in a row. Signing in again will most\n\
    likely not change that: the identity provider does not give what is asked for.</p>\n\
    <p>Please tell whoever runs this service: <code>step_up_not_satisfiable</code>.</p>\n</body></html>\n";

/// The number of step-ups, and the hash of the path, from the browser's cookie.
fn step_ups(http: &Http<'_>) -> Option<(u32, u64)> {
    let prefix = format!("{COOKIE}=");
    let headers = http.header_values("cookie");
    let mut pairs = headers.into_iter().flat_map(|header| header.split(|byte| matches!(byte, b';' | b',')));
    pairs.find_map(|pair| {
        let value = std::str::from_utf8(pair.trim_ascii()).ok()?.strip_prefix(&prefix)?;
        let (count, path) = value.split_once('-')?;
        Some((count.parse().ok()?, u64::from_str_radix(path, 16).ok()?))
    })
}

/// The same for equal paths, in every process.
fn hash(path: &str) -> u64 {
    let digest = digest(&SHA256, path.as_bytes());
    digest.as_ref().iter().take(8).fold(0, |so_far, &byte| (so_far << 8) | u64::from(byte))
}

/// Recognizes a top-level navigation: by `Sec-Fetch-Mode` and `Sec-Fetch-Dest`, or without them by `Accept`.
fn is_navigation(http: &Http<'_>) -> bool {
    let one = |name: &str| match http.header_values(name).as_slice() {
        [value] => Some(*value),
        _ => None,
    };
    let has = |name: &str| !http.header_values(name).is_empty();
    let says_so = match one("sec-fetch-mode") {
        Some(mode) => mode == b"navigate",
        None => !has("sec-fetch-mode") && one("accept").is_some_and(accepts_page),
    };
    // A frame would show the login inside of another page, and a prefetch is not an action of the user.
    let is_document = !has("sec-fetch-dest") || one("sec-fetch-dest") == Some(b"document");
    let is_ahead =
        ["purpose", "sec-purpose", "x-purpose", "x-moz"].iter().any(|name| one(name).is_some_and(is_speculative));
    let is_script = one("x-requested-with").is_some_and(|with| with.eq_ignore_ascii_case(b"xmlhttprequest"));
    let is_upgrade = has("upgrade") || has("sec-websocket-key");
    http.method == "GET" && says_so && is_document && !is_ahead && !is_script && !is_upgrade
}

/// A request of the browser's own, before anybody wants the page: `prefetch;prerender`, `preview` and their like.
fn is_speculative(purpose: &[u8]) -> bool {
    let purpose = purpose.to_ascii_lowercase();
    ["prefetch", "prerender", "preview"].iter().any(|word| purpose.starts_with(word.as_bytes()))
}

/// `Accept` takes a page: `text/html` with a weight above zero (RFC 9110 section 12.5.1).
fn accepts_page(accept: &[u8]) -> bool {
    accept.split(|&byte| byte == b',').any(|range| {
        let mut parts = range.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
        let is_page = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case(b"text/html"));
        let weight = parts.find_map(|part| {
            let at = part.iter().position(|&byte| byte == b'=')?;
            let (name, value) = part.split_at(at);
            name.trim_ascii().eq_ignore_ascii_case(b"q").then(|| value.to_vec())
        });
        let is_zero = |weight: Vec<u8>| weight.iter().all(|byte| matches!(byte, b'0' | b'.' | b'=' | b' '));
        is_page && !weight.is_some_and(is_zero)
    })
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
