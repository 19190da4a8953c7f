//! Hubs that share a server: each has what the others have changed, and nothing is un-revoked when the server loses it.

use std::collections::BTreeSet;

use super::*;
use crate::hub::ledger::{Batch, LedgerStore};
use crate::revocation::{Change, Kind, PERMANENT, UserEvents};
use crate::state::tests::port_of;
use crate::state::tests::server::{DURABLE, RedisServer};
use crate::state::{Durability, RedisSettings};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn store(folder: &Path, servers: &[&RedisServer]) -> LedgerStore {
    let key_file = folder.join("key");
    std::fs::write(&key_file, SECRET).expect("written");
    let server = RedisSettings {
        urls: servers.iter().map(|server| server.url()).collect(),
        namespace: "test".to_owned(),
        username: None,
        password_file: None,
        ca_cert_file: None,
        durability: Durability::AofAlways,
    };
    LedgerStore::Redis { server, key_file }
}

fn key(number: u8) -> Key {
    [number; 16]
}

fn revoke(number: u32) -> Change {
    Change { not_before: number, until: 1_000, ..Change::default() }
}

fn apply(ledger: &Ledger, key: Key, change: &Change) -> Result<Vec<Line>, LedgerError> {
    ledger.transact(|batch: &mut Batch<'_>| batch.apply(Kind::User, key, change)).map(|(_, merged)| merged)
}

fn at(line: &Line) -> Option<(u64, Key)> {
    match line {
        Line::Changed { seq, key, .. } | Line::Noted { seq, key, .. } => Some((*seq, *key)),
        Line::Confirmed { .. } | Line::Reset => None,
    }
}

/// The changes that readers of the feed get.
fn news(ledger: &Ledger) -> Option<Vec<u64>> {
    match ledger.follow(1).expect("it follows") {
        News::Changes(changes) => Some(changes.iter().filter_map(Line::seq).collect()),
        News::Reset | News::Healed => None,
    }
}

fn records(ledger: &Ledger) -> BTreeSet<(Key, u32, u16)> {
    let (_, records) = ledger.records().expect("it reads");
    records.into_iter().map(|(key, entry)| (key, entry.not_before, entry.disabled)).collect()
}

#[test]
fn hubs_have_each_others_changes_in_one_order() {
    let (folder, server) = (tempfile::tempdir().expect("a folder"), RedisServer::start(DURABLE));
    let store = store(folder.path(), &[&server]);
    let (one, other) = (Ledger::open(&store, 100).expect("it opens"), Ledger::open(&store, 100).expect("it opens"));
    assert_eq!((one.epoch(), one.hub_key_hex()), (other.epoch(), other.hub_key_hex()));
    apply(&one, key(1), &revoke(5)).expect("it is written");
    // Within an own change, what is missing comes before it.
    let merged = apply(&other, key(2), &revoke(6)).expect("it is written");
    assert_eq!(merged.iter().map(at).collect::<Vec<_>>(), [Some((1, key(1))), Some((2, key(2)))]);
    assert_eq!((news(&one), news(&other)), (Some(vec![2]), Some(Vec::new())));
    assert!(records(&one) == records(&other) && one.len() == 2);
    // At the same time: each number once, and none missing.
    let seen = std::thread::scope(|scope| {
        let work = |ledger: &Ledger, base: u8| {
            let mut seen = Vec::new();
            for number in base..base + 50 {
                seen.extend(
                    apply(ledger, key(number), &revoke(7)).expect("it is written").iter().filter_map(Line::seq),
                );
            }
            seen.extend(news(ledger).expect("no reset"));
            seen
        };
        let workers = [(&one, 10), (&other, 100)].map(|(ledger, base)| scope.spawn(move || work(ledger, base)));
        workers.map(|worker| worker.join().expect("it ends"))
    });
    for (ledger, seen) in [&one, &other].into_iter().zip(seen) {
        let rest = news(ledger).expect("no reset");
        assert_eq!([seen, rest].concat(), (3..=102).collect::<Vec<_>>());
    }
    assert!(records(&one) == records(&other) && (one.len(), other.len()) == (102, 102));
    // One that comes later reads everything.
    assert_eq!(records(&Ledger::open(&store, 100).expect("it opens")), records(&one));
}

#[test]
fn a_server_that_lost_everything_gets_it_back() {
    let (folder, server) = (tempfile::tempdir().expect("a folder"), RedisServer::start(DURABLE));
    let store = store(folder.path(), &[&server]);
    let (one, other) = (Ledger::open(&store, 100).expect("it opens"), Ledger::open(&store, 100).expect("it opens"));
    let source = one.source("scim/x").expect("a number");
    assert_eq!(other.source("scim/x").expect("a number"), source);
    apply(&one, key(1), &revoke(5)).expect("it is written");
    news(&other);
    let disable = Change { disable: Some((source, true)), disabled_until: PERMANENT, ..Change::default() };
    apply(&other, key(2), &disable).expect("it is written");
    // Acknowledged, and not known to the first hub yet.
    let (epoch, before) = (one.epoch(), records(&other));
    server.cli(&["flushall"]);
    assert!(matches!(apply(&one, key(3), &revoke(5)), Err(LedgerError::Behind)), "nothing is written into a hole");
    // A hub that starts right now makes a new ledger, which the others complete.
    let fresh = Ledger::open(&store, 100).expect("it opens");
    assert!(records(&fresh).is_empty());
    assert_eq!((news(&one), news(&other)), (None, None), "readers take the snapshot");
    for ledger in [&one, &fresh] {
        news(ledger);
        assert_eq!(records(ledger), before);
    }
    assert!(one.epoch() != epoch && one.epoch() == other.epoch() && other.epoch() == fresh.epoch());
    // Once: it goes on as before.
    for ledger in [&one, &other, &fresh] {
        assert_eq!(news(ledger), Some(Vec::new()));
    }
    apply(&fresh, key(4), &revoke(9)).expect("it is written");
    assert_eq!((news(&one).map(|news| news.len()), news(&other).map(|news| news.len())), (Some(1), Some(1)));
    assert_eq!(one.source("scim/x").expect("a number"), source);
}

#[test]
fn an_older_replica_that_takes_over_un_revokes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut primary = RedisServer::start(DURABLE);
    let port = port_of(&primary);
    let replica = RedisServer::start(&[DURABLE, &["--replicaof", "127.0.0.1", &port]].concat());
    let store = store(folder.path(), &[&primary, &replica]);
    let (one, other) = (Ledger::open(&store, 100).expect("it opens"), Ledger::open(&store, 100).expect("it opens"));
    apply(&one, key(1), &revoke(5)).expect("it is written");
    assert_eq!((news(&one), news(&other)), (Some(Vec::new()), Some(vec![1])));
    while !replica.cli(&["hlen", "{sg:test}:t:entry"]).starts_with('1') {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    replica.cli(&["replicaof", "no", "one"]);
    // On the old one alone.
    apply(&one, key(2), &revoke(6)).expect("it is written");
    primary.kill();
    // The other hub comes first, and makes a change of the same number.
    news(&other);
    apply(&other, key(3), &revoke(7)).expect("it is written");
    assert_eq!(news(&one), None);
    news(&other);
    assert_eq!(records(&one), records(&other));
    assert!(records(&one).contains(&(key(2), 6, 0)) && records(&one).contains(&(key(3), 7, 0)));
}

/// The bits of entries would belong to other providers.
#[test]
fn sources_with_other_numbers_stop_a_hub() {
    let (folder, server) = (tempfile::tempdir().expect("a folder"), RedisServer::start(DURABLE));
    let store = store(folder.path(), &[&server]);
    let ledger = Ledger::open(&store, 100).expect("it opens");
    let source = ledger.source("scim/x").expect("a number");
    let disable = Change { disable: Some((source, true)), disabled_until: PERMANENT, ..Change::default() };
    apply(&ledger, key(1), &disable).expect("it is written");
    server.cli(&["flushall"]);
    let fresh = Ledger::open(&store, 100).expect("it opens");
    assert_eq!(fresh.source("scim/y").expect("a number"), source);
    assert!(matches!(ledger.follow(1), Err(LedgerError::OtherSources)));
    assert!(matches!(apply(&ledger, key(2), &revoke(1)), Err(LedgerError::OtherSources)));
    news(&fresh);
    assert!(records(&fresh).contains(&(key(1), 0, 1 << source)), "in doubt disabled");
    assert!(matches!(ledger.follow(1), Err(LedgerError::OtherSources)), "until it starts again");
}

#[test]
fn a_restart_of_the_server_is_no_loss() {
    let (folder, mut server) = (tempfile::tempdir().expect("a folder"), RedisServer::start(DURABLE));
    let store = store(folder.path(), &[&server]);
    let (ledger, other) = (Ledger::open(&store, 100).expect("it opens"), Ledger::open(&store, 100).expect("it opens"));
    for ledger in [&ledger, &other] {
        news(ledger);
    }
    for number in 0..50 {
        apply(&ledger, key(number), &revoke(5)).expect("it is written");
    }
    let (epoch, before) = (ledger.epoch(), records(&ledger));
    server.kill();
    ledger.follow(1).expect_err("it is away");
    apply(&ledger, key(99), &revoke(5)).expect_err("it is away");
    server.start_again();
    assert_eq!((news(&ledger), ledger.epoch()), (Some(Vec::new()), epoch), "every acknowledged change is there");
    assert_eq!(records(&ledger), before);
    assert_eq!(news(&other), Some((1..=50).collect()), "and goes to the readers of all hubs");
    assert_eq!(records(&Ledger::open(&store, 100).expect("it opens")), before);
}

#[test]
fn a_hub_with_another_key_does_not_start() {
    let (folder, server) = (tempfile::tempdir().expect("a folder"), RedisServer::start(DURABLE));
    let store = store(folder.path(), &[&server]);
    Ledger::open(&store, 100).expect("it opens");
    std::fs::write(folder.path().join("key"), [SECRET, "x"].concat()).expect("written");
    assert!(matches!(Ledger::open(&store, 100), Err(LedgerError::OtherKey)));
    std::fs::write(folder.path().join("key"), "short").expect("written");
    assert!(matches!(Ledger::open(&store, 100), Err(LedgerError::KeyFile(_))));
}

#[test]
fn what_is_over_goes_from_server_and_memory() {
    let (folder, server) = (tempfile::tempdir().expect("a folder"), RedisServer::start(DURABLE));
    let store = store(folder.path(), &[&server]);
    let (one, other) = (Ledger::open(&store, 100).expect("it opens"), Ledger::open(&store, 100).expect("it opens"));
    apply(&one, key(1), &revoke(5)).expect("it is written");
    apply(&one, key(2), &Change { until: 5_000, ..revoke(5) }).expect("it is written");
    news(&other);
    for ledger in [&one, &other] {
        assert!(ledger.sweep(b"", 10, 2_000).expect("it is written").is_empty());
        assert_eq!((ledger.len(), records(ledger).len()), (1, 1));
    }
    assert!(server.cli(&["hlen", "{sg:test}:t:entry"]).starts_with('1'));
    assert!(server.cli(&["zcard", "{sg:test}:k:entry"]).starts_with('1'));
}

/// A hub that was away for long, or whose log is gone, reads everything.
#[test]
fn a_hole_in_the_log_is_no_hole_in_the_ledger() {
    let (folder, server) = (tempfile::tempdir().expect("a folder"), RedisServer::start(DURABLE));
    let store = store(folder.path(), &[&server]);
    let (one, other) = (Ledger::open(&store, 100).expect("it opens"), Ledger::open(&store, 100).expect("it opens"));
    for number in 0..5 {
        apply(&one, key(number), &revoke(5)).expect("it is written");
    }
    for number in 1..3u64 {
        one.state.write(|writing| writing.remove(LOG, &number.to_be_bytes())).expect("it is written");
    }
    assert_eq!(news(&other), None);
    assert_eq!(records(&other), records(&one));
    assert_eq!((other.seq(), news(&other)), (5, Some(Vec::new())));
}

#[test]
fn events_come_to_all_hubs_and_go_after_their_time() {
    let (folder, server) = (tempfile::tempdir().expect("a folder"), RedisServer::start(DURABLE));
    let store = store(folder.path(), &[&server]);
    let (one, other) = (Ledger::open(&store, 100).expect("it opens"), Ledger::open(&store, 100).expect("it opens"));
    let event = |id: &str, at: u32| {
        serde_json::json!({"id": id, "at": at, "source": "s", "level": "HIGH"}).as_object().cloned().unwrap_or_default()
    };
    for (ledger, id) in [(&one, "a"), (&other, "b")] {
        let noted = ledger.transact(|batch| batch.note(key(1), "risk", event(id, 1_000), 1_000));
        noted.map(|_| ()).map_err(|error: LedgerError| error).expect("it is written");
    }
    let News::Changes(changes) = one.follow(1_000).expect("it follows") else { panic!("no reset") };
    let (_, events) = other.events_of(0).expect("it reads").pop().expect("one user");
    assert_eq!(events.to_json()["risk"].as_array().map(Vec::len), Some(2));
    assert_eq!(changes, [Line::Noted { key: key(1), events, seq: 2 }]);
    let month = 30 * 86_400;
    one.forget_events(1_000 + month - 1).expect("it is written");
    assert_eq!(one.events_of(0).expect("it reads").len(), 1);
    one.forget_events(1_000 + month).expect("it is written");
    assert!(one.events_of(0).expect("it reads").is_empty());
    let gone = one.changes_after(0).expect("it reads").expect("all are there");
    assert_eq!(gone.last(), Some(&Line::Noted { key: key(1), events: UserEvents::default(), seq: 2 }));
}
