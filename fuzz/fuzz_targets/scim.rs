//! Requests of a SCIM provider, one in each line: method, path with query, and body. None is answered as a fault of ours, and no
//! request about others enables the user who was disabled before.
#![no_main]

use std::sync::LazyLock;

use serde_json::json;
use stepgate::hub::{Hub, ScimAnswer, ScimRequest};
use stepgate_fuzz::{TOKEN, hub};

/// Lines of one input.
const MAX_LINES: usize = 8;

static HUB: LazyLock<(std::sync::Arc<Hub>, String)> = LazyLock::new(|| {
    let hub = hub();
    let user = json!({"userName": "leaver", "externalId": "leaver", "active": false}).to_string();
    let answer = ask(&hub, "POST", "Users", user.as_bytes());
    let id = answer.body.as_ref().and_then(|body| body["id"].as_str()).expect("an identifier").to_owned();
    (hub, id)
});

fn ask(hub: &Hub, method: &str, path: &str, body: &[u8]) -> ScimAnswer {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let request = ScimRequest {
        method: method.parse().unwrap_or_default(),
        path: path.split('/').map(str::to_owned).collect(),
        query: url::form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
        content_type: None,
        body: body.to_vec().into(),
    };
    hub.scim(&hub.provider("fuzz", Some(TOKEN)).expect("the provider"), &request)
}

libfuzzer_sys::fuzz_target!(|text: &str| {
    let (hub, id) = &*HUB;
    for line in text.lines().take(MAX_LINES) {
        let mut parts = line.splitn(3, ' ');
        let (Some(method), Some(path)) = (parts.next(), parts.next()) else { continue };
        let answer = ask(hub, method, path, parts.next().unwrap_or_default().as_bytes());
        assert!(answer.status < 500 || answer.status == 501, "{line}: {answer:?}");
    }
    // It is found by its name, and is as it was: its identifier is nothing that an input can guess.
    let found = ask(hub, "GET", &format!("Users/{id}"), b"");
    assert_eq!(found.body.map(|body| body["active"].clone()), Some(json!(false)));
});
