//! Digests and message authentication codes; keys and certificates are in `crypto/`.
//!
//! Mirrors: OPA `v1/topdown/crypto.go`, v1.19.0.

mod certificates;
mod chain;
mod constraints;
pub(crate) mod keys;
pub(crate) mod private;

use ::hmac::Mac as _;
use aws_lc_rs::{constant_time, digest, hmac};
use md5::Digest as _;

use super::encoding::hex;
use super::{Builtin, Context, Outcome, function, text};
use crate::eval::EvalError;
use crate::meter::{HEADER_BYTES, Meter as _};
use crate::value::Value;

/// A certificate as `crypto.x509.parse_certificates` shows it; nothing where it is none.
pub fn certificate(der: &[u8]) -> Option<Value> {
    certificates::described(der, true).ok()
}

pub(crate) const TABLE: &[Builtin] = &[
    function("crypto.x509.parse_certificates", 1, |context, args| {
        let chain = certificates::certificates(context, text(args, 1)?)?;
        certificates::list(context, &chain, true)
    }),
    function("crypto.x509.parse_certificate_request", 1, |context, args| {
        certificates::request(context, text(args, 1)?)
    }),
    super::changing("crypto.x509.parse_and_verify_certificates", 1, chain::verify),
    super::changing("crypto.x509.parse_and_verify_certificates_with_options", 2, chain::verify_with_options),
    function("crypto.x509.parse_keypair", 2, private::parse_keypair),
    function("crypto.x509.parse_rsa_private_key", 1, private::parse_rsa_private_key),
    function("crypto.parse_private_keys", 1, private::parse_private_keys),
    function("crypto.md5", 1, |context, args| {
        let text = charged(context, text(args, 1)?)?;
        Ok(Value::from(hex(&md5::Md5::digest(text))))
    }),
    function("crypto.sha1", 1, |context, args| digested(context, args, &digest::SHA1_FOR_LEGACY_USE_ONLY)),
    function("crypto.sha256", 1, |context, args| digested(context, args, &digest::SHA256)),
    function("crypto.hmac.md5", 2, |context, args| {
        let (message, key) = (charged(context, text(args, 1)?)?, text(args, 2)?);
        charged(context, key)?;
        // A key of any length is good for this code.
        let Ok(mut mac) = ::hmac::Hmac::<md5::Md5>::new_from_slice(key.as_bytes()) else {
            return Err(super::failed("invalid key length"));
        };
        mac.update(message);
        Ok(Value::from(hex(&mac.finalize().into_bytes())))
    }),
    function("crypto.hmac.sha1", 2, |context, args| coded(context, args, hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY)),
    function("crypto.hmac.sha256", 2, |context, args| coded(context, args, hmac::HMAC_SHA256)),
    function("crypto.hmac.sha512", 2, |context, args| coded(context, args, hmac::HMAC_SHA512)),
    function("crypto.hmac.equal", 2, |context, args| {
        let (a, b) = (charged(context, text(args, 1)?)?, charged(context, text(args, 2)?)?);
        Ok(Value::Bool(constant_time::verify_slices_are_equal(a, b).is_ok()))
    }),
];

/// The longest text that is digested at once: that cannot be interrupted.
const MAX_DIGESTED_BYTES: usize = 4 << 20;

fn charged<'v>(context: &mut Context<'_>, text: &'v str) -> Result<&'v [u8], super::BuiltinError> {
    if text.len() > MAX_DIGESTED_BYTES {
        return Err(EvalError::budget("a text is too long to be digested").into());
    }
    context.work(text.len() / 16)?;
    context.allocate(HEADER_BYTES)?;
    Ok(text.as_bytes())
}

fn digested(context: &mut Context<'_>, args: &[&Value], algorithm: &'static digest::Algorithm) -> Outcome {
    Ok(Value::from(hex(digest::digest(algorithm, charged(context, text(args, 1)?)?).as_ref())))
}

fn coded(context: &mut Context<'_>, args: &[&Value], algorithm: hmac::Algorithm) -> Outcome {
    let (message, key) = (charged(context, text(args, 1)?)?, charged(context, text(args, 2)?)?);
    Ok(Value::from(hex(hmac::sign(&hmac::Key::new(algorithm, key), message).as_ref())))
}
