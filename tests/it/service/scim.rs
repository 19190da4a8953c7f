//! A directory that provisions users: whom it disables or deletes has no token that is accepted, in the words of Entra and of Okta.

#![expect(clippy::indexing_slicing, reason = "the helpers of tests, too")]

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use stepgate::app::HubApp;

use super::hub::{TOKEN, start};
use super::revocation::{Bench, ISSUER};
use crate::harness::{NOW, settled};

const OTHER_TOKEN: &str = "fedcba9876543210fedcba9876543210";
const USER: &str = "urn:ietf:params:scim:schemas:core:2.0:User";
const GROUP: &str = "urn:ietf:params:scim:schemas:core:2.0:Group";
const ENTERPRISE: &str = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User";

/// A hub with two directories; `more` changes the first.
async fn hub(folder: &Path, more: Value) -> HubApp {
    let file = |name: &str, token: &str| {
        let path = folder.join(name);
        std::fs::write(&path, token).expect("the token is written");
        path
    };
    let links = json!([{"attribute": "externalId", "join": "sub"}, {"attribute": "emails", "join": "email"}]);
    let mut first = json!({"name": "idp", "token_files": [file("token", TOKEN)], "issuers": [ISSUER], "link": links});
    crate::harness::merge(&mut first, more);
    let second =
        json!({"name": "other", "token_files": [file("other", OTHER_TOKEN)], "issuers": [ISSUER], "link": links});
    let public = json!({"addr": "127.0.0.1:0", "url": "https://hub.example/"});
    start(folder, json!({"public": public, "scim": [first, second]})).await.expect("the hub starts")
}

/// A client of one directory.
struct Directory {
    client: reqwest::Client,
    url: String,
    token: &'static str,
}

impl Directory {
    fn of(hub: &HubApp) -> Self {
        let address = hub.public_address().expect("a public listener");
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        Self { client, url: format!("http://{address}/scim/idp/v2"), token: TOKEN }
    }

    fn other(hub: &HubApp) -> Self {
        let first = Self::of(hub);
        Self { url: first.url.replace("/idp/", "/other/"), token: OTHER_TOKEN, ..first }
    }

    async fn send(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let method = method.parse().expect("a method");
        let mut request = self.client.request(method, format!("{}{path}", self.url)).bearer_auth(self.token);
        if !body.is_null() {
            request = request.header("content-type", "application/scim+json").body(body.to_string());
        }
        let response = request.send().await.expect("an answer");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.expect("text");
        if !text.is_empty() {
            assert_eq!(headers["content-type"], "application/scim+json", "{path}");
        }
        let body: Value = serde_json::from_str(&text).unwrap_or_default();
        if status == 201 {
            assert_eq!(headers["location"].to_str().ok(), body["meta"]["location"].as_str());
        }
        if status >= 400 {
            assert_eq!(body["status"], json!(status.to_string()), "the status of an error is a string");
        }
        (status, body)
    }

    /// Creates a user, whose `sub` is its name; gives the identifier.
    async fn create(&self, name: &str) -> String {
        let user = json!({"schemas": [USER], "userName": format!("{name}@example.com"), "externalId": name,
                          "emails": [{"value": format!("{name}@example.com"), "type": "work", "primary": true}]});
        let (status, body) = self.send("POST", "/Users", user).await;
        assert_eq!((status, &body["active"]), (201, &json!(true)), "{body}");
        body["id"].as_str().expect("an identifier").to_owned()
    }

    async fn patch(&self, id: &str, operations: Value) -> (u16, Value) {
        let body = json!({"schemas": ["urn:ietf:params:scim:api:messages:2.0:PatchOp"], "Operations": operations});
        self.send("PATCH", &format!("/Users/{id}"), body).await
    }

    async fn total(&self, query: &str) -> u64 {
        let (status, body) = self.send("GET", query, Value::Null).await;
        assert_eq!(status, 200, "{query}: {body}");
        body["totalResults"].as_u64().expect("a number")
    }
}

fn token(bench: &Bench, name: &str, seconds: i64) -> String {
    bench.token(json!({"sub": name, "email": format!("{name}@example.com"), "sid": name, "iat": NOW + seconds}))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_disabled_has_no_token_that_is_accepted() {
    let folder = tempfile::tempdir().expect("a folder");
    let hub = hub(folder.path(), json!({})).await;
    let (bench, idp) = (Bench::start(&format!("http://{}", hub.address()), json!({})).await, Directory::of(&hub));
    let full = |name: &str, id: &str, active: bool| {
        json!({"schemas": [USER], "id": id, "userName": format!("{name}@example.com"), "externalId": name, "active": active,
               "name": {"givenName": "A", "familyName": "B"}, "groups": [], "meta": {"resourceType": "User"},
               "emails": [{"value": format!("{name}@example.com"), "primary": true}], "password": "canary-password"})
    };
    // Each with how it disables a user, and enables it again.
    let shapes = [
        (
            "entra-default",
            json!([{"op": "Replace", "path": "active", "value": "False"}]),
            json!([{"op": "Replace", "path": "active", "value": "True"}]),
        ),
        (
            "entra-flag",
            json!([{"op": "replace", "path": "active", "value": false}]),
            json!([{"op": "replace", "path": "active", "value": true}]),
        ),
        (
            "okta-patch",
            json!([{"op": "replace", "value": {"active": false}}]),
            json!([{"op": "replace", "value": {"active": true}}]),
        ),
        ("okta-put", Value::Null, Value::Null),
        (
            "urn",
            json!([{"op": "replace", "path": format!("{USER}:active"), "value": false}]),
            json!([{"op": "add", "value": {"active": true}}]),
        ),
        (
            "removed",
            json!([{"op": "remove", "path": "active"}]),
            json!([{"op": "add", "path": "active", "value": true}]),
        ),
        (
            "null",
            json!([{"op": "replace", "value": {"active": null}}]),
            json!([{"op": "Add", "path": "ACTIVE", "value": "tRUE"}]),
        ),
    ];
    for (name, disable, enable) in shapes {
        let id = idp.create(name).await;
        let (before, meanwhile, after) = (token(&bench, name, -100), token(&bench, name, 1), token(&bench, name, 3));
        bench.becomes("/required/x", &before, (200, "")).await;
        let set = async |operations: &Value, active: bool| {
            let (status, body) = match operations {
                Value::Null => idp.send("PUT", &format!("/Users/{id}"), full(name, &id, active)).await,
                operations => idp.patch(&id, operations.clone()).await,
            };
            assert_eq!((status, &body["active"]), (200, &json!(active)), "{name}: {body}");
            assert!(!body.to_string().contains("canary-password"), "what is not kept is not shown");
        };
        set(&disable, false).await;
        bench.becomes("/x", &before, (401, "account_disabled")).await;
        assert_eq!(bench.ask("/x", &after).await.1, "account_disabled", "{name}: whenever it was issued");
        assert_eq!(bench.ask("/public", &before).await.0, 200, "what needs no token stays open");
        // A retry, and a replacement that forgets `active`, change nothing.
        set(&disable, false).await;
        let mut forgetful = full(name, &id, true);
        forgetful.as_object_mut().expect("an object").remove("active");
        let (status, body) = idp.send("PUT", &format!("/Users/{id}"), forgetful).await;
        assert_eq!((status, &body["active"]), (200, &json!(false)), "{name}");
        assert_eq!(idp.send("GET", &format!("/Users/{id}"), Value::Null).await.1["active"], json!(false));
        assert_eq!(bench.ask("/x", &after).await.1, "account_disabled", "{name}");
        set(&enable, true).await;
        bench.becomes("/x", &after, (200, "")).await;
        for dead in [&before, &meanwhile] {
            assert_eq!(bench.ask("/x", dead).await.1, "token_revoked", "{name}: tokens of before stay dead");
        }
        // Deleted: another address, and the name is free again.
        assert_eq!(idp.send("DELETE", &format!("/Users/{id}"), Value::Null).await.0, 204);
        assert_eq!(idp.send("DELETE", &format!("/Users/{id}"), Value::Null).await.0, 404);
        assert_eq!(idp.send("GET", &format!("/Users/{id}"), Value::Null).await.0, 404);
        bench.becomes("/x", &after, (401, "account_disabled")).await;
        let again = idp.create(name).await;
        assert_ne!(again, id, "an identifier is never given twice");
        bench.becomes("/x", &after, (200, "")).await;
        assert_eq!(bench.ask("/x", &before).await.1, "token_revoked");
    }
    let id = idp.create("strict").await;
    for value in [json!("false "), json!(0), json!("no"), json!([]), json!({})] {
        let (status, body) = idp.patch(&id, json!([{"op": "replace", "path": "active", "value": value}])).await;
        assert_eq!((status, &body["scimType"]), (400, &json!("invalidValue")), "{value}: {body}");
    }
    assert_eq!(bench.ask("/x", &token(&bench, "strict", -100)).await.0, 200, "and nothing has changed");
    bench.service.stop().await;
    assert!(hub.stop(Duration::from_secs(5)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_user_never_frees_another() {
    let folder = tempfile::tempdir().expect("a folder");
    let hub = hub(folder.path(), json!({})).await;
    let bench = Bench::start(&format!("http://{}", hub.address()), json!({})).await;
    let (idp, other) = (Directory::of(&hub), Directory::other(&hub));
    let disable = json!([{"op": "replace", "value": {"active": false}}]);
    let enable = json!([{"op": "replace", "value": {"active": true}}]);
    // Two directories: what one disables, the other does not enable.
    let (here, there) = (idp.create("ann").await, other.create("ann").await);
    assert_eq!(other.send("GET", &format!("/Users/{here}"), Value::Null).await.0, 404, "a user of another directory");
    let later = token(&bench, "ann", 3);
    bench.becomes("/required/x", &later, (200, "")).await;
    for (directory, id, operations, want) in [
        (&idp, &here, &disable, "account_disabled"),
        (&other, &there, &disable, "account_disabled"),
        (&idp, &here, &enable, "account_disabled"),
        (&other, &there, &enable, ""),
    ] {
        assert_eq!(directory.patch(id, operations.clone()).await.0, 200);
        bench.becomes("/x", &later, (if want.is_empty() { 200 } else { 401 }, want)).await;
    }
    // A value that links a user to tokens belongs to one user.
    let thief = json!({"schemas": [USER], "userName": "thief", "externalId": "thief", "emails": [{"value": "ANN@example.com"}]});
    let (status, body) = idp.send("POST", "/Users", thief).await;
    assert_eq!((status, &body["scimType"]), (409, &json!("uniqueness")));
    let thief = idp.create("thief").await;
    let take = json!([{"op": "add", "path": "emails", "value": [{"value": "ann@example.com"}]}]);
    assert_eq!(idp.patch(&thief, take.clone()).await.0, 409);
    // A request that takes the value and disables its user revokes only tokens of now.
    let both = json!([{"op": "add", "path": "emails", "value": [{"value": "ann@example.com"}]}, {"op": "replace", "path": "active", "value": false}]);
    assert_eq!(idp.patch(&thief, both).await.0, 200);
    bench.becomes("/x", &token(&bench, "thief", 3), (401, "account_disabled")).await;
    assert_eq!(bench.ask("/x", &later).await.0, 200, "but not those of later");
    let (status, body) = idp.send("POST", "/Users", json!({"userName": "ANN@EXAMPLE.COM"})).await;
    assert_eq!((status, &body["scimType"]), (409, &json!("uniqueness")), "names are compared without case");
    // The leaver's value under another name stays disabled.
    assert_eq!(idp.send("DELETE", &format!("/Users/{here}"), Value::Null).await.0, 204);
    bench.becomes("/x", &later, (401, "account_disabled")).await;
    let rehired = json!({"userName": "ann2", "externalId": "ann"});
    assert_eq!(idp.send("POST", "/Users", rehired).await.0, 201);
    assert_eq!(bench.ask("/x", &later).await.1, "account_disabled");
    // An attribute that changes: the old value is revoked, and disabled with the user.
    let bob = idp.create("bob").await;
    let old = token(&bench, "bob", -100);
    bench.becomes("/x", &old, (200, "")).await;
    let rename = |to: &str| json!([{"op": "replace", "value": {"externalId": to, "emails": []}}]);
    assert_eq!(idp.patch(&bob, rename("bob2")).await.0, 200);
    bench.becomes("/x", &old, (401, "token_revoked")).await;
    assert_eq!(idp.patch(&bob, disable).await.0, 200);
    assert_eq!(idp.patch(&bob, rename("bob3")).await.0, 200);
    for name in ["bob2", "bob3"] {
        let token = bench.token(json!({"sub": name, "email": "x@example.com", "iat": NOW + 3}));
        bench.becomes("/x", &token, (401, "account_disabled")).await;
    }
    bench.service.stop().await;
    assert!(hub.stop(Duration::from_secs(5)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_whom_no_link_maps_is_never_a_silent_success() {
    let folder = tempfile::tempdir().expect("a folder");
    // By mistake `externalId` is a nickname, and there is no address.
    let started = hub(folder.path(), json!({"link": [{"attribute": "emails", "join": "email"}]})).await;
    let idp = Directory::of(&started);
    let (status, user) = idp.send("POST", "/Users", json!({"userName": "carol", "externalId": "carol"})).await;
    assert_eq!(status, 201);
    let id = user["id"].as_str().expect("an identifier").to_owned();
    let metrics = format!("http://{}/metrics", started.address());
    settled("the metric", || async {
        let text = idp.client.get(&metrics).send().await.expect("metrics").text().await.expect("text");
        text.contains("stepgate_hub_scim_unmapped_users{provider=\"idp\"} 1")
    })
    .await;
    let disable = json!([{"op": "replace", "value": {"active": false}}]);
    for _ in 0..2 {
        let (status, body) = idp.patch(&id, disable.clone()).await;
        assert_eq!((status, &body["scimType"]), (400, &json!("invalidValue")), "a retry is no success either");
        assert_eq!(body["detail"], json!("no link maps this user to a token claim"));
    }
    let (_, body) = idp.send("GET", &format!("/Users/{id}"), Value::Null).await;
    assert_eq!(body["active"], json!(false), "the directory's word is kept all the same");
    assert!(started.stop(Duration::from_secs(5)).await);
    // The configuration is corrected: inactive users are disabled from the start.
    let started = hub(folder.path(), json!({})).await;
    let bench = Bench::start(&format!("http://{}", started.address()), json!({})).await;
    bench.becomes("/required/x", &token(&bench, "carol", 3), (401, "account_disabled")).await;
    assert_eq!(Directory::of(&started).patch(&id, disable.clone()).await.0, 200);
    bench.service.stop().await;
    assert!(started.stop(Duration::from_secs(5)).await);
    // A hub that accepts them all the same.
    let folder = tempfile::tempdir().expect("a folder");
    let more = json!({"link": [{"attribute": "emails", "join": "email"}], "on_unmapped": "accept"});
    let started = hub(folder.path(), more).await;
    let idp = Directory::of(&started);
    let (_, user) = idp.send("POST", "/Users", json!({"userName": "carol"})).await;
    assert_eq!(idp.patch(user["id"].as_str().expect("an identifier"), disable).await.0, 200);
    assert!(started.stop(Duration::from_secs(5)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_answered_as_the_standard_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let more = json!({"attributes": [format!("{ENTERPRISE}:employeeNumber")], "rate": 1_000});
    let hub = hub(folder.path(), more).await;
    let idp = Directory::of(&hub);
    // Credentials.
    for (path, token) in [("", ""), ("", "x"), ("", OTHER_TOKEN), ("x", TOKEN)] {
        let url = idp.url.replace("/idp/", &format!("/idp{path}/"));
        let answer = idp.client.get(format!("{url}/Users")).bearer_auth(token).send().await.expect("an answer");
        assert_eq!(
            (answer.status().as_u16(), answer.headers()["www-authenticate"].to_str().ok()),
            (401, Some("Bearer"))
        );
    }
    for name in ["u1", "u2", "u3"] {
        idp.create(name).await;
    }
    // Lists.
    for (query, total, page) in [
        ("/Users", 3, 3),
        ("/Users?startIndex=2&count=1", 3, 1),
        ("/Users?startIndex=0&count=0", 3, 0),
        ("/Users?startIndex=-4&count=-1", 3, 0),
        ("/Users?startIndex=9", 3, 0),
        ("/Users?aadOptscim062020&filter=userName%20eq%20%22U1@example.com%22", 1, 1),
        ("/Users?filter=userName+eq+%22none%22&startIndex=1&count=100", 0, 0),
        ("/Users?filter=emails%5Bvalue%20eq%20%22u2@example.com%22%5D", 1, 1),
        ("/Users?filter=externalId%20eq%20%22U1%22", 0, 0),
        ("/Users?filter=userName%20sw%20%22u%22%20and%20active%20eq%20true", 3, 3),
        ("/Groups", 0, 0),
        ("/?filter=externalId%20eq%20%22u3%22", 1, 1),
    ] {
        let (status, body) = idp.send("GET", query, Value::Null).await;
        assert_eq!(
            (status, &body["totalResults"], &body["itemsPerPage"]),
            (200, &json!(total), &json!(page)),
            "{query}"
        );
        assert_eq!(body["Resources"].as_array().map(Vec::len), Some(page), "{query}");
    }
    let (_, body) = idp.send("GET", "/Users?attributes=userName,emails.value", Value::Null).await;
    let user = &body["Resources"][0];
    assert_eq!(user["userName"], json!("u1@example.com"), "the oldest comes first");
    assert_eq!(user["emails"], json!([{"value": "u1@example.com"}]));
    assert!(user["externalId"].is_null() && user["meta"].is_null() && user["id"].is_string(), "{user}");
    let (_, body) = idp.send("GET", "/Users?excludedAttributes=emails,meta", Value::Null).await;
    assert!(body["Resources"][0]["emails"].is_null() && body["Resources"][0]["externalId"].is_string());
    let search = json!({"schemas": ["urn:ietf:params:scim:api:messages:2.0:SearchRequest"], "filter": "userName pr", "count": 2});
    for path in ["/.search", "/Users/.search"] {
        let (status, body) = idp.send("POST", path, search.clone()).await;
        assert_eq!((status, &body["totalResults"], &body["itemsPerPage"]), (200, &json!(3), &json!(2)), "{path}");
    }
    // Entra changes several attributes at once, and one that there was not.
    let id = idp.create("u4").await;
    let several = json!([
        {"op": "replace", "value": {"displayName": "B", "name.givenName": "K", "name.familyName": "U",
                                     (format!("{ENTERPRISE}:employeeNumber")): "A", (format!("{ENTERPRISE}:division")): "dropped"}},
        {"op": "Replace", "path": "emails[type eq \"home\"].value", "value": "u4@home.example"},
        {"op": "Add", "path": "nickName", "value": "dropped"},
    ]);
    let (status, body) = idp.patch(&id, several).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!((&body["name"], &body["displayName"]), (&json!({"givenName": "K", "familyName": "U"}), &json!("B")));
    assert_eq!(body[ENTERPRISE], json!({"employeeNumber": "A"}));
    assert_eq!(body["schemas"], json!([USER, ENTERPRISE]));
    assert_eq!(body["emails"][1], json!({"type": "home", "value": "u4@home.example"}));
    assert!(!body.to_string().contains("dropped"));
    let modified = body["meta"]["lastModified"].clone();
    let (_, body) = idp.patch(&id, json!([{"op": "replace", "value": {"displayName": "B"}}])).await;
    assert_eq!(body["meta"]["lastModified"], modified, "nothing has changed");
    // Errors.
    let deep = format!("{{\"userName\":\"d\",\"x\":{}{}}}", "[".repeat(33), "]".repeat(33));
    for (method, path, body, want) in [
        ("POST", "/Users", "{\"userName\":\"a\",\"userName\":\"b\"}", (400, "invalidSyntax")),
        ("POST", "/Users", "{\"userName\":\"a\",\"active\":false,\"Active\":true}", (400, "invalidSyntax")),
        ("POST", "/Users", deep.as_str(), (400, "invalidSyntax")),
        ("POST", "/Users", "[]", (400, "invalidSyntax")),
        ("POST", "/Users", "{", (400, "invalidSyntax")),
        ("POST", "/Users", "{\"userName\":\" \"}", (400, "invalidValue")),
        ("POST", "/Users", "{\"userName\":7}", (400, "invalidValue")),
        ("POST", "/Groups", "{}", (400, "invalidValue")),
        ("GET", "/Users?filter=userName", "", (400, "invalidFilter")),
        ("PATCH", &format!("/Users/{id}"), "{\"Operations\":[]}", (400, "invalidSyntax")),
        (
            "PATCH",
            &format!("/Users/{id}"),
            "{\"Operations\":[{\"op\":\"move\",\"path\":\"a\"}]}",
            (400, "invalidSyntax"),
        ),
        ("PATCH", &format!("/Users/{id}"), "{\"Operations\":[{\"op\":\"remove\"}]}", (400, "noTarget")),
        (
            "PATCH",
            &format!("/Users/{id}"),
            "{\"Operations\":[{\"op\":\"replace\",\"path\":\"id\",\"value\":\"x\"}]}",
            (400, "mutability"),
        ),
        (
            "PATCH",
            &format!("/Users/{id}"),
            "{\"Operations\":[{\"op\":\"remove\",\"path\":\"userName\"}]}",
            (400, "invalidValue"),
        ),
        (
            "PATCH",
            &format!("/Users/{id}"),
            "{\"Operations\":[{\"op\":\"replace\",\"path\":\"a[\",\"value\":\"x\"}]}",
            (400, "invalidPath"),
        ),
        ("GET", "/Users/no-such", "", (404, "")),
        ("GET", "/Nothing", "", (404, "")),
        ("GET", "/Me", "", (501, "")),
        ("POST", "/Bulk", "{}", (501, "")),
        ("DELETE", "/Users", "", (405, "")),
        ("POST", "/Schemas", "{}", (405, "")),
        ("GET", "/Schemas?filter=id%20pr", "", (403, "")),
    ] {
        let request = idp.client.request(method.parse().expect("a method"), format!("{}{path}", idp.url));
        let response = request.bearer_auth(TOKEN).body(body.to_owned()).send().await.expect("an answer");
        let status = response.status().as_u16();
        assert_eq!(response.headers().contains_key("allow"), status == 405, "{method} {path}");
        let answer: Value = serde_json::from_str(&response.text().await.expect("text")).expect("JSON");
        let scim_type = answer["scimType"].as_str().unwrap_or_default();
        assert_eq!(
            (status, scim_type, &answer["status"]),
            (want.0, want.1, &json!(want.0.to_string())),
            "{method} {path} {body}: {answer}"
        );
    }
    let post = |kind: &'static str, body: String| {
        idp.client.post(format!("{}/Users", idp.url)).bearer_auth(TOKEN).header("content-type", kind).body(body).send()
    };
    let huge = format!("{{\"userName\":\"{}\"}}", "x".repeat(1 << 20));
    for (kind, body, want) in [
        ("text/plain", "{\"userName\":\"p\"}".to_owned(), 415),
        ("application/json; charset=utf-8", "{\"userName\":\"p\"}".to_owned(), 201),
        ("application/scim+json", huge, 413),
    ] {
        assert_eq!(post(kind, body).await.expect("an answer").status().as_u16(), want, "{kind}");
    }
    // The description of the service.
    for (path, member, want) in [
        ("/ServiceProviderConfig", "patch", json!({"supported": true})),
        ("/ResourceTypes", "totalResults", json!(2)),
        ("/ResourceTypes/User", "endpoint", json!("/Users")),
        ("/Schemas", "totalResults", json!(3)),
        ("/Schemas/urn%3Aietf%3Aparams%3Ascim%3Aschemas%3Acore%3A2.0%3AGroup", "id", json!(GROUP)),
    ] {
        let (status, body) = idp.send("GET", path, Value::Null).await;
        assert_eq!((status, &body[member]), (200, &want), "{path}");
    }
    // The public listener has nothing else.
    let root = idp.url.replace("/scim/idp/v2", "");
    for (path, want) in
        [("/metrics", 404), ("/v1/snapshot", 404), ("/v1/hub/status", 404), ("/health", 404), ("/ready", 200)]
    {
        let answer = idp.client.get(format!("{root}{path}")).send().await.expect("an answer");
        assert_eq!(answer.status().as_u16(), want, "{path}");
    }
    assert!(hub.stop(Duration::from_secs(5)).await);
}

/// A directory that is no longer used disables no one for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_gone_is_forgotten() {
    let folder = tempfile::tempdir().expect("a folder");
    let before = hub(folder.path(), json!({})).await;
    let address = before.address().to_owned();
    let bench = Bench::start(&format!("http://{address}"), json!({})).await;
    let idp = Directory::of(&before);
    let off = json!([{"op": "replace", "value": {"active": false}}]);
    for name in ["alice", "bob"] {
        let id = idp.create(name).await;
        assert_eq!(idp.patch(&id, off.clone()).await.0, 200);
        bench.becomes("/x", &token(&bench, name, 0), (401, "account_disabled")).await;
    }
    let forget = |source: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_stepgate"));
        command.args(["hub", "forget", source, "--reason", "moved", "--socket"]);
        let output = command.arg(super::hub::socket(folder.path())).output().expect("it runs");
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    assert!(forget("scim/idp").contains("`scim/idp` is configured"), "{}", forget("scim/idp"));
    assert!(forget("scim/none").contains("expected one of: scim/idp, scim/other"), "{}", forget("scim/none"));
    assert!(before.stop(Duration::from_secs(5)).await);
    let after = start(folder.path(), json!({"addr": address})).await.expect("it starts without it");
    assert_eq!(forget("scim/idp"), "{\"entries\":4}\n", "two values of each user");
    for name in ["alice", "bob"] {
        bench.becomes("/x", &token(&bench, name, 3), (200, "")).await;
        assert_eq!(bench.ask("/x", &token(&bench, name, 0)).await.1, "token_revoked", "tokens of before stay dead");
    }
    assert!(forget("scim/idp").contains("expected one of: scim/other"), "its number is free");
    assert!(after.stop(Duration::from_secs(5)).await);
    // The same name is a new directory without users.
    let again = hub(folder.path(), json!({})).await;
    assert_eq!(Directory::of(&again).total("/Users").await, 0);
    bench.service.stop().await;
    assert!(again.stop(Duration::from_secs(5)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_a_group_needs_a_new_token() {
    let folder = tempfile::tempdir().expect("a folder");
    let hub = hub(folder.path(), json!({})).await;
    let (bench, idp) = (Bench::start(&format!("http://{}", hub.address()), json!({})).await, Directory::of(&hub));
    let mut ids = Vec::new();
    for name in ["m1", "m2", "m3", "m4", "m5"] {
        ids.push(idp.create(name).await);
    }
    let members = |ids: &[String]| -> Value { ids.iter().map(|id| json!({"value": id})).collect() };
    // As Entra creates one: with a schema of its own, and without members.
    let group = json!({"schemas": [GROUP, "http://schemas.microsoft.com/2006/11/ResourceManagement/ADSCIM/2.0/Group"],
                       "displayName": "Admins", "externalId": "g1", "meta": {"resourceType": "Group"}});
    let (status, body) = idp.send("POST", "/Groups", group).await;
    assert_eq!((status, &body["members"]), (201, &Value::Null));
    let path = format!("/Groups/{}", body["id"].as_str().expect("an identifier"));
    let change = async |operations: Value| {
        let body = json!({"schemas": ["urn:ietf:params:scim:api:messages:2.0:PatchOp"], "Operations": operations});
        idp.send("PATCH", &path, body).await
    };
    let (status, body) = change(json!([{"op": "Add", "path": "members", "value": members(&ids)}])).await;
    assert_eq!((status, body), (204, Value::Null), "members are not sent back");
    let (_, body) = idp.send("GET", &path, Value::Null).await;
    assert_eq!(body["members"].as_array().map(Vec::len), Some(5));
    assert_eq!((&body["members"][0]["value"], &body["members"][0]["type"]), (&json!(ids[0]), &json!("User")));
    let (_, body) = idp.send("GET", &format!("{path}?excludedAttributes=members"), Value::Null).await;
    assert!(body["members"].is_null() && body["displayName"] == "Admins");
    let filter = format!("/Groups?filter=id%20eq%20%22{}%22%20and%20members%20eq%20%22{}%22", &path[8..], ids[0]);
    assert_eq!(idp.total(&filter).await, 1);
    let (_, body) = idp.send("GET", &format!("/Users/{}", ids[0]), Value::Null).await;
    assert_eq!(body["groups"][0]["display"], json!("Admins"));
    let tokens: Vec<_> = ["m1", "m2", "m3", "m4", "m5"].iter().map(|name| token(&bench, name, -100)).collect();
    for token in &tokens {
        bench.becomes("/required/x", token, (200, "")).await;
    }
    // Each takes one member out; the others stay.
    let shapes = [
        json!([{"op": "Remove", "path": "members", "value": [{"value": ids[0]}]}]),
        json!([{"op": "remove", "path": format!("members[value eq \"{}\"]", ids[1])}]),
        json!([{"op": "replace", "path": "members", "value": members(&ids[3..])}]),
    ];
    for (at, shape) in shapes.into_iter().enumerate() {
        assert_eq!(change(shape).await.0, 204);
        bench.becomes("/x", &tokens[at], (401, "token_revoked")).await;
        assert_eq!(bench.ask("/x", &tokens[3]).await.0, 200, "{at}");
        let (_, body) = idp.send("GET", &path, Value::Null).await;
        assert_eq!(body["members"].as_array().map(Vec::len), Some([4, 3, 2][at]));
    }
    // As Okta renames one.
    let okta = json!([{"op": "replace", "value": {"id": &path[8..], "displayName": "Administrators"}}]);
    assert_eq!(change(okta).await.0, 204);
    // A group may name a user before there is one, and only by a `value`.
    let add = |value: Value| json!([{"op": "add", "path": "members", "value": [{"value": value}]}]);
    assert_eq!(change(add(json!("no user yet"))).await.0, 204);
    for bad in [json!(""), json!("x".repeat(257)), json!(7)] {
        let (status, body) = change(add(bad.clone())).await;
        assert_eq!((status, &body["scimType"]), (400, &json!("invalidValue")), "{bad}");
    }
    let put = json!({"schemas": [GROUP], "displayName": "Administrators", "members": members(&ids[4..])});
    assert_eq!(idp.send("PUT", &path, put).await.0, 200);
    bench.becomes("/x", &tokens[3], (401, "token_revoked")).await;
    assert_eq!(bench.ask("/x", &tokens[4]).await.0, 200);
    // One that forgets the members removes none.
    let forgetful = json!({"schemas": [GROUP], "displayName": "Administrators"});
    assert_eq!(idp.send("PUT", &path, forgetful).await.0, 200);
    assert_eq!(bench.ask("/x", &tokens[4]).await.0, 200);
    assert_eq!(idp.send("DELETE", &path, Value::Null).await.0, 204);
    bench.becomes("/x", &tokens[4], (401, "token_revoked")).await;
    assert_eq!(idp.total("/Groups").await, 0);
    bench.service.stop().await;
    assert!(hub.stop(Duration::from_secs(5)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_asks_too_fast_comes_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let hub = hub(folder.path(), json!({"rate": 1})).await;
    let (idp, other) = (Directory::of(&hub), Directory::other(&hub));
    let mut statuses = Vec::new();
    // One more each second is allowed: however slow this is, there is an end.
    while statuses.len() < 1_000 && !statuses.contains(&429) {
        let answer = idp.client.get(format!("{}/Users", idp.url)).bearer_auth(TOKEN).send().await.expect("an answer");
        let retry: Option<u32> =
            answer.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        assert_eq!(retry.is_some(), answer.status() == 429);
        statuses.push(answer.status().as_u16());
    }
    assert_eq!(statuses.first(), Some(&200));
    assert!(statuses.contains(&429), "{statuses:?}");
    assert_eq!(other.total("/Users").await, 0, "others are not slowed");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_stepgate"));
    command.args(["hub", "status", "--socket"]).arg(super::hub::socket(folder.path()));
    let output = tokio::task::spawn_blocking(move || command.output().expect("it runs")).await.expect("it ends");
    let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let sources =
        json!([{"name": "idp", "kind": "scim", "age_seconds": 0}, {"name": "other", "kind": "scim", "age_seconds": 0}]);
    assert_eq!(status["sources"], sources);
    assert!(hub.stop(Duration::from_secs(5)).await);
}

#[test]
fn the_configurations_of_the_page_are_accepted() {
    let page = std::fs::read_to_string("docs/operate/revocation.md").expect("the page");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("hub.yaml");
    for (heading, directories, logouts, streams) in [
        ("## Let a directory disable users", 1, 0, 0),
        ("## Let a provider end sessions", 0, 1, 0),
        ("## Receive security events", 0, 0, 1),
    ] {
        std::fs::write(&file, super::hub::block(&page, heading, "yaml")).expect("it is written");
        let document =
            stepgate::config::Document::load(Some(&file), &[], &[], &Default::default()).expect("it is read");
        let (config, problems) = stepgate::config::resolve(&document, None);
        assert!(problems.errors.is_empty() && problems.warnings.is_empty(), "{problems:?}");
        let hub = config.and_then(|config| config.hub).expect("a hub");
        let found = (hub.settings.scim.len(), hub.settings.logouts.len(), hub.streams.len());
        assert_eq!(found, (directories, logouts, streams));
    }
}

#[test]
fn mistakes_of_a_configuration_are_named() {
    let provider = json!({"name": "idp", "token_files": ["/t"], "issuers": [ISSUER], "link": [{"attribute": "externalId", "join": "sub"}]});
    let public = json!({"addr": "127.0.0.1:0", "url": "https://hub.example"});
    let errors = |hub: Value| {
        let document = super::hub::document(Path::new("/x"), hub);
        let (_, problems) = stepgate::config::resolve(&stepgate::config::Document::of(document), None);
        problems.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let with = |more: Value| {
        let mut one = provider.clone();
        crate::harness::merge(&mut one, more);
        errors(json!({"public": public, "scim": [one]}))
    };
    assert_eq!(with(json!({})), "");
    for (more, want) in [
        (json!({"name": "Oh no"}), "scim[0].name"),
        (json!({"token_files": []}), "scim[0].token_files"),
        (json!({"issuers": ["https://other"]}), "`https://other` is none of the configured issuers"),
        (json!({"link": []}), "scim[0].link"),
        (
            json!({"link": [{"attribute": "nickName", "join": "sub"}]}),
            "expected one of userName, externalId, emails, displayName",
        ),
        (json!({"link": [{"attribute": "userName", "join": "oid"}]}), "`oid` is no join of these issuers: email, sub"),
    ] {
        let found = with(more);
        assert!(found.contains(want), "{want}: {found}");
    }
    // Each issuer of a directory must be reached by a link.
    let mut document = super::hub::document(Path::new("/x"), json!({"public": public, "scim": [provider.clone()]}));
    let stepgate = document.pointer_mut("/plugins/stepgate").expect("the section");
    stepgate["issuers"].as_array_mut().expect("issuers").push(
        json!({"issuer": "https://second", "audiences": ["a"], "algorithms": ["ES256"], "jwks_url": "https://second/jwks"}),
    );
    stepgate["hub"]["scim"][0]["issuers"] = json!([ISSUER, "https://second"]);
    stepgate["hub"]["scim"][0]["link"] = json!([{"attribute": "emails", "join": "email"}]);
    let (_, problems) = stepgate::config::resolve(&stepgate::config::Document::of(document), None);
    let found = problems.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert!(found.contains("no link leads to a join of `https://second`"), "{found}");
    let twice = errors(json!({"public": public, "scim": [provider, provider]}));
    assert!(twice.contains("named twice") && twice.contains("a credential belongs to one provider"), "{twice}");
    assert!(errors(json!({"scim": [provider]})).contains("it needs `hub.public`"));
    let open = json!({"addr": "0.0.0.0:9443", "url": "https://hub.example"});
    assert!(errors(json!({"public": open})).contains("off loopback it needs `tls`"));
    assert!(
        errors(json!({"public": {"url": "hub"}})).contains("the address under which identity providers reach the hub")
    );
}

#[test]
fn an_explanation_names_what_is_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, content: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("it is written");
        path
    };
    let links = json!([{"attribute": "externalId", "join": "sub"}, {"attribute": "emails", "join": "email"}]);
    let scim = json!([{"name": "idp", "token_files": ["/t"], "issuers": [ISSUER], "link": links}]);
    let streams = json!([{"name": "events", "transmitter": "https://t.example", "audience": "a", "issuers": [ISSUER], "token_files": ["/t"]}]);
    let public = json!({"url": "https://hub.example"});
    let document = super::hub::document(folder.path(), json!({"public": public, "scim": scim, "streams": streams}));
    let config = file("hub.json", document.to_string());
    let claims = json!({"iss": ISSUER, "sub": "u1", "sid": "s1"});
    let signed = stepgate_jose::signing_input("{\"alg\":\"ES256\"}", &claims.to_string());
    let token = file("token", format!("{signed}.c2ln"));
    let explain = |flag: &str, name: &str, content: Value| {
        let given = file(name, content.to_string());
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_stepgate"));
        command.args(["hub", "explain", "--config-file"]).arg(&config).arg("--token-file").arg(&token);
        let output = command.arg(flag).arg(given).output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let mapped = explain("--scim", "user", json!({"userName": "a", "externalId": "u1"}));
    assert_eq!(mapped, (Some(0), "externalId -> sub: match, by the claim `sub`\nemails -> email: the user has no `emails`\nthe token would be rejected\n".to_owned()));
    // The mistake of the default mapping of Entra, and a token without the claim of the join.
    let (code, text) = explain(
        "--scim",
        "user",
        json!({"userName": "a", "externalId": "nickname", "emails": [{"value": "A@example.com"}]}),
    );
    assert_eq!(code, Some(1));
    for want in [
        "externalId -> sub: the user has `nickname`, the claim `sub` is `u1`",
        "emails -> email: the token has no usable claim `email`",
        "would NOT be rejected",
    ] {
        assert!(text.contains(want), "{want}: {text}");
    }
    let (code, text) = explain("--subject", "subject", json!({"session": {"format": "opaque", "id": "s1"}}));
    assert!(
        code == Some(0) && text.contains("session s1: match") && text.contains("user sub u1: not named by the event"),
        "{text}"
    );
    let (code, text) = explain("--subject", "subject", json!({"format": "opaque", "id": "u1"}));
    assert!(code == Some(1) && text.contains("`opaque_is`"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_user_is_not_one_that_is_inactive_for_ever() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = hub(folder.path(), json!({})).await;
    assert!(first.stop(Duration::from_secs(5)).await);
    let provider = json!({"name": "idp", "token_files": [folder.path().join("token")], "issuers": [ISSUER],
                          "link": [{"attribute": "externalId", "join": "sub"}]});
    let public = json!({"addr": "127.0.0.1:0", "url": "https://hub.example/"});
    // Longer than times last.
    let more = json!({"public": public, "scim": [provider], "deleted_retention": "2000000h"});
    let hub = start(folder.path(), more).await.expect("the hub starts");
    let bench = Bench::start(&format!("http://{}", hub.address()), json!({})).await;
    let idp = Directory::of(&hub);
    let id = idp.create("ann").await;
    let token = bench.token(json!({"sub": "ann", "email": "x@example.com", "sid": "x", "iat": NOW + 3}));
    bench.becomes("/required/x", &token, (200, "")).await;
    assert_eq!(idp.send("DELETE", &format!("/Users/{id}"), Value::Null).await.0, 204);
    bench.becomes("/x", &token, (401, "account_disabled")).await;
    idp.create("ann").await;
    bench.becomes("/x", &token, (200, "")).await;
    bench.service.stop().await;
    assert!(hub.stop(Duration::from_secs(5)).await);
}
