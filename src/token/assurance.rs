//! What an authentication proves: `acr`, `amr` and `auth_time` of any identity provider, in one vocabulary.
//!
//! Sources: RFC 8176 (amr), OpenID EAP ACR Values 1.0 (`phr`, `phrh`), OpenID Connect Core section 2 (acr, auth_time), and
//! what Okta, Entra, Auth0 and Keycloak really send. Policies read the result as `input.authn`.

use std::collections::HashMap;
use std::sync::Arc;

use super::scale::Scale;
use crate::value::{Key, Members, Value, as_text, member, texts};

/// Where in [`KNOWN_LEVELS`](super::scale::KNOWN_LEVELS) several factors are proven.
const MFA_LEVEL: usize = 2;
/// Where in them what cannot be phished is proven.
const PHISHING_RESISTANT_LEVEL: usize = 3;
/// An `auth_time` further in the future than this is not believed.
const FUTURE_SECONDS: i64 = 5;

/// The three kinds of proof, and two properties of a proof.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    knowledge: bool,
    possession: bool,
    inherence: bool,
    phishing_resistant: bool,
    hardware: bool,
    /// The provider's own word that it asked for several factors.
    mfa: bool,
}

const NOTHING: Proof = Proof {
    knowledge: false,
    possession: false,
    inherence: false,
    phishing_resistant: false,
    hardware: false,
    mfa: false,
};
const KNOWLEDGE: Proof = Proof { knowledge: true, ..NOTHING };
const POSSESSION: Proof = Proof { possession: true, ..NOTHING };
const INHERENCE: Proof = Proof { inherence: true, ..NOTHING };
const HARDWARE: Proof = Proof { possession: true, hardware: true, ..NOTHING };
const PASSKEY: Proof = Proof { possession: true, phishing_resistant: true, ..NOTHING };
const SMART_CARD: Proof = Proof { possession: true, phishing_resistant: true, hardware: true, ..NOTHING };
const MFA: Proof = Proof { mfa: true, ..NOTHING };

/// Words of `amr` that mean the same everywhere. A word that is not here proves nothing.
const AMR: &[(&str, Proof)] = &[
    ("pwd", KNOWLEDGE),
    ("pin", KNOWLEDGE),
    ("kba", KNOWLEDGE),
    ("otp", POSSESSION),
    ("sms", POSSESSION),
    ("tel", POSSESSION),
    ("swk", POSSESSION),
    ("pop", POSSESSION),
    ("hwk", HARDWARE),
    ("sc", SMART_CARD),
    ("fido", PASSKEY),
    ("fido2", PASSKEY),
    ("webauthn", PASSKEY),
    ("u2f", PASSKEY),
    ("passkey", PASSKEY),
    ("face", INHERENCE),
    ("fpt", INHERENCE),
    ("iris", INHERENCE),
    ("retina", INHERENCE),
    ("vbm", INHERENCE),
    ("mfa", MFA),
    ("mca", NOTHING),
];

/// Values of `acr` that mean the same everywhere, and the known level that each is worth: EAP ACR Values 1.0.
const ACR: &[(&str, usize)] = &[("0", 0), ("mfa", 2), ("phr", 3), ("phrh", 4)];

/// An identity provider whose habits are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preset {
    #[default]
    Generic,
    Okta,
    Entra,
    Auth0,
    Keycloak,
    Google,
    Ping,
    /// CI jobs: no person is there to prove anything.
    Github,
    Gitlab,
    /// Service accounts.
    Kubernetes,
}

impl Preset {
    pub const NAMES: [&'static str; 10] =
        ["generic", "okta", "entra", "auth0", "keycloak", "google", "ping", "github", "gitlab", "kubernetes"];

    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "generic" => Self::Generic,
            "okta" => Self::Okta,
            "entra" => Self::Entra,
            "auth0" => Self::Auth0,
            "keycloak" => Self::Keycloak,
            "google" => Self::Google,
            "ping" => Self::Ping,
            "github" => Self::Github,
            "gitlab" => Self::Gitlab,
            "kubernetes" => Self::Kubernetes,
            _ => return None,
        })
    }

    /// Whether its tokens are those of programs.
    pub fn is_of_workloads(self) -> bool {
        matches!(self, Self::Github | Self::Gitlab | Self::Kubernetes)
    }

    fn amr(self) -> &'static [(&'static str, Proof)] {
        match self {
            // Okta reports WebAuthn as `pop` and FastPass or push as `okta_verify`.
            Self::Okta => &[("pop", PASSKEY), ("okta_verify", POSSESSION), ("email", POSSESSION)],
            // Entra's `rsa` is a certificate or Authenticator key, `ngcmfa` a Windows Hello enrolment.
            Self::Entra => &[("rsa", POSSESSION), ("ngcmfa", MFA)],
            // Google and Ping keep to the registered words.
            _ => &[],
        }
    }

    fn acr(self) -> &'static [(&'static str, usize)] {
        match self {
            Self::Okta => &[
                ("urn:okta:loa:1fa:any", 1),
                ("urn:okta:loa:1fa:pwd", 1),
                ("urn:okta:loa:2fa:any", 2),
                // "If possible" promises nothing beyond one factor.
                ("urn:okta:loa:2fa:any:ifpossible", 1),
            ],
            Self::Keycloak => &[("1", 1), ("2", 2), ("3", 3)],
            Self::Auth0 => &[("http://schemas.openid.net/pape/policies/2007/06/multi-factor", 2)],
            // The values of Ping are names of its policies, which `acr_levels` must tell.
            _ => &[],
        }
    }
}

/// How one issuer's words are read.
#[derive(Clone, Debug)]
pub struct AssuranceTable {
    scale: Arc<Scale>,
    amr: HashMap<String, Proof>,
    acr: HashMap<String, usize>,
    /// Values of `acr` that this issuer has of its own, and may be asked for.
    own_acr: Vec<String>,
    /// Take a bare string `amr` for an array of one.
    amr_string: bool,
}

impl Default for AssuranceTable {
    fn default() -> Self {
        Self::new(Preset::Generic, Arc::default())
    }
}

impl AssuranceTable {
    pub fn new(preset: Preset, scale: Arc<Scale>) -> Self {
        if preset.is_of_workloads() {
            return Self { scale, amr: HashMap::new(), acr: HashMap::new(), own_acr: Vec::new(), amr_string: false };
        }
        let amr = AMR.iter().chain(preset.amr()).map(|&(word, proof)| (word.to_owned(), proof)).collect();
        let acr = ACR.iter().chain(preset.acr()).map(|&(word, known)| (word.to_owned(), scale.reached(known)));
        let acr = acr.collect();
        let own_acr = preset.acr().iter().map(|&(word, _)| word.to_owned()).collect();
        Self { scale, amr, acr, own_acr, amr_string: false }
    }

    /// Reads the word `alias` of `amr` as `known` is read; false when `known` is no known word.
    pub fn alias_amr(&mut self, alias: &str, known: &str) -> bool {
        let Some(&proof) = self.amr.get(known) else { return false };
        self.amr.insert(alias.to_owned(), proof);
        true
    }

    /// Gives the value `acr` a level of the scale.
    pub fn level_of_acr(&mut self, acr: &str, level: usize) {
        self.acr.insert(acr.to_owned(), level);
        self.own_acr.push(acr.to_owned());
    }

    /// Values of `acr`, the least demanding first, that are enough for a level: the issuer's own, or else those that mean
    /// the same everywhere.
    pub fn acr_values(&self, level: usize) -> Vec<String> {
        let enough = |words: &mut dyn Iterator<Item = &str>| -> Vec<String> {
            let mut found: Vec<_> = words.filter_map(|word| Some((*self.acr.get(word)?, word))).collect();
            found.retain(|&(has, _)| has >= level && has > 0);
            found.sort_by_key(|&(has, _)| has);
            let mut words: Vec<_> = found.into_iter().map(|(_, word)| word.to_owned()).collect();
            words.dedup();
            words
        };
        let own = enough(&mut self.own_acr.iter().map(String::as_str));
        if own.is_empty() { enough(&mut ACR.iter().map(|&(word, _)| word)) } else { own }
    }

    /// Does not believe the issuer's `mfa`: two factors must be named.
    pub fn distrust_mfa(&mut self) {
        self.amr.retain(|_, proof| !proof.mfa);
    }

    pub fn accept_amr_string(&mut self) {
        self.amr_string = true;
    }

    /// What the claims of a verified token prove.
    pub fn assess(&self, claims: &Value) -> Authn {
        let mut proof = NOTHING;
        let mut add = |word: &Value| {
            if let Some(more) = as_text(word).and_then(|word| self.amr.get(word)) {
                proof = proof.and(*more);
            }
        };
        match member(claims, "amr") {
            Some(Value::Array(words)) => words.iter().for_each(&mut add),
            Some(word @ Value::String(_)) if self.amr_string => add(word),
            _ => {}
        }
        let mfa = proof.mfa || proof.categories().len() >= 2;
        let by_factors = match proof {
            Proof { phishing_resistant: true, hardware: true, .. } if mfa => 4,
            Proof { phishing_resistant: true, .. } if mfa => PHISHING_RESISTANT_LEVEL,
            _ if mfa => MFA_LEVEL,
            _ if !proof.categories().is_empty() => 1,
            _ => 0,
        };
        // Entra lists the authentication contexts that were met in `acrs`.
        let contexts = match member(claims, "acrs") {
            Some(Value::Array(words)) => words.as_slice(),
            _ => &[],
        };
        let words = member(claims, "acr").into_iter().chain(contexts);
        let by_acr = words.filter_map(|word| self.acr.get(as_text(word)?).copied()).max().unwrap_or(0);
        let level = self.scale.reached(by_factors).max(by_acr);
        let auth_time = member(claims, "auth_time").and_then(|time| time.as_i64()).filter(|&time| time > 0);
        let proof = Proof {
            mfa: mfa || self.scale.includes(by_acr, MFA_LEVEL),
            phishing_resistant: proof.phishing_resistant || self.scale.includes(by_acr, PHISHING_RESISTANT_LEVEL),
            ..proof
        };
        Authn::new(level, self.scale.name(level), proof, auth_time)
    }
}

impl Proof {
    fn and(self, other: Self) -> Self {
        Self {
            knowledge: self.knowledge || other.knowledge,
            possession: self.possession || other.possession,
            inherence: self.inherence || other.inherence,
            phishing_resistant: self.phishing_resistant || other.phishing_resistant,
            hardware: self.hardware || other.hardware,
            mfa: self.mfa || other.mfa,
        }
    }

    fn categories(self) -> Vec<&'static str> {
        let named = [(self.knowledge, "knowledge"), (self.possession, "possession"), (self.inherence, "inherence")];
        named.into_iter().filter_map(|(has, name)| has.then_some(name)).collect()
    }
}

/// What is known about how the caller authenticated. What is unknown is absent, never null: in Rego `null <= 300` is
/// true.
#[derive(Clone, Debug)]
pub struct Authn {
    pub level: usize,
    auth_time: Option<i64>,
    /// Every member but the age.
    value: Value,
}

static LEVEL: Key = crate::key!("level");
static LEVEL_NAME: Key = crate::key!("level_name");
static FACTORS: Key = crate::key!("factors");
static IS_MFA: Key = crate::key!("mfa");
static PHISHING_RESISTANT: Key = crate::key!("phishing_resistant");
static AUTH_TIME: Key = crate::key!("auth_time");
static AGE_SECONDS: Key = crate::key!("age_seconds");

impl Authn {
    /// The names that `document` can have.
    pub const MEMBERS: [&'static str; 7] =
        ["age_seconds", "auth_time", "factors", "level", "level_name", "mfa", "phishing_resistant"];

    /// Nothing is known.
    pub fn none() -> Self {
        Self::new(0, "none", NOTHING, None)
    }

    fn new(level: usize, name: &str, proof: Proof, auth_time: Option<i64>) -> Self {
        let mut members = Members::default();
        members.put(&LEVEL, Value::from(level));
        members.put(&LEVEL_NAME, Value::from(name));
        members.put(&FACTORS, texts(proof.categories()));
        members.put(&IS_MFA, Value::Bool(proof.mfa));
        members.put(&PHISHING_RESISTANT, Value::Bool(proof.phishing_resistant));
        Self { level, auth_time, value: members.into_value() }
    }

    /// When the caller authenticated, in seconds since the epoch.
    pub fn auth_time(&self) -> Option<i64> {
        self.auth_time
    }

    /// The age of the authentication in seconds; unknown when `auth_time` is missing or in the future.
    pub fn age_seconds(&self, now: i64) -> Option<i64> {
        let age = now.saturating_sub(self.auth_time?);
        (age >= -FUTURE_SECONDS).then_some(age.max(0))
    }

    /// `input.authn` at this moment.
    pub fn document(&self, now: i64) -> Value {
        let (Some(auth_time), Some(age)) = (self.auth_time, self.age_seconds(now)) else { return self.value.clone() };
        let Value::Object(members) = &self.value else { return self.value.clone() };
        let more = [(AUTH_TIME.value(), Value::from(auth_time)), (AGE_SECONDS.value(), Value::from(age))];
        Value::object(members.to_vec().into_iter().chain(more).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::value::{DuplicateKeys, JsonLimits, json_text, parse_json};

    const NOW: i64 = 1_800_000_000;

    fn parsed(claims: &Json) -> Value {
        let limits = JsonLimits { depth: 9, duplicates: DuplicateKeys::Refuse };
        parse_json(claims.to_string().as_bytes(), limits).expect("JSON")
    }

    #[test]
    fn an_issuer_is_asked_for_what_it_understands() {
        let mut entra = AssuranceTable::new(Preset::Entra, Arc::default());
        for (acr, level) in [("c2", 3), ("c1", 2), ("c0", 1)] {
            entra.level_of_acr(acr, level);
        }
        for (table, level, want) in [
            (AssuranceTable::default(), 2, &["mfa", "phr", "phrh"][..]),
            (AssuranceTable::default(), 4, &["phrh"]),
            (AssuranceTable::new(Preset::Okta, Arc::default()), 2, &["urn:okta:loa:2fa:any"]),
            (AssuranceTable::new(Preset::Okta, Arc::default()), 3, &["phr", "phrh"]),
            (AssuranceTable::new(Preset::Keycloak, Arc::default()), 2, &["2", "3"]),
            (entra, 2, &["c1", "c2"]),
        ] {
            assert_eq!(table.acr_values(level), want, "level {level}");
        }
    }

    #[test]
    fn authentication_is_read_alike_from_every_provider() {
        for (preset, claims, want) in [
            (
                Preset::Generic,
                json!({}),
                r#"{"factors":[],"level":0,"level_name":"none","mfa":false,"phishing_resistant":false}"#,
            ),
            (
                Preset::Generic,
                json!({"amr": ["pwd"]}),
                r#"{"factors":["knowledge"],"level":1,"level_name":"single_factor","mfa":false,"phishing_resistant":false}"#,
            ),
            (
                Preset::Generic,
                json!({"amr": ["pwd", "pin"]}),
                r#"{"factors":["knowledge"],"level":1,"level_name":"single_factor","mfa":false,"phishing_resistant":false}"#,
            ),
            (
                Preset::Generic,
                json!({"amr": ["pwd", "otp"]}),
                r#"{"factors":["knowledge","possession"],"level":2,"level_name":"mfa","mfa":true,"phishing_resistant":false}"#,
            ),
            (
                Preset::Generic,
                json!({"amr": ["mfa"]}),
                r#"{"factors":[],"level":2,"level_name":"mfa","mfa":true,"phishing_resistant":false}"#,
            ),
            (
                Preset::Generic,
                json!({"amr": ["fido2"]}),
                r#"{"factors":["possession"],"level":1,"level_name":"single_factor","mfa":false,"phishing_resistant":true}"#,
            ),
            (
                Preset::Generic,
                json!({"amr": ["webauthn", "pin"]}),
                r#"{"factors":["knowledge","possession"],"level":3,"level_name":"phishing_resistant","mfa":true,"phishing_resistant":true}"#,
            ),
            (
                Preset::Generic,
                json!({"amr": ["hwk", "fpt", "fido"]}),
                r#"{"factors":["possession","inherence"],"level":4,"level_name":"hardware_protected","mfa":true,"phishing_resistant":true}"#,
            ),
            (
                Preset::Generic,
                json!({"amr": "mfa"}),
                r#"{"factors":[],"level":0,"level_name":"none","mfa":false,"phishing_resistant":false}"#,
            ),
            (
                Preset::Generic,
                json!({"amr": ["MFA", 7, null]}),
                r#"{"factors":[],"level":0,"level_name":"none","mfa":false,"phishing_resistant":false}"#,
            ),
            (
                Preset::Generic,
                json!({"acr": "phr"}),
                r#"{"factors":[],"level":3,"level_name":"phishing_resistant","mfa":true,"phishing_resistant":true}"#,
            ),
            (
                Preset::Okta,
                json!({"amr": ["pop", "pin"]}),
                r#"{"factors":["knowledge","possession"],"level":3,"level_name":"phishing_resistant","mfa":true,"phishing_resistant":true}"#,
            ),
            (
                Preset::Okta,
                json!({"acr": "urn:okta:loa:2fa:any:ifpossible"}),
                r#"{"factors":[],"level":1,"level_name":"single_factor","mfa":false,"phishing_resistant":false}"#,
            ),
            (
                Preset::Keycloak,
                json!({"acr": "2"}),
                r#"{"factors":[],"level":2,"level_name":"mfa","mfa":true,"phishing_resistant":false}"#,
            ),
            (
                Preset::Entra,
                json!({"acrs": ["p1", "mfa"]}),
                r#"{"factors":[],"level":2,"level_name":"mfa","mfa":true,"phishing_resistant":false}"#,
            ),
            (
                Preset::Generic,
                json!({"acr": "2"}),
                r#"{"factors":[],"level":0,"level_name":"none","mfa":false,"phishing_resistant":false}"#,
            ),
        ] {
            assert_eq!(
                json_text(&AssuranceTable::new(preset, Arc::default()).assess(&parsed(&claims)).document(NOW)),
                want,
                "{preset:?} {claims}"
            );
        }
    }

    #[test]
    fn the_age_of_an_authentication_is_absent_when_unknown() {
        for (auth_time, want) in [
            (json!(NOW - 100), Some(100)),
            (json!(NOW), Some(0)),
            (json!(NOW + 5), Some(0)),
            (json!(NOW + 6), None),
            (json!("1"), None),
            (json!(null), None),
            (json!(0), None),
        ] {
            let authn = AssuranceTable::default().assess(&parsed(&json!({"auth_time": auth_time})));
            assert_eq!(authn.age_seconds(NOW), want, "{auth_time}");
            assert_eq!(json_text(&authn.document(NOW)).contains("age_seconds"), want.is_some(), "{auth_time}");
        }
    }

    #[test]
    fn a_deployment_has_levels_of_its_own() {
        let scale = Scale::new(&["none", "mfa", "in_person"]).expect("a scale");
        let mut table = AssuranceTable::new(Preset::Generic, Arc::new(scale));
        table.level_of_acr("urn:example:proofed", 2);
        for (claims, level, name, mfa) in [
            (json!({"amr": ["pwd"]}), 0, "none", false),
            (json!({"amr": ["hwk", "fpt", "fido"]}), 1, "mfa", true),
            (json!({"acr": "phr"}), 1, "mfa", true),
            (json!({"acr": "urn:example:proofed"}), 2, "in_person", true),
        ] {
            let authn = table.assess(&parsed(&claims));
            let text = json_text(&authn.document(NOW));
            assert_eq!(authn.level, level, "{claims}");
            assert!(text.contains(&format!("\"level_name\":\"{name}\",\"mfa\":{mfa}")), "{text}");
        }
        assert_eq!(table.acr_values(2), ["urn:example:proofed"]);
        assert_eq!(
            AssuranceTable::new(Preset::Generic, Arc::clone(&table.scale)).acr_values(1),
            ["mfa", "phr", "phrh"]
        );
    }

    #[test]
    fn an_issuer_whose_mfa_is_not_trusted_must_name_two_factors() {
        let mut table = AssuranceTable::default();
        table.distrust_mfa();
        assert_eq!(table.assess(&parsed(&json!({"amr": ["pwd", "mfa"]}))).level, 1);
    }
}
