//! Tokens that were verified, so that the next request with the same one costs a hash.
//!
//! Only the cryptographic result and the claims are remembered. Bounded by bytes; admission by frequency, so that a flood
//! of one-shot tokens does not push out those in use.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac::{Key, sign};
use moka::Expiry;
use moka::sync::Cache;

use super::own_key::own_key;
use super::verifier::Verified;
use crate::clock::Clock;

/// A token's place in the cache: 256 bits under a key that only this process knows, so that neither the memory nor a
/// collision gives anything away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

/// The cost of an entry beside the token itself: claims, index and bookkeeping.
const ENTRY_OVERHEAD_BYTES: usize = 1_024;
/// Decoded claims take several times the room of their text.
const CLAIMS_FACTOR: usize = 6;

/// Verified tokens by fingerprint.
#[derive(Debug)]
pub struct TokenCache {
    entries: Cache<Fingerprint, Entry>,
    key: Key,
}

#[derive(Clone, Debug)]
struct Entry {
    verified: Arc<Verified>,
    bytes: u32,
}

/// Drops an entry at min(exp, time to live).
struct AtTokenExpiry {
    clock: Clock,
    longest: Duration,
}

impl AtTokenExpiry {
    fn lifetime(&self, entry: &Entry) -> Duration {
        let left = entry.verified.expires_with_leeway().saturating_sub(self.clock.now());
        let longest = self.longest.max(entry.verified.cached_at_least());
        Duration::from_secs(u64::try_from(left).unwrap_or_default()).min(longest)
    }
}

impl Expiry<Fingerprint, Entry> for AtTokenExpiry {
    fn expire_after_create(&self, _: &Fingerprint, entry: &Entry, _: Instant) -> Option<Duration> {
        Some(self.lifetime(entry))
    }

    /// A refreshed answer counts from now on; without this it would end when the first one does.
    fn expire_after_update(&self, _: &Fingerprint, entry: &Entry, _: Instant, _: Option<Duration>) -> Option<Duration> {
        Some(self.lifetime(entry))
    }
}

impl TokenCache {
    /// A cache of at most `capacity` bytes whose entries live at most `longest`.
    pub fn new(capacity: u64, longest: Duration, clock: Clock) -> Self {
        let entries = Cache::builder()
            .max_capacity(capacity)
            .weigher(|_, entry: &Entry| entry.bytes)
            .expire_after(AtTokenExpiry { clock, longest })
            .build();
        Self { entries, key: own_key() }
    }

    pub fn fingerprint(&self, token: &str) -> Fingerprint {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(sign(&self.key, token.as_bytes()).as_ref());
        Fingerprint(bytes)
    }

    pub fn get(&self, fingerprint: &Fingerprint) -> Option<Arc<Verified>> {
        self.entries.get(fingerprint).map(|entry| entry.verified)
    }

    /// Remembers a token of so many bytes.
    pub fn insert(&self, fingerprint: Fingerprint, bytes: usize, verified: Arc<Verified>) {
        let bytes = bytes.saturating_mul(CLAIMS_FACTOR).saturating_add(ENTRY_OVERHEAD_BYTES);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.entries.insert(fingerprint, Entry { verified, bytes });
    }

    pub fn remove(&self, fingerprint: &Fingerprint) {
        self.entries.invalidate(fingerprint);
    }

    /// Bytes in use, after housekeeping.
    #[cfg(test)]
    pub fn settled_bytes(&self) -> u64 {
        self.entries.run_pending_tasks();
        self.entries.weighted_size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::{IntrospectionSettings, Issuer, IssuerSettings};

    #[test]
    fn a_refreshed_answer_lives_from_now_on_and_as_long_as_it_may_be_stale() {
        let now = 1_800_000_000;
        let minute = Duration::from_secs(60);
        let introspection =
            IntrospectionSettings { stale_if_error: minute * 60, ..IntrospectionSettings::new("service") };
        let settings = IssuerSettings {
            audiences: vec!["api".to_owned()],
            introspection: Some(introspection),
            ..IssuerSettings::new("https://id.test")
        };
        let (issuer, _) = Issuer::new(settings);
        let body = br#"{"active": true, "sub": "ann", "aud": "api"}"#;
        let verified = Arc::new(Verified::introspected(&issuer, body, "opaque", now).expect("an active token"));
        let entry = Entry { verified, bytes: 1 };
        let (fingerprint, at) = (Fingerprint([0; 32]), Instant::now());
        let expiry = AtTokenExpiry { clock: Clock::fixed(now), longest: minute * 10 };
        let whole = Some(minute * 61);
        assert_eq!(expiry.expire_after_create(&fingerprint, &entry, at), whole);
        assert_eq!(expiry.expire_after_update(&fingerprint, &entry, at, Some(minute)), whole);
    }
}
