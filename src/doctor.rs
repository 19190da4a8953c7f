//! Findings about an installation, seen from outside, with their remediation: `stepgate doctor`.

mod k8s;
mod manifests;
mod metric_findings;
mod migrate;
mod probe;

pub use self::k8s::{Finding, RULES, Rule, Severity, examine, reference};
pub use self::manifests::{Manifests, ManifestsError};
pub use self::metric_findings::{is_rejected, metric_findings};
pub use self::migrate::{Migration, Verdict, migrations};
pub use self::probe::{FORM, JSON, ProbeError, ask, get, post};
