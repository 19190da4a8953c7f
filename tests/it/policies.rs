//! Runs every `_test.rego` of the policy library, as its users do.

use std::process::Command;

use serde_json::Value;

#[test]
fn the_policy_library_passes_its_own_tests() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/policies");
    let output = Command::new(env!("CARGO_BIN_EXE_stepgate"))
        .args(["test", "--format", "json", folder])
        .output()
        .expect("stepgate starts");
    let reports: Vec<Value> = serde_json::from_slice(&output.stdout).expect("the report is JSON");
    assert!(output.status.success(), "{reports:#?} {}", String::from_utf8_lossy(&output.stderr));
    assert!(reports.len() >= 18, "only {} tests were found", reports.len());
}
