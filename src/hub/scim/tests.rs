use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::hub::HubSettings;
use crate::hub::tests::{open, settings};
use crate::revocation::{Fold, IssuerJoins, Join, Kind, Line};

const OTHER: &str = "https://other";
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

fn link(attribute: &str, join: &str) -> Link {
    Link { attribute: attribute.to_owned(), join: join.to_owned() }
}

/// A hub in `folder` whose directory speaks for two issuers, with these links.
fn hub(folder: &std::path::Path, links: Vec<Link>) -> Arc<Hub> {
    let token = folder.join("token");
    std::fs::write(&token, TOKEN).expect("the credential");
    let email = Join { name: "email".to_owned(), claim: "email".to_owned(), fold: Fold::Email, when: None };
    let joins = IssuerJoins { joins: vec![email], ..IssuerJoins::default() };
    let issuers = BTreeMap::from([("https://issuer".to_owned(), joins.clone()), (OTHER.to_owned(), joins)]);
    let scim = ScimSettings {
        name: "idp".to_owned(),
        credentials: Credentials::new(vec![token]),
        issuers: issuers.keys().cloned().collect(),
        links,
        attributes: Vec::new(),
        refuses_unmapped: true,
        revokes_members: true,
        watched_groups: Vec::new(),
        rate: 1_000,
    };
    open(HubSettings { issuers, scim: vec![scim], ..settings(folder) })
}

/// Sends a request; gives the status and the identifier in the answer.
fn send(hub: &Hub, method: &str, path: &str, body: serde_json::Value) -> (u16, String) {
    let provider = hub.provider("idp", Some(TOKEN)).expect("its credential");
    let request = ScimRequest {
        method: method.parse().expect("a method"),
        path: path.split('/').map(str::to_owned).collect(),
        query: Vec::new(),
        content_type: None,
        body: if body.is_null() { bytes::Bytes::new() } else { body.to_string().into() },
    };
    let answer = hub.scim(&provider, &request);
    let id = answer.body.as_ref().and_then(|body| body.get("id")?.as_str().map(str::to_owned));
    (answer.status, id.unwrap_or_default())
}

fn user(name: &str, email: &str, active: bool) -> serde_json::Value {
    json!({"userName": name, "externalId": name, "active": active, "emails": [{"value": email}]})
}

/// A stream speaks for its own issuers, also about users of a directory that speaks for more.
#[test]
fn an_address_gives_keys_of_the_streams_issuers_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let hub = hub(folder.path(), vec![link("externalId", "sub")]);
    send(&hub, "POST", "Users", user("ada@example.com", "ada@example.com", true));
    send(&hub, "POST", "Users", user("bob", "ada@example.com", true));
    send(&hub, "POST", "Users", user("eve", "shared@example.com", true));
    send(&hub, "POST", "Users", user("eva", "shared@example.com", true));
    let keys = |address: &str, issuers: &[&str]| {
        let issuers: Vec<String> = issuers.iter().map(|issuer| (*issuer).to_owned()).collect();
        keys_of_address(&hub, &["idp".to_owned()], &issuers, address).expect("it reads")
    };
    let ada = hub.ledger.hub_key().key(Kind::User, OTHER, "sub", "ada@example.com");
    assert_eq!(keys("ADA@example.com", &[OTHER]), BTreeSet::from([ada]), "a name is one user's");
    assert!(keys("ada@example.com", &["https://elsewhere"]).is_empty());
    assert!(keys("shared@example.com", &[OTHER]).is_empty(), "an address of two is of neither");
}

/// Links that were added later find a value that two users have: the deleted one does not stay unnoticed.
#[test]
fn a_conflict_of_new_links_revokes_the_tokens_of_who_is_inactive() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = hub(folder.path(), vec![link("externalId", "sub")]);
    for (name, active) in [("ann", true), ("gone", false), ("leaver", true)] {
        assert_eq!(send(&first, "POST", "Users", user(name, "x@example.com", active)).0, 201);
    }
    drop(first);
    let again = hub(folder.path(), vec![link("externalId", "sub"), link("emails", "email")]);
    let key = again.ledger.hub_key().key(Kind::User, OTHER, "email", "x@example.com");
    let entry = || {
        let records = again.ledger.records().expect("it reads").1;
        records.into_iter().find(|(known, _)| *known == key).map(|(_, entry)| entry).unwrap_or_default()
    };
    assert!(entry().not_before > 0 && entry().disabled == 0, "tokens of now, and not those of later: {:?}", entry());
    let seq = again.ledger.seq();
    let (_, id) = {
        let provider = again.provider("idp", Some(TOKEN)).expect("its credential");
        let query = vec![("filter".to_owned(), "userName eq \"leaver\"".to_owned())];
        let request = ScimRequest {
            method: Method::GET,
            path: vec!["Users".to_owned()],
            query,
            content_type: None,
            body: bytes::Bytes::new(),
        };
        let found = again.scim(&provider, &request).body.expect("a list");
        (200, found.pointer("/Resources/0/id").and_then(Value::as_str).expect("a user").to_owned())
    };
    assert_eq!(send(&again, "DELETE", &format!("Users/{id}"), serde_json::Value::Null).0, 204);
    let changed = again.ledger.changes_after(seq).expect("it reads").expect("all are there");
    let is_of = |line: &Line| matches!(line, Line::Changed { key: known, .. } if *known == key);
    assert!(changed.iter().any(is_of), "the shared value, too: {changed:?}");
}
