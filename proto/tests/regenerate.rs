//! The committed descriptors are those of the protos. `STEPGATE_REGENERATE=1 cargo test -p stepgate-proto` rewrites them.

use std::path::{Path, PathBuf};
use std::process::Command;

use prost::Message as _;

/// Where cargo keeps the protos that `envoy-types` was generated from.
fn envoy_protos() -> PathBuf {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo).args(["metadata", "--format-version=1"]).output().expect("cargo metadata runs");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let manifest = text.split('"').find(|part| part.contains("/envoy-types-") && part.ends_with("/Cargo.toml"));
    Path::new(manifest.expect("envoy-types is a dependency")).with_file_name("proto")
}

#[test]
fn descriptors_are_up_to_date() {
    let protos = envoy_protos();
    let includes =
        ["data-plane-api", "googleapis", "protoc-gen-validate", "xds", "cel-spec/proto"].map(|dir| protos.join(dir));
    let mut set = protox::compile(["envoy/service/auth/v3/external_auth.proto"], includes).expect("the protos compile");
    for file in &mut set.file {
        file.source_code_info = None;
    }
    let generated = set.encode_to_vec();
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("descriptors/ext_authz.bin");
    if std::env::var_os("STEPGATE_REGENERATE").is_some() {
        std::fs::write(&committed, &generated).expect("the file is written");
    }
    assert!(std::fs::read(&committed).expect("the file is there") == generated, "run with STEPGATE_REGENERATE=1");
}
