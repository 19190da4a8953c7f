//! The decision log: every decision is uploaded once, or counted.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::harness::{Server, Service, settled};

const ALLOW: &str = "package app\ndefault allow := true\n";

fn logging(server: &Server) -> Value {
    let reporting = json!({"min_delay_seconds": 1, "max_delay_seconds": 1, "upload_size_limit_bytes": 4096});
    json!({"services": {"s": {"url": server.url}}, "decision_logs": {"service": "s", "reporting": reporting}})
}

fn ids(events: &[Value]) -> BTreeSet<String> {
    events.iter().map(|event| event["decision_id"].to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_decision_is_uploaded_once() {
    let server = Server::start().await;
    let service = Service::start(logging(&server), ALLOW).await;
    for status in [500, 503, 200] {
        server.upload_status(status);
        for _ in 0..100 {
            assert!(service.allows("/x").await);
        }
        let asked = server.requests("/logs");
        settled("an upload", || async { server.requests("/logs") > asked }).await;
    }
    // Decisions of the last moment are uploaded while everything stops.
    assert!(service.allows("/last").await);
    service.stop().await;
    let events = server.events();
    assert_eq!((events.len(), ids(&events).len()), (301, 301), "every decision once");
    let is_ours =
        |event: &Value| event["timestamp"].as_str().is_some_and(|time| time.starts_with("2027-01-15T08:00:00"));
    assert!(events.iter().all(is_ours), "the time is the clock's: {}", events[0]);
}
