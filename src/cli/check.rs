//! `stepgate check`: compiles policies and reports every error at once.
//!
//! Mirrors: OPA `cmd/check.go`, v1.9.0.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;

use crate::feed::bundle::contents::Bundle;
use crate::feed::files::{PathSpec, PolicyFiles, ignore_pattern};
use crate::opa::signature::{SignaturePolicy, Verification};
use crate::policy::{HostContext, RegoVersion, Rejection, Sources, Strictness, compile_sources};

/// Flags shared by commands over policies on disk.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    /// Leave out files and folders with such names, for example `.*`
    #[arg(long, value_delimiter = ',')]
    ignore: Vec<String>,
    /// Read policies as Rego v0
    #[arg(long)]
    v0_compatible: bool,
    /// Read policies as Rego v1 (the default)
    #[arg(long, conflicts_with = "v0_compatible")]
    v1_compatible: bool,
}

impl PolicyArgs {
    pub fn version(&self) -> RegoVersion {
        if self.v0_compatible { RegoVersion::V0 } else { RegoVersion::V1 }
    }

    pub fn load(&self, paths: &[String], as_bundles: bool) -> anyhow::Result<Sources> {
        self.files(paths, as_bundles).load().map_err(|error| anyhow::anyhow!("{}", crate::telemetry::chain(&error)))
    }

    /// One bundle, an archive or a folder.
    pub fn snapshot(&self, path: &Path) -> anyhow::Result<Bundle> {
        let bundle = self.files(&[], true).bundle(path);
        bundle.map_err(|error| anyhow::anyhow!("{}", crate::telemetry::chain(&error)))
    }

    fn files(&self, paths: &[String], as_bundles: bool) -> PolicyFiles {
        PolicyFiles {
            paths: paths.iter().map(|path| PathSpec::parse(path)).collect(),
            ignore: self.ignore.iter().filter_map(|pattern| ignore_pattern(pattern)).collect(),
            version: self.version(),
            as_bundles,
            // These tools read a bundle that is not active.
            verification: Verification { demand: SignaturePolicy::Skip, ..Verification::default() },
        }
    }
}

/// OPA's listing of errors.
pub fn listed(rejections: &[Rejection]) -> String {
    let lines: Vec<String> = rejections.iter().map(ToString::to_string).collect();
    match lines.as_slice() {
        [one] => format!("1 error occurred: {one}"),
        several => format!("{} errors occurred:\n{}", several.len(), several.join("\n")),
    }
}

#[derive(Debug, Args)]
pub struct Check {
    /// Policies and data: files or folders
    #[arg(required = true)]
    paths: Vec<String>,
    /// Take the paths for bundles: archives or folders
    #[arg(short, long)]
    bundle: bool,
    /// Refuse imports, arguments and assigned variables that nothing uses, too
    #[arg(short = 'S', long)]
    strict: bool,
    #[command(flatten)]
    policy: PolicyArgs,
}

impl Check {
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        let sources = self.policy.load(&self.paths, self.bundle)?;
        let host_context = HostContext::local()?;
        let how = Strictness { strict: self.strict, ..Strictness::default() };
        match compile_sources(&sources, &host_context, how) {
            Ok(_) => Ok(ExitCode::SUCCESS),
            Err(rejections) => {
                eprintln!("{}", listed(&rejections));
                Ok(ExitCode::FAILURE)
            }
        }
    }
}
