//! `stepgate build`, `sign` and `inspect`: bundles made and looked at.
//!
//! Mirrors: OPA `cmd/{build,sign,inspect}.go`, v1.19.0, without optimisation, plans and WebAssembly.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value as Json, json};

use super::check::{PolicyArgs, listed};
use crate::feed::bundle::archive::{self, File};
use crate::feed::bundle::contents::{BundleError, BundlePayload, BundleReader};
use crate::opa::signature::{self, SignaturePolicy, Signer, Verification};
use crate::policy::{HostContext, Module, RegoVersion, Sources, Strictness, compile_sources, package_of};
use crate::telemetry::chain;
use crate::value::json_text;

/// Bytes of a bundle that these commands handle.
const LIMIT: u64 = 1 << 30;

/// The signing key and claims.
#[derive(Debug, Args)]
struct SigningArgs {
    /// A private key in PEM, a secret, or the path of either
    #[arg(long)]
    signing_key: Option<String>,
    #[arg(long, default_value = "RS256")]
    signing_alg: String,
    /// A file of further claims in JSON, such as `scope` and `keyid`
    #[arg(long)]
    claims_file: Option<PathBuf>,
}

impl SigningArgs {
    /// The signature file for `files`.
    fn sign(&self, key: &str, key_id: &str, files: &[File]) -> anyhow::Result<File> {
        let key = std::fs::read_to_string(key).unwrap_or_else(|_| key.to_owned());
        let claims: Map<String, Json> = match &self.claims_file {
            None => Map::new(),
            Some(path) => {
                let text = std::fs::read(path).with_context(|| format!("--claims-file `{}`", path.display()))?;
                serde_json::from_slice(&text).context("--claims-file: not a JSON object")?
            }
        };
        let key_id = claims.get("keyid").and_then(Json::as_str).unwrap_or(key_id).to_owned();
        let signer = Signer { key: &key, algorithm: &self.signing_alg, key_id: &key_id, claims };
        let named: Vec<signature::File<'_>> = files.iter().map(|file| (file.plain(), file.bytes.as_slice())).collect();
        let signed = signature::sign(&named, &signer).context("--signing-key")?;
        Ok(File { name: format!("/{}", signature::FILE), bytes: signed.into_bytes() })
    }
}

#[derive(Debug, Args)]
pub struct Build {
    /// Policies and data: files or folders
    #[arg(required = true)]
    paths: Vec<String>,
    /// Take the paths for bundles: archives or folders
    #[arg(short, long)]
    bundle: bool,
    /// Where the bundle goes
    #[arg(short, long, default_value = "bundle.tar.gz")]
    output: PathBuf,
    /// The revision in its manifest
    #[arg(short, long)]
    revision: Option<String>,
    #[command(flatten)]
    signing: SigningArgs,
    /// The id that the signature names its key by, unless --claims-file has a `keyid`
    #[arg(long, default_value = "default")]
    verification_key_id: String,
    #[command(flatten)]
    policy: PolicyArgs,
    /// Only `rego` is offered
    #[arg(short, long, default_value = "rego")]
    target: String,
    /// Only 0 is offered
    #[arg(short = 'O', long, default_value_t = 0)]
    optimize: u8,
    /// Accepted: without optimisation all of a policy is an entry point
    #[arg(short, long)]
    entrypoint: Vec<String>,
}

impl Build {
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        if self.target != "rego" {
            bail!("--target {} is refused: stepgate evaluates Rego itself, so build with `rego`", self.target);
        }
        if self.optimize > 0 {
            bail!("--optimize is refused: policies are compiled when they are loaded");
        }
        let (sources, mut manifest) = if self.bundle { self.of_bundles()? } else { self.of_files()? };
        let host_context = HostContext::local()?;
        if let Err(rejections) = compile_sources(&sources, &host_context, Strictness::default()) {
            eprintln!("{}", listed(&rejections));
            return Ok(ExitCode::FAILURE);
        }
        if let Some(revision) = &self.revision {
            manifest.insert("revision".to_owned(), revision.clone().into());
        }
        let mut files = vec![File { name: "/data.json".to_owned(), bytes: json_text(&sources.data).into_bytes() }];
        files.extend(sources.modules.iter().map(|module| {
            let name = format!("/{}", module.path.trim_start_matches("./").trim_start_matches('/'));
            File { name, bytes: module.text.clone().into_bytes() }
        }));
        files.push(File { name: "/.manifest".to_owned(), bytes: Json::Object(manifest).to_string().into_bytes() });
        if let Some(key) = &self.signing.signing_key {
            files.push(self.signing.sign(key, &self.verification_key_id, &files)?);
        }
        let packed = archive::pack(&files)?;
        std::fs::write(&self.output, packed).with_context(|| format!("`{}`", self.output.display()))?;
        Ok(ExitCode::SUCCESS)
    }

    fn version(version: RegoVersion) -> u8 {
        match version {
            RegoVersion::V0 => 0,
            RegoVersion::V1 => 1,
        }
    }

    fn of_files(&self) -> anyhow::Result<(Sources, Map<String, Json>)> {
        let sources = self.policy.load(&self.paths, false)?;
        let version = Self::version(self.policy.version());
        let manifest = json!({"revision": "", "roots": [""], "rego_version": version});
        Ok((sources, manifest.as_object().cloned().unwrap_or_default()))
    }

    /// One bundle keeps its manifest; several are put together.
    fn of_bundles(&self) -> anyhow::Result<(Sources, Map<String, Json>)> {
        let mut all = Sources::default();
        let mut roots: Vec<String> = Vec::new();
        let mut versions = Map::new();
        let mut manifest = Map::new();
        for path in &self.paths {
            let bundle = self.policy.snapshot(Path::new(path))?;
            let alone = self.paths.len() == 1;
            if alone {
                let document = bundle.manifest.document.as_ref().and_then(Json::as_object);
                manifest = document.cloned().unwrap_or_default();
            }
            roots.extend(bundle.manifest.roots.listed());
            for module in bundle.sources.modules {
                let name = if alone { module.path.clone() } else { format!("{path}/{}", module.path) };
                versions.insert(format!("/{name}"), Self::version(module.version).into());
                all.modules.push(Module { path: name, ..module });
            }
            all.add_data(&[], bundle.sources.data)?;
        }
        manifest.insert("roots".to_owned(), roots.into());
        manifest.insert("file_rego_versions".to_owned(), Json::Object(versions));
        manifest.remove("wasm");
        Ok((all, manifest))
    }
}

#[derive(Debug, Args)]
pub struct Sign {
    /// Files or folders of the bundle
    #[arg(required = true)]
    paths: Vec<String>,
    /// Take the path for a bundle: an archive or a folder
    #[arg(short, long)]
    bundle: bool,
    /// The folder where `.signatures.json` goes
    #[arg(short, long, default_value = ".")]
    output_file_path: PathBuf,
    #[command(flatten)]
    signing: SigningArgs,
}

impl Sign {
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        let Some(key) = &self.signing.signing_key else {
            bail!(
                "specify the secret (HMAC) or path of the PEM file containing the private key (RSA and ECDSA): --signing-key"
            )
        };
        let mut files = Vec::new();
        for path in &self.paths {
            let place = Path::new(path);
            if self.bundle && self.paths.len() > 1 {
                bail!("with --bundle, give one path");
            }
            let found = if place.is_dir() || self.bundle {
                opened(place)?
            } else {
                let bytes = std::fs::read(place).with_context(|| format!("`{path}`"))?;
                vec![File { name: String::new(), bytes }]
            };
            // Names begin with the path, but within an archive, as in OPA.
            let is_archive = self.bundle && !place.is_dir();
            files.extend(found.into_iter().map(|file| match is_archive || path == "." {
                true => file,
                false => File { name: format!("{}{}", path.trim_end_matches('/'), file.name), ..file },
            }));
        }
        files.retain(|file| !file.name.ends_with(signature::FILE));
        let signed = self.signing.sign(key, "", &files)?;
        let path = self.output_file_path.join(signature::FILE);
        std::fs::write(&path, signed.bytes).with_context(|| format!("`{}`", path.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn readable(path: &Path, error: &BundleError) -> anyhow::Error {
    anyhow::anyhow!("`{}`: {}", path.display(), chain(error))
}

/// The files of an archive or a folder.
fn opened(path: &Path) -> anyhow::Result<Vec<File>> {
    archive::open(path, LIMIT, &|_| false).map_err(|error| readable(path, &error))
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Json,
    Pretty,
}

#[derive(Debug, Args)]
pub struct Inspect {
    /// A bundle: an archive or a folder
    path: PathBuf,
    #[arg(short, long, value_enum, default_value_t = Format::Pretty)]
    format: Format,
}

impl Inspect {
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        let report = self.report()?;
        match self.format {
            Format::Json => println!("{report:#}"),
            Format::Pretty => print!("{}", pretty(&report)),
        }
        Ok(ExitCode::SUCCESS)
    }

    fn report(&self) -> anyhow::Result<Json> {
        let files = opened(&self.path)?;
        let named = |ending: &str| files.iter().find(|file| file.name.ends_with(ending));
        let mut report = Map::new();
        if let Some(file) = named(signature::FILE) {
            let signatures = serde_json::from_slice(&file.bytes).context("`.signatures.json` is not JSON")?;
            report.insert("signatures_config".to_owned(), signatures);
        }
        let mut namespaces: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for file in &files {
            let plain = file.plain();
            let (folder, base) = plain.rsplit_once('/').unwrap_or(("", plain));
            if matches!(base, "data.json" | "data.yaml" | "data.yml") {
                let parts = folder.split('/').filter(|part| !part.is_empty());
                let name = std::iter::once("data").chain(parts).collect::<Vec<_>>().join(".");
                namespaces.entry(name).or_default().push(file.name.clone());
            }
        }
        let verification = Verification { demand: SignaturePolicy::Skip, ..Verification::default() };
        let reading = BundleReader { limit: LIMIT, version: RegoVersion::V1, verification };
        let manifest = match reading.contents(files.clone()).map_err(|error| readable(&self.path, &error))? {
            BundlePayload::Snapshot(bundle) => {
                for module in &bundle.sources.modules {
                    let package = package_of(module).with_context(|| format!("`{}` cannot be parsed", module.path))?;
                    let name = std::iter::once("data".to_owned()).chain(package).collect::<Vec<_>>().join(".");
                    namespaces.entry(name).or_default().push(format!("/{}", module.path));
                }
                bundle.manifest
            }
            BundlePayload::Delta(delta) => {
                let paths = delta.patches.iter().map(|patch| format!("data.{}", patch.path.join(".")));
                paths.for_each(|path| namespaces.entry(path).or_default().push("/patch.json".to_owned()));
                delta.manifest
            }
        };
        let document = manifest.document.clone().unwrap_or_else(|| json!({"revision": "", "roots": [""]}));
        report.insert("manifest".to_owned(), document);
        report.insert("namespaces".to_owned(), json!(namespaces));
        Ok(Json::Object(report))
    }
}

/// The report for people.
fn pretty(report: &Json) -> String {
    let mut text = String::from("MANIFEST:\n");
    for (name, value) in report.get("manifest").and_then(Json::as_object).into_iter().flatten() {
        text.push_str(&format!("  {name}: {value}\n"));
    }
    text.push_str("NAMESPACES:\n");
    for (name, files) in report.get("namespaces").and_then(Json::as_object).into_iter().flatten() {
        let files: Vec<_> = files.as_array().into_iter().flatten().filter_map(Json::as_str).collect();
        text.push_str(&format!("  {name}: {}\n", files.join(", ")));
    }
    let signed = report.get("signatures_config").is_some();
    text.push_str(if signed { "SIGNED: yes (not verified here)\n" } else { "SIGNED: no\n" });
    text
}
