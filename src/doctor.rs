//! Findings about an installation, seen from outside, with their remediation: `stepgate doctor`.

mod k8s;
mod manifests;
mod migrate;
mod probe;
mod signs;

pub use self::k8s::{Finding, RULES, Rule, Severity, examine, reference};
pub use self::manifests::{Manifests, ManifestsError};
pub use self::migrate::{Migration, Verdict, migrations};
pub use self::probe::{ProbeError, ask, get};
pub use self::signs::{is_rejected, signs};
