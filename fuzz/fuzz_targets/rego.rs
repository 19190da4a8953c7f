//! Text as a policy: it is refused or runs within its budget.
#![no_main]

use std::time::Duration;

use stepgate::policy::Bounds;
use stepgate::value::Value;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Some(snapshot) = stepgate_fuzz::snapshot(text) {
        let input: Value = [("a", Value::from("b"))].into_iter().collect();
        let _ = snapshot.eval(&input, Bounds::within(Duration::from_millis(20)));
    }
});
