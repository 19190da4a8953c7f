//! A bundle's archive: a gzipped tar, read without trusting a byte of it, or a folder.
//!
//! Links, paths that lead out, and whatever goes beyond a limit are refused by name; nothing of a refused archive is used.

use std::io::{self, Read};
use std::path::Path;

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use tar::{Archive, Builder, EntryType, Header};

use super::contents::BundleError;
use crate::folder::{is_folder, is_reserved};
use crate::opa::signature;

/// Files of one archive.
const MAX_FILES: usize = 100_000;
/// Folders within folders.
const MAX_DEPTH: usize = 64;

/// One file, by its name as the archive spells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub name: String,
    pub bytes: Vec<u8>,
}

impl File {
    /// The name without what `opa build` and `tar` put before it.
    pub fn plain(&self) -> &str {
        let name = self.name.strip_prefix("./").unwrap_or(&self.name);
        name.trim_start_matches('/')
    }
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

/// Unpacks an archive of at most `limit` bytes, packing included.
pub fn unpack(packed: &[u8], limit: u64) -> Result<Vec<File>, BundleError> {
    let failed = |error: io::Error| {
        let over = error.get_ref().is_some_and(|inner| inner.is::<OverLimit>())
            || error.to_string().contains(&OverLimit.to_string());
        if over { BundleError::TooLarge(limit) } else { BundleError::Archive(error) }
    };
    let unpacked = Limited { inner: MultiGzDecoder::new(packed), left: limit };
    let mut archive = Archive::new(unpacked);
    let mut files = Vec::new();
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
        files.push(File { name, bytes });
    }
    // The checksum follows the last file: an archive that was cut is no bundle.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(failed)?;
    Ok(files)
}

/// The files of an archive or a folder; `ignores` says what of a folder is left out.
pub fn open(path: &Path, limit: u64, ignores: &dyn Fn(&str) -> bool) -> Result<Vec<File>, BundleError> {
    match path.is_dir() {
        true => gather(path, limit, ignores),
        false => unpack(&std::fs::read(path).map_err(BundleError::Read)?, limit),
    }
}

/// The files of a folder, as `opa build` would pack them; `ignores` says what is left out.
fn gather(folder: &Path, limit: u64, ignores: &dyn Fn(&str) -> bool) -> Result<Vec<File>, BundleError> {
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
            if is_reserved(&name) || ignores(&name) && !matches!(name.as_str(), ".manifest" | signature::FILE) {
                continue;
            }
            // Paths of a folder begin with `/`, as OPA reads them.
            let (path, name) = (entry.path(), format!("{prefix}/{name}"));
            if is_folder(&entry).map_err(BundleError::Read)? {
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
                files.push(File { name, bytes: std::fs::read(&path).map_err(BundleError::Read)? });
            }
        }
    }
    // Folders give their files in any order; errors should not.
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// Packs files as `opa build` does. The same files give the same bytes.
pub fn pack(files: &[File]) -> io::Result<Vec<u8>> {
    let mut archive = Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    for file in files {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_size(file.bytes.len() as u64);
        header.set_mode(0o600);
        let name = file.name.as_bytes();
        // OPA's leading `/` is nothing that the crate's own setter takes, and long names need an entry of their own.
        match header.as_gnu_mut().and_then(|header| header.name.get_mut(..name.len())) {
            Some(place) => {
                place.copy_from_slice(name);
                header.set_cksum();
                archive.append(&header, file.bytes.as_slice())?;
            }
            None => archive.append_data(&mut header, file.plain(), file.bytes.as_slice())?,
        }
    }
    archive.into_inner()?.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

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
        let error = unpack(packed, LIMIT).expect_err("it must be refused");
        crate::telemetry::chain(&error)
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        let file = |name: &str, text: &str| File { name: name.to_owned(), bytes: text.as_bytes().to_vec() };
        let long = format!("/{}/p.rego", "long".repeat(40));
        let files = [file("/data.json", "{}"), file("/a/p.rego", "package a"), file(&long, "package b")];
        let packed = pack(&files).expect("it packs");
        let back = unpack(&packed, LIMIT).expect("it unpacks");
        let plain =
            |files: &[File]| -> Vec<_> { files.iter().map(|it| (it.plain().to_owned(), it.bytes.clone())).collect() };
        assert_eq!(plain(&back), plain(&files));
        assert_eq!(back[0].name, "/data.json", "as OPA spells it");
        assert_eq!(pack(&files).expect("it packs"), packed, "the same every time");
    }

    #[test]
    fn a_config_map_is_a_bundle_of_its_visible_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = [("data.json", "{}"), (".manifest", "{}"), ("a/p.rego", "package a")];
        crate::folder::lay_out(folder.path(), "..2026_01_01_00_00_00.1", &files);
        let names: Vec<String> =
            open(folder.path(), LIMIT, &|_| false).expect("it opens").into_iter().map(|file| file.name).collect();
        assert_eq!(names, ["/.manifest", "/a/p.rego", "/data.json"]);
    }

    #[test]
    fn paths_that_lead_out_or_too_deep_are_refused() {
        for name in ["../p.rego", "a/../../p.rego", "/../x"] {
            assert!(refusal(&packed(&[(name, "package p")])).contains("leads out"), "{name}");
        }
        let deep = format!("{}data.json", "d/".repeat(45));
        assert!(unpack(&packed(&[(&deep, "1")]), LIMIT).is_ok());
        let deeper = format!("{}data.json", "/".repeat(70));
        assert!(refusal(&packed(&[(&deeper, "{}")])).contains("more than 64 folders deep"));
        let many: Vec<(String, &str)> = (0..=MAX_FILES).map(|at| (format!("f{at}"), "")).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|(name, text)| (name.as_str(), *text)).collect();
        let error = unpack(&packed(&many), 1 << 30).expect_err("too many");
        assert!(matches!(error, BundleError::TooManyFiles), "{error:?}");
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
        let whole = packed(&[("data.json", "0123456789")]);
        for cut in [0, 5, 20, whole.len() / 2, whole.len() - 1] {
            assert!(unpack(&whole[..cut], LIMIT).is_err(), "cut at {cut}");
        }
        assert!(refusal(b"<html>").contains("a bundle is a gzipped tar"));
    }
}
