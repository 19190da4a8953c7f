//! Signature algorithms and the keys that they are for.

/// A signature algorithm of JSON Web Algorithms (RFC 7518 section 3.1, RFC 8037). There is no `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    Hs(Bits),
    Rs(Bits),
    Ps(Bits),
    Es(Bits),
    EdDsa,
}

/// The size of the hash (SHA-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bits {
    B256,
    B384,
    B512,
}

/// A NIST curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Curve {
    P256,
    P384,
    P521,
}

/// The family of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyType {
    Rsa,
    Ec(Curve),
    Ed25519,
    /// A shared secret.
    Secret,
}

const NAMES: [(&str, Algorithm); 13] = [
    ("RS256", Algorithm::Rs(Bits::B256)),
    ("RS384", Algorithm::Rs(Bits::B384)),
    ("RS512", Algorithm::Rs(Bits::B512)),
    ("PS256", Algorithm::Ps(Bits::B256)),
    ("PS384", Algorithm::Ps(Bits::B384)),
    ("PS512", Algorithm::Ps(Bits::B512)),
    ("ES256", Algorithm::Es(Bits::B256)),
    ("ES384", Algorithm::Es(Bits::B384)),
    ("ES512", Algorithm::Es(Bits::B512)),
    ("EdDSA", Algorithm::EdDsa),
    ("HS256", Algorithm::Hs(Bits::B256)),
    ("HS384", Algorithm::Hs(Bits::B384)),
    ("HS512", Algorithm::Hs(Bits::B512)),
];

impl Algorithm {
    pub const RS256: Self = Self::Rs(Bits::B256);
    pub const PS256: Self = Self::Ps(Bits::B256);
    pub const ES256: Self = Self::Es(Bits::B256);
    pub const ES384: Self = Self::Es(Bits::B384);
    pub const ES512: Self = Self::Es(Bits::B512);

    /// By its registered name; letter case counts.
    pub fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|&(_, algorithm)| algorithm)
    }

    /// An algorithm with a public key: those of published key sets, where a shared secret would be public (RFC 8725 section 2.1).
    pub fn asymmetric(name: &str) -> Option<Self> {
        Self::named(name).filter(|algorithm| algorithm.key_type() != KeyType::Secret)
    }

    /// All algorithms with a public key.
    pub fn all_asymmetric() -> impl Iterator<Item = Self> {
        NAMES.iter().map(|&(_, algorithm)| algorithm).filter(|algorithm| algorithm.key_type() != KeyType::Secret)
    }

    /// Their names, for messages.
    pub fn asymmetric_names() -> Vec<&'static str> {
        Self::all_asymmetric().map(Self::name).collect()
    }

    pub fn name(self) -> &'static str {
        NAMES.iter().find(|&&(_, algorithm)| algorithm == self).map_or("", |(name, _)| name)
    }

    /// The only family of keys that this algorithm may be used with.
    pub fn key_type(self) -> KeyType {
        match self {
            Self::Hs(_) => KeyType::Secret,
            Self::Rs(_) | Self::Ps(_) => KeyType::Rsa,
            Self::Es(Bits::B256) => KeyType::Ec(Curve::P256),
            Self::Es(Bits::B384) => KeyType::Ec(Curve::P384),
            Self::Es(Bits::B512) => KeyType::Ec(Curve::P521),
            Self::EdDsa => KeyType::Ed25519,
        }
    }
}

impl Curve {
    const ALL: [Self; 3] = [Self::P256, Self::P384, Self::P521];

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|curve| curve.name() == name)
    }

    /// The name in JSON Web Keys (RFC 7518 section 6.2.1.1).
    pub fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        }
    }

    /// By its object identifier.
    pub fn of_identifier(dotted: &str) -> Option<Self> {
        match dotted {
            "1.2.840.10045.3.1.7" => Some(Self::P256),
            "1.3.132.0.34" => Some(Self::P384),
            "1.3.132.0.35" => Some(Self::P521),
            _ => None,
        }
    }

    /// Bytes of a coordinate.
    pub fn bytes(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    /// By the length of an uncompressed point.
    pub(crate) fn of_point(point: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|curve| point.len() == curve.bytes() * 2 + 1)
    }
}
