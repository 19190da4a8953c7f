//! Activation of policies: the files of the command line and the bundles, merged, compiled and swapped as one.
//!
//! A candidate is built beside what serves. It takes its place only when all of it is sound; otherwise nothing changes.

mod trial;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::watch;

use self::trial::{load_check, try_out};
use super::DATA;
use super::bundle::contents::{Bundle, BundlePayload, Delta};
use super::bundle::patch::{PatchError, apply_all};
use crate::opa::manifest::Manifest;
use crate::policy::PolicyMetrics;
use crate::policy::{
    Entrypoint, HostContext, Module, Rejection, Snapshot, SourceConflict, Sources, Store, UndefinedEntrypoint,
    package_of,
};
use crate::telemetry::Outcome;
use crate::value::{Value, parse_json};

/// The reason that a candidate was not activated.
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    #[error("the bundle was removed from the configuration, or changed there, meanwhile")]
    Over,
    #[error("{}", list(.0))]
    Policy(Vec<Rejection>),
    #[error("the bundles `{one}` and `{other}` both own `{root}`")]
    Overlap { one: String, other: String, root: String },
    #[error("the data of the bundle `{bundle}` does not fit: {conflict}")]
    Conflict { bundle: String, conflict: SourceConflict },
    #[error("delta bundle '{0}' has manifest roots that are different from those in the store")]
    DeltaRoots(String),
    #[error("the delta is refused as a whole: {0}")]
    Patch(#[from] PatchError),
    #[error("the manifest has no whole number at `metadata.sequence`, which is asked of this bundle")]
    NoSequence,
    #[error("`metadata.sequence` fell from {from} to {to}: an older bundle is not activated again")]
    Rollback { from: i64, to: i64 },
    #[error("it is owned by the bundle `{0}`")]
    Owned(String),
    #[error("there is no such policy")]
    NoSuchPolicy,
    #[error("an evaluation of the new policy took longer than {0:?}")]
    Slow(Duration),
    #[error("`{path}` must be empty (plugins.stepgate.load_checks): {found}")]
    LoadCheck { path: String, found: String },
}

fn list(rejections: &[Rejection]) -> String {
    let lines: Vec<_> = rejections.iter().map(ToString::to_string).collect();
    format!("{} error(s) in the policy:\n{}", lines.len(), lines.join("\n"))
}

/// A bundle, active or a candidate.
#[derive(Clone, Debug)]
struct ActiveBundle {
    bundle: Bundle,
    etag: String,
}

/// The active bundles and files.
#[derive(Debug, Default)]
pub struct Activated {
    pub revision: String,
    /// `snapshot` or `delta`.
    pub kind: &'static str,
}

type ActiveBundles = BTreeMap<String, Arc<ActiveBundle>>;

/// Requirements for policies.
#[derive(Clone, Debug)]
pub struct ActivationConfig {
    pub entrypoint: Entrypoint,
    pub host_context: Arc<HostContext>,
    /// Documents that must be empty.
    pub load_checks: Vec<Vec<String>>,
    /// Readiness requires that the entry point has been defined.
    pub awaits_entrypoint: bool,
    /// Bundles that are configured.
    pub bundles: usize,
}

/// Activates policies.
#[derive(Debug)]
pub struct Activation {
    how: Mutex<ActivationConfig>,
    store: Arc<Store>,
    metrics: Arc<PolicyMetrics>,
    /// Held through a change, which may take seconds; what only asks what is active does not wait for it.
    changing: Mutex<()>,
    active: Mutex<Active>,
    changed: watch::Sender<()>,
    /// A policy with the entry point has been active.
    was_defined: AtomicBool,
}

#[derive(Clone, Debug, Default)]
struct Active {
    files: Arc<Sources>,
    /// Policies that the API has put in the place of files, or taken away.
    changed: BTreeMap<String, Option<Module>>,
    bundles: ActiveBundles,
    /// Bundles that should be gone and that others still need.
    leaving: BTreeSet<String>,
}

impl Activation {
    pub fn new(how: ActivationConfig, store: Arc<Store>, metrics: Arc<PolicyMetrics>) -> Self {
        Self {
            how: Mutex::new(how),
            store,
            metrics,
            changing: Mutex::default(),
            active: Mutex::default(),
            changed: watch::Sender::default(),
            was_defined: AtomicBool::new(false),
        }
    }

    /// Changes the requirements for policies and their capabilities. The active policy is rebuilt.
    pub fn configure(&self, how: ActivationConfig) -> Result<(), ActivationError> {
        let before = std::mem::replace(&mut *self.how.lock(), how);
        if before.entrypoint != self.how.lock().entrypoint {
            self.was_defined.store(false, Ordering::Release);
        }
        if self.store.current().is_none() {
            return Ok(());
        }
        self.change(|_| Ok(())).inspect_err(|_| *self.how.lock() = before)
    }

    /// Replaces the files of the command line. Compiling takes time and blocks the thread.
    pub fn replace_files(&self, files: Sources) -> Result<(), ActivationError> {
        self.change(|active| {
            active.files = Arc::new(files);
            Ok(())
        })
    }

    /// Replaces or changes one bundle. Compiling takes time and blocks the thread. With `rollback_guard` its
    /// `metadata.sequence` must not fall. Nothing is done when the bundle `cancelled` by the time it is processed.
    pub fn replace_bundle(
        &self,
        name: &str,
        contents: BundlePayload,
        etag: &str,
        rollback_guard: bool,
        cancelled: impl Fn() -> bool,
    ) -> Result<Activated, ActivationError> {
        let mut told = Activated::default();
        self.change(|active| {
            if cancelled() {
                return Err(ActivationError::Over);
            }
            let before = active.bundles.get(name);
            told.kind = if matches!(contents, BundlePayload::Snapshot(_)) { "snapshot" } else { "delta" };
            let bundle = match contents {
                BundlePayload::Snapshot(bundle) => bundle,
                BundlePayload::Delta(delta) => {
                    // The first of all changes nothing but an empty bundle.
                    let empty = || ActiveBundle::empty(&delta.manifest);
                    before.map_or_else(empty, |before| ActiveBundle::clone(before)).patched(name, delta)?
                }
            };
            if rollback_guard {
                let to = bundle.manifest.sequence().ok_or(ActivationError::NoSequence)?;
                let from = before.and_then(|before| before.bundle.manifest.sequence());
                // The same delta twice is not the same as once.
                let is_old = |from: &i64| to < *from || (told.kind == "delta" && to == *from);
                if let Some(from) = from.filter(is_old) {
                    return Err(ActivationError::Rollback { from, to });
                }
            }
            told.revision = bundle.manifest.revision.clone();
            active.leaving.remove(name);
            active.bundles.insert(name.to_owned(), Arc::new(ActiveBundle { bundle, etag: etag.to_owned() }));
            Ok(())
        })?;
        Ok(told)
    }

    /// All policies, those of bundles with the name of the bundle before theirs.
    pub fn policies(&self) -> Vec<Module> {
        let active = self.active.lock().clone();
        let mut modules = active.own_modules();
        for (name, part) in &active.bundles {
            modules.extend(part.modules(name));
        }
        modules
    }

    /// Puts a policy beside the files, or in the place of the one of this name.
    pub fn put_policy(&self, module: Module) -> Result<(), ActivationError> {
        self.change(|active| {
            active.check_owner(&module)?;
            active.changed.insert(module.path.clone(), Some(module));
            Ok(())
        })
    }

    /// Takes a policy away that is not of a bundle.
    pub fn delete_policy(&self, id: &str) -> Result<(), ActivationError> {
        self.change(|active| {
            if !active.own_modules().iter().any(|module| module.path == id) {
                let of_bundle =
                    active.bundles.iter().find(|(name, part)| part.modules(name).any(|module| module.path == id));
                return Err(match of_bundle {
                    Some((name, _)) => ActivationError::Owned(name.clone()),
                    None => ActivationError::NoSuchPolicy,
                });
            }
            active.changed.insert(id.to_owned(), None);
            Ok(())
        })
    }

    /// Takes a bundle out of force. When the others cannot do without it, it goes with the first change after which they can.
    pub fn remove_bundle(&self, name: &str) -> Result<(), ActivationError> {
        let _alone = self.changing.lock();
        if !self.active.lock().bundles.contains_key(name) {
            return Ok(());
        }
        let removed = self.put_in_force(|active| {
            active.bundles.remove(name);
            Ok(())
        });
        if removed.is_err() {
            self.active.lock().leaving.insert(name.to_owned());
        }
        removed
    }

    /// Updated with every activation: a candidate that conflicted before may be valid now.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Shows whether the newest policies of a source were rejected.
    pub fn report_rejected(&self, source: &str, is_rejected: bool) {
        self.metrics.rejected(source, is_rejected);
    }

    /// A policy with the entry point has been active, where that is required.
    pub fn has_had_entrypoint(&self) -> bool {
        !self.how.lock().awaits_entrypoint || self.was_defined.load(Ordering::Acquire)
    }

    /// Why the active policy makes every decision undefined, if it does.
    pub fn undefined_entrypoint(&self) -> Option<UndefinedEntrypoint> {
        self.store.current()?.undefined_entrypoint().cloned()
    }

    /// Logs and counts whether the entry point is defined in a new policy.
    fn report_entrypoint(&self, built: &Snapshot, bundles: usize) {
        let undefined = built.undefined_entrypoint();
        self.metrics.entrypoint_undefined(undefined.is_some());
        match undefined {
            None => self.was_defined.store(true, Ordering::Release),
            Some(error) if !self.was_defined.load(Ordering::Acquire) && bundles < self.how.lock().bundles => {
                tracing::info!("not all bundles are active yet: {error}");
            }
            Some(error) => tracing::error!("{error}"),
        }
    }

    /// Builds the result of a change, and activates it when it is valid.
    fn change(&self, change: impl FnOnce(&mut Active) -> Result<(), ActivationError>) -> Result<(), ActivationError> {
        let _alone = self.changing.lock();
        self.put_in_force(change)
    }

    fn put_in_force(
        &self,
        change: impl FnOnce(&mut Active) -> Result<(), ActivationError>,
    ) -> Result<(), ActivationError> {
        let mut candidate = self.active.lock().clone();
        let built = change(&mut candidate).and_then(|()| match candidate.without_leaving() {
            None => Ok((self.build(&candidate)?, candidate)),
            Some(lighter) => match self.build(&lighter) {
                Ok(built) => Ok((built, lighter)),
                Err(_) => Ok((self.build(&candidate)?, candidate)),
            },
        });
        self.metrics.activated(if built.is_ok() { Outcome::Success } else { Outcome::Failure });
        let (built, active) = built?;
        let entrypoint = self.how.lock().entrypoint.configured().to_owned();
        self.metrics.publish_active(&entrypoint, built.revisions().iter());
        self.report_entrypoint(&built, active.bundles.len());
        self.store.activate(built);
        *self.active.lock() = active;
        self.changed.send_replace(());
        Ok(())
    }

    fn build(&self, candidate: &Active) -> Result<Snapshot, ActivationError> {
        let ActivationConfig { entrypoint, host_context, load_checks, .. } = self.how.lock().clone();
        let candidate = try_out(candidate.build(&entrypoint, &host_context)?, entrypoint.configured())?;
        load_checks.iter().try_for_each(|path| load_check(&candidate, path))?;
        Ok(candidate)
    }
}

impl Active {
    /// The same without the bundles that should be gone; nothing when there are none.
    fn without_leaving(&self) -> Option<Self> {
        if self.leaving.is_empty() {
            return None;
        }
        let mut lighter = self.clone();
        for name in std::mem::take(&mut lighter.leaving) {
            lighter.bundles.remove(&name);
        }
        Some(lighter)
    }

    /// The policies that are of no bundle.
    fn own_modules(&self) -> Vec<Module> {
        let of_files = self.files.modules.iter().filter(|module| !self.changed.contains_key(&module.path));
        of_files.chain(self.changed.values().flatten()).cloned().collect()
    }

    /// Data under the roots of a bundle belong to the bundle.
    fn check_owner(&self, module: &Module) -> Result<(), ActivationError> {
        // One that cannot be parsed is reported when everything is compiled.
        let Some(package) = package_of(module) else { return Ok(()) };
        let owner = self.bundles.iter().find(|(_, part)| part.bundle.manifest.roots.own(&package));
        owner.map_or(Ok(()), |(name, _)| Err(ActivationError::Owned(name.clone())))
    }

    fn build(&self, entrypoint: &Entrypoint, host_context: &Arc<HostContext>) -> Result<Snapshot, ActivationError> {
        let mut all = Sources { modules: self.own_modules(), data: self.files.data.clone() };
        for (name, part) in &self.bundles {
            self.check_roots(name, part)?;
            all.modules.extend(part.modules(name));
            let failed = |conflict| ActivationError::Conflict { bundle: name.clone(), conflict };
            all.add_data(&[], part.bundle.sources.data.clone()).map_err(failed)?;
            all.add_data(&["system", "bundles", name], part.record()).map_err(failed)?;
        }
        let revision =
            |(name, part): (&String, &Arc<ActiveBundle>)| (name.clone(), part.bundle.manifest.revision.clone());
        let revisions = self.bundles.iter().map(revision).collect();
        let built = Snapshot::build(&all, entrypoint, host_context).map_err(ActivationError::Policy)?;
        Ok(built.with_revisions(revisions))
    }

    /// No two bundles may own the same place.
    fn check_roots(&self, name: &str, part: &ActiveBundle) -> Result<(), ActivationError> {
        for (other, known) in self.bundles.iter().take_while(|(other, _)| other.as_str() < name) {
            if let Some(root) = part.bundle.manifest.roots.shared_with(&known.bundle.manifest.roots) {
                return Err(ActivationError::Overlap { one: other.clone(), other: name.to_owned(), root });
            }
        }
        Ok(())
    }
}

impl ActiveBundle {
    /// Its policies, with its name before theirs.
    fn modules<'p>(&'p self, name: &'p str) -> impl Iterator<Item = Module> + 'p {
        let modules = self.bundle.sources.modules.iter();
        modules.map(move |module| Module { path: format!("{name}/{}", module.path), ..module.clone() })
    }

    fn empty(manifest: &Manifest) -> Self {
        Self { bundle: Bundle { manifest: manifest.clone(), sources: Sources::default() }, etag: String::new() }
    }

    /// The bundle after a delta.
    fn patched(&self, name: &str, delta: Delta) -> Result<Bundle, ActivationError> {
        if delta.manifest.roots != self.bundle.manifest.roots {
            return Err(ActivationError::DeltaRoots(name.to_owned()));
        }
        let data = apply_all(&delta.patches, &self.bundle.sources.data)?;
        let sources = Sources { modules: self.bundle.sources.modules.clone(), data };
        Ok(Bundle { manifest: delta.manifest, sources })
    }

    /// The document of `data.system.bundles.<name>`.
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
    use super::*;
    use crate::feed::bundle::patch::Patch;
    use crate::policy::{Bounds, BuiltinSettings, RegoVersion};
    use crate::value::json_text;

    fn activation() -> (Activation, Arc<Store>) {
        let store = Arc::new(Store::default());
        let host_context = Arc::new(HostContext::new(&BuiltinSettings::default()));
        let metrics = crate::telemetry::Metrics::new(None).of();
        let load_checks = vec![vec!["p".to_owned(), "problems".to_owned()]];
        let how = ActivationConfig {
            entrypoint: Entrypoint::from_path("p/allow"),
            host_context,
            load_checks,
            awaits_entrypoint: true,
            bundles: 1,
        };
        (Activation::new(how, Arc::clone(&store), metrics), store)
    }

    fn bundle(manifest: &str, policy: &str) -> BundlePayload {
        let module = Module { path: "p.rego".into(), text: policy.into(), version: RegoVersion::V1 };
        BundlePayload::Snapshot(Bundle {
            manifest: Manifest::parse(manifest.as_bytes()).expect("a manifest"),
            sources: Sources { modules: vec![module], ..Sources::default() },
        })
    }

    fn delta(manifest: &str, changes: &str) -> BundlePayload {
        let manifest = Manifest::parse(manifest.as_bytes()).expect("a manifest");
        let patches = Patch::parse_all(format!("{{\"data\": [{changes}]}}").as_bytes()).expect("changes");
        BundlePayload::Delta(Delta { manifest, patches })
    }

    fn files(policy: &str) -> Sources {
        let module = Module { path: "own.rego".into(), text: policy.into(), version: RegoVersion::V1 };
        Sources { modules: vec![module], ..Sources::default() }
    }

    fn decide(store: &Store) -> String {
        let snapshot = store.current().expect("a policy");
        let second = Duration::from_secs(1);
        let result = snapshot.eval(&Value::empty_object(), Bounds::within(second)).expect("an answer");
        result.value.map_or("undefined".to_owned(), |value| json_text(&value))
    }

    #[test]
    fn what_is_unsound_changes_nothing() {
        let (activation, store) = activation();
        let first = bundle(r#"{"revision": "r1", "roots": ["p"]}"#, "package p\nallow := data.system.bundles");
        activation.replace_bundle("a", first, "\"e1\"", false, || false).expect("it is sound");
        let one = r#"{"a":{"etag":"\"e1\"","manifest":{"revision":"r1","roots":["p"]}}}"#;
        assert_eq!(decide(&store), one);
        let broken = bundle(r#"{"roots": ["p"]}"#, "package p\nallow := nothing()");
        assert!(matches!(activation.replace_bundle("a", broken, "", false, || false), Err(ActivationError::Policy(_))));
        let greedy = bundle("{}", "package q\nx := 1");
        let error = activation.replace_bundle("b", greedy, "", false, || false).expect_err("both own `p`");
        assert_eq!(error.to_string(), "the bundles `a` and `b` both own `p`");
        assert_eq!(decide(&store), one, "the first stays active");
        let beside = bundle(r#"{"roots": ["q"]}"#, "package q\nx := 1");
        activation.replace_bundle("b", beside, "", false, || false).expect("they are apart");
        assert!(decide(&store).contains(r#""b":{"etag":"""#));
    }

    #[test]
    fn files_outlive_a_bundle_without_roots() {
        let (activation, store) = activation();
        activation.replace_files(files("package own\nx := 7")).expect("it is sound");
        activation
            .replace_bundle("a", bundle("{}", "package p\nallow := data.own.x"), "", false, || false)
            .expect("it is sound");
        assert_eq!(decide(&store), "7");
    }

    #[test]
    fn a_delta_changes_data_whole_or_not_at_all() {
        let (activation, store) = activation();
        let change = |manifest: &str, changes: &str| {
            activation.replace_bundle("a", delta(manifest, changes), "", false, || false)
        };
        let two = r#"{"op":"upsert","path":"/p/n","value":2}"#;
        change(r#"{"roots": ["p"]}"#, two).expect("the first of all is one, too");
        let first = bundle(r#"{"revision": "r1", "roots": ["p", "q"]}"#, "package q\nx := data.p.n");
        activation.replace_bundle("a", first, "", false, || false).expect("it is sound");
        activation.replace_files(files("package p\nallow := data.q.x")).expect("it is sound");
        let roots = r#"{"revision": "r2", "roots": ["q", "p"]}"#;
        let told = change(roots, two).expect("it fits");
        assert_eq!((told.revision.as_str(), told.kind, decide(&store).as_str()), ("r2", "delta", "2"));
        let half = r#"{"op":"replace","path":"/p/n","value":3},{"op":"remove","path":"/p/none"}"#;
        assert!(matches!(change(roots, half), Err(ActivationError::Patch(PatchError::Missing(_)))));
        assert!(matches!(change(r#"{"roots": ["p"]}"#, two), Err(ActivationError::DeltaRoots(_))));
        assert_eq!(decide(&store), "2");
    }

    #[test]
    fn what_was_taken_out_of_the_configuration_does_not_come_back() {
        let (activation, store) = activation();
        let policy = |text: &str| bundle(r#"{"roots": ["p"]}"#, text);
        let late = activation.replace_bundle("a", policy("package p\nallow := 1"), "", false, || true);
        assert!(matches!(late, Err(ActivationError::Over)) && store.current().is_none());
        let library = |text: &str| bundle(r#"{"roots": ["lib"]}"#, text);
        let put = |name: &str, contents| activation.replace_bundle(name, contents, "", false, || false).map(drop);
        put("old", library("package lib\nf(_) := 1")).expect("a library");
        put("a", policy("package p\nallow := data.lib.f(0)")).expect("its user");
        activation.remove_bundle("old").expect_err("it is needed");
        assert_eq!(decide(&store), "1");
        put("new", library("package lib\nf(_) := 2")).expect("it takes the place of the one that is leaving");
        assert_eq!(decide(&store), "2");
        assert!(!activation.policies().iter().any(|module| module.path.starts_with("old/")), "it is gone");
    }

    #[test]
    fn what_says_that_something_is_wrong_with_it_is_not_put_in_force() {
        let (activation, store) = activation();
        let policy = |problems: &str| files(&format!("package p\nallow := 1\nproblems := {problems}"));
        for fine in ["set()", "[]", "{}"] {
            activation.replace_files(policy(fine)).expect(fine);
        }
        for wrong in ["{\"a star\"}", "[1]", "true", "\"\"", "null"] {
            let refused = activation.replace_files(policy(wrong));
            let is_refused = matches!(&refused, Err(ActivationError::LoadCheck { path, .. }) if path == "p/problems");
            assert!(is_refused, "{wrong}: {refused:?}");
        }
        assert_eq!(decide(&store), "1");
    }

    #[test]
    fn a_guarded_delta_counts_once() {
        let (activation, store) = activation();
        let manifest = r#"{"roots": ["p"], "metadata": {"sequence": 1}}"#;
        let put = |contents| activation.replace_bundle("a", contents, "", true, || false).map(drop);
        put(bundle(manifest, "package p\nallow := 1")).expect("a snapshot");
        let change = || delta(manifest, r#"{"op": "upsert", "path": "/p/n", "value": 2}"#);
        assert!(matches!(put(change()), Err(ActivationError::Rollback { from: 1, to: 1 })));
        assert_eq!(decide(&store), "1");
    }

    #[test]
    fn an_older_bundle_does_not_come_back() {
        let (activation, store) = activation();
        let at = |sequence: &str| {
            let manifest = format!(r#"{{"metadata": {{"sequence": {sequence}}}}}"#);
            let policy = format!("package p\nallow := {sequence}");
            activation.replace_bundle("a", bundle(&manifest, &policy), "", true, || false).map(drop)
        };
        at("7").expect("the first");
        at("7").expect("the same again");
        assert!(matches!(at("6"), Err(ActivationError::Rollback { from: 7, to: 6 })));
        assert!(matches!(at("\"8\""), Err(ActivationError::NoSequence)));
        assert!(matches!(at("7.5"), Err(ActivationError::NoSequence)));
        assert_eq!(decide(&store), "7");
        at("9").expect("a newer one");
    }

    #[test]
    fn a_policy_that_never_ends_is_not_put_in_force() {
        let (activation, store) = activation();
        let first = bundle("{}", "package p\nallow := 1");
        activation.replace_bundle("a", first, "", false, || false).expect("it is sound");
        let endless =
            "package p\nallow if {\n  n := numbers.range(1, 100000)\n  some a in n\n  some b in n\n  a + b < 0\n}";
        let refused = activation.replace_bundle("a", bundle("{}", endless), "", false, || false);
        assert!(matches!(refused, Err(ActivationError::Slow(_))), "{refused:?}");
        assert_eq!(decide(&store), "1");
    }
}
