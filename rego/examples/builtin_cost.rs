//! Makes every call of `tests/calls` with a deadline that has passed at a given poll, for a tool that counts instructions.
//!
//! `valgrind --tool=callgrind` counts what [`run_call`] executes: with a deadline that has passed at the first poll, that is the most work
//! which any function does without looking at the clock. `tests/bench/builtins.py` does so.
//!
//! Arguments: the poll, and the rows to run (all).

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/calls/mod.rs"]
mod calls;

use stepgate_rego::Limits;

use self::calls::{ROWS, TestHost, calls, policy, run_call};

/// The allocator of the service.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let mut args = std::env::args().skip(1);
    let expire_at = args.next().and_then(|arg| arg.parse().ok()).unwrap_or(1);
    let wanted: Vec<String> = args.collect();
    let run = move || {
        let policy = policy();
        let rows = (0..ROWS.len()).filter(|row| {
            wanted.is_empty() || ROWS.get(*row).is_some_and(|(name, _)| wanted.iter().any(|it| it == name))
        });
        for row in rows {
            for call in calls(row, &[4_000_000]) {
                let host = TestHost::new(expire_at);
                let result = run_call(&policy, &call, Limits { bytes: 1 << 30, ..Limits::default() }, &host);
                drop(result);
                println!("{}", call.what);
            }
        }
    };
    // As deep as the stacks of the service.
    let thread = std::thread::Builder::new().stack_size(8 << 20).spawn(run);
    let ended = thread.map(std::thread::JoinHandle::join);
    assert!(matches!(ended, Ok(Ok(()))), "the calls were made");
}
