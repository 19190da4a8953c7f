//! Authentication levels: `acr`, `amr` and `auth_time` of any identity provider, in one vocabulary.
//!
//! Sources: RFC 8176 (amr), OpenID EAP ACR Values 1.0 (`phr`, `phrh`), OpenID Connect Core section 2 (acr, auth_time), and
//! what Okta, Entra, Auth0 and Keycloak really send. Policies read the result as `input.authn`.

use std::collections::HashMap;
use std::sync::Arc;

use super::authn::Authn;
use super::claims::numeric_date;
use super::issuer::ClaimNames;
use super::scale::Scale;
use crate::value::{Value, as_text, member};

/// Where in [`KNOWN_LEVELS`](super::scale::KNOWN_LEVELS) several factors are proven.
pub(super) const MFA_LEVEL: usize = 2;
/// The most that factors prove.
const HIGHEST_BY_FACTORS: usize = 4;
/// Where in them what cannot be phished is proven.
pub(super) const PHISHING_RESISTANT_LEVEL: usize = 3;
/// The value of `acr` that says: no level at all (OpenID Connect Core section 2).
const NO_LEVEL: &str = "0";

/// The three kinds of proof, and two properties of a proof.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    knowledge: bool,
    possession: bool,
    inherence: bool,
    pub(super) phishing_resistant: bool,
    hardware: bool,
    /// The provider's own word that it asked for several factors.
    pub(super) mfa: bool,
}

pub(super) const NOTHING: Proof = Proof {
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
    /// Access tokens without `aud`, with `token_use`.
    Cognito,
}

impl Preset {
    pub const NAMES: [&'static str; 11] = [
        "generic",
        "okta",
        "entra",
        "auth0",
        "keycloak",
        "google",
        "ping",
        "github",
        "gitlab",
        "kubernetes",
        "cognito",
    ];

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
            "cognito" => Self::Cognito,
            _ => return None,
        })
    }

    /// Its tokens identify programs.
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
            Self::Auth0 => &[("http://schemas.openid.net/pape/policies/2007/06/multi-factor", 2)],
            // The values of Ping are names of its policies, Keycloak's are numbers of the realm: `acr_levels` must say what they mean.
            _ => &[],
        }
    }
}

/// The mapping of one issuer's `acr` and `amr` values.
#[derive(Clone, Debug)]
pub struct AssuranceTable {
    scale: Arc<Scale>,
    amr: HashMap<String, Proof>,
    /// Minimum levels of the known values of `acr`; factors may raise them.
    acr: HashMap<String, usize>,
    /// Levels that the operator assigned to values, as floor and ceiling.
    fixed: HashMap<String, usize>,
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
            return Self {
                scale,
                amr: HashMap::new(),
                acr: HashMap::new(),
                fixed: HashMap::new(),
                own_acr: Vec::new(),
                amr_string: false,
            };
        }
        let amr = AMR.iter().chain(preset.amr()).map(|&(word, proof)| (word.to_owned(), proof)).collect();
        let acr = ACR.iter().chain(preset.acr()).map(|&(word, known)| (word.to_owned(), scale.reached(known)));
        let acr = acr.collect();
        let own_acr = preset.acr().iter().map(|&(word, _)| word.to_owned()).collect();
        Self { scale, amr, acr, fixed: HashMap::new(), own_acr, amr_string: false }
    }

    /// Reads the word `alias` of `amr` as `known` is read; false when `known` is no known word.
    pub fn alias_amr(&mut self, alias: &str, known: &str) -> bool {
        let Some(&proof) = self.amr.get(known) else { return false };
        self.amr.insert(alias.to_owned(), proof);
        true
    }

    /// Gives the value `acr` a level of the scale.
    pub fn level_of_acr(&mut self, acr: &str, level: usize) {
        self.fixed.insert(acr.to_owned(), level);
        self.own_acr.push(acr.to_owned());
    }

    /// The level of a value of `acr`: by the operator's table, else by the known tables. `0` is level 0.
    pub fn worth(&self, acr: &str) -> Option<usize> {
        match acr {
            NO_LEVEL => Some(0),
            _ => self.fixed.get(acr).or_else(|| self.acr.get(acr)).copied(),
        }
    }

    /// The issuer has values of `acr` of its own that can be requested.
    pub fn has_own_values(&self) -> bool {
        !self.own_acr.is_empty()
    }

    /// One of them is an authentication context of Entra.
    pub fn has_contexts(&self) -> bool {
        self.own_acr.iter().any(|acr| is_context(acr))
    }

    /// The level that the operator assigned to a value of `acr`.
    pub fn fixed_worth(&self, acr: &str) -> Option<usize> {
        self.fixed.get(acr).copied()
    }

    /// The highest level that tokens of this issuer can have: by factors, where it names any, or by a value of `acr`.
    pub fn highest(&self) -> usize {
        let by_factors = if self.amr.is_empty() { 0 } else { self.scale.reached(HIGHEST_BY_FACTORS) };
        let by_acr = self.acr.values().chain(self.fixed.values()).max().copied().unwrap_or(0);
        by_factors.max(by_acr)
    }

    /// Values of `acr`, the least demanding first, that are enough for a level: the issuer's own, or else those that mean
    /// the same everywhere.
    pub fn acr_values(&self, level: usize) -> Vec<String> {
        let enough = |words: &mut dyn Iterator<Item = &str>| -> Vec<String> {
            let mut found: Vec<_> = words.filter_map(|word| Some((self.worth(word)?, word))).collect();
            found.retain(|&(has, _)| has >= level && has > 0);
            found.sort_by_key(|&(has, _)| has);
            let mut words: Vec<_> = found.into_iter().map(|(_, word)| word.to_owned()).collect();
            words.dedup();
            words
        };
        let own = enough(&mut self.own_acr.iter().map(String::as_str));
        if own.is_empty() { enough(&mut ACR.iter().map(|&(word, _)| word)) } else { own }
    }

    /// Ignores the issuer's `mfa`: two factors must be named.
    pub fn distrust_mfa(&mut self) {
        self.amr.retain(|_, proof| !proof.mfa);
    }

    pub fn accept_amr_string(&mut self) {
        self.amr_string = true;
    }

    /// The level that the claims of a verified token prove.
    pub fn assess(&self, claims: &Value, names: &ClaimNames, leeway: i64) -> Authn {
        let claim = |name: &Option<String>, usual: &str| member(claims, name.as_deref().unwrap_or(usual));
        let mut proof = NOTHING;
        let mut add = |word: &Value| {
            if let Some(more) = as_text(word).and_then(|word| self.amr.get(word)) {
                proof = proof.and(*more);
            }
        };
        match claim(&names.amr, "amr") {
            Some(Value::Array(words)) => words.iter().for_each(&mut add),
            Some(word @ Value::String(_)) if self.amr_string => add(word),
            _ => {}
        }
        let mfa = proof.mfa || proof.categories().len() >= 2;
        let by_factors = match proof {
            Proof { phishing_resistant: true, hardware: true, .. } if mfa => HIGHEST_BY_FACTORS,
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
        let acr = claim(&names.acr, "acr");
        let is_none = acr.is_some_and(is_no_level);
        let acr = if is_none { Some(NO_LEVEL) } else { acr.and_then(as_text) };
        let words = acr.into_iter().chain(contexts.iter().filter_map(as_text));
        let by_acr = words.clone().filter_map(|word| self.worth(word)).max().unwrap_or(0);
        // `0`, and what the operator has written, is no less a ceiling.
        let ceiling = acr.and_then(|acr| if acr == NO_LEVEL { Some(0) } else { self.fixed.get(acr).copied() });
        let level = ceiling.unwrap_or_else(|| self.scale.reached(by_factors).max(by_acr));
        let auth_time = claim(&names.auth_time, "auth_time").and_then(numeric_date).filter(|&time| time > 0);
        let is_within = |known: usize| ceiling.is_none_or(|ceiling| self.scale.includes(ceiling, known));
        let proof = Proof {
            mfa: (mfa || self.scale.includes(level, MFA_LEVEL)) && is_within(MFA_LEVEL),
            phishing_resistant: (proof.phishing_resistant || self.scale.includes(level, PHISHING_RESISTANT_LEVEL))
                && is_within(PHISHING_RESISTANT_LEVEL),
            ..proof
        };
        // A requested value is met by its name, unless the operator assigned a lower level to it. Beside an `acr` with a ceiling no
        // value of `acrs` counts.
        let is_capped = |word: &&str| ceiling.is_none() || acr == Some(*word);
        let named = words.filter(|word| *word != NO_LEVEL).filter(is_capped).map(str::to_owned).collect();
        let mut authn = Authn::new(level, self.scale.name(level), proof, auth_time);
        (authn.named, authn.leeway, authn.scale) = (named, leeway, Some(Arc::clone(&self.scale)));
        authn
    }
}

/// A value of `acr` says that nothing is certain: zero in any spelling, or no value of the specified type.
fn is_no_level(acr: &Value) -> bool {
    let is_zero = |text: &str| {
        let text = text.trim();
        !text.is_empty() && text.bytes().all(|byte| byte == b'0')
    };
    match acr {
        Value::String(_) => as_text(acr).is_some_and(is_zero),
        Value::Number(number) => number.as_f64() == 0.0,
        Value::Array(words) => words.iter().any(is_no_level),
        Value::Bool(is_met) => !is_met,
        _ => false,
    }
}

/// An authentication context of Entra: `c1` to `c99`.
pub fn is_context(value: &str) -> bool {
    let number = value.strip_prefix('c').filter(|digits| digits.len() <= 2 && !digits.starts_with('0'));
    number.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit()))
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

    pub(super) fn categories(self) -> Vec<&'static str> {
        let named = [(self.knowledge, "knowledge"), (self.possession, "possession"), (self.inherence, "inherence")];
        named.into_iter().filter_map(|(has, name)| has.then_some(name)).collect()
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

    fn assessed(table: &AssuranceTable, claims: &Json) -> Authn {
        table.assess(&parsed(claims), &ClaimNames::default(), 30)
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
                r#"{"factors":[],"level":0,"level_name":"none","mfa":false,"phishing_resistant":false}"#,
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
                json_text(&assessed(&AssuranceTable::new(preset, Arc::default()), &claims).document(NOW)),
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
            (json!(NOW + 30), Some(0)),
            (json!(NOW as f64 + 0.5), Some(0)),
            (json!(NOW + 31), None),
            (json!("1"), None),
            (json!(null), None),
            (json!(0), None),
        ] {
            let authn = assessed(&AssuranceTable::default(), &json!({"auth_time": auth_time}));
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
            let authn = assessed(&table, &claims);
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
        assert_eq!(assessed(&table, &json!({"amr": ["pwd", "mfa"]})).level, 1);
    }
}
