//! Requirements of routes, without a line of Rego.
//!
//! Every route that matches counts: the highest level, the shortest age and all scopes are demanded together, so that a
//! further route can only demand more.

use super::challenge::{AUTHENTICATION_TOO_OLD, LEVEL_TOO_LOW};
use super::revocation::RouteRevocation;
use crate::opa::decision::StepUp;
use crate::opa::input::Http;
use crate::token::{SpiffePattern, Verified};
use crate::value::{Key, Members, Value, texts};

/// One entry of `plugins.stepgate.routes`.
#[derive(Clone, Debug)]
pub struct Route {
    /// Hosts without ports, lower case; `*.` stands for any number of labels. Empty: all.
    pub hosts: Vec<String>,
    /// Empty: all. GET stands for HEAD, too.
    pub methods: Vec<String>,
    pub path: PathPattern,
    /// Workloads that need no token here.
    pub peers: Vec<SpiffePattern>,
    pub demand: RouteRequirement,
}

/// A requirement on the caller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteRequirement {
    /// Every one of them must be met: one for each route that names a level or `acr_values`.
    pub levels: Vec<LevelRequirement>,
    /// The greatest age of the authentication, in seconds.
    pub max_age: Option<u64>,
    pub scopes: Vec<String>,
    /// A token is valid for one such request.
    pub single_use: bool,
    /// For each route that names some: the issuers of which one must have given the token.
    pub issuers: Vec<Vec<String>>,
    /// Revocation on this route; `None` is not stated.
    pub revocation: Option<RouteRevocation>,
    /// Unsafe methods must come from a page of the same origin.
    pub same_origin: bool,
    /// A request without a token meets it: every matching route has `same_origin` and nothing else.
    pub allows_anonymous: bool,
}

/// The level that a route requires. One of `acr_values` in the token is as good.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LevelRequirement {
    /// The least `input.authn.level`; 0 where only `acr_values` are named.
    pub level: usize,
    /// The `acr_values` to request; without them, those that the caller's issuer is known to understand.
    pub acr_values: Vec<String>,
}

impl LevelRequirement {
    fn is_met(&self, verified: &Verified) -> bool {
        let is_high = self.level > 0 && verified.authn().level >= self.level;
        is_high || verified.has_acr(&self.acr_values, self.level)
    }
}

/// The shortfall of a caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shortfall {
    /// A token of a configured issuer.
    Token,
    /// A token of another issuer.
    Issuer,
    /// To come from a page of the same origin.
    Origin,
    /// A higher level of authentication.
    Level(StepUp),
    /// A more recent authentication.
    Age(StepUp),
    /// Scopes, and nothing else (RFC 6750 section 3.1).
    Scope(String),
}

/// A path in which `*` stands for one segment and `**` for any number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern(Vec<String>);

impl PathPattern {
    /// Nothing when it does not begin with a slash, or a segment is empty or has a star beside other letters.
    pub fn parse(text: &str) -> Option<Self> {
        let segments: Vec<_> = text.strip_prefix('/')?.split('/').map(str::to_owned).collect();
        let is_plain = |segment: &String| {
            !matches!(segment.as_str(), "" | "." | "..") && !segment.contains(['*', '?', '#', '%', ';', '\\'])
        };
        let is_good = |segment: &String| is_plain(segment) || matches!(segment.as_str(), "*" | "**");
        let (last, others) = segments.split_last()?;
        // A slash at the end means nothing.
        (others.iter().all(is_good) && (last.is_empty() || is_good(last)))
            .then(|| Self(segments.iter().filter(|segment| !segment.is_empty()).cloned().collect()))
    }

    /// Matches a canonical path, with or without a slash at its end.
    pub fn matches(&self, path: &str) -> bool {
        let segments: Vec<_> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        // As shell patterns are matched: the last `**` alone ever needs to be tried again.
        let (mut at, mut from) = (0usize, 0usize);
        let mut again: Option<(usize, usize)> = None;
        loop {
            match (self.0.get(at).map(String::as_str), segments.get(from)) {
                (Some("**"), _) => {
                    again = Some((at, from));
                    at = at.saturating_add(1);
                }
                (None, None) => return true,
                (Some(wanted), Some(&segment)) if wanted == "*" || wanted == segment => {
                    at = at.saturating_add(1);
                    from = from.saturating_add(1);
                }
                _ => match &mut again {
                    Some((star, taken)) if *taken < segments.len() => {
                        *taken = taken.saturating_add(1);
                        (at, from) = (star.saturating_add(1), *taken);
                    }
                    _ => return false,
                },
            }
        }
    }
}

impl Route {
    fn matches(&self, http: &Http<'_>, path: &str) -> bool {
        let is_method = |method: &String| {
            method.eq_ignore_ascii_case(http.method)
                || (method.eq_ignore_ascii_case("GET") && http.method.eq_ignore_ascii_case("HEAD"))
        };
        (self.methods.is_empty() || self.methods.iter().any(is_method))
            && (self.hosts.is_empty() || self.hosts.iter().any(|host| is_host(host, http.host)))
            && self.path.matches(path)
    }
}

/// The demand on a request; nothing when no route matches. `peer` is the workload that sends it without a token: what is demanded of
/// others is not demanded of it, where a route says so.
pub fn demand(routes: &[Route], http: &Http<'_>, path: &str, peer: Option<&str>) -> Option<RouteRequirement> {
    let mut found: Option<RouteRequirement> = None;
    let is_exempt = |route: &Route| peer.is_some_and(|peer| route.peers.iter().any(|pattern| pattern.matches(peer)));
    for route in routes.iter().filter(|route| route.matches(http, path) && !is_exempt(route)) {
        let so_far =
            found.get_or_insert_with(|| RouteRequirement { allows_anonymous: true, ..RouteRequirement::default() });
        for required in &route.demand.levels {
            if !so_far.levels.contains(required) {
                so_far.levels.push(required.clone());
            }
        }
        so_far.allows_anonymous &= route.demand.allows_anonymous;
        so_far.max_age = match (so_far.max_age, route.demand.max_age) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        so_far.single_use |= route.demand.single_use;
        so_far.same_origin |= route.demand.same_origin;
        so_far.revocation = so_far.revocation.max(Some(route.demand.revocation.unwrap_or_default()));
        so_far.issuers.extend(route.demand.issuers.iter().cloned());
        for scope in &route.demand.scopes {
            if !so_far.scopes.contains(scope) {
                so_far.scopes.push(scope.clone());
            }
        }
    }
    found
}

impl Shortfall {
    /// The word for the response, the decision log and the metrics; `None` where the token's state has one.
    pub fn reason(&self) -> Option<&'static str> {
        match self {
            Self::Token | Self::Issuer => None,
            Self::Origin => Some("cross_origin"),
            Self::Level(_) => Some(LEVEL_TOO_LOW),
            Self::Age(_) => Some(AUTHENTICATION_TOO_OLD),
            Self::Scope(_) => Some("insufficient_scope"),
        }
    }

    /// The authentication that would be enough.
    pub fn step_up(&self) -> Option<&StepUp> {
        match self {
            Self::Level(step_up) | Self::Age(step_up) => Some(step_up),
            Self::Token | Self::Issuer | Self::Origin | Self::Scope(_) => None,
        }
    }

    /// Adds it to what the policy asks for.
    pub fn add_to(self, step_up: &mut StepUp) {
        let (more, scope) = match self {
            Self::Token | Self::Issuer | Self::Origin => return,
            Self::Scope(scope) => (None, Some(scope)),
            Self::Level(more) | Self::Age(more) => (Some(more.clone()), more.scope),
        };
        if let Some(more) = more {
            if step_up.acr_values.is_empty() {
                step_up.acr_values = more.acr_values;
            }
            step_up.max_age = match (step_up.max_age, more.max_age) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
        }
        if step_up.scope.is_none() {
            step_up.scope = scope;
        }
    }
}

impl RouteRequirement {
    /// The highest required level.
    pub fn level(&self) -> usize {
        self.levels.iter().map(|required| required.level).max().unwrap_or(0)
    }

    /// The requirement to ask for first, of all or of those that `verified` does not meet: of the highest level, and of those one that
    /// names values.
    pub fn strongest(&self, unmet_by: Option<&Verified>) -> Option<&LevelRequirement> {
        let is_unmet = |required: &&LevelRequirement| unmet_by.is_none_or(|verified| !required.is_met(verified));
        // The first of equals.
        let asked = self.levels.iter().rev().filter(is_unmet);
        asked.max_by_key(|required| (required.level, !required.acr_values.is_empty()))
    }

    /// The shortfall of a caller; `None` when every requirement is met.
    pub fn unmet(&self, verified: Option<&Verified>, now: i64) -> Option<Shortfall> {
        let Some(verified) = verified else { return (!self.allows_anonymous).then_some(Shortfall::Token) };
        if !self.issuers.iter().all(|accepted| accepted.iter().any(|issuer| issuer == verified.issuer())) {
            return Some(Shortfall::Issuer);
        }
        let too_low = self.strongest(Some(verified));
        let age = verified.authn().age_seconds(now).and_then(|age| u64::try_from(age).ok());
        let is_old = self.max_age.is_some_and(|max_age| age.is_none_or(|age| age > max_age));
        let scope = (!self.scopes.iter().all(|scope| verified.has_scope(scope))).then(|| self.scopes.join(" "));
        if too_low.is_none() && !is_old {
            return scope.map(Shortfall::Scope);
        }
        // Level and age together, so that one login is enough.
        let asked = too_low.or_else(|| self.strongest(None)).map(|required| match required.acr_values.as_slice() {
            [] => verified.acr_values(required.level),
            named => named.to_vec(),
        });
        let shortfall = if too_low.is_some() { Shortfall::Level } else { Shortfall::Age };
        let reason = if too_low.is_some() { LEVEL_TOO_LOW } else { AUTHENTICATION_TOO_OLD };
        Some(shortfall(StepUp {
            acr_values: asked.unwrap_or_default(),
            max_age: self.max_age,
            scope,
            description: None,
            reason: Some(reason.to_owned()),
        }))
    }

    /// `input.demand`.
    pub fn document(&self, is_met: bool) -> Value {
        let mut members = Members::default();
        members.put(&LEVEL, Value::from(self.level()));
        if let Some(max_age) = self.max_age {
            members.put(&MAX_AGE, Value::from(max_age));
        }
        members.put(&SCOPES, texts(self.scopes.iter().map(String::as_str)));
        if self.single_use {
            members.put(&SINGLE_USE, Value::Bool(true));
            // The former name, until 0.3.
            members.put(&ONE_USE, Value::Bool(true));
        }
        members.put(&IS_MET, Value::Bool(is_met));
        members.into_value()
    }
}

/// An unsafe request comes from a page of another origin, by the browser's own statement (`Sec-Fetch-Site`, else
/// `Origin`). A request without either does not come from a current browser.
pub fn is_cross_origin(http: &Http<'_>) -> bool {
    let is_upgrade = !http.header_values("upgrade").is_empty();
    if matches!(http.method, "GET" | "HEAD" | "OPTIONS" | "TRACE") && !is_upgrade {
        return false;
    }
    let all = |name: &str, is_own: &dyn Fn(&[u8]) -> bool| http.header_values(name).iter().all(|value| is_own(value));
    if !http.header_values("sec-fetch-site").is_empty() {
        return !all("sec-fetch-site", &|site| matches!(site, b"same-origin" | b"none"));
    }
    !all("origin", &|origin| is_own_origin(origin, http))
}

/// The value of `Origin` is the request's host, with the scheme's own port or without. A page of plain http is another origin (RFC 6454
/// section 4) where the request came over TLS, which Envoy writes to `x-forwarded-proto`.
fn is_own_origin(origin: &[u8], http: &Http<'_>) -> bool {
    let Some((scheme, host)) = std::str::from_utf8(origin).ok().and_then(|origin| origin.split_once("://")) else {
        return false;
    };
    let port = match scheme {
        "https" => ":443",
        "http" if http.header_values("x-forwarded-proto").iter().all(|proto| !proto.eq_ignore_ascii_case(b"https")) => {
            ":80"
        }
        _ => return false,
    };
    let plain = |host: &'_ str| host.strip_suffix(port).unwrap_or(host).to_ascii_lowercase();
    plain(host) == plain(http.host)
}

static LEVEL: Key = crate::key!("level");
static MAX_AGE: Key = crate::key!("max_age");
static SCOPES: Key = crate::key!("scopes");
static SINGLE_USE: Key = crate::key!("single_use");
static ONE_USE: Key = crate::key!("one_use");
static IS_MET: Key = crate::key!("satisfied");

/// Compares the request's host, without port, letter case and trailing dots. A value that is no host name can match
/// any host.
fn is_host(wanted: &str, received: &str) -> bool {
    let name = match received.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => received,
    };
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    if !is_plain_host(&name) {
        return true;
    }
    match wanted.strip_prefix("*.") {
        Some(domain) => name.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.') && rest.len() > 1),
        None => name == wanted,
    }
}

/// A name of labels of letters, digits, dashes and underscores, none of them empty, or an address in brackets, in lower case.
pub fn is_plain_host(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    let is_label = |label: &str| !label.is_empty() && label.bytes().all(is_plain);
    let is_address = |inner: &str| inner.bytes().all(|byte| byte.is_ascii_hexdigit() || b":.".contains(&byte));
    match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => is_address(inner),
        None => name.split('.').all(is_label),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_match_whole() {
        for (pattern, path, want) in [
            ("/", "/", true),
            ("/", "/a", false),
            ("/a", "/a", true),
            ("/a", "/a/", true),
            ("/a/", "/a", true),
            ("/a", "/ab", false),
            ("/a", "/A", false),
            ("/a/*", "/a/b", true),
            ("/a/*", "/a", false),
            ("/a/*", "/a/b/c", false),
            ("/a/**", "/a", true),
            ("/a/**", "/a/b/c", true),
            ("/**", "/", true),
            ("/**/x", "/x", true),
            ("/**/x", "/a/b/x", true),
            ("/**/x", "/a/b/xy", false),
            ("/a/**/b/*/c", "/a/1/b/2/b/3/c", true),
            ("/a/**/b/*/c", "/a/1/b/2/b/c", false),
        ] {
            let parsed = PathPattern::parse(pattern).expect("a pattern");
            assert_eq!(parsed.matches(path), want, "{pattern} {path}");
        }
        for bad in ["", "a", "//", "/a//b", "/a*", "/***", "/a?b", "/a%2fb", "/a#", "/a/./b", "/a/..", "/a;b"] {
            assert_eq!(PathPattern::parse(bad), None, "{bad}");
        }
        let long = "/a".repeat(5_000);
        let nasty = PathPattern::parse(&"/**/a".repeat(50)).expect("a pattern");
        assert!(nasty.matches(&long) && !nasty.matches(&format!("{long}/b")));
    }

    #[test]
    fn hosts_match_however_they_are_spelled() {
        for (wanted, received, want) in [
            ("api.example.com", "api.example.com", true),
            ("api.example.com", "API.example.com:8443", true),
            ("api.example.com", "api.example.com.:80", true),
            ("api.example.com", "xapi.example.com", false),
            ("*.example.com", "a.b.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "badexample.com", false),
            ("*.example.com", ".example.com", true),
            ("api.example.com", ".other.example.com", true),
            ("*.example.com", "a..example.com", true),
            ("[::1]", "[::1]:80", true),
            ("api.example.com", "api.example.com..", true),
            ("api.example.com", "api.example.com:", true),
            ("api.example.com", "other.example.com:80", false),
            ("api.example.com", "x@other.example.com", true),
            ("api.example.com", "other.example.com:+80", true),
            ("api.example.com", "", true),
        ] {
            assert_eq!(is_host(wanted, received), want, "{wanted} {received}");
        }
    }

    fn http(method: &'static str, host: &'static str) -> Http<'static> {
        let mut http = Http::default();
        (http.method, http.host) = (method, host);
        http
    }

    fn route(methods: &[&str], hosts: &[&str], demand: RouteRequirement) -> Route {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        let path = PathPattern::parse("/**").expect("a pattern");
        Route { methods: owned(methods), hosts: owned(hosts), path, peers: Vec::new(), demand }
    }

    #[test]
    fn a_route_is_of_its_methods_and_hosts() {
        for (methods, hosts, method, host, want) in [
            (&[][..], &[][..], "PUT", "a", true),
            (&["POST"][..], &[][..], "post", "a", true),
            (&["POST"][..], &[][..], "PUT", "a", false),
            (&["GET"][..], &[][..], "HEAD", "a", true),
            (&["POST"][..], &[][..], "HEAD", "a", false),
            (&["GET"][..], &[][..], "POST", "a", false),
            (&["GET", "POST"][..], &["a"][..], "POST", "a", true),
            (&["POST"][..], &["a"][..], "POST", "b", false),
            (&[][..], &["b", "a"][..], "POST", "a", true),
        ] {
            let matches = route(methods, hosts, RouteRequirement::default()).matches(&http(method, host), "/x");
            assert_eq!(matches, want, "{methods:?} {hosts:?} {method} {host}");
        }
    }

    #[test]
    fn every_level_requirement_of_a_matching_route_counts() {
        let required = |level, acr: &[&str]| LevelRequirement {
            level,
            acr_values: acr.iter().map(|&acr| acr.to_owned()).collect(),
        };
        let at = |level, acr| {
            route(&[], &[], RouteRequirement { levels: vec![required(level, acr)], ..RouteRequirement::default() })
        };
        for (routes, level, asked) in [
            (vec![at(1, &["low"]), at(2, &["high"])], 2, &["high"][..]),
            (vec![at(2, &["high"]), at(1, &["low"])], 2, &["high"][..]),
            (vec![at(2, &["one"]), at(2, &["other"])], 2, &["one"][..]),
            (vec![at(2, &[]), at(2, &["named"])], 2, &["named"][..]),
            (vec![at(1, &["low"]), at(2, &[])], 2, &[][..]),
            (vec![at(0, &["c1"]), at(0, &["c2"])], 0, &["c1"][..]),
            (vec![at(0, &["c1"]), at(1, &[])], 1, &[][..]),
        ] {
            let demand = demand(&routes, &http("GET", "a"), "/", None).expect("they match");
            assert_eq!(demand.levels.len(), 2, "none replaces another");
            let first = demand.strongest(None).expect("a requirement");
            assert_eq!((demand.level(), &first.acr_values), (level, &required(0, asked).acr_values));
        }
        assert_eq!(demand(&[], &http("GET", "a"), "/", None), None);
    }

    #[test]
    fn a_route_with_same_origin_alone_needs_no_token() {
        let alone = RouteRequirement { same_origin: true, allows_anonymous: true, ..RouteRequirement::default() };
        let unmet = |demands: &[&RouteRequirement]| {
            let routes: Vec<_> = demands.iter().map(|&demand| route(&[], &[], demand.clone())).collect();
            demand(&routes, &http("GET", "a"), "/", None).expect("they match").unmet(None, 0)
        };
        assert_eq!(unmet(&[&alone]), None);
        assert_eq!(unmet(&[&alone, &RouteRequirement::default()]), Some(Shortfall::Token));
        assert_eq!(unmet(&[&RouteRequirement::default(), &alone]), Some(Shortfall::Token));
    }

    #[test]
    fn pages_of_other_origins_are_told_by_their_browsers() {
        for (method, headers, want) in [
            ("POST", &[][..], false),
            ("POST", &[("sec-fetch-site", "same-origin")][..], false),
            ("POST", &[("sec-fetch-site", "none")][..], false),
            ("POST", &[("sec-fetch-site", "same-site")][..], true),
            ("POST", &[("sec-fetch-site", "cross-site"), ("origin", "https://app.test")][..], true),
            ("DELETE", &[("origin", "https://app.test")][..], false),
            ("DELETE", &[("origin", "https://app.test.evil.test")][..], true),
            ("DELETE", &[("origin", "null")][..], true),
            ("DELETE", &[("origin", "https://app.test:443")][..], false),
            ("DELETE", &[("origin", "http://app.test")][..], false),
            ("DELETE", &[("origin", "http://app.test"), ("x-forwarded-proto", "https")][..], true),
            ("DELETE", &[("origin", "x://app.test")][..], true),
            ("GET", &[("sec-fetch-site", "cross-site")][..], false),
            ("GET", &[("sec-fetch-site", "cross-site"), ("upgrade", "websocket")][..], true),
        ] {
            let message = crate::check::tests::message_to(method, "app.test", headers);
            let attributes = crate::opa::input::Attributes::parse(&message).expect("a message");
            let http = attributes.http.as_ref().expect("a request");
            assert_eq!(is_cross_origin(http), want, "{method} {headers:?}");
        }
    }
}
