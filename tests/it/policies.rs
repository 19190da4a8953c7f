//! Runs every `_test.rego` of the policy library.

use std::path::Path;

use stepgate::feed::files::{PathSpec, PolicyFiles};
use stepgate::policy::{RegoVersion, run_tests};

#[test]
fn the_policy_library_passes_its_own_tests() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let files = PolicyFiles {
        paths: vec![PathSpec::parse(&folder.display().to_string())],
        ignore: Vec::new(),
        version: RegoVersion::V1,
    };
    let outcomes = run_tests(&files.load().expect("the policies are read")).expect("the policies compile");
    let failed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.passed).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(outcomes.len() >= 18, "only {} tests were found", outcomes.len());
}
