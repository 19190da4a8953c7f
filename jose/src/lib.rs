//! Keys and signatures of JSON Object Signing (RFC 7515, 7517, 7518, 8037): the only place that reads keys.
//!
//! Tokens, bundle signatures, clients' assertions and Rego's `io.jwt.*` use it. No JSON and no time: members of a JWK are asked for by
//! name, and times of tokens are checked by their readers.

mod algorithm;
mod configured;
mod pem;
mod private;
mod verify;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

pub use self::algorithm::{Algorithm, Bits, Curve, KeyType};
pub use self::configured::{ConfiguredKey, ConfiguredKeyError, sign_configured};
pub use self::pem::pem_block;
pub use self::private::{PrivateKey, SigningKey};
pub use self::verify::{KeyError, VerifyingKey};

/// The signing input: header and payload, each in base64url (RFC 7515 section 5.1).
pub fn signing_input(header: &str, payload: &str) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload))
}

/// An integer without its leading octets of zero.
pub fn unsigned(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
    bytes.get(zeros..).unwrap_or_default()
}
