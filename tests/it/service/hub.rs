//! A hub with its real file and its real feed: what an administrator revokes, sidecars reject; what was acknowledged stays.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::{Value, json};
use stepgate::app::HubApp;
use stepgate::clock::Clock;
use stepgate::config::{Document, resolve};

use super::revocation::{Bench, ISSUER};
use crate::harness::{NOW, settled};
use crate::redis::{DURABLE, RedisServer};

pub(super) const TOKEN: &str = "0123456789abcdef0123456789abcdef";

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_stepgate"))
}

/// The configuration of a hub in `folder`.
pub(super) fn document(folder: &Path, more: Value) -> Value {
    let mut hub = json!({
        "addr": "127.0.0.1:0",
        "data_dir": folder.join("data"),
        "admin_socket": format!("unix://{}", socket(folder).display()),
    });
    if let Some(url) = store_of_run() {
        crate::harness::merge(&mut hub, in_redis(folder, url));
    }
    crate::harness::merge(&mut hub, more);
    // Null takes a member away.
    hub.as_object_mut().expect("an object").retain(|_, value| !value.is_null());
    let joins = json!({"email": {"claim": "email", "fold": "email", "when": "email_verified"}});
    let issuer = json!({"issuer": ISSUER, "audiences": ["a"], "algorithms": ["ES256"], "jwks_url": "https://issuer/jwks",
                        "revocation": {"joins": joins}});
    json!({"plugins": {"stepgate": {"hub": hub, "issuers": [issuer]}}})
}

/// The members of a hub whose ledger is in a server.
pub(super) fn in_redis(folder: &Path, url: &str) -> Value {
    let key_file = folder.join("key");
    if folder.is_dir() {
        std::fs::write(&key_file, TOKEN).expect("the secret is written");
    }
    // Each folder has a ledger of its own.
    let namespace = folder.file_name().unwrap_or_default().to_string_lossy();
    json!({"data_dir": null, "redis": {"urls": [url], "key_file": key_file, "namespace": namespace}})
}

/// The server that all hubs of this process have, where the run asks for it by `STEPGATE_TEST_STORE=redis`.
fn store_of_run() -> Option<&'static str> {
    static URL: OnceLock<String> = OnceLock::new();
    let is_asked = std::env::var("STEPGATE_TEST_STORE").is_ok_and(|store| store == "redis");
    let start = || {
        let (sender, receiver) = std::sync::mpsc::channel();
        // The server ends with the thread that has started it: with the process.
        std::thread::spawn(move || {
            let server = RedisServer::start(DURABLE);
            sender.send(server.url()).expect("it is awaited");
            loop {
                std::thread::park();
            }
        });
        receiver.recv().expect("it starts")
    };
    is_asked.then(|| URL.get_or_init(start).as_str())
}

pub(super) fn socket(folder: &Path) -> PathBuf {
    folder.join("hub.sock")
}

pub(super) async fn start(folder: &Path, more: Value) -> anyhow::Result<HubApp> {
    start_with(document(folder, more)).await
}

pub(super) async fn start_with(document: Value) -> anyhow::Result<HubApp> {
    let (config, problems) = resolve(&Document::of(document), None);
    assert!(problems.errors.is_empty(), "{:?}", problems.errors);
    let hub = config.and_then(|config| config.hub).expect("a hub");
    HubApp::start(hub, Clock::fixed(NOW)).await
}

/// `stepgate revoke` at the hub of `folder`.
pub(super) async fn revoke(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = program();
    command.arg("revoke").args(arguments).args(["--reason", "left"]).arg("--socket").arg(socket(folder));
    tokio::task::spawn_blocking(move || command.output().expect("it runs")).await.expect("it ends")
}

async fn revoke_user(folder: &Path, user: &str, more: &[&str]) {
    let output = revoke(folder, &[&["user", user, "--issuer", ISSUER], more].concat()).await;
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_administrator_revokes_every_sidecar_rejects() {
    let folder = tempfile::tempdir().expect("a folder");
    let hub = start(folder.path(), json!({})).await.expect("the hub starts");
    let address = hub.address().to_owned();
    let url = format!("http://{address}");
    let benches = [Bench::start(&url, json!({})).await, Bench::start(&url, json!({})).await];
    for bench in &benches {
        bench.becomes("/required/x", &bench.token(json!({})), (200, "")).await;
    }
    revoke_user(folder.path(), "alice", &[]).await;
    for bench in &benches {
        bench.becomes("/x", &bench.token(json!({})), (401, "token_revoked")).await;
        let later = bench.token(json!({"iat": NOW + 3}));
        assert_eq!(bench.ask("/x", &later).await.0, 200, "a token of later, beyond the skew");
        let bob = bench.token(json!({"sub": "bob", "email": "bob@example.com"}));
        assert_eq!(bench.ask("/x", &bob).await.0, 200);
    }
    revoke_user(folder.path(), "alice", &["--disable"]).await;
    let [bench, other] = benches;
    let later = bench.token(json!({"iat": NOW + 3}));
    bench.becomes("/x", &later, (401, "account_disabled")).await;
    revoke_user(folder.path(), "alice", &["--enable"]).await;
    bench.becomes("/x", &later, (200, "")).await;
    let output = revoke(folder.path(), &["session", "s1", "--issuer", ISSUER]).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "{\"seq\":4}\n");
    bench.becomes("/x", &later, (401, "session_revoked")).await;
    other.service.stop().await;
    // A hub that starts again has the same history: sidecars go on where they were.
    assert!(hub.stop(Duration::from_secs(5)).await, "the hub ends with readers connected");
    let hub = start(folder.path(), json!({"addr": address})).await.expect("it starts again");
    let carol = bench.token(json!({"sub": "carol", "email": "c@example.com", "sid": "s9"}));
    assert_eq!(bench.ask("/x", &carol).await.0, 200);
    revoke_user(folder.path(), "carol", &[]).await;
    bench.becomes("/x", &carol, (401, "token_revoked")).await;
    assert_eq!(bench.ask("/x", &later).await.1, "session_revoked");
    bench.service.stop().await;
    assert!(hub.stop(Duration::from_secs(5)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_of_administrators_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let absent = revoke(folder.path(), &["user", "alice", "--issuer", ISSUER]).await;
    assert!(String::from_utf8_lossy(&absent.stderr).contains("no hub listens at"), "{absent:?}");
    let hub = start(folder.path(), json!({})).await.expect("the hub starts");
    for (arguments, want) in [
        (&["user", "alice", "--issuer", "https://other"][..], "expected one of the configured issuers: https://issuer"),
        (&["user", "alice", "--issuer", ISSUER, "--name", "uid"], "`name`: expected one of: sub, email"),
        (&["user", "--issuer", ISSUER], "`value`: it is empty"),
        (&["session", "s1", "--issuer", ISSUER, "--disable"], "`disable` is not for a session"),
        (&["user", "alice", "--issuer", ISSUER, "--disable", "--enable"], "cannot be used with"),
    ] {
        let output = revoke(folder.path(), arguments).await;
        assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains(want), "{output:?}");
    }
    let status = program().args(["hub", "status", "--socket"]).arg(socket(folder.path())).output().expect("it runs");
    let status: Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert_eq!((&status["seq"], &status["entries"], &status["age_seconds"]), (&json!(0), &json!(0), &json!(0)));
    // A backup is a whole ledger, and never takes the place of a file.
    revoke_user(folder.path(), "alice", &["--disable"]).await;
    let copy = folder.path().join("copy.redb");
    let back_up = || {
        program().args(["hub", "backup", "--socket"]).arg(socket(folder.path())).arg(&copy).output().expect("it runs")
    };
    assert!(back_up().status.success());
    let check = |file: &Path| program().args(["hub", "check"]).arg(file).output().expect("it runs");
    let checked: Value = serde_json::from_slice(&check(&copy).stdout).expect("JSON");
    assert_eq!((&checked["seq"], &checked["entries"]), (&json!(1), &json!(1)));
    assert_ne!(checked["epoch"], status["epoch"], "its changes have numbers of their own");
    assert!(
        String::from_utf8_lossy(&back_up().stderr).contains("copy.redb` cannot be opened"),
        "there is a file already"
    );
    assert!(check(&copy).status.success(), "which is left as it is");
    for (file, want) in
        [(folder.path().join("data/hub.redb"), "in use by another process"), (folder.path().join("x"), "no file")]
    {
        let output = check(&file);
        assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains(want), "{output:?}");
    }
    // One process has the file.
    let other = folder.path().join("other");
    std::fs::create_dir(&other).expect("a folder");
    let more = json!({"data_dir": folder.path().join("data")});
    let error = start(&other, more).await.expect_err("the file is in use");
    assert!(format!("{error:#}").contains("hub.redb` is in use by another process"), "{error:#}");
    assert!(hub.stop(Duration::from_secs(5)).await);
}

/// Changes after a restore have numbers that sidecars may have for others.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_put_back_un_revokes_nothing_and_hides_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let hub = start(folder.path(), json!({})).await.expect("the hub starts");
    let address = hub.address().to_owned();
    let bench = Bench::start(&format!("http://{address}"), json!({})).await;
    let token = |name: &str| bench.token(json!({"sub": name, "email": format!("{name}@example.com"), "sid": name}));
    bench.becomes("/required/x", &token("alice"), (200, "")).await;
    let copy = folder.path().join("copy.redb");
    let mut command = program();
    command.args(["hub", "backup", "--socket"]).arg(socket(folder.path())).arg(&copy);
    let output = tokio::task::spawn_blocking(move || command.output().expect("it runs")).await.expect("it ends");
    assert!(output.status.success(), "{output:?}");
    revoke_user(folder.path(), "alice", &[]).await;
    bench.becomes("/x", &token("alice"), (401, "token_revoked")).await;
    assert!(hub.stop(Duration::from_secs(5)).await);
    std::fs::rename(&copy, folder.path().join("data/hub.redb")).expect("it is put back");
    // As many changes as the sidecar has, and one more, before it comes back.
    for (name, more) in [("bob", json!({})), ("carol", json!({}))] {
        let hub = start(folder.path(), more).await.expect("it starts");
        revoke_user(folder.path(), name, &[]).await;
        assert!(hub.stop(Duration::from_secs(5)).await);
    }
    let hub = start(folder.path(), json!({"addr": address})).await.expect("it starts where it was");
    for name in ["bob", "carol", "alice"] {
        bench.becomes("/x", &token(name), (401, "token_revoked")).await;
    }
    bench.service.stop().await;
    assert!(hub.stop(Duration::from_secs(5)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_feed_is_for_sidecars_with_a_credential() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("token");
    std::fs::write(&path, TOKEN).expect("the token");
    let hub = start(folder.path(), json!({"token_files": [path]})).await.expect("the hub starts");
    let url = format!("http://{}", hub.address());
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    for place in ["/v1/snapshot", "/v1/feed?after=x.1"] {
        let ask =
            |token: &str| client.get(format!("{url}{place}")).header("authorization", format!("Bearer {token}")).send();
        assert_eq!(ask("wrong").await.expect("an answer").status(), 401, "{place}");
        assert_eq!(ask(TOKEN).await.expect("an answer").status(), 200, "{place}");
    }
    for (place, want) in [("/v1/revocations", 404), ("/v1/hub/status", 404), ("/live", 200)] {
        assert_eq!(client.get(format!("{url}{place}")).send().await.expect("an answer").status(), want, "{place}");
    }
    let credentials = json!({"services": {"hub": {"credentials": {"bearer": {"token_path": path}}}}});
    let bench = Bench::start(&url, credentials).await;
    bench.becomes("/required/x", &bench.token(json!({})), (200, "")).await;
    // The feed is opened after the snapshot.
    settled("the reader to be counted", || async {
        let metrics = client.get(format!("{url}/metrics")).send().await.expect("an answer").text().await.expect("text");
        metrics.contains("stepgate_hub_feed_readers 1") && metrics.contains("stepgate_hub_store_up 1")
    })
    .await;
    bench.service.stop().await;
    assert!(hub.stop(Duration::from_secs(5)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_stepgate_has_its_hub_in_itself() {
    let folder = tempfile::tempdir().expect("a folder");
    let hub = document(folder.path(), json!({}))["plugins"]["stepgate"]["hub"].clone();
    let revocation = json!({"hub": "embedded", "service": null});
    let more = json!({"plugins": {"stepgate": {"hub": hub, "revocation": revocation}}});
    let bench = Bench::start("http://127.0.0.1:1", more).await;
    let token = bench.token(json!({}));
    bench.becomes("/required/x", &token, (200, "")).await;
    revoke_user(folder.path(), "alice", &[]).await;
    bench.becomes("/required/x", &token, (401, "token_revoked")).await;
    assert!(bench.service.metric("stepgate_hub_entries").await >= 1.0);
    bench.service.stop().await;
    let (_, problems) = resolve(
        &Document::of(json!({"plugins": {"stepgate": {"revocation": {"hub": "embedded"}, "issuers": []}}})),
        None,
    );
    let errors: Vec<_> = problems.errors.iter().map(ToString::to_string).collect();
    assert!(errors.join("\n").contains("`embedded` needs the section"), "{errors:?}");
}

#[test]
fn a_hub_that_everyone_could_read_does_not_start() {
    let folder = Path::new("/x");
    let errors = |hub: Value| {
        let (_, problems) = resolve(&Document::of(document(folder, hub)), None);
        problems.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let tls = json!({"cert_file": "c", "private_key_file": "k"});
    assert!(errors(json!({"addr": "0.0.0.0:1"})).contains("off loopback the feed needs `tls`"));
    assert!(errors(json!({"addr": "0.0.0.0:1", "tls": tls})).contains("everyone could read the feed"));
    assert_eq!(errors(json!({"addr": "0.0.0.0:1", "tls": tls, "token_files": ["t"]})), "");
    assert!(errors(json!({"admin_socket": "127.0.0.1:1"})).contains("expected a socket file"));
    assert!(errors(json!({"data_dir": null})).contains("data_dir"));
    let (_, problems) = resolve(&Document::of(json!({"plugins": {"stepgate": {"hub": {"data_dir": "/x"}}}})), None);
    assert!(problems.errors.iter().any(|problem| problem.to_string().contains("without `issuers`")));
}

/// `stepgate hub` as a process of its own.
struct Process(Child);

impl Process {
    fn start(folder: &Path) -> Self {
        let path = folder.join("hub.json").display().to_string();
        Self::run(program().args(["hub", "--config-file", &path]))
    }

    fn run(command: &mut Command) -> Self {
        Self(command.stderr(Stdio::null()).spawn().expect("it starts"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL: nothing is flushed that was not.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A request to revoke a user, on the socket of the hub of `folder`; the status and the text of its answer.
pub(super) fn ask(folder: &Path, user: &str) -> (String, String) {
    use std::io::{Read as _, Write as _};
    let body =
        json!({"kind": "user", "issuer": ISSUER, "value": user, "action": "disable", "reason": "left"}).to_string();
    let head = format!("POST /v1/revocations HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut stream = std::os::unix::net::UnixStream::connect(socket(folder)).expect("the hub listens");
    stream.write_all(format!("{head}{body}").as_bytes()).expect("it is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    (answer.split(' ').nth(1).unwrap_or_default().to_owned(), answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_nothing_and_is_recovered_from() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("hub.json"), document(folder.path(), json!({})).to_string()).expect("written");
    // Beyond this size writes fail, as on a full disk.
    let mut limited = Command::new("sh");
    let line =
        format!("trap '' XFSZ; ulimit -S -f 400; exec {} hub --config-file hub.json", env!("CARGO_BIN_EXE_stepgate"));
    let hub = Process::run(limited.args(["-c", &line]).current_dir(folder.path()));
    let status = || {
        let output =
            program().args(["hub", "status", "--socket"]).arg(socket(folder.path())).output().expect("it runs");
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default()
    };
    settled("the hub", || async { status()["seq"].is_u64() }).await;
    let mut acknowledged = 0;
    loop {
        let (status, text) = ask(folder.path(), &format!("user-{acknowledged}"));
        match status.as_str() {
            "200" => acknowledged += 1,
            // A slow disk is none that is full.
            _ if text.contains("too slow") => {}
            _ => break assert!(status == "503" && text.contains("the file of the tables"), "{text}"),
        }
        assert!(acknowledged < 100_000, "the limit has no effect");
    }
    settled("the feed to stop confirming", || async { status()["age_seconds"].as_i64() >= Some(2) }).await;
    let raised = Command::new("prlimit").args(["--pid", &hub.0.id().to_string(), "--fsize=unlimited:"]).status();
    assert!(raised.expect("prlimit runs").success());
    settled("the hub to accept changes", || async { ask(folder.path(), "after").0 == "200" }).await;
    settled("the feed to confirm", || async { status()["age_seconds"].as_i64() <= Some(1) }).await;
    assert!(status()["entries"].as_u64() > Some(acknowledged), "{} after {acknowledged}", status());
}

/// The contents of the first block of this language below a heading of docs/operate/revocation.md.
pub(super) fn block<'a>(text: &'a str, heading: &str, language: &str) -> &'a str {
    let (_, below) = text.split_once(heading).expect("the section");
    let (_, block) = below.split_once(&format!("```{language}\n")).expect("the block");
    block.split_once("```").expect("its end").0
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_page_work_with_its_configuration() {
    let text = std::fs::read_to_string("docs/operate/revocation.md").expect("the page");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().display();
    std::fs::write(folder.path().join("hub.yaml"), block(&text, "## Run a hub", "yaml")).expect("the configuration");
    let mut commands = block(&text, "## Run a hub", "sh")
        .lines()
        .map(|line| line.strip_prefix("stepgate ").expect("a command of stepgate"));
    // Only the places are those of this test.
    let places = format!(
        "data_dir={path},plugins.stepgate.hub.addr=127.0.0.1:0,plugins.stepgate.hub.admin_socket=unix://{path}/hub.sock"
    );
    let start = commands.next().expect("the hub is started first");
    let mut hub = program();
    hub.args(start.split(' ')).arg("--set").arg(format!("plugins.stepgate.hub.{places}")).current_dir(folder.path());
    let _hub = Process::run(&mut hub);
    let shell = |command: &str| {
        let line = format!("{} {command}", env!("CARGO_BIN_EXE_stepgate"));
        Command::new("sh")
            .args(["-c", &line])
            .env("STEPGATE_HUB_SOCKET", socket(folder.path()))
            .output()
            .expect("it runs")
    };
    settled("the hub", || async { shell("hub status").status.success() }).await;
    let outputs: Vec<Output> = commands.map(shell).collect();
    assert!(outputs.len() == 2 && outputs.iter().all(|output| output.status.success()), "{outputs:?}");
    assert_eq!(String::from_utf8_lossy(&outputs[0].stdout), "{\"seq\":1}\n");
    let status: Value = serde_json::from_slice(&outputs[1].stdout).expect("JSON");
    assert_eq!(status["entries"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_in_force_after_a_kill() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("hub.json"), document(folder.path(), json!({})).to_string()).expect("written");
    let status = || {
        let output =
            program().args(["hub", "status", "--socket"]).arg(socket(folder.path())).output().expect("it runs");
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default()
    };
    let mut acknowledged = 0u64;
    for round in 0..3 {
        let hub = Process::start(folder.path());
        settled("the hub", || async { status()["seq"].is_u64() }).await;
        assert!(status()["seq"].as_u64() >= Some(acknowledged), "round {round}: {} of {acknowledged}", status());
        assert!(status()["entries"].as_u64() >= Some(acknowledged), "round {round}");
        // Killed while it writes.
        let killing = tokio::task::spawn_blocking(move || {
            std::thread::sleep(Duration::from_millis(300));
            drop(hub);
        });
        for number in 0.. {
            let user = format!("user-{round}-{number}");
            if !revoke(folder.path(), &["user", &user, "--issuer", ISSUER, "--disable"]).await.status.success() {
                break;
            }
            acknowledged += 1;
        }
        killing.await.expect("it is killed");
    }
    assert!(acknowledged > 5, "{acknowledged}");
    let _hub = Process::start(folder.path());
    settled("the hub", || async { status()["seq"].is_u64() }).await;
    assert!(status()["entries"].as_u64() >= Some(acknowledged), "{} of {acknowledged}", status());
}
