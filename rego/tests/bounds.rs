//! Every built-in function keeps the bounds of an evaluation, whatever its arguments are: memory is charged before it is allocated, and no
//! less than what is allocated.
//!
//! The work between two polls of the deadline is measured in instructions by `make instructions`, with the same calls.

#[allow(dead_code, reason = "the example uses the rest")]
mod calls;

use std::collections::BTreeSet;

use peak_alloc::PeakAlloc;
use stepgate_rego::{Limits, builtins};

use self::calls::{ROWS, TestHost, calls, policy, run_call};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Bytes that may be allocated without being charged: scratch space of libraries, and of what is small.
const MAX_UNCHARGED_BYTES: usize = 384 << 10;

/// Polls of the deadline until it has passed: long enough for large results.
const MAX_POLLS: u64 = 1_000;

fn peak_above(base: usize) -> usize {
    ALLOCATOR.peak_usage().saturating_sub(base)
}

/// One test, because the allocator counts for the whole process.
#[test]
fn every_function_charges_memory_before_it_allocates_it() {
    let known: BTreeSet<&str> = builtins().map(|builtin| builtin.name).collect();
    let listed: BTreeSet<&str> = ROWS.iter().map(|(name, _)| *name).collect();
    assert_eq!(known, listed, "each function has a row in tests/calls");

    // As deep as the stacks of the service.
    let walk = std::thread::Builder::new().stack_size(8 << 20).spawn(broken_calls).expect("a thread");
    let broken = walk.join().expect("no panic");
    assert!(broken.is_empty(), "{} calls allocate what they did not charge:\n{}", broken.len(), broken.join("\n"));
}

fn broken_calls() -> Vec<String> {
    let policy = policy();
    let mut broken = Vec::new();
    for row in 0..ROWS.len() {
        for call in calls(row, &[1_000_000, 4_000_000]) {
            for limit in [1usize << 20, 1 << 30] {
                let host = TestHost::new(MAX_POLLS);
                let limits = Limits { bytes: limit, ..Limits::default() };
                let base = ALLOCATOR.current_usage();
                ALLOCATOR.reset_peak_usage();
                let result = run_call(&policy, &call, limits, &host);
                let peak = peak_above(base);
                drop(result);
                let charged = (host.granted.get() + limit.min(256 << 10)).min(limit);
                if std::env::var_os("STEPGATE_SHOW_CALLS").is_some() {
                    println!(
                        "{} with {limit} bytes: peak {peak}, charged {charged}, polls {}",
                        call.what,
                        host.polls.get()
                    );
                }
                if peak > charged + MAX_UNCHARGED_BYTES {
                    broken.push(format!("{} with {limit} bytes: peak {peak}, charged {charged}", call.what));
                }
            }
        }
    }
    broken
}
