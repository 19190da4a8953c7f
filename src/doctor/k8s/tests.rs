//! That each rule finds its mistake is shown by the files of `tests/k8s/broken`, which `tests/k8s/check.py` runs.

use super::*;

#[test]
fn the_reference_is_up_to_date() {
    let committed = std::fs::read_to_string("docs/reference/lint.md").unwrap_or_default();
    assert!(committed == reference(), "run `cargo run -- lint-reference > docs/reference/lint.md`");
}
