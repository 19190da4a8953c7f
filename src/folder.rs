//! Folders as the kubelet lays out ConfigMaps, Secrets and projected volumes: the files are in a folder such as `..2026_01_01_00_00_00.1`,
//! `..data` is a link to it, and each visible entry is a link by way of `..data`.

use std::fs::DirEntry;
use std::io;
use std::path::Path;

/// The name is reserved by the kubelet. Its contents are visible under other names.
pub fn is_reserved(name: &str) -> bool {
    name.starts_with("..")
}

/// The entry is a folder to descend into: a real one, or the kubelet's link to one (`sub -> ..data/sub`). Other links to
/// folders are not followed: they may lead out, or in circles.
///
/// # Errors
/// The entry cannot be read.
pub fn is_folder(entry: &DirEntry) -> io::Result<bool> {
    let kind = entry.file_type()?;
    if !kind.is_symlink() {
        return Ok(kind.is_dir());
    }
    let path = entry.path();
    Ok(std::fs::read_link(&path)?.starts_with(Path::new("..data")) && path.is_dir())
}

/// Lays `files` out as the kubelet does, in a version with this name.
#[cfg(test)]
pub fn lay_out(folder: &Path, version: &str, files: &[(&str, &str)]) {
    use std::os::unix::fs::symlink;

    let real = folder.join(version);
    for (name, text) in files {
        let path = real.join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
        std::fs::write(path, text).expect("a file");
        let visible = Path::new(name).components().next().expect("a name");
        // They stay when the version changes.
        let _ = symlink(Path::new("..data").join(visible), folder.join(visible));
    }
    symlink(version, folder.join("..data_tmp")).expect("a link");
    std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).expect("the kubelet's swap");
}
