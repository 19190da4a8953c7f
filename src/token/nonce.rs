//! Nonces of DPoP proofs (RFC 9449 section 9): a time that only we can have written, so that no proof can be made ahead.
//!
//! Nothing is remembered: a nonce is the number of its span of time and a code over it, made with a key that all
//! replicas share.

use std::fmt;

use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The period in which one nonce is issued. It is accepted for one period more.
pub const SPAN_SECONDS: i64 = 60;
/// The least that a key has, in bytes.
pub const MIN_KEY_BYTES: usize = 32;

/// Gives out nonces, and knows them again.
pub struct Nonces(Key);

impl fmt::Debug for Nonces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nonces")
    }
}

impl Nonces {
    /// Nothing when the key is shorter than `MIN_KEY_BYTES`.
    pub fn new(key: &[u8]) -> Option<Self> {
        (key.len() >= MIN_KEY_BYTES).then(|| Self(Key::new(HMAC_SHA256, key)))
    }

    /// The nonce to give out at `now`.
    pub fn at(&self, now: i64) -> String {
        self.of(now.div_euclid(SPAN_SECONDS))
    }

    /// A nonce was issued in the current or the last period.
    pub fn is_good(&self, nonce: &str, now: i64) -> bool {
        let span = now.div_euclid(SPAN_SECONDS);
        // A replica whose clock is ahead may have given out the next one.
        [span, span.saturating_sub(1), span.saturating_add(1)].into_iter().any(|span| {
            let known = self.of(span);
            aws_lc_rs::constant_time::verify_slices_are_equal(known.as_bytes(), nonce.as_bytes()).is_ok()
        })
    }

    fn of(&self, span: i64) -> String {
        let mut message = b"stepgate dpop nonce ".to_vec();
        message.extend_from_slice(&span.to_be_bytes());
        URL_SAFE_NO_PAD.encode(sign(&self.0, &message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_good_for_a_moment_on_every_replica() {
        let (one, other) = (Nonces::new(&[7; 32]).expect("a key"), Nonces::new(&[7; 32]).expect("a key"));
        let nonce = one.at(600);
        assert!(other.is_good(&nonce, 600) && other.is_good(&nonce, 719) && other.is_good(&nonce, 599));
        assert!(!other.is_good(&nonce, 720) && !other.is_good(&nonce, 539));
        assert!(!Nonces::new(&[8; 32]).expect("a key").is_good(&nonce, 600), "another key");
        assert!(!one.is_good("", 600) && !one.is_good(&nonce[1..], 600));
        assert!(Nonces::new(&[7; 31]).is_none());
    }
}
