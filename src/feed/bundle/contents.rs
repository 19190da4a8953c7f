//! The contents of a bundle: policies and data, or a patch; parsed from its files after verification.
//!
//! Mirrors: OPA `v1/bundle/bundle.go`, v1.19.0: which files count, and where data goes. Plans and WebAssembly are refused by name.

use std::io;
use std::path::Path;

use super::archive::{self, File};
use super::patch::{Patch, PatchError};
use crate::feed::DATA;
use crate::opa::manifest::{Manifest, ManifestError};
use crate::opa::signature::{self, SignatureError, Verification};
use crate::policy::{Module, RegoVersion, SourceConflict, Sources, package_of};
use crate::value::{Value, parse_json, parse_yaml};

/// Settings for reading bundles.
#[derive(Clone, Debug)]
pub struct BundleReader {
    /// Bytes of the archive, and of everything in it.
    pub limit: u64,
    /// The Rego version of modules unless the manifest has one.
    pub version: RegoVersion,
    pub verification: Verification,
}

/// The payload of one archive.
#[derive(Debug)]
pub enum BundlePayload {
    Snapshot(Bundle),
    Delta(Delta),
}

/// Policies and data.
#[derive(Clone, Debug)]
pub struct Bundle {
    pub manifest: Manifest,
    pub sources: Sources,
}

/// Changes of the active bundle's data.
#[derive(Debug)]
pub struct Delta {
    pub manifest: Manifest,
    pub patches: Vec<Patch>,
}

/// Why an archive is refused.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("the archive cannot be read; a bundle is a gzipped tar")]
    Archive(#[source] io::Error),
    #[error("the bundle's files cannot be read")]
    Read(#[source] io::Error),
    #[error("the unpacked bundle is larger than `size_limit_bytes`, {0} bytes")]
    TooLarge(u64),
    #[error("the bundle has more than 100,000 files")]
    TooManyFiles,
    #[error("`{0}` lies more than 64 folders deep")]
    TooDeep(String),
    #[error("`{0}` leads out of the bundle")]
    Path(String),
    #[error("`{0}` is neither a file nor a folder; links and devices are not supported in a bundle")]
    Link(String),
    #[error("duplicate entry `{0}`")]
    Twice(String),
    #[error("`{0}` is not UTF-8")]
    Utf8(String),
    #[error("`{0}` is not a data document")]
    Data(String),
    #[error("`{file}`: {conflict}")]
    Conflict { file: String, conflict: SourceConflict },
    #[error("`.manifest` is refused")]
    Manifest(#[from] ManifestError),
    #[error("`{0}` is not offered: {1}")]
    NotOffered(String, &'static str),
    #[error("bundle signature verification failed")]
    Signature(#[from] SignatureError),
    #[error("`patch.json` is refused")]
    Patch(#[from] PatchError),
    #[error("delta bundle expected to contain only patch file but `{0}` found")]
    NotOnlyPatches(String),
    #[error("a delta bundle needs an active bundle to change")]
    LoneDelta,
    #[error("the manifest's roots {roots:?} do not permit {what}")]
    OutsideRoots { roots: Vec<String>, what: String },
}

impl BundleReader {
    /// Reads an archive.
    pub fn archive(&self, packed: &[u8]) -> Result<BundlePayload, BundleError> {
        self.contents(archive::unpack(packed, self.limit)?)
    }

    /// Reads an archive or a folder that must be whole in itself. `ignores` says what of a folder is left out.
    pub fn snapshot(&self, path: &Path, ignores: &dyn Fn(&str) -> bool) -> Result<Bundle, BundleError> {
        let files = archive::open(path, self.limit, ignores)?;
        let prefix = match path.is_dir() {
            // In OPA the names of a signed folder begin with its path.
            true => path.to_string_lossy().trim_start_matches("./").trim_matches('/').to_owned(),
            false => String::new(),
        };
        match self.verify_and_parse(files, &prefix)? {
            BundlePayload::Snapshot(bundle) => Ok(bundle),
            BundlePayload::Delta(_) => Err(BundleError::LoneDelta),
        }
    }

    /// Parses the files after their verification.
    pub fn contents(&self, files: Vec<File>) -> Result<BundlePayload, BundleError> {
        self.verify_and_parse(files, "")
    }

    fn verify_and_parse(&self, mut files: Vec<File>, prefix: &str) -> Result<BundlePayload, BundleError> {
        let mut seen = std::collections::HashSet::new();
        if let Some(file) = files.iter().find(|file| !seen.insert(file.plain())) {
            return Err(BundleError::Twice(file.name.clone()));
        }
        let signatures = take_only(&mut files, signature::FILE)?;
        let patch = files.iter().find(|file| base(file.plain()) == "patch.json");
        let patches = patch.map(|file| Patch::parse_all(&file.bytes)).transpose()?;
        let is_delta = patches.is_some();
        let signatures = signatures.as_ref().map(|file| file.bytes.as_slice());
        let verified = |prefix: &str| {
            let name = |file: &File| {
                if prefix.is_empty() { file.plain().to_owned() } else { format!("{prefix}/{}", file.plain()) }
            };
            let names: Vec<String> = files.iter().map(name).collect();
            let named = names.iter().map(String::as_str).zip(files.iter().map(|file| file.bytes.as_slice()));
            self.verification.check(signatures, &named.collect::<Vec<_>>(), is_delta)
        };
        match verified(prefix) {
            Err(SignatureError::NotListed(_)) if !prefix.is_empty() => verified("")?,
            other => other?,
        }
        let manifest = match take_only(&mut files, ".manifest")? {
            Some(file) => Manifest::parse(&file.bytes)?,
            None => Manifest::default(),
        };
        match patches {
            Some(patches) => delta(manifest, patches, &files).map(BundlePayload::Delta),
            None => snapshot(manifest, files, self.version).map(BundlePayload::Snapshot),
        }
    }
}

fn base(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// A file is policy or data.
fn is_content(file: &File) -> bool {
    file.name.ends_with(".rego") || matches!(base(file.plain()), "data.json" | "data.yaml" | "data.yml")
}

/// Takes out the one file whose name ends so, wherever it lies, as in OPA.
fn take_only(files: &mut Vec<File>, ending: &str) -> Result<Option<File>, BundleError> {
    let mut at = files.iter().enumerate().filter(|(_, file)| file.name.ends_with(ending)).map(|(at, _)| at);
    match (at.next(), at.next()) {
        (_, Some(second)) => {
            Err(BundleError::Twice(files.get(second).map(|file| file.name.clone()).unwrap_or_default()))
        }
        (Some(at), None) => Ok(Some(files.remove(at))),
        (None, _) => Ok(None),
    }
}

fn delta(manifest: Manifest, patches: Vec<Patch>, files: &[File]) -> Result<Delta, BundleError> {
    if let Some(file) = files.iter().find(|file| is_content(file) || base(file.plain()) == "policy.wasm") {
        return Err(BundleError::NotOnlyPatches(file.name.clone()));
    }
    if let Some(patch) = patches.iter().find(|patch| !manifest.roots.own(&patch.path)) {
        let what = format!("data patch at path `{}`", patch.path.join("/"));
        return Err(BundleError::OutsideRoots { roots: manifest.roots.listed(), what });
    }
    Ok(Delta { manifest, patches })
}

fn snapshot(manifest: Manifest, files: Vec<File>, version: RegoVersion) -> Result<Bundle, BundleError> {
    let mut sources = Sources::default();
    for file in files {
        let path = file.plain().to_owned();
        let File { name, bytes } = file;
        let (folder, file) = path.rsplit_once('/').unwrap_or(("", &path));
        match file {
            _ if file.ends_with(".manifest.pb") => {
                return Err(BundleError::NotOffered(name, "manifests in Protobuf; build the bundle with a JSON one"));
            }
            "plan.json" | "plan.pb" | "policy.wasm" => {
                return Err(BundleError::NotOffered(
                    name,
                    "compiled policies; build the bundle with `opa build -t rego`",
                ));
            }
            _ => {}
        }
        let text = || String::from_utf8(bytes.clone()).map_err(|_| BundleError::Utf8(name.clone()));
        let document = match file {
            _ if file.ends_with(".rego") => {
                let version = match manifest.version_of(&name) {
                    None => version,
                    Some(0) => RegoVersion::V0,
                    Some(_) => RegoVersion::V1,
                };
                sources.modules.push(Module { path, text: text()?, version });
                continue;
            }
            "data.json" => parse_json(&bytes, DATA).ok(),
            "data.yaml" | "data.yml" => parse_yaml(&text()?, DATA),
            // Whatever else lies in a bundle is none of ours.
            _ => continue,
        };
        let document = document.filter(|document| !folder.is_empty() || matches!(document, Value::Object(_)));
        let document = document.ok_or_else(|| BundleError::Data(name.clone()))?;
        let prefix: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
        let added = sources.add_data(&prefix, document);
        added.map_err(|conflict| BundleError::Conflict { file: name, conflict })?;
    }
    check_roots(&manifest, &sources)?;
    Ok(Bundle { manifest, sources })
}

/// Everything in the bundle must lie under its roots.
fn check_roots(manifest: &Manifest, sources: &Sources) -> Result<(), BundleError> {
    let outside = |what: String| BundleError::OutsideRoots { roots: manifest.roots.listed(), what };
    for module in &sources.modules {
        // A module that cannot be parsed is reported, with its place, when everything is compiled.
        let Some(package) = package_of(module) else { continue };
        if !manifest.roots.own(&package) {
            return Err(outside(format!("`package {}` in `{}`", package.join("."), module.path)));
        }
    }
    let mut open: Vec<(Vec<String>, &Value)> = vec![(Vec::new(), &sources.data)];
    while let Some((path, value)) = open.pop() {
        if manifest.roots.own(&path) {
            continue;
        }
        let Value::Object(members) = value else {
            return Err(outside(format!("data at `/{}`", path.join("/"))));
        };
        if !manifest.roots.reach_below(&path) && members.iter().next().is_some() {
            return Err(outside(format!("data at `/{}`", path.join("/"))));
        }
        for (key, value) in members.iter() {
            let key = crate::value::as_text(key).unwrap_or_default().to_owned();
            open.push((path.iter().cloned().chain([key]).collect(), value));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
