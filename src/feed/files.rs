//! Policies and data from disk: loaded at start, and again when they change if `--watch` asks for it.
//!
//! Mirrors: OPA `v1/loader/loader.go`, v1.9.0: which files count, and where a folder puts its data. Differences: names that begin with
//! `..` are the kubelet's ([`crate::folder`]) and are skipped, and a file that is reached twice through links is loaded once.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use globset::{Glob, GlobMatcher};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use super::DATA;
use super::activation::{Activation, ActivationError};
use super::bundle::contents::{Bundle, BundleError, BundleReader};
use crate::folder::{is_folder, is_reserved};
use crate::lifecycle::Lifecycle;
use crate::opa::manifest::Roots;
use crate::opa::signature::Verification;
use crate::policy::{Module, RegoVersion, SourceConflict, Sources};
use crate::value::{Value, parse_json, parse_yaml};

/// Folders within folders that are followed.
const MAX_FOLDER_DEPTH: usize = 64;
/// Files that one set of paths may hold.
const MAX_FILES: usize = 100_000;
/// Bytes of all files together.
const MAX_TOTAL_BYTES: u64 = 1 << 30;
/// The name of the files of the command line among the sources of policies.
const FILES: &str = "files";
/// The quiet period of the files before they are read again.
const QUIET: Duration = Duration::from_millis(200);

/// One path of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathSpec {
    /// Where its data goes: `a.b:file` puts it under `data.a.b`.
    prefix: Vec<String>,
    path: PathBuf,
}

impl PathSpec {
    /// Reads `path`, `file://path` or `dotted.prefix:path`.
    pub fn parse(text: &str) -> Self {
        let rest = text.strip_prefix("file://").unwrap_or(text);
        if rest.len() == text.len()
            && let Some((prefix, path)) = text.split_once(':')
            && !prefix.contains(['/', '\\'])
        {
            let path = path.strip_prefix("file://").unwrap_or(path);
            return Self { prefix: prefix.split('.').map(str::to_owned).collect(), path: PathBuf::from(path) };
        }
        Self { prefix: Vec::new(), path: PathBuf::from(rest) }
    }
}

/// The files to load, and their kind.
#[derive(Clone, Debug)]
pub struct PolicyFiles {
    pub paths: Vec<PathSpec>,
    pub ignore: Vec<GlobMatcher>,
    pub version: RegoVersion,
    /// Each path is a bundle: an archive or a folder.
    pub as_bundles: bool,
    /// Verification of such bundles.
    pub verification: Verification,
}

/// Why files cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("`{}` cannot be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("`{}` is neither Rego (.rego) nor data (.json, .yaml, .yml)", path.display())]
    Kind { path: PathBuf },
    #[error("`{}` is not a data document: it must be one JSON or YAML object", path.display())]
    Data { path: PathBuf },
    #[error("`{}` is not UTF-8", path.display())]
    Utf8 { path: PathBuf },
    #[error("`{}`: {conflict}", path.display())]
    Conflict { path: PathBuf, conflict: SourceConflict },
    #[error("`{}` is not taken for a bundle", path.display())]
    Bundle { path: PathBuf, source: BundleError },
    #[error("the bundles `{}` and `{}` both own `{root}`", one.display(), other.display())]
    Overlap { one: PathBuf, other: PathBuf, root: String },
    #[error("`{}` goes beyond the limit of {what}", path.display())]
    Limit { path: PathBuf, what: &'static str },
}

/// Parses a pattern of `--ignore`.
pub fn ignore_pattern(pattern: &str) -> Option<GlobMatcher> {
    Glob::new(pattern).ok().map(|glob| glob.compile_matcher())
}

#[derive(Clone, Copy, PartialEq)]
enum FileKind {
    Rego,
    Json,
    Yaml,
}

fn kind(path: &Path) -> Option<FileKind> {
    match path.extension()?.to_str()? {
        "rego" => Some(FileKind::Rego),
        "json" => Some(FileKind::Json),
        "yaml" | "yml" => Some(FileKind::Yaml),
        _ => None,
    }
}

impl PolicyFiles {
    /// Reads everything; the first fault ends it.
    pub fn load(&self) -> Result<Sources, FilesError> {
        if self.as_bundles {
            return self.load_bundles();
        }
        let mut loading = Loading { files: self, sources: Sources::default(), seen: HashSet::new(), bytes: 0 };
        for spec in &self.paths {
            let meta = std::fs::metadata(&spec.path).map_err(|source| read_error(&spec.path, source))?;
            if meta.is_dir() {
                loading.folder(&spec.path, &mut spec.prefix.clone(), 0)?;
            } else {
                let kind = kind(&spec.path).ok_or_else(|| FilesError::Kind { path: spec.path.clone() })?;
                loading.file(&spec.path, kind, &spec.prefix)?;
            }
        }
        Ok(loading.sources)
    }

    /// A change of `path` can change the loaded files. Other changes would never end: a log file in the same folder grows with
    /// every reload that it logs.
    fn may_change_with(&self, path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default();
        // Kubernetes swaps a link named `..data`.
        let is_swap = name.to_string_lossy().starts_with("..");
        self.paths.iter().any(|spec| {
            if spec.path.is_dir() {
                is_swap || kind(path).is_some() || path.extension().is_none()
            } else {
                is_swap || spec.path.file_name() == Some(name)
            }
        })
    }

    fn load_bundles(&self) -> Result<Sources, FilesError> {
        let mut all = Sources::default();
        let mut known: Vec<(&Path, Roots)> = Vec::new();
        for spec in &self.paths {
            let path = spec.path.as_path();
            let bundle = self.bundle(path)?;
            let roots = bundle.manifest.roots;
            let shared = known.iter().find_map(|(other, own)| Some((*other, roots.shared_with(own)?)));
            if let Some((one, root)) = shared {
                return Err(FilesError::Overlap { one: one.to_owned(), other: path.to_owned(), root });
            }
            known.push((path, roots));
            for module in bundle.sources.modules {
                let path = format!("{}/{}", path.display(), module.path);
                all.modules.push(Module { path, ..module });
            }
            let added = all.add_data(&[], bundle.sources.data);
            added.map_err(|conflict| FilesError::Conflict { path: path.to_owned(), conflict })?;
        }
        Ok(all)
    }

    /// Reads one bundle.
    pub fn bundle(&self, path: &Path) -> Result<Bundle, FilesError> {
        let verification = self.verification.clone();
        let reading = BundleReader { limit: MAX_TOTAL_BYTES, version: self.version, verification };
        let read = reading.snapshot(path, &|name| self.ignores(name));
        read.map_err(|source| FilesError::Bundle { path: path.to_owned(), source })
    }

    fn ignores(&self, name: &str) -> bool {
        self.ignore.iter().any(|pattern| pattern.is_match(name))
    }
}

struct Loading<'a> {
    files: &'a PolicyFiles,
    sources: Sources,
    seen: HashSet<PathBuf>,
    bytes: u64,
}

impl Loading<'_> {
    fn folder(&mut self, folder: &Path, prefix: &mut Vec<String>, depth: usize) -> Result<(), FilesError> {
        if depth > MAX_FOLDER_DEPTH {
            return Err(FilesError::Limit { path: folder.to_owned(), what: "64 folders within each other" });
        }
        let entries = std::fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut entries = entries.map_err(|source| read_error(folder, source))?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if is_reserved(&name) || self.files.ignores(&name) {
                continue;
            }
            if is_folder(&entry).map_err(|source| read_error(&path, source))? {
                prefix.push(name);
                self.folder(&path, prefix, depth.saturating_add(1))?;
                prefix.pop();
            } else if let Some(kind) = kind(&path)
                && path.is_file()
            {
                self.file(&path, kind, prefix)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, kind: FileKind, prefix: &[String]) -> Result<(), FilesError> {
        let real = path.canonicalize().map_err(|source| read_error(path, source))?;
        if !self.seen.insert(real) {
            return Ok(());
        }
        if self.seen.len() > MAX_FILES {
            return Err(FilesError::Limit { path: path.to_owned(), what: "100,000 files" });
        }
        let size = std::fs::metadata(path).map_err(|source| read_error(path, source))?.len();
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > MAX_TOTAL_BYTES {
            return Err(FilesError::Limit { path: path.to_owned(), what: "1 GiB in all" });
        }
        let bytes = std::fs::read(path).map_err(|source| read_error(path, source))?;
        let text = String::from_utf8(bytes).map_err(|_| FilesError::Utf8 { path: path.to_owned() })?;
        let document = match kind {
            FileKind::Rego => {
                let module = Module { path: path.display().to_string(), text, version: self.files.version };
                self.sources.modules.push(module);
                return Ok(());
            }
            FileKind::Json => parse_json(text.as_bytes(), DATA).ok(),
            FileKind::Yaml => parse_yaml(&text, DATA),
        };
        let document = document.filter(|document| matches!(document, Value::Object(_)));
        let document = document.ok_or_else(|| FilesError::Data { path: path.to_owned() })?;
        let prefix: Vec<_> = prefix.iter().map(String::as_str).collect();
        let added = self.sources.add_data(&prefix, document);
        added.map_err(|conflict| FilesError::Conflict { path: path.to_owned(), conflict })
    }
}

fn read_error(path: &Path, source: io::Error) -> FilesError {
    FilesError::Read { path: path.to_owned(), source }
}

/// The reason that files were not activated.
#[derive(Debug, thiserror::Error)]
pub enum FilesFeedError {
    #[error("the files cannot be loaded")]
    Files(#[from] FilesError),
    #[error(transparent)]
    Activation(#[from] ActivationError),
}

/// Activates the policy of a set of files.
#[derive(Clone, Debug)]
pub struct PolicyFeed {
    pub files: PolicyFiles,
    pub activation: Arc<Activation>,
}

impl PolicyFeed {
    /// Loads, compiles and, if all is well, swaps. What served before keeps serving otherwise.
    pub fn activate(&self) -> Result<(), FilesFeedError> {
        let activated = self.load_and_replace();
        self.activation.report_rejected(FILES, activated.is_err());
        activated
    }

    fn load_and_replace(&self) -> Result<(), FilesFeedError> {
        Ok(self.activation.replace_files(self.files.load()?)?)
    }

    /// Reloads whenever a file changes, until everything stops.
    pub fn watch(self, lifecycle: &Lifecycle) -> Result<(), notify::Error> {
        let (changed, changes) = mpsc::channel(1);
        let files = self.files.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // One waiting signal is enough; whatever else happens meanwhile is read by the same reload.
            let matters = |event: notify::Event| {
                !event.kind.is_access() && event.paths.iter().any(|path| files.may_change_with(path))
            };
            if event.is_ok_and(matters) {
                let _ = changed.try_send(());
            }
        })?;
        for spec in &self.files.paths {
            if spec.path.is_dir() {
                watcher.watch(&spec.path, RecursiveMode::Recursive)?;
            } else {
                // Editors replace files, so the folder is what must be watched.
                let folder = spec.path.parent().filter(|folder| !folder.as_os_str().is_empty());
                watcher.watch(folder.unwrap_or(Path::new(".")), RecursiveMode::NonRecursive)?;
            }
        }
        lifecycle.spawn_until_stop(self.reload_on(changes, watcher));
        Ok(())
    }

    async fn reload_on(self, mut changes: mpsc::Receiver<()>, _watcher: RecommendedWatcher) {
        while changes.recv().await.is_some() {
            while tokio::time::timeout(QUIET, changes.recv()).await.is_ok_and(|change| change.is_some()) {}
            let feed = self.clone();
            match tokio::task::spawn_blocking(move || feed.activate()).await {
                Ok(Ok(())) => tracing::info!("policy reloaded"),
                Ok(Err(error)) => {
                    tracing::error!(
                        error = crate::telemetry::chain(&error),
                        "policy not reloaded; the previous policy stays active"
                    );
                }
                Err(_) => tracing::error!("policy not reloaded: loading it panicked; the previous policy stays active"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::lay_out;
    use crate::value::json_text;

    fn load(folder: &Path, ignore: &[&str]) -> Result<Sources, FilesError> {
        PolicyFiles {
            paths: vec![PathSpec::parse(&folder.display().to_string())],
            ignore: ignore.iter().filter_map(|pattern| ignore_pattern(pattern)).collect(),
            version: RegoVersion::V1,
            as_bundles: false,
            verification: Verification::default(),
        }
        .load()
    }

    #[test]
    fn paths_may_have_a_prefix() {
        for (text, prefix, path) in [
            ("p.rego", vec![], "p.rego"),
            ("a.b:d.json", vec!["a", "b"], "d.json"),
            ("file:///x/p.rego", vec![], "/x/p.rego"),
            ("/x:y/p.rego", vec![], "/x:y/p.rego"),
        ] {
            let spec = PathSpec::parse(text);
            assert_eq!(
                (spec.prefix, spec.path.to_str()),
                (prefix.iter().map(|p| (*p).to_owned()).collect(), Some(path))
            );
        }
    }

    #[test]
    fn folders_put_their_data_under_their_names() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(folder.path().join("a/b")).expect("folders");
        std::fs::write(folder.path().join("p.rego"), "package p").expect("a file");
        std::fs::write(folder.path().join("a/b/x.json"), r#"{"n":1}"#).expect("a file");
        std::fs::write(folder.path().join("a/y.yaml"), "m: [2]").expect("a file");
        std::fs::write(folder.path().join("a/notes.txt"), "not ours").expect("a file");
        let sources = load(folder.path(), &[]).expect("it loads");
        assert_eq!(json_text(&sources.data), r#"{"a":{"b":{"n":1},"m":[2]}}"#);
        assert_eq!(sources.modules.len(), 1);
    }

    #[test]
    fn a_config_map_is_loaded_by_its_visible_names() {
        let folder = tempfile::tempdir().expect("a folder");
        let (folder, visible) = (folder.path(), |name: &str| folder.path().join(name).display().to_string());
        let files =
            [("p.rego", "package p"), ("data.json", r#"{"blocked": ["/secret"]}"#), ("sub/more.yaml", "more: 1")];
        lay_out(folder, "..2026_01_01_00_00_00.1", &files);
        // A link that leads in a circle is not one of the kubelet's.
        std::os::unix::fs::symlink(".", folder.join("circle")).expect("a link");
        for version in ["..2026_01_01_00_00_00.1", "..2026_01_02_00_00_00.2"] {
            lay_out(folder, version, &files);
            for ignore in [&[][..], &[".*"]] {
                let sources = load(folder, ignore).expect("it loads");
                assert_eq!(
                    json_text(&sources.data),
                    r#"{"blocked":["/secret"],"sub":{"more":1}}"#,
                    "{version} {ignore:?}"
                );
                assert_eq!(sources.modules.len(), 1);
                assert_eq!(sources.modules[0].path, visible("p.rego"));
            }
        }
        lay_out(folder, "..2026_01_03_00_00_00.3", &[("data.json", "{")]);
        let error = load(folder, &[]).expect_err("it is broken").to_string();
        assert!(error.starts_with(&format!("`{}` ", visible("data.json"))), "{error}");
    }

    #[test]
    fn only_changes_of_what_is_loaded_are_looked_at() {
        let folder = tempfile::tempdir().expect("a folder");
        let bundle = folder.path().join("b.tar.gz");
        std::fs::write(&bundle, "").expect("a file");
        let files = |path: &Path| PolicyFiles {
            paths: vec![PathSpec::parse(&path.display().to_string())],
            ignore: Vec::new(),
            version: RegoVersion::V1,
            as_bundles: false,
            verification: Verification::default(),
        };
        let (inside, alone) = (files(folder.path()), files(&bundle));
        for (name, of_folder, of_file) in [
            ("p.rego", true, false),
            ("data.yaml", true, false),
            (".manifest", true, false),
            ("run.log", false, false),
            ("b.tar.gz", false, true),
            ("..data", true, true),
        ] {
            let path = folder.path().join(name);
            assert_eq!((inside.may_change_with(&path), alone.may_change_with(&path)), (of_folder, of_file), "{name}");
        }
    }

    #[test]
    fn what_cannot_be_data_is_refused() {
        for (name, content) in
            [("list.json", "[1]"), ("broken.json", "{"), ("scalar.yaml", "7"), ("tabs.yaml", "a:\n\t- b")]
        {
            let folder = tempfile::tempdir().expect("a folder");
            std::fs::write(folder.path().join(name), content).expect("a file");
            assert!(matches!(load(folder.path(), &[]), Err(FilesError::Data { .. })), "{name}");
        }
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("a.json"), r#"{"x":1}"#).expect("a file");
        std::fs::write(folder.path().join("b.json"), r#"{"x":2}"#).expect("a file");
        assert!(matches!(load(folder.path(), &[]), Err(FilesError::Conflict { .. })));
    }
}
