use super::super::entry::PERMANENT;
use super::*;
use crate::revocation::{Record, decode, encode};

const NOW: i64 = 1_800_000_000;
const AT: u32 = 1_800_000_000;

fn store() -> Arc<RevocationStore> {
    Arc::new(RevocationStore::new(Settings {
        max_staleness: 60,
        stale_limit: 900,
        when_stale: Mode::Allow,
        when_cold: Mode::Deny,
        max_entries: 3,
        max_events: 2,
    }))
}

fn load(store: &Arc<RevocationStore>, header: Header, records: Vec<Record>) -> Result<(), LoadError> {
    store.load(&*encode(&header, &records))
}

/// As they are kept on disk.
fn entries_of(store: &RevocationStore) -> BTreeMap<Key, Entry> {
    let mut bytes = Vec::new();
    assert!(store.write_snapshot(&mut bytes).expect("a Vec takes it"));
    decode(&bytes).expect("a snapshot").1.into_iter().collect()
}

fn header(as_of: i64) -> Header {
    Header { epoch: "e".to_owned(), seq: 1, as_of, retain: 90_000, hub_key: "00".repeat(32) }
}

fn verdict(kind: Kind, entry: Entry, issued: i64, authenticated: Option<i64>) -> Verdict {
    let store = store();
    load(&store, header(NOW), vec![([1; 16], entry)]).expect("it fits");
    let keys = [(Kind::Client, [9; 16]), (kind, [1; 16])];
    store.verdict(&keys, TokenTimes { issued, authenticated }, NOW)
}

#[test]
fn verdicts_by_kind_and_time() {
    let revoked = Entry { not_before: AT - 10, until: AT + 10, ..Entry::default() };
    let disabled = Entry { disabled: 2, disabled_until: PERMANENT, ..Entry::default() };
    let denied = Entry { deny: true, until: AT + 10, ..Entry::default() };
    let again = Entry { authenticated_not_before: AT - 10, until: AT + 10, ..Entry::default() };
    let (good, token) = (Verdict::Good, Verdict::Revoked(Revoked::Token));
    for (name, kind, entry, issued, authenticated, want) in [
        ("issued before", Kind::User, revoked, NOW - 11, None, token),
        ("issued in that second", Kind::User, revoked, NOW - 10, None, token),
        ("issued after", Kind::User, revoked, NOW - 9, None, good),
        ("sessions have no times", Kind::Session, revoked, NOW - 11, None, good),
        ("over", Kind::User, Entry { until: AT, ..revoked }, NOW - 11, None, good),
        ("disabled", Kind::User, disabled, NOW + 5, Some(NOW), Verdict::Disabled),
        ("enabled", Kind::User, Entry { disabled: 0, ..disabled }, NOW + 5, None, good),
        ("no longer disabled", Kind::User, Entry { disabled_until: AT, ..disabled }, NOW, None, good),
        ("a session", Kind::Session, denied, NOW, None, Verdict::Revoked(Revoked::Session)),
        ("a token", Kind::Token, denied, NOW, None, token),
        ("a key", Kind::Key, denied, NOW, None, Verdict::Revoked(Revoked::Key)),
        ("a client", Kind::Client, denied, NOW, None, token),
        ("a denial that is over", Kind::Token, Entry { until: AT, ..denied }, NOW, None, good),
        ("authenticated before", Kind::User, again, NOW, Some(NOW - 10), Verdict::Reauthenticate(AT - 10)),
        ("authenticated after", Kind::User, again, NOW - 20, Some(NOW - 9), good),
        ("authenticated at some time", Kind::User, again, NOW, None, token),
    ] {
        assert_eq!(verdict(kind, entry, issued, authenticated), want, "{name}");
    }
}

#[test]
fn the_most_severe_verdict_counts() {
    let store = store();
    let revoked = Entry { not_before: AT, until: PERMANENT, ..Entry::default() };
    let again = Entry { authenticated_not_before: AT, until: PERMANENT, ..Entry::default() };
    let disabled = Entry { disabled: 1, disabled_until: PERMANENT, ..Entry::default() };
    load(&store, header(NOW), vec![([1; 16], again), ([2; 16], revoked), ([3; 16], disabled)]).expect("it fits");
    let times = TokenTimes { issued: NOW, authenticated: Some(NOW) };
    let of = |keys: &[u8]| {
        let keys: Vec<_> = keys.iter().map(|key| (Kind::User, [*key; 16])).collect();
        store.verdict(&keys, times, NOW)
    };
    assert_eq!(of(&[]), Verdict::Good);
    assert_eq!(of(&[1]), Verdict::Reauthenticate(AT));
    assert_eq!(of(&[1, 2]), Verdict::Revoked(Revoked::Token));
    assert_eq!(of(&[3, 2, 1]), Verdict::Disabled);
}

#[test]
fn entries_grow_stale_and_cold_and_are_never_evicted() {
    let store = store();
    assert_eq!((store.state(NOW), store.position()), (State::Cold, None));
    load(&store, header(NOW), Vec::new()).expect("it fits");
    for (age, state) in
        [(0, State::Live), (60, State::Live), (61, State::Stale), (900, State::Stale), (901, State::Cold)]
    {
        assert_eq!(store.state(NOW + age), state, "{age}");
    }
    store.confirm(NOW + 100);
    store.confirm(NOW + 50);
    assert_eq!(store.age(NOW + 101), 1);
    // A snapshot that is too large changes nothing; a change is taken all the same.
    let four = (0..4u8).map(|number| ([number; 16], Entry::default())).collect();
    let error = load(&store, header(NOW), four).expect_err("too large");
    assert!(matches!(error, LoadError::Overflow { entries: 4, max: 3, bytes: 192 }), "{error}");
    (0..5u8).for_each(|number| store.put([number; 16], Entry::default(), u64::from(number) + 2));
    assert_eq!((store.len(), store.position()), (5, Some(("e".to_owned(), 6))));
}

#[test]
fn a_new_key_of_the_hub_voids_computed_keys() {
    let store = store();
    load(&store, header(NOW), Vec::new()).expect("it fits");
    let (_, first) = store.hub_key().expect("a key");
    load(&store, header(NOW), Vec::new()).expect("it fits");
    assert_eq!(store.hub_key().expect("a key").1, first);
    load(&store, Header { hub_key: "11".repeat(32), ..header(NOW) }, Vec::new()).expect("it fits");
    assert_eq!(store.hub_key().expect("a key").1, first + 1);
}

#[test]
fn a_hub_that_lost_something_does_not_un_revoke() {
    let store = store();
    let revoked = Entry { not_before: AT, until: PERMANENT, ..Entry::default() };
    let disabled = Entry { disabled: 1, disabled_until: PERMANENT, ..Entry::default() };
    let at = |epoch: &str, seq| Header { epoch: epoch.to_owned(), seq, ..header(NOW) };
    let entries = || entries_of(&store);
    load(&store, at("e", 5), vec![([1; 16], revoked), ([2; 16], disabled)]).expect("it fits");
    // An older copy of the file, with and without a new epoch.
    for epoch in ["e", "f"] {
        load(&store, at(epoch, 3), vec![([1; 16], Entry::default()), ([3; 16], revoked)]).expect("it fits");
        let entries = entries();
        assert_eq!((entries.get(&[1; 16]), entries.get(&[2; 16])), (Some(&revoked), Some(&disabled)), "{epoch}");
        assert_eq!(entries.get(&[3; 16]), Some(&revoked), "{epoch}");
        assert_eq!(store.position(), Some((epoch.to_owned(), 3)), "what came after it comes again");
    }
    // The same history goes on: what it says counts.
    load(&store, at("f", 9), vec![([1; 16], revoked)]).expect("it fits");
    assert_eq!(entries().len(), 1);
    // A new file has a new key, and no revocations.
    let other = Header { hub_key: "11".repeat(32), ..at("g", 1) };
    assert!(matches!(load(&store, other.clone(), Vec::new()), Err(LoadError::OtherHub)));
    assert_eq!((entries().len(), store.position()), (1, Some(("f".to_owned(), 9))));
    let fresh = self::store();
    load(&fresh, at("f", 1), Vec::new()).expect("it fits");
    load(&fresh, other, Vec::new()).expect("without entries nothing is lost");
}
