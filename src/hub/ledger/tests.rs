//! The ledger in its file.

use super::*;
use crate::revocation::PERMANENT;

fn key(number: u8) -> Key {
    [number; 16]
}

fn apply(ledger: &Ledger, kind: Kind, number: u8, change: &Change) -> Result<(u64, Entry), LedgerError> {
    let (_, merged) = ledger.transact(|batch| batch.apply(kind, key(number), change))?;
    match merged.first() {
        Some(Line::Changed { seq, entry, .. }) => Ok((*seq, *entry)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_change_is_there_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("hub.redb");
    let revoke = Change { not_before: 100, until: 1_000, ..Change::default() };
    let disable = Change { disable: Some((0, true)), disabled_until: PERMANENT, ..Change::default() };
    let ledger = Ledger::open_file(&path, 10).expect("it opens");
    assert_eq!(apply(&ledger, Kind::User, 1, &revoke).expect("it is written").0, 1);
    let (seq, entry) = apply(&ledger, Kind::User, 1, &disable).expect("it is written");
    assert!(seq == 2 && entry.not_before == 100 && entry.disabled == 1, "changes merge");
    let (epoch, hub_key) = (ledger.epoch(), ledger.hub_key_hex().to_owned());
    drop(ledger);
    let ledger = Ledger::open_file(&path, 10).expect("it opens again");
    assert_eq!((ledger.epoch(), ledger.hub_key_hex()), (epoch, hub_key.as_str()));
    assert_eq!((ledger.seq(), ledger.len()), (2, 1));
    assert_eq!(ledger.records().expect("it reads"), (2, vec![(key(1), entry)]));
    let changes = |seq| ledger.changes_after(seq).expect("it reads");
    assert_eq!(changes(1), Some(vec![Line::Changed { key: key(1), entry, seq: 2 }]));
    assert_eq!((changes(2), changes(3)), (Some(Vec::new()), None), "from the future: another ledger");
}

/// The disk may fail after a change was written and before that was known.
#[test]
fn a_change_that_was_not_acknowledged_is_caught_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = Ledger::open_file(&folder.path().join("hub.redb"), 10).expect("it opens");
    let revoke = Change { not_before: 100, until: 1_000, ..Change::default() };
    let (_, entry) = apply(&ledger, Kind::User, 1, &revoke).expect("it is written");
    ledger.seq.store(0, Ordering::Release);
    assert_eq!(ledger.catch_up().expect("it reads"), News::Changes(vec![Line::Changed { key: key(1), entry, seq: 1 }]));
    assert!(ledger.seq() == 1 && ledger.catch_up().expect("it reads") == News::Changes(Vec::new()));
}

#[test]
fn a_reader_that_is_far_behind_takes_the_snapshot() {
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = Ledger::open_file(&folder.path().join("hub.redb"), 10).expect("it opens");
    let revoke = Change { not_before: 100, until: 1_000, ..Change::default() };
    let many = |batch: &mut Batch<'_>| -> Result<(), LedgerError> {
        (0..MAX_DUE).try_for_each(|_| batch.apply(Kind::User, key(1), &revoke).map(|_| ()))
    };
    ledger.transact(many).expect("they are written");
    assert!(ledger.changes_after(0).expect("it reads").is_none());
    assert_eq!(ledger.changes_after(1).expect("it reads").map(|changes| changes.len()), Some(MAX_DUE - 1));
}

#[test]
fn sessions_never_take_the_place_of_users() {
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = Ledger::open_file(&folder.path().join("hub.redb"), 4).expect("it opens");
    let deny = Change { deny: Some(true), until: 50, ..Change::default() };
    for number in 0..2 {
        apply(&ledger, Kind::Session, number, &deny).expect("there is room");
    }
    assert!(matches!(apply(&ledger, Kind::Token, 9, &deny), Err(LedgerError::Full(2))));
    apply(&ledger, Kind::Session, 1, &deny).expect("a known one still changes");
    for number in 20..30 {
        apply(&ledger, Kind::User, number, &deny).expect("users are always admitted");
    }
    assert_eq!(ledger.len(), 12);
    // Those that are over make room, in steps.
    let mut place = ledger.sweep(b"", 5, 50).expect("it is written");
    assert_eq!((ledger.len(), place.as_slice()), (7, key(23).as_slice()));
    while !place.is_empty() {
        place = ledger.sweep(&place, 5, 50).expect("it is written");
    }
    assert_eq!(ledger.len(), 0);
    apply(&ledger, Kind::Token, 9, &deny).expect("there is room again");
    let gone = ledger.changes_after(0).expect("it reads").expect("all are there");
    assert_eq!(
        gone.first(),
        Some(&Line::Changed { key: key(0), entry: Entry::default(), seq: 1 }),
        "nothing of it counts"
    );
}
