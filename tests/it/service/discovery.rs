//! A configuration from a discovery bundle.

use serde_json::json;

use crate::harness::{Server, Service, bundle, policy, settled};

fn discovered(resource: &str) -> Vec<u8> {
    let bundles = json!({"b": {"service": "s", "resource": resource, "polling": {"min_delay_seconds": 1, "max_delay_seconds": 1}}});
    let data = json!({"config": {"bundles": bundles, "labels": {"from": "discovery"}}}).to_string();
    bundle(&[("data.json", &data), (".manifest", &json!({"revision": resource}).to_string())])
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_names_the_bundles() {
    let server = Server::start().await;
    server.offer("/one.tar.gz", policy("one", "r1"), "\"1\"");
    server.offer("/two.tar.gz", policy("two", "r2"), "\"2\"");
    server.offer("/discovery.tar.gz", discovered("/one.tar.gz"), "\"d1\"");
    let config = json!({
        "services": {"s": {"url": server.url}},
        "discovery": {"service": "s", "resource": "/discovery.tar.gz", "decision": "config",
                      "polling": {"min_delay_seconds": 1, "max_delay_seconds": 1}},
    });
    let service = Service::start(config, "").await;
    settled("the discovered bundle", || service.allows("/one")).await;
    // A configuration that cannot be used changes nothing.
    let wrong = json!({"config": {"bundles": {"b": {"service": "absent"}}}}).to_string();
    server.offer("/discovery.tar.gz", bundle(&[("data.json", &wrong)]), "\"bad\"");
    let polls = server.requests("/discovery.tar.gz");
    settled("two more polls", || async { server.requests("/discovery.tar.gz") > polls + 2 }).await;
    assert!(service.allows("/one").await);
    server.offer("/discovery.tar.gz", discovered("/two.tar.gz"), "\"d2\"");
    settled("the next bundle", || service.allows("/two")).await;
    assert!(!service.allows("/one").await, "the other one is gone");
    service.stop().await;
}
