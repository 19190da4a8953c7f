//! What is in force: the files of the command line and the bundles, put together, compiled and swapped as one.
//!
//! A candidate is built beside what serves. It takes its place only when all of it is sound; otherwise nothing changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::json;

use super::DATA;
use super::bundle::archive::Bundle;
use crate::policy::{Entrypoint, Rejection, Snapshot, SourceConflict, Sources, Store, Surroundings};
use crate::telemetry::{Metrics, Outcome};
use crate::value::{Value, parse_json};

/// Why a candidate was not put in force.
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    #[error("{}", list(.0))]
    Policy(Vec<Rejection>),
    #[error("the bundles `{one}` and `{other}` both own `{root}`")]
    Overlap { one: String, other: String, root: String },
    #[error("the data of the bundle `{bundle}` does not fit: {conflict}")]
    Conflict { bundle: String, conflict: SourceConflict },
}

fn list(rejections: &[Rejection]) -> String {
    let lines: Vec<_> = rejections.iter().map(ToString::to_string).collect();
    format!("{} error(s) in the policy:\n{}", lines.len(), lines.join("\n"))
}

/// A bundle that may be in force.
#[derive(Debug)]
struct Part {
    bundle: Bundle,
    etag: String,
}

type Parts = BTreeMap<String, Arc<Part>>;

/// Puts policies in force.
#[derive(Debug)]
pub struct Activation {
    entrypoint: Entrypoint,
    surroundings: Arc<Surroundings>,
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    active: Mutex<Active>,
}

#[derive(Clone, Debug, Default)]
struct Active {
    files: Arc<Sources>,
    bundles: Parts,
}

impl Activation {
    pub fn new(
        entrypoint: Entrypoint,
        surroundings: Arc<Surroundings>,
        store: Arc<Store>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { entrypoint, surroundings, store, metrics, active: Mutex::default() }
    }

    /// Replaces the files of the command line. Compiling takes time and blocks the thread.
    pub fn replace_files(&self, files: Sources) -> Result<(), ActivationError> {
        self.change(|active| active.files = Arc::new(files))
    }

    /// Replaces one bundle. Compiling takes time and blocks the thread.
    pub fn replace_bundle(&self, name: &str, bundle: Bundle, etag: &str) -> Result<(), ActivationError> {
        let part = Arc::new(Part { bundle, etag: etag.to_owned() });
        self.change(|active| {
            active.bundles.insert(name.to_owned(), part);
        })
    }

    /// Whether every one of these bundles has been in force.
    pub fn has_bundles(&self, names: &[String]) -> bool {
        let active = self.active.lock();
        names.iter().all(|name| active.bundles.contains_key(name))
    }

    /// Builds what a change makes of everything, and puts it in force when it is sound.
    fn change(&self, change: impl FnOnce(&mut Active)) -> Result<(), ActivationError> {
        let mut active = self.active.lock();
        let mut candidate = active.clone();
        change(&mut candidate);
        let built = candidate.build(&self.entrypoint, &self.surroundings);
        self.metrics.policy_activated(if built.is_ok() { Outcome::Success } else { Outcome::Failure });
        self.store.activate(built?);
        *active = candidate;
        Ok(())
    }
}

impl Active {
    fn build(&self, entrypoint: &Entrypoint, surroundings: &Arc<Surroundings>) -> Result<Snapshot, ActivationError> {
        let mut all = Sources::clone(&self.files);
        for (name, part) in &self.bundles {
            self.check_roots(name, part)?;
            let mut own = part.bundle.sources.modules.clone();
            for module in &mut own {
                module.path = format!("{name}/{}", module.path);
            }
            all.modules.append(&mut own);
            let failed = |conflict| ActivationError::Conflict { bundle: name.clone(), conflict };
            all.add_data(&[], part.bundle.sources.data.clone()).map_err(failed)?;
            all.add_data(&["system", "bundles", name], part.record()).map_err(failed)?;
        }
        let revision = |(name, part): (&String, &Arc<Part>)| (name.clone(), part.bundle.manifest.revision.clone());
        let revisions = self.bundles.iter().map(revision).collect();
        let built = Snapshot::build(&all, entrypoint, surroundings).map_err(ActivationError::Policy)?;
        Ok(built.with_revisions(revisions))
    }

    /// No two bundles may own the same place.
    fn check_roots(&self, name: &str, part: &Part) -> Result<(), ActivationError> {
        for (other, known) in self.bundles.iter().take_while(|(other, _)| other.as_str() < name) {
            if let Some(root) = part.bundle.manifest.roots.shared_with(&known.bundle.manifest.roots) {
                return Err(ActivationError::Overlap { one: other.clone(), other: name.to_owned(), root });
            }
        }
        Ok(())
    }
}

impl Part {
    /// What stands under `data.system.bundles.<name>`.
    fn record(&self) -> Value {
        let manifest = &self.bundle.manifest;
        let mut document = manifest.document.clone().unwrap_or_else(|| json!({}));
        if let Some(members) = document.as_object_mut() {
            members.insert("revision".to_owned(), manifest.revision.clone().into());
            members.insert("roots".to_owned(), manifest.roots.listed().into());
        }
        let record = json!({"manifest": document, "etag": self.etag});
        parse_json(record.to_string().as_bytes(), DATA).unwrap_or_else(|_| Value::empty_object())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::opa::manifest::Manifest;
    use crate::policy::{BuiltinSettings, Module, RegoVersion};
    use crate::value::json_text;

    fn activation() -> (Activation, Arc<Store>) {
        let store = Arc::new(Store::default());
        let surroundings = Arc::new(Surroundings::new(&BuiltinSettings::default()));
        let metrics = Arc::new(Metrics::new(None));
        (Activation::new(Entrypoint::from_path("p/allow"), surroundings, Arc::clone(&store), metrics), store)
    }

    fn bundle(manifest: &str, policy: &str) -> Bundle {
        let module = Module { path: "p.rego".into(), text: policy.into(), version: RegoVersion::V1 };
        Bundle {
            manifest: Manifest::parse(manifest.as_bytes()).expect("a manifest"),
            sources: Sources { modules: vec![module], ..Sources::default() },
            size: 0,
        }
    }

    fn decide(store: &Store) -> String {
        let snapshot = store.current().expect("a policy");
        let second = Duration::from_secs(1);
        let result = snapshot.eval(&Value::empty_object(), second, Instant::now() + second).expect("an answer");
        result.value.map_or("undefined".to_owned(), |value| json_text(&value))
    }

    #[test]
    fn what_is_unsound_changes_nothing() {
        let (activation, store) = activation();
        let names = ["a".to_owned()];
        assert!(!activation.has_bundles(&names));
        let first = bundle(r#"{"revision": "r1", "roots": ["p"]}"#, "package p\nallow := data.system.bundles");
        activation.replace_bundle("a", first, "\"e1\"").expect("it is sound");
        let one = r#"{"a":{"etag":"\"e1\"","manifest":{"revision":"r1","roots":["p"]}}}"#;
        assert_eq!(decide(&store), one);
        assert!(activation.has_bundles(&names));
        let broken = bundle(r#"{"roots": ["p"]}"#, "package p\nallow := nothing()");
        assert!(matches!(activation.replace_bundle("a", broken, ""), Err(ActivationError::Policy(_))));
        let greedy = bundle("{}", "package q\nx := 1");
        let error = activation.replace_bundle("b", greedy, "").expect_err("both own `p`");
        assert_eq!(error.to_string(), "the bundles `a` and `b` both own `p`");
        assert_eq!(decide(&store), one, "the first stays in force");
        let beside = bundle(r#"{"roots": ["q"]}"#, "package q\nx := 1");
        activation.replace_bundle("b", beside, "").expect("they are apart");
        assert!(decide(&store).contains(r#""b":{"etag":"""#));
    }

    #[test]
    fn files_outlive_a_bundle_without_roots() {
        let (activation, store) = activation();
        let module = Module { path: "own.rego".into(), text: "package own\nx := 7".into(), version: RegoVersion::V1 };
        activation.replace_files(Sources { modules: vec![module], ..Sources::default() }).expect("it is sound");
        activation.replace_bundle("a", bundle("{}", "package p\nallow := data.own.x"), "").expect("it is sound");
        assert_eq!(decide(&store), "7");
    }
}
