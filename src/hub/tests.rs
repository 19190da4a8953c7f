use super::*;
use crate::revocation::{Fold, Join, decode};
use crate::telemetry::Metrics;

const ISSUER: &str = "https://issuer";
const NOW: i64 = 1_800_000_000;

pub(super) fn settings(folder: &std::path::Path) -> HubSettings {
    let email = Join { name: "email".to_owned(), claim: "email".to_owned(), fold: Fold::Email, when: None };
    let joins = IssuerJoins { joins: vec![email], ..IssuerJoins::default() };
    HubSettings {
        store: LedgerStore::Folder(folder.to_owned()),
        retain: 90_000,
        session_retain: 2_592_000,
        skew: 2,
        max_entries: 100,
        max_readers: 2,
        credentials: Credentials::default(),
        deleted_retention: 400 * 86_400,
        public_url: String::new(),
        scim: Vec::new(),
        logouts: Vec::new(),
        issuers: BTreeMap::from([(ISSUER.to_owned(), joins)]),
    }
}

pub(super) fn open(settings: HubSettings) -> Arc<Hub> {
    let metrics = Metrics::new(None);
    Arc::new(Hub::open(settings, Clock::fixed(NOW), metrics.of()).expect("it opens"))
}

pub(super) fn request(document: Value) -> RevocationRequest {
    let mut whole = json!({"kind": "user", "issuer": ISSUER, "value": "alice", "action": "revoke", "reason": "left"});
    whole.as_object_mut().expect("members").extend(document.as_object().expect("members").clone());
    serde_json::from_value(whole).expect("a request")
}

#[test]
fn requests_that_name_nothing_change_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let hub = open(settings(folder.path()));
    for (document, member) in [
        (json!({"kind": "users"}), "kind"),
        (json!({"issuer": "https://other"}), "issuer"),
        (json!({"kind": "key"}), "issuer"),
        (json!({"name": "login"}), "name"),
        (json!({"kind": "session", "name": "sid"}), "name"),
        (json!({"value": ""}), "value"),
        (json!({"value": "a\nb"}), "value"),
        (json!({"name": "email", "value": "no address"}), "value"),
        (json!({"kind": "issuer"}), "value"),
        (json!({"reason": " "}), "reason"),
        (json!({"reason": "x".repeat(257)}), "reason"),
        (json!({"at": NOW + 61}), "at"),
        (json!({"at": 0}), "at"),
        (json!({"at": NOW - 90_120}), "at"),
        (json!({"action": "allow"}), "action"),
        (json!({"kind": "session", "action": "disable"}), "action"),
    ] {
        match hub.execute(&request(document.clone()), "test") {
            Err(CommandError::Request(found, _)) => assert_eq!(found, member, "{document}"),
            other => panic!("{document}: {other:?}"),
        }
    }
    assert_eq!((hub.ledger.seq(), hub.ledger.len()), (0, 0));
}

#[test]
fn actions_make_these_entries() {
    let folder = tempfile::tempdir().expect("a folder");
    let hub = open(settings(folder.path()));
    let now = u32::try_from(NOW).expect("a time");
    let entry = |document: Value| {
        let request = request(document);
        hub.execute(&request, "test").expect("it is accepted");
        let name = if request.kind == "user" && request.name.is_empty() { "sub" } else { request.name.as_str() };
        let kind = crate::revocation::Kind::named(&request.kind).expect("a kind");
        let value = request.value.trim().to_lowercase();
        let key = hub.ledger.hub_key().key(kind, &request.issuer, name, &value);
        let (_, records) = hub.ledger.records().expect("it reads");
        records.into_iter().find(|(known, _)| *known == key).expect("the entry").1
    };
    let revoked = entry(json!({}));
    assert_eq!((revoked.not_before, revoked.until), (now + 2, now + 2 + 90_120));
    let revoked = entry(json!({"name": "email", "value": " Alice@Example.com", "at": NOW - 10}));
    assert_eq!(revoked.not_before, now - 10, "the time of the event, in one form of the address");
    let again = entry(json!({"action": "reauthenticate", "value": "bob"}));
    assert_eq!((again.not_before, again.authenticated_not_before), (0, now + 2));
    assert_eq!(again.until, now + 2 + 2_592_120, "refreshed tokens keep their auth_time");
    let disabled = entry(json!({"action": "disable", "value": "bob"}));
    assert!(disabled.disabled == 1 && !disabled.is_over(u32::MAX - 1));
    let enabled = entry(json!({"action": "enable", "value": "bob"}));
    assert!(enabled.disabled == 0 && enabled.not_before == now + 2, "tokens from before stay rejected");
    let session = json!({"kind": "session", "value": "s1"});
    assert!(entry(session).deny);
    assert!(!entry(json!({"kind": "session", "value": "s1", "action": "allow"})).deny);
}

#[tokio::test]
async fn readers_get_what_they_miss_and_then_every_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let hub = open(settings(folder.path()));
    let seq_of = |line: &str| match Line::parse(line.as_bytes()) {
        Some(Line::Changed { seq, .. }) => seq,
        other => panic!("{other:?}"),
    };
    for value in ["a", "b", "c"] {
        hub.execute(&request(json!({"value": value})), "test").expect("it is accepted");
    }
    let (header, records) = decode(&hub.snapshot().expect("it reads")).expect("a snapshot");
    assert_eq!((header.seq, header.retain, records.len()), (3, 90_000, 3));
    let reader = |after: &str| hub.reader(after).expect("it reads");
    let mut one = reader(&format!("{}.1", header.epoch)).expect("there is room");
    assert_eq!((seq_of(&one.next().await.expect("a line")), seq_of(&one.next().await.expect("a line"))), (2, 3));
    let confirmed = Line::parse(one.next().await.expect("a line").as_bytes());
    assert_eq!(confirmed, Some(Line::Confirmed { as_of: NOW }));
    hub.execute(&request(json!({"value": "d"})), "test").expect("it is accepted");
    assert_eq!(seq_of(&one.next().await.expect("a line")), 4);
    for place in ["other.1", "", "x", &format!("{}.9", header.epoch)] {
        let mut lost = reader(place).expect("there is room");
        assert_eq!(Line::parse(lost.next().await.expect("a line").as_bytes()), Some(Line::Reset), "{place}");
        assert!(lost.next().await.is_none(), "it opens the feed again");
    }
    let two = reader("").expect("there is room");
    assert!(reader("").is_none(), "two readers, and no more");
    drop(two);
    assert!(reader("").is_some());
    // A reader that does not read is sent to the snapshot, and delays no other.
    for _ in 0..=MAX_BUFFERED_LINES {
        hub.beat(b"");
    }
    assert_eq!(Line::parse(one.next().await.expect("a line").as_bytes()), Some(Line::Reset));
}

#[test]
fn credentials_of_readers_are_compared_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("token");
    let token = "0123456789abcdef0123456789abcdef";
    std::fs::write(&path, format!("{token}\n")).expect("the token");
    let short = folder.path().join("short");
    std::fs::write(&short, "short").expect("a token");
    let hub = open(HubSettings {
        credentials: Credentials::new(vec![folder.path().join("absent"), short, path.clone()]),
        ..settings(folder.path())
    });
    assert!(hub.admits(Some(token)));
    for wrong in [None, Some(""), Some("short"), Some(&token[1..])] {
        assert!(!hub.admits(wrong), "{wrong:?}");
    }
    std::fs::write(&path, "x".repeat(40)).expect("a new token");
    assert!(hub.admits(Some(&"x".repeat(40))) && !hub.admits(Some(token)), "files are read again");
}

/// A change that was answered "come again" must not be carried out after something newer.
#[test]
fn a_change_waits_no_longer_than_its_request() {
    let folder = tempfile::tempdir().expect("a folder");
    let hub = open(settings(folder.path()));
    let turn = hub.turn.lock();
    let waiting = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| hub.execute(&request(json!({})), "test"));
        waiting.join().expect("it ends while another has the turn")
    });
    assert!(matches!(waiting, Err(CommandError::Ledger(LedgerError::Busy))), "{waiting:?}");
    drop(turn);
    assert_eq!(hub.execute(&request(json!({})), "test").expect("it is free"), 1, "the first one has changed nothing");
}
