//! One event of the decision log: made of a decision, masked by the policy that decided, and cleared of credentials.
//!
//! Mirrors: OPA `v1/plugins/logs/{plugin,mask}.go`, v1.19.0. What differs, on purpose: a rule of a mask that names no part of the
//! event is skipped, and a mask that cannot be evaluated erases everything, where OPA drops the event.

use std::time::Duration;

use super::DecisionLogSettings;
use super::secrets::{Secrets, is_credential};
use crate::clock::{nanoseconds, rfc3339};
use crate::decision_queue::Record;
use crate::decision_queue::metrics::{LogMetrics, LogOutcome};
use crate::policy::Snapshot;
use crate::telemetry::Context;
use crate::value::{Members, Value, as_text, items, json_text, texts, with_at, without};

/// The time limit of a mask or a drop rule.
const BUDGET: Duration = Duration::from_millis(100);
/// Parts of an event that masks may name.
const MASKABLE: [&str; 3] = ["input", "result", "nd_builtin_cache"];
/// Claims that say nothing about a person.
const PLAIN_CLAIMS: [&str; 12] =
    ["acr", "amr", "aud", "auth_time", "azp", "client_id", "exp", "iat", "iss", "nbf", "scope", "token_use"];
/// Headers with a path or a URL in them.
const ADDRESS_HEADERS: [&str; 6] =
    [":path", "referer", "x-envoy-original-path", "x-forwarded-uri", "x-original-uri", "x-original-url"];

/// Makes events.
pub struct Events<'a> {
    pub settings: &'a DecisionLogSettings,
    pub metrics: &'a LogMetrics,
}

/// One rule of a mask.
struct Rule {
    path: Vec<String>,
    /// The new value of the part; `None` removes it.
    value: Option<Value>,
}

impl Events<'_> {
    /// The event in JSON; nothing when the policy does not want it logged.
    pub fn make(&self, record: &Record) -> Option<String> {
        let mut event = Event::of(record, self.settings);
        if let Some(snapshot) = &record.snapshot {
            let view = event.view();
            if matches!(snapshot.ask(&self.settings.drop, &view, BUDGET), Ok(Some(Value::Bool(true)))) {
                return None;
            }
            self.mask(snapshot, &view, &mut event);
        }
        // After the mask, and before names of persons are hashed.
        let mut custom = event.custom(record);
        let mut error = record.error.as_deref();
        if self.settings.redact {
            let secrets = Secrets { token_headers: &self.settings.token_headers };
            event.redact(secrets);
            event.erased.extend(custom.redact(secrets));
            // Errors quote what they are about.
            let is_secret = |error: &str| is_credential(error) || error.split(['`', '"', '\'']).any(is_credential);
            if error.is_some_and(is_secret) {
                error = Some("it is about a credential");
                event.erased.push("/error/message".to_owned());
            }
        }
        Some(event.finish(record, error, custom))
    }

    fn mask(&self, snapshot: &Snapshot, view: &Value, event: &mut Event) {
        match snapshot.ask(&self.settings.mask, view, BUDGET) {
            Ok(None) => {}
            Ok(Some(rules)) if !matches!(rules, Value::Array(_) | Value::Set(_)) => {
                tracing::error!("the mask is neither a set nor an array; the event is erased");
                self.erase_all(event);
            }
            Ok(Some(rules)) => {
                for rule in items(&rules) {
                    match Rule::parse(rule) {
                        Some(rule) => event.apply(rule),
                        None => self.metrics.logged(LogOutcome::BadMaskRule, 1),
                    }
                }
            }
            Err(error) => {
                tracing::error!(error = %error, "the mask cannot be evaluated; the event is erased");
                self.erase_all(event);
            }
        }
    }

    /// Contains nothing that a failed mask was meant to erase.
    fn erase_all(&self, event: &mut Event) {
        self.metrics.logged(LogOutcome::BadMaskRule, 1);
        for part in MASKABLE {
            event.apply(Rule { path: vec![part.to_owned()], value: None });
        }
    }
}

/// An input or a result, by its name in events, as the log would show it without any mask: without credentials and names
/// of persons.
pub fn redacted(name: &'static str, value: &Value) -> Value {
    let members = [(name, value.clone())].into_iter().collect();
    let mut event = Event { members, erased: Vec::new(), masked: Vec::new() };
    event.redact(Secrets { token_headers: &[] });
    event.at(&[name]).cloned().unwrap_or_default()
}

impl Rule {
    /// A path to remove, or an object with `op`, `path` and `value`.
    fn parse(rule: &Value) -> Option<Self> {
        let (path, value) = match rule {
            Value::String(path) => (&**path, None),
            rule => {
                let path = as_text(rule.member("path")?)?;
                match rule.member("op").and_then(as_text) {
                    Some("upsert") => (path, Some(rule.member("value").cloned().unwrap_or_default())),
                    // A rule that is meant to hide something does, even when it is spelled wrongly.
                    _ => (path, None),
                }
            }
        };
        // `~1` names a key with a `/` in it (RFC 6901 section 4).
        let part = |part: &str| part.replace("~1", "/").replace("~0", "~");
        // A rule that is meant to hide something does, even without its slash or as a reference with dots.
        let path: Vec<String> = match path.strip_prefix('/') {
            Some(pointer) => pointer.split('/').map(part).collect(),
            None if path.contains('/') => path.split('/').map(part).collect(),
            None => path.split('.').map(str::to_owned).collect(),
        };
        MASKABLE.contains(&path.first()?.as_str()).then_some(Self { path, value })
    }
}

/// An event under construction.
struct Event {
    members: Value,
    erased: Vec<String>,
    masked: Vec<String>,
}

impl Event {
    fn of(record: &Record, settings: &DecisionLogSettings) -> Self {
        let mut members = Members::default();
        let text = |name: &str, text: &str, members: &mut Members| members.put_text(name, Value::from(text));
        let labels = settings.labels.iter().map(|(name, label)| (name.as_str(), Value::from(label.as_str())));
        members.put_text("labels", labels.collect());
        text("decision_id", &record.decision_id, &mut members);
        match &record.asked {
            None => text("path", &settings.path, &mut members),
            Some(asked) => {
                for (name, value) in [("path", &asked.path), ("query", &asked.query)] {
                    value.iter().for_each(|value| text(name, value, &mut members));
                }
                text("requested_by", &asked.by, &mut members);
                members.put_text("req_id", Value::Number(asked.request.into()));
            }
        }
        text("timestamp", &rfc3339(record.timestamp_ns), &mut members);
        let revisions = record.snapshot.as_ref().map(|snapshot| snapshot.revisions());
        if let Some(revisions) = revisions.filter(|revisions| !revisions.is_empty()) {
            let bundle = |(name, revision): (&String, &String)| {
                let revision = Value::from(revision.as_str());
                (name.clone(), [("revision", revision)].into_iter().collect::<Value>())
            };
            let mut bundles = Members::default();
            revisions.iter().map(bundle).for_each(|(name, bundle)| bundles.put_text(&name, bundle));
            members.put_text("bundles", bundles.into_value());
        }
        if let Some(input) = &record.input {
            members.put_text("input", input.clone());
        }
        if let Some(result) = &record.result {
            members.put_text("result", result.clone());
        }
        if let Some(answers) = &record.answers {
            members.put_text("nd_builtin_cache", answers.clone());
        }
        Self { members: members.into_value(), erased: Vec::new(), masked: Vec::new() }
    }

    /// The input of mask and drop rules.
    fn view(&self) -> Value {
        self.members.clone()
    }

    fn apply(&mut self, rule: Rule) {
        let name = || format!("/{}", rule.path.join("/"));
        match &rule.value {
            None => {
                if let Some(changed) = without(&self.members, &rule.path) {
                    self.members = changed;
                    self.erased.push(name());
                }
            }
            Some(value) => {
                if let Some(changed) = with_at(&self.members, &rule.path, value) {
                    self.members = changed;
                    self.masked.push(name());
                }
            }
        }
    }

    fn erase(&mut self, path: &[&str]) {
        self.apply(Rule { path: path.iter().map(|part| (*part).to_owned()).collect(), value: None });
    }

    /// Erases credentials and names of persons.
    fn redact(&mut self, secrets: Secrets<'_>) {
        let http = ["input", "attributes", "request", "http"];
        // Unjoined headers have no names by which they could be matched one by one.
        self.erase(&[&http[..], &["headerMap"]].concat());
        // Claims that Envoy has verified.
        self.erase(&["input", "attributes", "metadataContext", "filterMetadata", "envoy.filters.http.jwt_authn"]);
        let claims = self.at(&["input", "jwt", "claims"]).and_then(Value::as_object);
        let claims = claims.into_iter().flat_map(|members| members.iter()).filter_map(|(name, _)| as_text(name));
        for name in claims.filter(|name| !PLAIN_CLAIMS.contains(name)).map(str::to_owned).collect::<Vec<_>>() {
            self.erase(&["input", "jwt", "claims", &name]);
        }
        // Requests with their headers, and all environment variables.
        for name in ["http.send", "opa.runtime"] {
            self.erase(&["nd_builtin_cache", name]);
        }
        // The arguments of the others are texts of JSON, and the names of their answers.
        let answers = self.at(&["nd_builtin_cache"]).and_then(Value::as_object);
        let holds = |answers: &Value| json_text(answers).split(['"', '\\']).any(is_credential);
        let telling = answers.into_iter().flat_map(|answers| answers.iter()).filter(|(_, answers)| holds(answers));
        for name in telling.filter_map(|(name, _)| as_text(name).map(str::to_owned)).collect::<Vec<_>>() {
            self.erase(&["nd_builtin_cache", &name]);
        }
        // By what each says itself: a mask may have taken `parsed_query` away.
        let headers = ADDRESS_HEADERS.iter().map(|name| [&http[..], &["headers", name]].concat());
        for address in headers.chain([[&http[..], &["path"]].concat()]) {
            if self.at(&address).and_then(as_text).is_some_and(|text| secrets.are_in_query(text)) {
                self.cut_query(&address);
            }
        }
        let query = [&http[..], &["query"]].concat();
        if self.at(&query).and_then(as_text).is_some_and(|text| secrets.are_in_query(text)) {
            self.erase(&query);
        }
        let mut found = Vec::new();
        for part in ["input", "result", "query"] {
            if let Some(value) = self.at(&[part]) {
                secrets.find(value, &mut vec![part.to_owned()], &mut found);
            }
        }
        let is_of_body = |path: &Vec<String>| {
            let below =
                |start: &[&str]| path.len() >= start.len() && path.iter().zip(start).all(|(part, of)| part == of);
            below(&["input", "parsed_body"]) || below(&[&http[..], &["body"]].concat())
        };
        let in_body = found.iter().any(is_of_body);
        // Nothing can be found by name in what was not parsed, or whose parsed form a mask has taken.
        let is_opaque = self.at(&["input", "parsed_body"]).is_none_or(|body| matches!(body, Value::Null));
        // From the end, so that what stands before keeps its place in its list.
        for path in found.into_iter().rev() {
            self.apply(Rule { path, value: None });
        }
        if in_body || is_opaque {
            // The bytes contain the same.
            self.erase(&[&http[..], &["body"]].concat());
            self.erase(&[&http[..], &["rawBody"]].concat());
        }
    }

    /// Leaves a path or URL without its query, parameters and fragment.
    fn cut_query(&mut self, path: &[&str]) {
        let plain = self.at(path).and_then(as_text).and_then(|text| text.split(['?', '#', ';']).next());
        if let Some(value) = plain.map(Value::from) {
            self.apply(Rule { path: path.iter().map(|part| (*part).to_owned()).collect(), value: Some(value) });
        }
    }

    fn finish(self, record: &Record, error: Option<&str>, custom: Custom) -> String {
        let mut members = Members::default();
        if let Value::Object(known) = &self.members {
            for (name, value) in known.iter() {
                members.put_text(as_text(name).unwrap_or_default(), value.clone());
            }
        }
        if !self.erased.is_empty() {
            members.put_text("erased", texts(self.erased.iter().map(String::as_str)));
        }
        if !self.masked.is_empty() {
            members.put_text("masked", texts(self.masked.iter().map(String::as_str)));
        }
        if let Some(error) = error {
            members.put_text("error", [("message", Value::from(error))].into_iter().collect());
        }
        let nanoseconds = |length: Duration| Value::Number(nanoseconds(length).into());
        let metrics = [
            ("timer_rego_query_eval_ns", nanoseconds(record.evaluation)),
            ("timer_server_handler_ns", nanoseconds(record.total)),
        ];
        members.put_text("metrics", metrics.into_iter().collect());
        if let Some((trace, span)) = custom.trace {
            members.put_text("trace_id", Value::from(trace));
            members.put_text("span_id", Value::from(span));
        }
        if !custom.members.is_empty() {
            members.put_text("custom", custom.members.into_iter().collect());
        }
        json_text(&members.into_value())
    }

    fn at(&self, path: &[&str]) -> Option<&Value> {
        path.iter().try_fold(&self.members, |at, part| at.member(part))
    }

    /// Fields beyond OPA's events, for incident response.
    fn custom(&self, record: &Record) -> Custom {
        let mut custom = Custom::default();
        let headers = ["input", "attributes", "request", "http", "headers"];
        let text = |path: &[&str]| self.at(path).and_then(as_text);
        for name in ["x-request-id", "traceparent"] {
            if let Some(value) = text(&[&headers[..], &[name]].concat()) {
                custom.members.push((name, Value::from(value)));
            }
        }
        custom.trace = text(&[&headers[..], &["traceparent"]].concat()).and_then(trace_and_span);
        let reason = if record.reason.is_empty() { text(&["result", "reason"]) } else { Some(record.reason) };
        custom.members.extend(reason.map(|reason| ("reason", Value::from(reason))));
        if !record.answered.is_empty() {
            custom.members.push(("answered", Value::from(record.answered)));
        }
        custom.members.extend(text(&["input", "jwt", "state"]).map(|state| ("token", Value::from(state))));
        if let Some(issuer) = text(&["input", "jwt", "issuer"]) {
            custom.members.push(("issuer", Value::from(issuer)));
            if let Some(subject) = text(&["input", "jwt", "claims", "sub"]) {
                custom.members.push(("subject_hash", Value::from(subject_hash(issuer, subject))));
            }
        }
        for (name, path) in [("factors", &["input", "authn", "factors"][..]), ("challenge", &["result", "step_up"])] {
            custom.members.extend(self.at(path).map(|value| (name, value.clone())));
        }
        custom
    }
}

/// The fields of an event beside OPA's members.
#[derive(Debug, Default)]
struct Custom {
    trace: Option<(String, String)>,
    members: Vec<(&'static str, Value)>,
}

impl Custom {
    /// Erases credentials, and returns their former location: a value that was erased from the input must not occur here.
    fn redact(&mut self, secrets: Secrets<'_>) -> Vec<String> {
        let mut erased = Vec::new();
        for (name, value) in &mut self.members {
            let mut found = Vec::new();
            secrets.find(value, &mut vec![(*name).to_owned()], &mut found);
            // From the end, so that what stands before keeps its place in its list.
            for path in found.into_iter().rev() {
                let inner = path.get(1..).unwrap_or_default();
                *value = if inner.is_empty() { Value::Null } else { without(value, inner).unwrap_or_default() };
                erased.push(format!("/custom/{}", path.join("/")));
            }
        }
        self.members.retain(|(_, value)| *value != Value::Null);
        erased
    }
}

/// The ids of a `traceparent`, read as traces read it.
fn trace_and_span(text: &str) -> Option<(String, String)> {
    let context = Context::parse(text)?;
    Some((hex::encode(context.trace), hex::encode(context.span)))
}

/// A stable pseudonym of a person: half of a SHA-256. It can be confirmed by guessing the subject.
fn subject_hash(issuer: &str, subject: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, format!("{issuer}\0{subject}").as_bytes());
    hex::encode(digest.as_ref().get(..16).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::feed::decision_log::buffer::{Limits, Overflow};
    use crate::policy::{BuiltinSettings, Entrypoint, HostContext, Module, RegoVersion, Sources};
    use crate::value::{DuplicateKeys, JsonLimits, parse_json};

    const INPUT: &str = r#"{
        "attributes": {"request": {"http": {
            "headers": {"authorization": "Bearer canary-1", "cookie": "s=canary-2", ":path": "/a?token=canary-3&x=1", "accept": "*/*",
                "x-user-token": "canary-8", "referer": "https://a/?Token=canary-10", "x-request-id": "r-1", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
            "path": "/a?token=canary-3&x=1", "headerMap": {"headers": [{"key": "authorization", "rawValue": "canary-4"}]},
            "body": "client_secret=canary-11", "rawBody": "canary-11"
        }}, "metadataContext": {"filterMetadata": {"envoy.filters.http.jwt_authn": {"payload": {"email": "canary-9"}}}}},
        "authn": {"factors": ["knowledge"]},
        "jwt": {"state": "verified", "issuer": "i", "claims": {"iss": "i", "acr": "mfa", "sub": "canary-5", "email": "canary-6"}},
        "parsed_query": {"token": ["canary-3"], "x": ["1"]},
        "parsed_body": {"name": "ann", "list": [1, 2, 3], "client_secret": ["canary-11"], "user": {"id_token": "canary-12"}},
        "headers": {"Authorization": "canary-13"}, "note": "Bearer canary-14"
    }"#;

    fn value(text: &str) -> Value {
        let limits = JsonLimits { depth: 50, duplicates: DuplicateKeys::Refuse };
        parse_json(text.as_bytes(), limits).expect("JSON")
    }

    /// The event of a decision under a policy with these rules in `system.log`; nothing when it is dropped.
    fn event(rules: &str, redact: bool) -> (Option<serde_json::Value>, String) {
        let text = format!("package system.log\n{rules}");
        let module = Module { path: "log.rego".into(), text, version: RegoVersion::V1 };
        let sources = Sources { modules: vec![module], ..Sources::default() };
        let host_context = Arc::new(HostContext::new(&BuiltinSettings::default()));
        let snapshot =
            Snapshot::build(&sources, &Entrypoint::from_path("p/allow"), &host_context).expect("it compiles");
        let record = Record {
            decision_id: "d".to_owned(),
            snapshot: Some(Arc::new(snapshot)),
            input: Some(value(INPUT)),
            result: Some(value(
                r#"{"allowed": true, "headers": {"Set-Cookie": "canary-7", "x-n": 1.50}, "allow": {"headers": [{"Authorization": "canary-15"}]}, "step_up": {"description": "Bearer canary-16", "acr_values": ["a"]}}"#,
            )),
            answers: Some(value(
                r#"{"time.now_ns": {"[]": 7}, "http.send": {"[\"canary-8\"]": {}}, "rand.intn": {"[\"Bearer canary-18\",9]": 3}}"#,
            )),
            error: Some("content-length `Bearer canary-17` is not a number".to_owned()),
            ..Record::default()
        };
        let settings = DecisionLogSettings {
            console: false,
            service: None,
            resource: "/logs".to_owned(),
            path: "p/allow".to_owned(),
            labels: [("id".to_owned(), "me".to_owned())].into(),
            mask: ["system", "log", "mask"].map(str::to_owned).to_vec(),
            drop: ["system", "log", "drop"].map(str::to_owned).to_vec(),
            redact,
            min_delay: Duration::ZERO,
            max_delay: Duration::ZERO,
            upload_limit: 1_000,
            limits: Limits { bytes: 1_000, events: 10, overflow: Overflow::DropOld },
            waiting_bytes: 1_000,
            spill: None,
            share: 100,
            token_headers: vec!["x-user-token".to_owned()],
            max_per_second: None,
        };
        let metrics = crate::telemetry::Metrics::new(None).of();
        let made = Events { settings: &settings, metrics: &metrics }.make(&record);
        let text = made.clone().unwrap_or_default();
        (made.map(|text| serde_json::from_str(&text).expect("JSON")), text)
    }

    #[test]
    fn a_mask_does_not_keep_secrets_from_being_found() {
        for mask in [
            r#"mask contains "/input/parsed_query""#,
            r#"mask contains {"op": "upsert", "path": "/input/parsed_query", "value": {}}"#,
            // A body that could not be parsed has none, either.
            r#"mask contains "/input/parsed_body""#,
            r#"mask contains {"op": "upsert", "path": "/input/parsed_body", "value": null}"#,
        ] {
            let (event, text) = event(mask, true);
            assert!(event.is_some() && !text.contains("canary"), "{mask}: {text}");
        }
    }

    #[test]
    fn credentials_never_leave_in_clear() {
        let (event, text) = event("", true);
        let event = event.expect("it is logged");
        assert!(!text.contains("canary"), "{text}");
        let http = &event["input"]["attributes"]["request"]["http"];
        assert_eq!((&http["path"], &http["headers"][":path"]), (&"/a".into(), &"/a".into()));
        assert_eq!(http["headers"]["accept"], "*/*");
        assert_eq!(event["input"]["jwt"]["claims"], serde_json::json!({"acr": "mfa", "iss": "i"}));
        assert_eq!(event["input"]["parsed_query"], serde_json::json!({"x": ["1"]}));
        assert!(text.contains(r#""x-n":1.50"#), "numbers keep their spelling: {text}");
        assert_eq!(event["custom"]["challenge"], serde_json::json!({"acr_values": ["a"]}));
        assert_eq!(event["nd_builtin_cache"], serde_json::json!({"time.now_ns": {"[]": 7}}));
        let erased = event["erased"].to_string();
        for path in [
            "headers/authorization",
            "/input/jwt/claims/sub",
            "/result/headers/Set-Cookie",
            "/input/parsed_query/token",
            "/custom/challenge/description",
            "/error/message",
        ] {
            assert!(erased.contains(path), "{path}: {erased}");
        }
        assert_eq!(
            (&event["decision_id"], &event["path"], &event["labels"]["id"]),
            (&"d".into(), &"p/allow".into(), &"me".into())
        );
        let (_, clear) = self::event("", false);
        assert!(clear.contains("canary-1") && clear.contains("canary-7"));
    }

    #[test]
    fn an_event_has_what_an_incident_asks_for() {
        let event = event("", true).0.expect("it is logged");
        assert_eq!(event["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(event["span_id"], "00f067aa0ba902b7");
        let custom = &event["custom"];
        for (name, want) in [("x-request-id", "r-1"), ("token", "verified"), ("issuer", "i")] {
            assert_eq!(custom[name], want, "{custom}");
        }
        assert_eq!(custom["factors"], serde_json::json!(["knowledge"]));
        assert_eq!(custom["subject_hash"].as_str().map(str::len), Some(32));
        assert_ne!(subject_hash("i", "ann"), subject_hash("j", "ann"));
        let masked = self::event("mask contains \"/input/attributes/request/http/headers/x-request-id\"", true).0;
        assert!(masked.expect("it is logged")["custom"].get("x-request-id").is_none(), "the mask counts here, too");
        for bad in ["", "00-0-0-0", "00-00000000000000000000000000000000-00f067aa0ba902b7-01", "zz"] {
            assert_eq!(trace_and_span(bad), None, "{bad}");
        }
    }

    #[test]
    fn masks_remove_replace_and_skip_what_is_no_path() {
        let rules = r#"mask contains "/input/parsed_body/name"
            mask contains "/input/parsed_body/list/1"
            mask contains "/input/parsed_query/x/0"
            mask contains "/input/not/there"
            mask contains "/labels/id"
            mask contains 7
            mask contains {"op": "upsert", "path": "/result/note", "value": {"by": "mask"}}
            mask contains {"op": "remove", "path": "/result/allowed"}"#;
        let event = event(rules, false).0.expect("it is logged");
        assert_eq!(
            event["input"]["parsed_body"],
            serde_json::json!({"list": [1, 3], "client_secret": ["canary-11"], "user": {"id_token": "canary-12"}})
        );
        assert_eq!(event["input"]["parsed_query"]["x"], serde_json::json!([]));
        assert_eq!(event["result"]["note"]["by"], "mask");
        assert!(event["result"].get("allowed").is_none());
        assert_eq!(event["labels"]["id"], "me", "only parts of the decision can be masked");
        assert_eq!(event["masked"], serde_json::json!(["/result/note"]));
        assert_eq!(event["erased"].as_array().map(Vec::len), Some(4), "{}", event["erased"]);
    }

    #[test]
    fn a_mask_that_fails_erases_everything_and_a_drop_rule_keeps_the_event_away() {
        let failing = "mask := \"/input\"\nmask := \"/result\" if true";
        let event = event(failing, false).0.expect("it is logged all the same");
        assert!(event.get("input").is_none() && event.get("result").is_none());
        assert_eq!(event["erased"], serde_json::json!(["/input", "/result", "/nd_builtin_cache"]));
        for odd in ["mask := true", "mask := {\"/input/parsed_body/name\": 1}"] {
            assert!(self::event(odd, false).0.expect("it is logged").get("input").is_none(), "{odd}");
        }
        for rule in [
            r#"{"path": "/input/parsed_body/name"}"#,
            r#"{"op": "foo", "path": "/input/parsed_body/name"}"#,
            r#""input/parsed_body/name""#,
            r#""input.parsed_body.name""#,
            r#"{"op": "remove", "path": "input/parsed_body/name"}"#,
        ] {
            let masked = self::event(&format!("mask contains {rule}"), false).0.expect("it is logged");
            assert!(masked["input"]["parsed_body"].get("name").is_none(), "{rule}");
        }
        assert!(self::event("drop if input.input.parsed_body.name == \"ann\"", true).0.is_none());
        assert!(self::event("drop if input.input.parsed_body.name == \"bob\"", true).0.is_some());
        assert!(self::event("drop := \"yes\"", true).0.is_some(), "only true drops");
    }
}
