//! Keys that never leave the process.

use aws_lc_rs::hmac::{HMAC_SHA256, Key};

/// A new key for codes that only this process makes and compares.
///
/// The bytes are the system's. The cryptography library has a source of its own besides, which takes 30 ms of a processor when
/// it is first used: longer than all else at the start.
pub fn own_key() -> Key {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the system gives random bytes");
    Key::new(HMAC_SHA256, &bytes)
}
