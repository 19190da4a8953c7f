//! Bundles from a server: bad answers, deltas, staleness, status, entry points.

use serde_json::{Value, json};

use crate::harness::{Server, Service, bundle, merge, policy, settled};

const PATH: &str = "/b.tar.gz";

async fn started(more: Value) -> (Server, Service) {
    let server = Server::start().await;
    server.offer(PATH, policy("one", "r1"), "\"r1\"");
    let mut config = server.config();
    merge(&mut config, more);
    let service = Service::start(config, "").await;
    settled("the first bundle", || service.allows("/one")).await;
    (server, service)
}

async fn has_error(server: &Server, message: &str) {
    settled(message, || async {
        server.bundle_status("b").get("message").and_then(Value::as_str).is_some_and(|text| text.contains(message))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_answer_never_replaces_a_good_policy() {
    let (server, service) = started(json!({})).await;
    let broken = bundle(&[("app.rego", "package app\nallow := nothing()\n"), (".manifest", r#"{"revision": "bad"}"#)]);
    let good = policy("two", "r2");
    let cut = good.get(..good.len() - 20).expect("a long bundle").to_vec();
    for (bytes, message) in [
        (b"<html>sign in</html>".to_vec(), "a bundle is a gzipped tar"),
        (Vec::new(), "the bundle is refused"),
        (cut, "the bundle is refused"),
        (broken, "error(s) occurred while compiling module(s)"),
    ] {
        server.offer(PATH, bytes, "\"bad\"");
        has_error(&server, message).await;
        assert!(service.allows("/one").await && !service.allows("/two").await, "{message}");
    }
    server.fail(PATH, 500);
    has_error(&server, "server replied with Internal Server Error").await;
    assert_eq!(server.bundle_status("b")["active_revision"], "r1");
    server.offer(PATH, good, "\"r2\"");
    settled("the good one after all", || service.allows("/two")).await;
    service.stop().await;
}

fn delta(revision: &str, roots: &[&str], changes: &Value) -> Vec<u8> {
    let manifest = json!({"revision": revision, "roots": roots}).to_string();
    bundle(&[(".manifest", &manifest), ("patch.json", &json!({"data": changes}).to_string())])
}

#[tokio::test(flavor = "multi_thread")]
async fn deltas_change_data_whole_or_not_at_all() {
    let (server, service) = started(json!({})).await;
    let replace = |word: &str| json!({"op": "replace", "path": "/app/word", "value": word});
    server.offer(PATH, delta("r2", &["app"], &json!([replace("two")])), "\"r2\"");
    settled("the delta", || service.allows("/two")).await;
    for (number, change) in [
        delta("r3", &["app"], &json!([replace("three"), {"op": "remove", "path": "/app/none"}])),
        delta("r3", &["app"], &json!([{"op": "upsert", "path": "/other", "value": 1}])),
        delta("r3", &["app", "more"], &json!([replace("three")])),
    ]
    .into_iter()
    .enumerate()
    {
        server.offer(PATH, change, &format!("\"r3-{number}\""));
        settled("a rejection", || async { server.bundle_status("b").get("code").is_some() }).await;
        assert!(service.allows("/two").await && server.bundle_status("b")["active_revision"] == "r2", "{number}");
        server.offer(PATH, delta("r2", &["app"], &json!([])), &format!("\"r2-{number}\""));
        settled("no error any more", || async { server.bundle_status("b").get("code").is_none() }).await;
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_bundle_ends_readiness() {
    let own = json!({"plugins": {"stepgate": {"bundles": {"b": {"max_staleness": "1h"}}}}});
    let (server, service) = started(own).await;
    settled("readiness", || async { service.waiting_for().await.is_empty() }).await;
    server.fail(PATH, 500);
    has_error(&server, "server replied with").await;
    service.clock.advance(3_599);
    assert!(service.waiting_for().await.is_empty(), "not stale yet");
    service.clock.advance(2);
    assert_eq!(service.waiting_for().await, ["bundle_freshness"]);
    assert!(service.allows("/one").await, "the active policy still decides");
    server.offer(PATH, policy("one", "r1"), "\"r1\"");
    settled("readiness again", || async { service.waiting_for().await.is_empty() }).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_bundle_is_no_news() {
    let (server, service) = started(json!({"labels": {"app": "shop"}})).await;
    settled("a status", || async { server.bundle_status("b")["active_revision"] == "r1" }).await;
    // The status of all plugins follows that of the first bundle.
    settled("the last status", || async {
        let before = server.statuses();
        let polls = server.requests(PATH);
        settled("more polls", || async { server.requests(PATH) > polls + 1 }).await;
        server.statuses() == before
    })
    .await;
    server.fail(PATH, 503);
    settled("the failure", || async { server.bundle_status("b")["http_code"] == 503 }).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undefined_entrypoint_denies_and_is_reported() {
    let server = Server::start().await;
    let elsewhere = bundle(&[
        ("app.rego", "package other\nallow := true\n"),
        (".manifest", r#"{"revision": "r0", "roots": ["other"]}"#),
    ]);
    server.offer(PATH, elsewhere.clone(), "\"r0\"");
    let service = Service::start(server.config(), "").await;
    settled("the gauge", || async { service.metric("stepgate_entrypoint_undefined").await == 1.0 }).await;
    assert_eq!(service.waiting_for().await, ["entrypoint"], "not ready before it was defined");
    server.offer(PATH, policy("one", "r1"), "\"r1\"");
    settled("readiness", || async { service.waiting_for().await.is_empty() && service.allows("/one").await }).await;
    assert_eq!(service.metric("stepgate_entrypoint_undefined").await, 0.0);
    server.offer(PATH, elsewhere, "\"r2\"");
    settled("a denial", || async { !service.allows("/one").await }).await;
    assert!(service.waiting_for().await.is_empty(), "still ready");
    settled("a status", || async { server.bundle_status("b")["code"] == "entrypoint_undefined" }).await;
    assert!(service.metric("stepgate_faults_total{reason=\"undefined_decision\"}").await >= 1.0);
    service.stop().await;
}
