//! Hubs that share a Redis server: a change at one is enforced by the sidecars of the others; an acknowledged change stays, whatever fails.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use stepgate::config::{Document, resolve};

use super::hub::{TOKEN, block, document, in_redis, revoke, socket, start};
use super::revocation::{Bench, ISSUER};
use crate::harness::settled;
use crate::redis::{DURABLE, RedisServer};

fn more(folder: &Path, server: &RedisServer, hub: &str) -> Value {
    let mut more = in_redis(folder, &server.url());
    let socket = format!("unix://{}", socket_of(folder, hub).display());
    crate::harness::merge(&mut more, json!({"admin_socket": socket}));
    more
}

fn socket_of(folder: &Path, hub: &str) -> std::path::PathBuf {
    std::fs::create_dir_all(folder.join(hub)).expect("a folder");
    socket(&folder.join(hub))
}

fn token(bench: &Bench, name: &str) -> String {
    bench.token(json!({"sub": name, "email": format!("{name}@example.com"), "sid": name}))
}

async fn revoked(folder: &Path, hub: &str, name: &str) -> bool {
    let output = revoke(&folder.join(hub), &["user", name, "--issuer", ISSUER, "--disable"]).await;
    output.status.success()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_hub_is_told_all_sidecars_reject() {
    let (folder, mut server) = (tempfile::tempdir().expect("a folder"), RedisServer::start(DURABLE));
    let folder = folder.path();
    let one = start(folder, more(folder, &server, "one")).await.expect("it starts");
    let other = start(folder, more(folder, &server, "other")).await.expect("it starts");
    let first = Bench::start(&format!("http://{}", one.address()), json!({})).await;
    let second = Bench::start(&format!("http://{}", other.address()), json!({})).await;
    for name in ["alice", "bob"] {
        second.becomes("/required/x", &token(&second, name), (200, "")).await;
    }
    assert!(revoked(folder, "one", "alice").await);
    for bench in [&first, &second] {
        bench.becomes("/x", &token(bench, "alice"), (401, "account_disabled")).await;
    }
    // The server is away: nothing is acknowledged, and what is known stays.
    server.kill();
    assert!(!revoked(folder, "other", "bob").await);
    assert_eq!(second.ask("/x", &token(&second, "alice")).await.1, "account_disabled");
    server.start_again();
    settled("changes to be accepted again", || revoked(folder, "other", "bob")).await;
    first.becomes("/x", &token(&first, "bob"), (401, "account_disabled")).await;
    // It hangs: the answer comes in time, and says that nothing is known of the change.
    server.signal("-STOP");
    let began = std::time::Instant::now();
    assert!(!revoked(folder, "one", "carol").await);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    server.signal("-CONT");
    settled("changes to be accepted again", || revoked(folder, "one", "carol")).await;
    // It has lost everything: the hubs give it back, and sidecars that start now know all of it.
    server.cli(&["flushall"]);
    settled("changes to be accepted again", || revoked(folder, "one", "carol")).await;
    assert!(one.stop(Duration::from_secs(5)).await, "one of them stops");
    let third = Bench::start(&format!("http://{}", other.address()), json!({})).await;
    for name in ["alice", "bob", "carol"] {
        third.becomes("/x", &token(&third, name), (401, "account_disabled")).await;
        second.becomes("/x", &token(&second, name), (401, "account_disabled")).await;
    }
    assert_eq!(third.ask("/x", &token(&third, "dave")).await.0, 200);
    for bench in [first, second, third] {
        bench.service.stop().await;
    }
    assert!(other.stop(Duration::from_secs(5)).await);
}

/// The server and the hub as docs/operate/revocation.md has them.
#[tokio::test(flavor = "multi_thread")]
async fn the_server_and_the_hub_of_the_page_work() {
    let text = std::fs::read_to_string("docs/operate/revocation.md").expect("the page");
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let of_page = |language| block(&text, "## Run several hubs", language);
    std::fs::write(folder.join("redis.conf"), of_page("text").replace("PASSWORD", TOKEN)).expect("written");
    let path = folder.join("redis.conf").display().to_string();
    let server = RedisServer::start(&["--include", &path]);
    let hub = of_page("yaml")
        .replace("rediss://redis-1.example:6379", &server.url())
        .replace("rediss://redis-0.example:6379", "redis://127.0.0.1:1")
        .replace("/etc/stepgate/hub", &folder.display().to_string());
    let hub: Value = yaml_serde::from_str(&hub).expect("YAML");
    for file in ["redis-password", "key"] {
        std::fs::write(folder.join(file), format!("{TOKEN}\n")).expect("written");
    }
    let mut more = hub.pointer("/plugins/stepgate/hub").expect("the hub").clone();
    crate::harness::merge(&mut more, json!({"data_dir": null, "addr": "127.0.0.1:0"}));
    let hub = start(folder, more).await.expect("it starts");
    let bench = Bench::start(&format!("http://{}", hub.address()), json!({})).await;
    bench.becomes("/required/x", &token(&bench, "alice"), (200, "")).await;
    assert!(revoked(folder, ".", "alice").await);
    bench.becomes("/x", &token(&bench, "alice"), (401, "account_disabled")).await;
    // The user is the hub's, and reaches nothing else.
    for command in
        [&["get", "other"][..], &["flushall"], &["set", "{sg:other}:lock", "1"], &["config", "set", "x", "y"]]
    {
        let output = server.cli(&[&["--user", "stepgate-hub", "--pass", TOKEN, "--no-auth-warning"], command].concat());
        assert!(output.contains("NOPERM"), "{command:?}: {output}");
    }
    bench.service.stop().await;
    assert!(hub.stop(Duration::from_secs(5)).await);
}

/// SIGKILL of hub and server in the middle of changes.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_after_both_were_killed() {
    let (folder, mut server) = (tempfile::tempdir().expect("a folder"), RedisServer::start(DURABLE));
    let folder = folder.path();
    let document = document(folder, in_redis(folder, &server.url()));
    std::fs::write(folder.join("hub.json"), document.to_string()).expect("written");
    let start = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stepgate"));
        command.args(["hub", "--config-file"]).arg(folder.join("hub.json")).stderr(std::process::Stdio::null());
        command.spawn().expect("it starts")
    };
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let mut hub = start();
        settled("the hub", || async { socket(folder).exists() && revoke_one(folder, "first").is_some() }).await;
        let end = std::time::Instant::now() + Duration::from_millis(300);
        let mut number = 0;
        while std::time::Instant::now() < end {
            let name = format!("user-{round}-{number}");
            acknowledged.extend(revoke_one(folder, &name).map(|_| name));
            number += 1;
        }
        match round {
            0 => {}
            _ => {
                server.kill();
                server.start_again();
            }
        }
        let _ = hub.kill();
        let _ = hub.wait();
        std::fs::remove_file(socket(folder)).expect("it was there");
    }
    let mut hub = start();
    settled("the hub", || async { revoke_one(folder, "first").is_some() }).await;
    let status = Command::new(env!("CARGO_BIN_EXE_stepgate"))
        .args(["hub", "status", "--socket"])
        .arg(socket(folder))
        .output()
        .expect("it runs");
    let status: Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert!(acknowledged.len() > 10, "{}", acknowledged.len());
    assert!(status["entries"].as_u64() > Some(acknowledged.len() as u64), "{status} after {}", acknowledged.len());
    let _ = hub.kill();
    let _ = hub.wait();
}

/// The number of a change that was acknowledged.
fn revoke_one(folder: &Path, user: &str) -> Option<()> {
    if !socket(folder).exists() {
        return None;
    }
    std::os::unix::net::UnixStream::connect(socket(folder)).ok()?;
    (super::hub::ask(folder, user).0 == "200").then_some(())
}

#[test]
fn a_server_that_others_could_read_is_refused() {
    let folder = Path::new("/x");
    let errors = |redis: Value, data_dir: Value| {
        let more = json!({"data_dir": data_dir, "redis": redis});
        let (_, problems) = resolve(&Document::of(document(folder, more)), None);
        problems.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let redis = |url: &str| json!({"urls": [url], "key_file": "k"});
    assert_eq!(errors(redis("redis://127.0.0.1:6379"), Value::Null), "");
    assert_eq!(errors(redis("rediss://redis.example:6379"), Value::Null), "");
    for (url, want) in [
        ("redis://redis.example:6379", "urls[0]: off loopback the connection needs TLS: `rediss://`"),
        ("rediss://hub:secret@redis.example", "credentials belong to `username` and `password_file`"),
        ("https://redis.example", "expected `rediss://host:port`"),
        ("redis.example:6379", "expected `rediss://host:port`"),
    ] {
        assert!(errors(redis(url), Value::Null).contains(want), "{url}: {}", errors(redis(url), Value::Null));
    }
    assert!(errors(redis("rediss://r"), json!("/x")).contains("in `data_dir` or in `redis`, not in both"));
    let odd = json!({"urls": ["rediss://r"], "key_file": "k", "namespace": "a{b}", "username": "u"});
    let errors = errors(odd, Value::Null);
    assert!(errors.contains("expected 1 to 64 of") && errors.contains("`username` needs it"), "{errors}");
}
