//! Merging of a discovered configuration with that of the start.
//!
//! Mirrors: OPA `v1/plugins/discovery`, v1.19.0: whatever was configured at the start wins. What differs, on purpose: who may be
//! trusted, and how far, is not for an unsigned document to say.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::aliases::with_present_names;
use super::document::{Document, substitute};
use super::problem::Problems;

/// Sections that say whom to trust.
const SECURITY: [&str; 2] = ["keys", "plugins.stepgate"];
/// Replaces a URL's query, which may contain a signature or a key.
const HIDDEN_QUERY: &str = "hidden";

/// Keys that discovery cannot change: those, services of the start (their TLS and credentials), and bundle verification.
fn security(boot: &Value, discovered: &Map<String, Value>) -> Vec<Vec<String>> {
    let members = |section: &Value| -> Vec<String> {
        section.as_object().into_iter().flat_map(|members| members.keys().cloned()).collect()
    };
    let fixed = SECURITY.iter().map(|section| section.split('.').map(str::to_owned).collect());
    let services = boot.get("services").map(members).unwrap_or_default();
    let services = services.into_iter().map(|name| vec!["services".to_owned(), name]);
    let bundles = discovered.get("bundles").map(members).unwrap_or_default();
    let bundles = bundles.into_iter().map(|name| vec!["bundles".to_owned(), name, "signing".to_owned()]);
    fixed.chain(services).chain(bundles).collect()
}

/// A configuration that was put together.
#[derive(Clone, Debug)]
pub struct Merged {
    pub document: Document,
    /// Keys of the discovered one that count for nothing, each with why.
    pub left_out: Vec<String>,
}

/// Puts `discovered` under `boot`. `is_signed` says whether a key of the boot configuration vouches for it.
pub fn merge(
    boot: &Document,
    discovered: Value,
    is_signed: bool,
    environment: &BTreeMap<String, String>,
) -> Result<Merged, String> {
    // An unsigned document does not read our environment, either.
    let discovered = if is_signed {
        let text = substitute(&discovered.to_string(), environment);
        serde_json::from_str(&text).map_err(|error| error.to_string())?
    } else {
        discovered
    };
    let Value::Object(mut merged) = with_present_names(&discovered, &mut Problems::default()) else {
        return Err("the configuration is not an object".to_owned());
    };
    let mut left_out = Vec::new();
    if merged.remove("discovery").is_some_and(|own| Some(&own) != boot.value.get("discovery")) {
        left_out.push("discovery (fixed at the start)".to_owned());
    }
    let boot = &Document::of(with_present_names(&boot.value, &mut Problems::default()));
    if !is_signed {
        let allowed = boot.value.pointer("/plugins/stepgate/discovery_allowed_keys").and_then(Value::as_array);
        let allowed: Vec<&str> = allowed.into_iter().flatten().filter_map(Value::as_str).collect();
        for section in security(&boot.value, &merged) {
            withhold(&mut merged, &boot.value, &section, &allowed, &mut left_out);
        }
    }
    if let Value::Object(boot) = &boot.value {
        overlay(&mut merged, boot, "", &mut left_out);
    }
    Ok(Merged { document: Document::of(Value::Object(merged)), left_out })
}

/// Takes out of a section whatever is not allowed by its dotted name.
fn withhold(
    merged: &mut Map<String, Value>,
    boot: &Value,
    path: &[String],
    allowed: &[&str],
    left_out: &mut Vec<String>,
) {
    let section = path.join(".");
    let Some((last, parents)) = path.split_last() else { return };
    let parent = parents.iter().try_fold(merged, |at, part| at.get_mut(part)?.as_object_mut());
    let Some(parent) = parent else { return };
    let Some(members) = parent.get_mut(last).and_then(Value::as_object_mut) else {
        return;
    };
    let known = path.iter().try_fold(boot, |at, part| at.get(part));
    members.retain(|name, value| {
        if known.and_then(|known| known.get(name)) == Some(value) {
            return true;
        }
        let name = format!("{section}.{name}");
        let is_allowed = allowed
            .iter()
            .any(|prefix| name == *prefix || name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.')));
        if !is_allowed {
            left_out.push(format!("{name} (neither signed nor named in plugins.stepgate.discovery_allowed_keys)"));
        }
        is_allowed
    });
    if members.is_empty() {
        parent.remove(last);
    }
}

/// Keys of the start win, one by one.
fn overlay(into: &mut Map<String, Value>, boot: &Map<String, Value>, path: &str, left_out: &mut Vec<String>) {
    for (name, value) in boot {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match (into.get_mut(name), value) {
            (Some(Value::Object(inner)), Value::Object(boot)) => overlay(inner, boot, &path, left_out),
            (present, _) => {
                if present.is_some_and(|present| present != value) {
                    left_out.push(format!("{path} (set at the start)"));
                }
                into.insert(name.clone(), value.clone());
            }
        }
    }
}

/// A configuration without anything secret, as `/v1/config` shows it.
pub fn public(document: &Document) -> Value {
    let mut shown = document.value.clone();
    let hide = |item: &mut Value, names: &[&str]| {
        if let Some(members) = item.as_object_mut() {
            members.retain(|name, _| !names.contains(&name.as_str()));
        }
    };
    for (section, names) in [("services", &["credentials", "headers"][..]), ("keys", &["key", "private_key"])] {
        match shown.get_mut(section) {
            Some(Value::Object(items)) => items.values_mut().for_each(|item| hide(item, names)),
            Some(Value::Array(items)) => items.iter_mut().for_each(|item| hide(item, names)),
            _ => {}
        }
    }
    // Any member may be a URL, and be overridden by a flag.
    blank_secrets(&mut shown);
    shown
}

/// Removes client secrets, and credentials from URLs: user names, passwords and query values.
fn blank_secrets(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Some(blanked) = blanked(text) {
                *text = blanked;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(blank_secrets),
        Value::Object(members) => {
            members.retain(|name, _| name != "client_secret");
            // The rest of a URL is the path of a request.
            if let Some(Value::String(resource)) = members.get_mut("resource")
                && let Some((path, _)) = resource.split_once('?')
            {
                *resource = format!("{path}?{HIDDEN_QUERY}");
            }
            members.values_mut().for_each(blank_secrets);
        }
        _ => {}
    }
}

/// A URL without its secrets; nothing when the text is no URL or has none.
fn blanked(text: &str) -> Option<String> {
    let mut url = url::Url::parse(text).ok().filter(url::Url::has_host)?;
    let is_open = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    if is_open {
        return None;
    }
    url.set_username("").ok()?;
    url.set_password(None).ok()?;
    if url.query().is_some() {
        url.set_query(Some(HIDDEN_QUERY));
    }
    Some(url.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn merged(boot: Value, discovered: Value, is_signed: bool) -> (Value, Vec<String>) {
        let environment = BTreeMap::from([("REGION".to_owned(), "eu".to_owned())]);
        let merged = merge(&Document::of(boot), discovered, is_signed, &environment).expect("it merges");
        (merged.document.value, merged.left_out)
    }

    #[test]
    fn what_was_set_at_the_start_wins() {
        let boot =
            json!({"labels": {"app": "x"}, "discovery": {"resource": "/d"}, "services": {"a": {"url": "http://a"}}});
        let found = json!({
            "labels": {"app": "y", "region": "${REGION}"},
            "discovery": {"resource": "/other"},
            "services": {"a": {"url": "http://evil"}, "b": {"url": "http://b"}},
        });
        let (document, left_out) = merged(boot, found, true);
        let want = json!({
            "labels": {"app": "x", "region": "eu"},
            "discovery": {"resource": "/d"},
            "services": {"a": {"url": "http://a"}, "b": {"url": "http://b"}},
        });
        assert_eq!(document, want);
        let names: Vec<_> = left_out.iter().filter_map(|text| text.split(' ').next()).collect();
        assert_eq!(names, ["discovery", "labels.app", "services.a.url"]);
    }

    #[test]
    fn whom_to_trust_is_not_for_an_unsigned_document_to_say() {
        let found =
            json!({"keys": {"k": {"key": "x"}}, "plugins": {"stepgate": {"issuers": [], "log": {"redact": false}}}});
        let (document, left_out) = merged(json!({}), found.clone(), false);
        assert_eq!(document, json!({"plugins": {}}));
        assert_eq!(left_out.len(), 3, "{left_out:?}");
        let (document, _) = merged(json!({}), found.clone(), true);
        assert_eq!(document, found);
        let boot = json!({"plugins": {"stepgate": {"discovery_may_set": ["plugins.stepgate.issuers"]}}});
        let (document, _) = merged(boot, found, false);
        assert_eq!(document.pointer("/plugins/stepgate/issuers"), Some(&json!([])));
        assert_eq!(document.pointer("/plugins/stepgate/log"), None);
        // A document cannot allow itself what the start does not allow.
        let (document, _) = merged(json!({}), json!({"plugins": {"stepgate": {"discovery_may_set": ["keys"]}}}), false);
        assert_eq!(document, json!({"plugins": {}}));
    }

    #[test]
    fn an_unsigned_document_weakens_nothing_of_the_start_and_reads_no_environment() {
        let boot = json!({
            "services": {"a": {"url": "https://a"}},
            "bundles": {"b": {"service": "a", "signing": {"keyid": "k"}}},
        });
        let found = json!({
            "services": {"a": {"url": "https://a", "allow_insecure_tls": true}, "c": {"url": "https://c"}},
            "bundles": {"b": {"signing": {"exclude_files": ["*"]}}, "d": {"signing": {"exclude_files": ["*"]}}},
            "labels": {"x": "${REGION}"},
        });
        let (document, left_out) = merged(boot, found, false);
        let want = json!({
            "services": {"a": {"url": "https://a"}, "c": {"url": "https://c"}},
            "bundles": {"b": {"service": "a", "signing": {"keyid": "k"}}, "d": {}},
            "labels": {"x": "${REGION}"},
        });
        assert_eq!(document, want);
        assert_eq!(left_out.len(), 3, "{left_out:?}");
    }

    #[test]
    fn nothing_secret_is_shown() {
        let document = json!({
            "services": [{"name": "a", "url": "http://u:canary@a/", "headers": {"x": "canary"}, "credentials": {"bearer": {"token": "canary"}}}],
            "keys": {"k": {"key": "canary", "private_key": "canary", "algorithm": "HS256"}},
            "bundles": {"b": {"service": "a", "resource": "b.tar.gz?sig=canary"}, "c": {"resource": "https://c/b?key=canary"}},
            "plugins": {"stepgate": {"issuers": [{"introspection": {"client_id": "api", "client_secret": "canary"}}]}},
        });
        let shown = public(&Document::of(document));
        assert!(!shown.to_string().contains("canary"), "{shown}");
        assert_eq!(shown.pointer("/keys/k/algorithm"), Some(&json!("HS256")));
        assert_eq!(shown.pointer("/services/0/url"), Some(&json!("http://a/")));
        assert_eq!(shown.pointer("/bundles/b/resource"), Some(&json!("b.tar.gz?hidden")));
        assert_eq!(shown.pointer("/bundles/c/resource"), Some(&json!("https://c/b?hidden")));
    }
}
