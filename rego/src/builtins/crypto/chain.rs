//! Verification of certificate chains.

use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::super::{BuiltinError, Context, Outcome, failed, object, text};
use super::certificates::{EXTENDED_USAGES, certificates, list};
use crate::meter::Meter as _;
use crate::value::{Object, Value};

/// Certificates of one chain; more are refused before any signature is looked at.
const MAX_CHAIN: usize = 12;
const ANY: &str = "2.5.29.37.0";
const SERVER: &str = "1.3.6.1.5.5.7.3.1";
const NANOSECONDS: i64 = 1_000_000_000;

pub(super) fn verify(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let chain = chain(context, text(args, 1)?)?;
    answer(context, &chain, &Wanted::default(), true)
}

pub(super) fn verify_with_options(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (given, options) = (text(args, 1)?, object(args, 2)?);
    let chain = chain(context, given)?;
    let wanted = Wanted::read(options)?;
    answer(context, &chain, &wanted, false)
}

/// An unreadable certificate is no chain.
fn chain(context: &mut Context<'_>, given: &str) -> Result<Vec<Vec<u8>>, BuiltinError> {
    match certificates(context, given) {
        Err(BuiltinError::Halt(error)) => Err(error.into()),
        chain => Ok(chain.unwrap_or_default()),
    }
}

fn answer(context: &mut Context<'_>, chain: &[Vec<u8>], wanted: &Wanted, uri_strings: bool) -> Outcome {
    // One signature for each certificate, and more where several have one name.
    context.work(chain.len().min(MAX_CHAIN).saturating_mul(10_000))?;
    let seconds = wanted.time.unwrap_or_else(|| context.now_ns()).div_euclid(NANOSECONDS);
    match verified(chain, wanted, seconds) {
        Some(chain) => Ok(Value::array(vec![Value::Bool(true), list(context, &chain, uri_strings)?])),
        None => Ok(Value::array(vec![Value::Bool(false), Value::array(Vec::new())])),
    }
}

/// The required key usage of a chain.
#[derive(Default)]
struct Wanted {
    name: Option<String>,
    /// Nanoseconds since the epoch.
    time: Option<i64>,
    /// Object identifiers, one of which must be allowed; none stands for server authentication.
    usages: Vec<&'static str>,
}

impl Wanted {
    fn read(options: &Object) -> Result<Self, BuiltinError> {
        let mut wanted = Self::default();
        for (key, value) in options.iter() {
            let Some(key) = key.as_str() else { continue };
            let number = |what: &str| {
                let number = value.as_number().ok_or_else(|| failed(format!("'{key}' should be a number")))?;
                number.as_i64().ok_or_else(|| failed(format!("'{key}' should be a valid {what}")))
            };
            match key {
                "DNSName" => {
                    let name = value.as_str().ok_or_else(|| failed("'DNSName' should be a string"))?;
                    wanted.name = Some(name.trim_matches('"').to_owned()).filter(|name| !name.is_empty());
                }
                "CurrentTime" => wanted.time = Some(number("int64 number")?),
                // The library bounds these comparisons by itself.
                "MaxConstraintComparisons" => _ = number("number")?,
                "KeyUsages" => wanted.usages = usages(value)?,
                _ => return Err(failed("invalid key option")),
            }
        }
        Ok(wanted)
    }
}

fn usages(given: &Value) -> Result<Vec<&'static str>, BuiltinError> {
    let items = super::super::items(given).ok_or_else(|| failed("'KeyUsages' should be an Array or Set"))?;
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    for name in items.filter_map(Value::as_str).map(|name| name.trim_matches('"')) {
        match EXTENDED_USAGES.iter().find(|(_, it, _)| *it == name) {
            Some((_, _, oid)) => known.push(*oid),
            None => unknown.push(name),
        }
    }
    if !unknown.is_empty() {
        return Err(failed(format!("invalid entries for 'KeyUsages' found: [{}]", unknown.join(" "))));
    }
    Ok(known)
}

struct Usages<'w>(&'w [&'static str]);

impl ExtendedKeyUsageValidator for Usages<'_> {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        let mut restricted = false;
        for purpose in purposes {
            restricted = true;
            let dotted = purpose?.to_decoded_oid().iter().map(ToString::to_string).collect::<Vec<_>>().join(".");
            if dotted == ANY || self.0.iter().any(|it| *it == dotted || *it == ANY) {
                return Ok(());
            }
        }
        // A certificate that names no purpose is good for all.
        if restricted { Err(webpki::Error::UnsupportedCriticalExtension) } else { Ok(()) }
    }
}

/// The chain from the last certificate given to the first, the root; nothing if it does not hold.
fn verified(chain: &[Vec<u8>], wanted: &Wanted, seconds: i64) -> Option<Vec<Vec<u8>>> {
    let [root, intermediates @ .., leaf] = chain else { return None };
    if chain.len() > MAX_CHAIN {
        return None;
    }
    // Trust anchors have no validity for the library; Go looks at it.
    let (_, parsed) = X509Certificate::from_der(root).ok()?;
    let validity = parsed.validity();
    if seconds < validity.not_before.timestamp() || seconds > validity.not_after.timestamp() {
        return None;
    }
    let root_der = CertificateDer::from(root.as_slice());
    let anchors = [webpki::anchor_from_trusted_cert(&root_der).ok()?];
    let between: Vec<CertificateDer<'_>> = intermediates.iter().map(|der| der.as_slice().into()).collect();
    let leaf_der = CertificateDer::from(leaf.as_slice());
    let end = EndEntityCert::try_from(&leaf_der).ok()?;
    let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(u64::try_from(seconds).ok()?));
    let usages = if wanted.usages.is_empty() { &[SERVER][..] } else { &wanted.usages };
    let algorithms = webpki::ALL_VERIFICATION_ALGS;
    let path = end.verify_for_usage(algorithms, &anchors, &between, time, Usages(usages), None, None).ok()?;
    if let Some(name) = &wanted.name {
        let name = name.trim_start_matches('[').trim_end_matches(']');
        end.verify_is_valid_for_subject_name(&ServerName::try_from(name).ok()?).ok()?;
    }
    let mut out = vec![leaf.clone()];
    out.extend(path.intermediate_certificates().map(|certificate| certificate.der().to_vec()));
    out.push(root.clone());
    Some(out)
}
