//! A bundle's archive: a gzipped tar, read without trusting a byte of it.
//!
//! Mirrors: OPA `v1/bundle/bundle.go`, v1.19.0: which files count, and where data goes. Links, paths that lead out, deltas,
//! plans, WebAssembly and signatures are refused by name; nothing of a refused archive is used.

use std::io::{self, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use tar::{Archive, EntryType};

use crate::feed::DATA;
use crate::opa::manifest::{Manifest, ManifestError};
use crate::policy::{Module, RegoVersion, SourceConflict, Sources, package_of};
use crate::value::{Value, parse_json, parse_yaml};

/// Files of one archive.
const MAX_FILES: usize = 100_000;
/// Folders within folders.
const MAX_DEPTH: usize = 64;

/// What an archive holds.
#[derive(Debug)]
pub struct Bundle {
    pub manifest: Manifest,
    pub sources: Sources,
    /// Bytes of all its files.
    pub size: u64,
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
    #[error("`{0}` is neither a file nor a folder; links and devices have no place in a bundle")]
    Link(String),
    #[error("`{0}` stands in the bundle twice")]
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
    #[error("the manifest's roots {roots:?} do not permit {what}")]
    OutsideRoots { roots: Vec<String>, what: String },
}

/// Counts what is unpacked, and ends the reading past the limit.
struct Limited<R> {
    inner: R,
    left: u64,
}

/// The message of the error that [`Limited`] gives.
#[derive(Debug, thiserror::Error)]
#[error("over the limit")]
struct OverLimit;

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        match self.left.checked_sub(read as u64) {
            Some(left) => self.left = left,
            None => return Err(io::Error::other(OverLimit)),
        }
        Ok(read)
    }
}

/// Reads a bundle of at most `limit` bytes, packing included. `version` is what modules are written in unless the manifest says.
pub fn read(packed: &[u8], limit: u64, version: RegoVersion) -> Result<Bundle, BundleError> {
    let failed = |error: io::Error| {
        let over = error.get_ref().is_some_and(|inner| inner.is::<OverLimit>())
            || error.to_string().contains(&OverLimit.to_string());
        if over { BundleError::TooLarge(limit) } else { BundleError::Archive(error) }
    };
    let unpacked = Limited { inner: MultiGzDecoder::new(packed), left: limit };
    let mut archive = Archive::new(unpacked);
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    let mut size = 0u64;
    for entry in archive.entries().map_err(failed)? {
        let mut entry = entry.map_err(failed)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let is_file = match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => true,
            EntryType::Directory | EntryType::XGlobalHeader => false,
            _ => return Err(BundleError::Link(name)),
        };
        if name.split('/').any(|part| part == "..") || name.contains('\0') {
            return Err(BundleError::Path(name));
        }
        if name.split('/').count() > MAX_DEPTH {
            return Err(BundleError::TooDeep(name));
        }
        if !is_file {
            continue;
        }
        if files.len() >= MAX_FILES {
            return Err(BundleError::TooManyFiles);
        }
        // The size in the header is only a claim: it must not reserve memory.
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(failed)?;
        size = size.saturating_add(bytes.len() as u64);
        files.push((name, bytes));
    }
    // What follows the last file has the checksum: an archive that was cut is no bundle.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(failed)?;
    assemble(files, size, version)
}

/// Reads a bundle from a folder, as `opa build` would pack it; `ignores` says what is left out.
pub fn read_folder(
    folder: &Path,
    limit: u64,
    version: RegoVersion,
    ignores: &dyn Fn(&str) -> bool,
) -> Result<Bundle, BundleError> {
    let mut files = Vec::new();
    let mut size = 0u64;
    let mut open = vec![(folder.to_owned(), String::new())];
    while let Some((folder, prefix)) = open.pop() {
        if prefix.split('/').count() > MAX_DEPTH {
            return Err(BundleError::TooDeep(prefix));
        }
        for entry in std::fs::read_dir(&folder).map_err(BundleError::Read)? {
            let entry = entry.map_err(BundleError::Read)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if ignores(&name) && name != ".manifest" {
                continue;
            }
            // Paths of a folder begin with `/`, as OPA reads them.
            let (path, name) = (entry.path(), format!("{prefix}/{name}"));
            // Links are followed: Kubernetes mounts files by way of them. Those that lead to folders are not.
            if entry.file_type().map_err(BundleError::Read)?.is_dir() {
                open.push((path, name));
            } else if path.is_file() {
                let length = std::fs::metadata(&path).map_err(BundleError::Read)?.len();
                size = size.saturating_add(length);
                if size > limit {
                    return Err(BundleError::TooLarge(limit));
                }
                if files.len() >= MAX_FILES {
                    return Err(BundleError::TooManyFiles);
                }
                files.push((name, std::fs::read(&path).map_err(BundleError::Read)?));
            }
        }
    }
    // Folders give their files in any order; errors should not.
    files.sort();
    assemble(files, size, version)
}

/// The name without what `opa build` and `tar` put before it.
fn plain(name: &str) -> &str {
    let name = name.strip_prefix("./").unwrap_or(name);
    name.trim_start_matches('/')
}

fn assemble(files: Vec<(String, Vec<u8>)>, size: u64, version: RegoVersion) -> Result<Bundle, BundleError> {
    let mut seen = std::collections::HashSet::new();
    if let Some((name, _)) = files.iter().find(|(name, _)| !seen.insert(plain(name).to_owned())) {
        return Err(BundleError::Twice(name.clone()));
    }
    // Wherever it lies, as in OPA.
    let mut manifests = files.iter().filter(|(name, _)| name.ends_with(".manifest"));
    let manifest = match (manifests.next(), manifests.next()) {
        (_, Some((name, _))) => return Err(BundleError::Twice(name.clone())),
        (Some((_, bytes)), None) => Manifest::parse(bytes)?,
        (None, None) => Manifest::default(),
    };
    let mut sources = Sources::default();
    for (name, bytes) in files {
        let path = plain(&name).to_owned();
        let (folder, file) = path.rsplit_once('/').unwrap_or(("", &path));
        match file {
            "patch.json" => {
                return Err(BundleError::NotOffered(name, "delta bundles; ask the server for snapshots"));
            }
            _ if file.ends_with("signatures.json") => {
                return Err(BundleError::NotOffered(name, "signatures; what cannot be verified is not used"));
            }
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
    Ok(Bundle { manifest, sources, size })
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
        if !manifest.roots.reach_below(&path) {
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
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::value::json_text;

    const LIMIT: u64 = 1 << 20;

    fn header(kind: EntryType, name: &str, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        // Names are written as they are: the crate's own setter refuses what a hostile archive has.
        let bytes = name.as_bytes();
        header.as_old_mut().name[..bytes.len()].copy_from_slice(bytes);
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        header
    }

    fn packed(files: &[(&str, &str)]) -> Vec<u8> {
        let mut tar = Vec::new();
        for (name, content) in files {
            tar.extend_from_slice(header(EntryType::Regular, name, content.len() as u64).as_bytes());
            tar.extend_from_slice(content.as_bytes());
            tar.resize(tar.len().next_multiple_of(512), 0);
        }
        tar.resize(tar.len() + 1_024, 0);
        gzipped(&tar)
    }

    fn gzipped(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).expect("memory takes all");
        encoder.finish().expect("memory takes all")
    }

    fn refusal(packed: &[u8]) -> String {
        let error = read(packed, LIMIT, RegoVersion::V1).expect_err("it must be refused");
        crate::telemetry::chain(&error)
    }

    #[test]
    fn a_bundle_is_read_as_opa_builds_it() {
        let files = [
            ("/data.json", r#"{"a": {"x": 1}}"#),
            ("/a/data.yaml", "y: 2"),
            ("/a/list/data.json", "[1]"),
            ("/a/other.json", "not looked at"),
            ("./app/p.rego", "package a.app\nallow := true"),
            ("/old/q.rego", "package a.old\nallow { true }"),
            ("/.manifest", r#"{"revision": "r1", "roots": ["a"], "file_rego_versions": {"/old/*.rego": 0}}"#),
        ];
        let bundle = read(&packed(&files), LIMIT, RegoVersion::V1).expect("a bundle");
        assert_eq!(bundle.manifest.revision, "r1");
        assert_eq!(json_text(&bundle.sources.data), r#"{"a":{"list":[1],"x":1,"y":2}}"#);
        let modules: Vec<_> = bundle.sources.modules.iter().map(|it| (it.path.as_str(), it.version)).collect();
        assert_eq!(modules, [("app/p.rego", RegoVersion::V1), ("old/q.rego", RegoVersion::V0)]);
    }

    #[test]
    fn hostile_archives_are_refused_by_name() {
        for (files, message) in [
            (&[("../p.rego", "package p")][..], "`../p.rego` leads out"),
            (&[("a/../../p.rego", "package p")], "leads out"),
            (&[("data.json", "[1]")], "`data.json` is not a data document"),
            (&[("data.json", "{")], "is not a data document"),
            (&[("data.json", "{}"), ("/data.json", "{}")], "stands in the bundle twice"),
            (&[("data.json", r#"{"a": 1}"#), ("a/data.json", r#"{"b": 1}"#)], "disagree at `data.a`"),
            (&[("patch.json", r#"{"data": []}"#)], "delta bundles"),
            (&[(".signatures.json", "{}")], "signatures"),
            (&[("policy.wasm", "")], "compiled policies"),
            (&[(".manifest", "[]")], "not an object"),
            (&[("a/.manifest", "{}"), (".manifest", "{}")], "stands in the bundle twice"),
            (&[("a/.manifest", r#"{"roots": ["z"]}"#), ("p.rego", "package p")], "do not permit `package p`"),
            (&[("a/signatures.json", "{}")], "signatures"),
            (&[("a/patch.json", "{}")], "delta bundles"),
            (&[(".manifest.pb", "")], "manifests in Protobuf"),
            (&[(".manifest", r#"{"roots": ["a"]}"#), ("p.rego", "package b")], "do not permit `package b`"),
            (&[(".manifest", r#"{"roots": ["a"]}"#), ("p.rego", "package ab")], "do not permit `package ab`"),
            (&[(".manifest", r#"{"roots": ["a"]}"#), ("data.json", r#"{"b": {"c": 1}}"#)], "data at `/b`"),
            (&[(".manifest", r#"{"roots": ["a/b"]}"#), ("data.json", r#"{"a": 1}"#)], "data at `/a`"),
        ] {
            let got = refusal(&packed(files));
            assert!(got.contains(message), "{files:?}: {got}");
        }
        let deep = format!("{}data.json", "d/".repeat(45));
        assert!(read(&packed(&[(&deep, "1")]), LIMIT, RegoVersion::V1).is_ok());
        let deeper = format!("{}data.json", "/".repeat(70));
        assert!(refusal(&packed(&[(&deeper, "{}")])).contains("more than 64 folders deep"));
    }

    #[test]
    fn links_bombs_and_lies_are_refused() {
        for kind in [EntryType::Symlink, EntryType::Link, EntryType::Fifo, EntryType::Char] {
            let mut tar = header(kind, "p.rego", 0).as_bytes().to_vec();
            tar.resize(2_048, 0);
            assert!(refusal(&gzipped(&tar)).contains("links and devices"), "{kind:?}");
        }
        // A megabyte and more of nothing, in a few bytes.
        let mut bomb = header(EntryType::Regular, "data.json", 8 << 20).as_bytes().to_vec();
        bomb.resize(9 << 20, b' ');
        assert!(refusal(&gzipped(&bomb)).contains("larger than `size_limit_bytes`"));
        // A header that promises 8 GB and holds nothing.
        let lie = header(EntryType::Regular, "data.json", 8_000_000_000).as_bytes().to_vec();
        assert!(refusal(&gzipped(&lie)).contains("cannot be read"));
        let whole = packed(&[("data.json", r#"{"a": "0123456789"}"#)]);
        for cut in [0, 5, 20, whole.len() / 2, whole.len() - 1] {
            assert!(read(&whole[..cut], LIMIT, RegoVersion::V1).is_err(), "cut at {cut}");
        }
        assert!(refusal(b"<html>").contains("a bundle is a gzipped tar"));
    }
}
