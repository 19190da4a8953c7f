//! The control plane: tasks that keep the stores fresh. They may wait, retry and fail; no check ever waits for one,
//! except, briefly and by name, for keys.

pub mod activation;
pub mod bundle;
pub mod bundles;
pub mod decision_log;
pub mod discovery;
pub mod files;
pub mod introspection;
pub mod keys;
pub mod metrics;
pub mod revocation;
pub mod status;
pub mod traces;

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use crate::value::{DuplicateKeys, JsonLimits};

/// Data nested deeper than this cannot be kept by the engine.
const DATA: JsonLimits = JsonLimits { depth: 120, duplicates: DuplicateKeys::LastWins };

/// Creates a new file that only our own user may read: bundles and events are confidential.
fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// The pause after so many failures in a row, doubled each time, with a tenth of chance.
fn backoff(first: Duration, longest: Duration, failures: u32) -> Duration {
    jittered(first.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1).min(16))).min(longest))
}

/// Writes a file with what `fill` writes, that only its owner reads, whole or not at all, and durably. The folder is created.
fn write_private(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let draft = folder.join(format!(".{name}.draft"));
    let mut file = BufWriter::new(private_file(&draft)?);
    fill(&mut file)?;
    file.into_inner()?.sync_all()?;
    std::fs::rename(draft, path)
}

/// A tenth more or less, so that many servers do not ask at once.
fn jittered(pause: Duration) -> Duration {
    pause.saturating_mul(9).saturating_add(random_share(pause.saturating_mul(2))) / 10
}

/// Any part of `whole`.
fn random_share(whole: Duration) -> Duration {
    let (random, _) = uuid::Uuid::new_v4().as_u64_pair();
    let per_mille = u32::try_from(random % 1_001).unwrap_or(500);
    whole.saturating_mul(per_mille) / 1_000
}
