//! Both kinds of tables do the same; a server that may lose what it acknowledged is refused.

use proptest::prelude::*;

use super::*;

#[path = "../../tests/it/redis.rs"]
pub(crate) mod server;

use self::server::{DURABLE, RedisServer};

const NAMES: Table = Table("names");
const OTHERS: Table = Table("others");

fn settings(server: &RedisServer) -> RedisSettings {
    RedisSettings {
        urls: vec![server.url()],
        namespace: "test".to_owned(),
        username: None,
        password_file: None,
        ca_cert_file: None,
        durability: Durability::AofAlways,
    }
}

/// As `replicaof` takes it.
pub(crate) fn port_of(server: &RedisServer) -> String {
    server.url().rsplit(':').next().unwrap_or_default().to_owned()
}

fn open(settings: &RedisSettings) -> Result<State, StateError> {
    State::open(&StateSettings::Redis(settings.clone()))
}

/// A full disk may have room for a few rows yet.
#[test]
fn after_a_failure_room_is_proven_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let state = State::open(&StateSettings::File(folder.path().join("a.redb"))).expect("it opens");
    state.may_lack_room.store(true, Ordering::Release);
    state.prove_room().expect("there is room");
    assert!(!state.may_lack_room.load(Ordering::Acquire));
    assert!(state.rows(PROBE, b"", 1).expect("it reads").is_empty(), "it leaves nothing");
}

/// A step within a change.
#[derive(Clone, Debug)]
enum Step {
    Put(Vec<u8>, Vec<u8>),
    Remove(Vec<u8>),
    Get(Vec<u8>),
    RowsOf(Vec<u8>, usize),
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(254), Just(255)], 0..3)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (key(), proptest::collection::vec(any::<u8>(), 0..3)).prop_map(|(key, value)| Step::Put(key, value)),
        key().prop_map(Step::Remove),
        key().prop_map(Step::Get),
        (key(), 0..4usize).prop_map(|(prefix, limit)| Step::RowsOf(prefix, limit)),
    ]
}

/// Everything that one change reads, and what is there afterwards.
fn run(state: &State, steps: &[Step], is_given_up: bool) -> String {
    let mut seen = Vec::new();
    let done: Result<(), StateError> = state.write(|writing| {
        for step in steps {
            match step {
                Step::Put(key, value) => writing.put(NAMES, key, value)?,
                Step::Remove(key) => writing.remove(NAMES, key)?,
                Step::Get(key) => seen.push(format!("{:?}", writing.get(NAMES, key)?)),
                Step::RowsOf(prefix, limit) => seen.push(format!("{:?}", writing.rows_of(NAMES, prefix, *limit)?)),
            }
        }
        if is_given_up { Err(StateError::Closed) } else { Ok(()) }
    });
    assert_eq!(done.is_err(), is_given_up, "{done:?}");
    let rows: Vec<_> = [b"".as_slice(), &[1], &[254, 255], &[255], &[255, 255]]
        .iter()
        .flat_map(|first| [state.rows(NAMES, first, 3), state.rows_of(NAMES, first, 9)])
        .map(|rows| rows.expect("they read"))
        .collect();
    format!("{seen:?} {rows:?} {:?}", state.rows(OTHERS, b"", 9).expect("it reads"))
}

#[test]
fn a_server_does_what_a_file_does() {
    let server = RedisServer::start(DURABLE);
    let redis = open(&settings(&server)).expect("it opens");
    redis.write(|writing| writing.put(OTHERS, b"a", b"1")).expect("it is written");
    let folder = tempfile::tempdir().expect("a folder");
    let file = State::open(&StateSettings::File(folder.path().join("a.redb"))).expect("it opens");
    file.write(|writing| writing.put(OTHERS, b"a", b"1")).expect("it is written");
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(200));
    let strategy = (proptest::collection::vec(step(), 0..12), proptest::bool::weighted(0.2));
    runner
        .run(&strategy, |(steps, is_given_up)| {
            // The tables keep what earlier cases left: both the same.
            prop_assert_eq!(run(&redis, &steps, is_given_up), run(&file, &steps, is_given_up));
            Ok(())
        })
        .expect("they do the same");
}

#[test]
fn more_rows_than_a_page_are_read() {
    let server = RedisServer::start(DURABLE);
    let state = open(&settings(&server)).expect("it opens");
    let put = |writing: &Writing<'_>| {
        for number in 0..2_500u32 {
            writing.put(NAMES, &number.to_be_bytes(), &number.to_be_bytes())?;
        }
        Ok::<_, StateError>(())
    };
    state.write(put).expect("they are written");
    let rows = state.rows(NAMES, &7u32.to_be_bytes(), 2_200).expect("they read");
    let numbers: Vec<u32> = rows.iter().map(|(key, _)| u32::from_be_bytes(key[..].try_into().expect("four"))).collect();
    assert_eq!(numbers, (7..2_207).collect::<Vec<_>>());
    let found = state.write(|writing| writing.rows_of(NAMES, &[0, 0], 2_400)).expect("they read");
    assert_eq!(found.len(), 2_400);
}

#[test]
fn a_server_that_may_forget_is_refused() {
    let refused = |options: &[&str], durability| {
        let server = RedisServer::start(options);
        let error = open(&RedisSettings { durability, ..settings(&server) }).err();
        error.map(|error| error.to_string()).unwrap_or_default()
    };
    use Durability::{AofAlways, External, Replica, WaitAof};
    let evicting = [DURABLE, &["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]].concat();
    let every_second = [DURABLE, &["--appendfsync", "everysec"]].concat();
    let cases: [(&[&str], Durability, &str); 7] = [
        (&[], AofAlways, "no append-only file"),
        (&[], Replica, "no append-only file"),
        (&[], External, ""),
        (&every_second, AofAlways, "appendfsync is everysec"),
        (&every_second, WaitAof, ""),
        (&evicting, External, "maxmemory-policy allkeys-lru"),
        (DURABLE, AofAlways, ""),
    ];
    for (options, durability, want) in cases {
        let error = refused(options, durability);
        assert!(if want.is_empty() { error.is_empty() } else { error.contains(want) }, "{options:?}: {error}");
    }
    let primary = RedisServer::start(DURABLE);
    let replica = RedisServer::start(&[DURABLE, &["--replicaof", "127.0.0.1", &port_of(&primary)]].concat());
    let error = open(&settings(&replica)).expect_err("it is no primary").to_string();
    assert!(error.contains("replica"), "{error}");
    let both = RedisSettings { urls: vec![replica.url(), primary.url()], ..settings(&primary) };
    open(&both).expect("the primary is found");
}

#[test]
fn only_the_holder_of_the_lock_changes_anything() {
    let server = RedisServer::start(DURABLE);
    let state = open(&settings(&server)).expect("it opens");
    // As if the change had taken longer than its lock.
    let late = state.write(|writing| {
        writing.put(NAMES, b"a", b"1")?;
        server.cli(&["set", "{sg:test}:lock", "another"]);
        Ok::<_, StateError>(())
    });
    assert!(matches!(late, Err(StateError::LockLost)), "{late:?}");
    assert!(state.rows(NAMES, b"", 1).expect("it reads").is_empty());
    let waiting = state.write(|writing| writing.put(NAMES, b"a", b"1"));
    assert!(matches!(waiting, Err(StateError::Locked)), "{waiting:?}");
    server.cli(&["pexpire", "{sg:test}:lock", "300"]);
    state.write(|writing| writing.put(NAMES, b"a", b"2")).expect("a lock that was left ends by itself");
    assert_eq!(state.rows(NAMES, b"", 9).expect("it reads"), [(b"a".to_vec(), b"2".to_vec())]);
    assert!(server.cli(&["exists", "{sg:test}:lock"]).starts_with('0'), "nothing is left of it");
    // Names of rows and values are bytes of any kind, also those that Lua or Redis could take for something.
    let given_up: Result<(), StateError> = state.write(|writing| {
        writing.put(NAMES, b"b", b"")?;
        Err(StateError::Closed)
    });
    assert!(given_up.is_err() && server.cli(&["exists", "{sg:test}:lock"]).starts_with('0'));
}

#[test]
fn a_change_that_no_replica_confirms_is_not_acknowledged() {
    let server = RedisServer::start(DURABLE);
    let state = open(&RedisSettings { durability: Durability::Replica, ..settings(&server) }).expect("it opens");
    let alone = state.write(|writing| writing.put(NAMES, b"a", b"1"));
    assert!(matches!(alone, Err(StateError::NotDurable)), "{alone:?}");
    let port = port_of(&server);
    let replica = RedisServer::start(&[DURABLE, &["--replicaof", "127.0.0.1", &port]].concat());
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while state.write(|writing| writing.put(NAMES, b"a", b"2")).is_err() {
        assert!(std::time::Instant::now() < end, "the replica does not confirm");
    }
    assert!(replica.cli(&["hget", "{sg:test}:t:names", "a"]).starts_with('2'));
}

/// An answer comes within the bounds of a request, or an error.
#[test]
fn a_server_that_is_away_or_hangs_is_an_error_in_time() {
    let mut server = RedisServer::start(DURABLE);
    let state = open(&settings(&server)).expect("it opens");
    server.signal("-STOP");
    let began = std::time::Instant::now();
    state.write(|writing| writing.put(NAMES, b"a", b"1")).expect_err("it hangs");
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    server.signal("-CONT");
    server.kill();
    state.write(|writing| writing.put(NAMES, b"a", b"1")).expect_err("it is away");
    server.start_again();
    // A lock that it took while it hung ends by itself.
    let back = || state.write(|writing| writing.put(NAMES, b"a", b"3"));
    assert!(back().is_ok() || back().is_ok() || back().is_ok());
}

#[test]
fn one_process_has_a_lease_and_news_come_to_all() {
    let server = RedisServer::start(DURABLE);
    let (one, other) = (open(&settings(&server)).expect("it opens"), open(&settings(&server)).expect("it opens"));
    let long = Duration::from_secs(60);
    assert!(one.lease("x", long).expect("it answers") && one.lease("x", long).expect("it answers"));
    assert!(!other.lease("x", long).expect("it answers") && other.lease("y", long).expect("it answers"));
    other.wait_for_change().expect("it answers");
    // Sooner than the wait ends by itself: once is enough, whatever else the machine does.
    let is_early = || {
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let began = std::time::Instant::now();
                other.wait_for_change().expect("it answers");
                began.elapsed()
            });
            std::thread::sleep(Duration::from_millis(100));
            one.write(|writing| writing.put(NAMES, b"a", b"1")).expect("it is written");
            waiting.join().expect("it ends") < Duration::from_millis(800)
        })
    };
    assert!((0..5).any(|_| is_early()));
}
