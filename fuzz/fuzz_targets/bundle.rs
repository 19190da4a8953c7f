//! Bytes as the tar of a bundle, and as what a server might send in its place.
#![no_main]

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use stepgate::feed::bundle::contents::BundleReader;
use stepgate::opa::signature::Verification;
use stepgate::policy::RegoVersion;

libfuzzer_sys::fuzz_target!(|tar: &[u8]| {
    let reading = BundleReader { limit: 1 << 20, version: RegoVersion::V1, verification: Verification::default() };
    let _ = reading.archive(tar);
    let mut packed = GzEncoder::new(Vec::new(), Compression::none());
    packed.write_all(tar).expect("memory");
    let _ = reading.archive(&packed.finish().expect("memory"));
});
