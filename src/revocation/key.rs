//! Keys of entries: hashes of names in tokens and events.

use std::fmt;

use aws_lc_rs::hmac;

/// The key of an entry.
pub type Key = [u8; 16];

/// The kind of thing that a key names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A user of an issuer, by the name of a join and its value.
    User,
    /// `sid` of an issuer.
    Session,
    /// `jti` of an issuer, or the digest of a token.
    Token,
    /// `client_id` of an issuer.
    Client,
    Group,
    Device,
    /// A key or certificate that tokens are bound to, by its thumbprint.
    Key,
    /// All tokens of an issuer.
    Issuer,
}

impl Kind {
    pub const ALL: [Self; 8] =
        [Self::User, Self::Session, Self::Token, Self::Client, Self::Group, Self::Device, Self::Key, Self::Issuer];

    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Session => "session",
            Self::Token => "token",
            Self::Client => "client",
            Self::Group => "group",
            Self::Device => "device",
            Self::Key => "key",
            Self::Issuer => "issuer",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Entries of this kind have times and bits beside `deny`.
    pub fn has_times(self) -> bool {
        matches!(self, Self::User | Self::Client | Self::Group | Self::Issuer | Self::Device)
    }
}

/// The key of a hub, with which names become keys: who has a dump of entries cannot test guesses without it.
#[derive(Clone)]
pub struct HubKey(hmac::Key);

impl fmt::Debug for HubKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HubKey")
    }
}

impl HubKey {
    pub const BYTES: usize = 32;

    pub fn new(bytes: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// The key of a value: HMAC-SHA256 over a version and, each with its length before it, kind, issuer, name and value.
    pub fn key(&self, kind: Kind, issuer: &str, name: &str, value: &str) -> Key {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(b"sg1");
        for part in [kind.name(), issuer, name, value] {
            context.update(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            context.update(part.as_bytes());
        }
        let tag = context.sign();
        let mut key = Key::default();
        key.iter_mut().zip(tag.as_ref()).for_each(|(byte, tag)| *byte = *tag);
        key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_in_every_part() {
        let key = HubKey::new(&[7; 32]);
        let all = [
            key.key(Kind::User, "i", "sub", "alice"),
            key.key(Kind::Session, "i", "sub", "alice"),
            key.key(Kind::User, "is", "ub", "alice"),
            key.key(Kind::User, "i", "suba", "lice"),
            key.key(Kind::User, "i", "sub", "bob"),
            HubKey::new(&[8; 32]).key(Kind::User, "i", "sub", "alice"),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(all.iter().skip(at + 1).all(|other| other != one), "{at}");
        }
        assert_eq!(key.key(Kind::User, "i", "sub", "alice"), all[0]);
    }
}
