//! A token's header and claims: read strictly, checked by type, by time and by audience.
//!
//! RFC 7519 section 4.1, RFC 8725, RFC 9068. Written here rather than left to a library because a claim of the wrong type
//! must never count as an absent one (CVE-2026-25537).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use stepgate_jose::Algorithm;

use super::assurance::Preset;
use super::error::{ClaimProblem, TokenError};
use super::issuer::{ClaimNames, IssuerSettings};
use super::{kinds, spiffe};
use crate::value::{DuplicateKeys, JsonLimits, Value, as_text, member, parse_json};

/// Bytes that a key id may have; it is only ever compared.
const MAX_KID_BYTES: usize = 512;
/// Levels of nesting in a header or payload.
const JSON: JsonLimits = JsonLimits { depth: 32, duplicates: DuplicateKeys::Refuse };
/// The greatest NumericDate that is accepted (the year 9999).
const MAX_DATE: f64 = 253_402_300_799.0;

/// Values of `typ` that an access token may have; every other names another kind of token (RFC 8725 section 3.11).
const ACCESS_TYPES: &[&str] = &["", "jwt", "at+jwt"];

/// The expected form of a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// RFC 9068: `typ` is `at+jwt`, and iss, exp, aud, sub, client_id, iat and jti are there.
    Rfc9068,
    /// The form of most providers: no type, `JWT` or `at+jwt`.
    #[default]
    Legacy,
    /// A workload's identity of SPIFFE: `sub` is an ID of the issuer's trust domain, and the header says no more than it must.
    JwtSvid,
}

/// A compact JWS, parsed but not yet verified.
#[derive(Debug)]
pub struct Unverified<'a> {
    pub header: TokenHeader,
    pub payload: Value,
    /// The signing input.
    pub signed: &'a str,
    pub signature: &'a str,
}

/// The header parameters that matter.
#[derive(Debug)]
pub struct TokenHeader {
    pub alg: Algorithm,
    pub kid: Option<String>,
    pub typ: Option<String>,
    /// There are other keys.
    has_others: bool,
}

/// The confirmation of a sender-constrained token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binding<'a> {
    /// The holder of the key with this thumbprint (RFC 9449 section 6.1).
    Key(&'a str),
    /// The client with this certificate (RFC 8705 section 3.1).
    Certificate(&'a str),
    /// Something that cannot be proven here.
    Other,
}

/// The claims of a token whose signature was right. Only the verifier makes one.
#[derive(Clone, Debug)]
pub struct Claims {
    payload: Value,
    pub(super) expires: i64,
    pub(super) not_before: Option<i64>,
    issued: Option<i64>,
    may_lack_audience: bool,
}

impl<'a> Unverified<'a> {
    /// Splits and decodes `token`, whose size the caller has checked.
    pub fn parse(token: &'a str) -> Result<Self, TokenError> {
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::NotAJwt)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::NotAJwt)?;
        if payload.contains('.') || signature.is_empty() {
            return Err(TokenError::NotAJwt);
        }
        let header = decode(header).ok_or(TokenError::Header)?;
        let payload = decode(payload).ok_or(TokenError::Payload)?;
        Ok(Self { header: TokenHeader::parse(&header)?, payload, signed, signature })
    }

    pub fn issuer(&self) -> Option<&str> {
        member(&self.payload, "iss").and_then(as_text)
    }

    /// `spiffe://` and the trust domain of `sub`.
    pub fn trust_domain(&self) -> Option<String> {
        let (domain, _) = spiffe::parse(member(&self.payload, "sub").and_then(as_text)?)?;
        Some(format!("spiffe://{domain}"))
    }
}

pub(super) fn decode(part: &str) -> Option<Value> {
    let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
    std::str::from_utf8(&bytes).ok()?;
    parse_json(&bytes, JSON).ok().filter(|value| matches!(value, Value::Object(_)))
}

impl TokenHeader {
    fn parse(header: &Value) -> Result<Self, TokenError> {
        let text = |name: &str| match member(header, name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.to_string())),
            Some(_) => Err(TokenError::Header),
        };
        // No extension is understood, no compression is undone, no encryption is removed. `jku`, `x5u`, `jwk` and `x5c` are
        // never looked at: keys come from configuration alone.
        if ["crit", "zip", "enc", "b64"].iter().any(|name| member(header, name).is_some()) {
            return Err(TokenError::Header);
        }
        let alg = text("alg")?.ok_or(TokenError::Header)?;
        let alg = Algorithm::asymmetric(&alg).ok_or(TokenError::Algorithm)?;
        let kid = text("kid")?;
        if kid.as_ref().is_some_and(|kid| kid.len() > MAX_KID_BYTES) {
            return Err(TokenError::Header);
        }
        let members = header.as_object().into_iter().flat_map(|members| members.iter());
        let has_others = members.into_iter().any(|(name, _)| !matches!(as_text(name), Some("alg" | "kid" | "typ")));
        Ok(Self { alg, kid, typ: text("typ")?, has_others })
    }

    /// The header is valid for an access token of `settings`.
    pub fn check(&self, settings: &IssuerSettings) -> Result<(), TokenError> {
        if !settings.algorithms.contains(&self.alg) {
            return Err(TokenError::Algorithm);
        }
        match settings.profile {
            Profile::JwtSvid if self.has_others => Err(TokenError::Header),
            Profile::JwtSvid if self.alg == Algorithm::EdDsa => Err(TokenError::Algorithm),
            _ => self.check_type(settings),
        }
    }

    /// The type is one of an access token of `settings`.
    pub fn check_type(&self, settings: &IssuerSettings) -> Result<(), TokenError> {
        let typ = kinds::media_type(self.typ.as_deref().unwrap_or_default());
        let typ = typ.as_str();
        match settings.profile {
            Profile::Rfc9068 if typ != "at+jwt" => Err(TokenError::WrongType),
            Profile::Legacy if !ACCESS_TYPES.contains(&typ) => Err(TokenError::WrongType),
            // In just these letters (JWT-SVID section 2.3).
            Profile::JwtSvid if !matches!(self.typ.as_deref(), None | Some("JWT" | "JOSE")) => {
                Err(TokenError::WrongType)
            }
            _ => Ok(()),
        }
    }
}

impl Claims {
    /// Checks the claims of a token against its issuer's settings at `now`. The signature is the caller's business.
    pub(super) fn check(
        payload: Value,
        header_type: Option<&str>,
        settings: &IssuerSettings,
        now: i64,
    ) -> Result<Self, TokenError> {
        let leeway = settings.leeway_seconds();
        check_kind(&payload, header_type, settings)?;
        let expires = date(&payload, "exp")?.ok_or(missing("exp"))?;
        let not_before = date(&payload, "nbf")?;
        let issued = date(&payload, "iat")?;
        if issued.is_some_and(|issued| issued > now.saturating_add(leeway)) {
            return Err(TokenError::NotYetValid);
        }
        if let Some(longest) = settings.max_lifetime {
            let longest = i64::try_from(longest.as_secs()).unwrap_or(i64::MAX);
            if expires.saturating_sub(issued.ok_or(missing("iat"))?) > longest {
                return Err(TokenError::TooLong);
            }
        }
        let claims = Self { payload, expires, not_before, issued, may_lack_audience: false };
        claims.check_time(now, leeway)?;
        claims.check_audience(settings)?;
        claims.subject(settings)?;
        if settings.profile == Profile::JwtSvid {
            let (domain, _) = claims.text("sub").and_then(spiffe::parse).ok_or(wrong("sub"))?;
            if settings.issuer.strip_prefix("spiffe://") != Some(domain) {
                return Err(TokenError::UnknownIssuer);
            }
        }
        if settings.profile == Profile::Rfc9068 {
            for name in ["sub", "client_id", "jti"] {
                claims.non_empty_text(name)?;
            }
            issued.ok_or(missing("iat"))?;
        }
        Ok(claims)
    }

    /// Checks the claims of a JWT that no key here can verify, before its issuer is asked: its kind, and time and audience where it
    /// has them.
    pub(super) fn check_unsigned(
        payload: &Value,
        header_type: Option<&str>,
        settings: &IssuerSettings,
        now: i64,
    ) -> Result<(), TokenError> {
        check_kind(payload, header_type, settings)?;
        let expires = date(payload, "exp")?.unwrap_or(i64::MAX);
        let not_before = date(payload, "nbf")?;
        let claims = Self { payload: payload.clone(), expires, not_before, issued: None, may_lack_audience: true };
        claims.check_time(now, settings.leeway_seconds())?;
        claims.check_audience(settings)
    }

    /// Checks what an issuer says of a token (RFC 7662 section 2.2) at `now`. `own` is the payload of a JWT: its confirmation counts where
    /// the answer has none.
    pub(super) fn of_answer(
        body: &[u8],
        own: Option<&Value>,
        settings: &IssuerSettings,
        now: i64,
    ) -> Result<Self, TokenError> {
        let introspection = settings.introspection.as_ref().ok_or(TokenError::IntrospectionUnavailable)?;
        let answer = parse_json(body, JSON).map_err(|_| TokenError::IntrospectionUnavailable)?;
        let answer = without_nulls(answer, own.and_then(|own| member(own, "cnf")));
        match member(&answer, "active") {
            Some(Value::Bool(true)) => {}
            Some(Value::Bool(false)) => return Err(TokenError::Inactive),
            _ => return Err(TokenError::IntrospectionUnavailable),
        }
        if member(&answer, "iss").is_some_and(|issuer| as_text(issuer) != Some(&settings.issuer)) {
            return Err(TokenError::UnknownIssuer);
        }
        kinds::check(&answer, kinds::Origin::Answer)?;
        let leeway = settings.leeway_seconds();
        let issued = date(&answer, "iat")?;
        if issued.is_some_and(|issued| issued > now.saturating_add(leeway)) {
            return Err(TokenError::NotYetValid);
        }
        // The issuer is asked again before long, whether it says when the token ends or not.
        let expires = date(&answer, "exp")?.unwrap_or(i64::MAX);
        let not_before = date(&answer, "nbf")?;
        let may_lack_audience = introspection.may_lack_audience;
        let claims = Self { payload: answer, expires, not_before, issued, may_lack_audience };
        claims.check_time(now, leeway)?;
        claims.check_audience(settings)?;
        claims.subject(settings)?;
        Ok(claims)
    }

    /// Checks claims whose signature Envoy has verified. Those of other issuers, or of none, are of an unknown one.
    pub(super) fn of_envoy(payload: Value, settings: &IssuerSettings, now: i64) -> Result<Self, TokenError> {
        if member(&payload, "iss").and_then(as_text) != Some(&settings.issuer) {
            return Err(TokenError::UnknownIssuer);
        }
        let claims = Self::check(payload, None, settings, now)?;
        // Envoy does not ask for proofs.
        if claims.binding().is_some() { Err(TokenError::Bound) } else { Ok(claims) }
    }

    /// The confirmation of the token (RFC 7800 section 3.1): the token is valid only with a proof of that key.
    pub(super) fn binding(&self) -> Option<Binding<'_>> {
        let confirmation = member(&self.payload, "cnf")?;
        let is_alone = confirmation.as_object().is_some_and(|members| members.iter().count() == 1);
        let text = |name: &str| member(confirmation, name).and_then(as_text).filter(|_| is_alone);
        let key = text("jkt").map(Binding::Key);
        Some(key.or_else(|| text("x5t#S256").map(Binding::Certificate)).unwrap_or(Binding::Other))
    }

    /// The token is within its validity period; checked on every use.
    pub(super) fn check_time(&self, now: i64, leeway: i64) -> Result<(), TokenError> {
        if now >= self.expires.saturating_add(leeway) {
            return Err(TokenError::Expired);
        }
        if self.not_before.is_some_and(|start| start > now.saturating_add(leeway)) {
            return Err(TokenError::NotYetValid);
        }
        Ok(())
    }

    /// The token is for one of the audiences of `settings`; checked on every use.
    pub(super) fn check_audience(&self, settings: &IssuerSettings) -> Result<(), TokenError> {
        let is_known = |name: &str| settings.audiences.iter().any(|known| known == name);
        let accepted = |value: &Value| as_text(value).is_some_and(is_known);
        let claim = settings.audience_claim.name();
        let meant = match member(&self.payload, claim) {
            Some(Value::Array(values)) => {
                if !values.iter().all(|value| as_text(value).is_some()) {
                    return Err(wrong(claim));
                }
                values.iter().any(accepted)
            }
            Some(value @ Value::String(_)) => accepted(value),
            None if self.may_lack_audience => true,
            None => return Err(missing(claim)),
            Some(_) => return Err(wrong(claim)),
        };
        if meant { Ok(()) } else { Err(TokenError::WrongAudience) }
    }

    /// The token is for this audience, beside others.
    pub(super) fn is_for(&self, audience: &str, settings: &IssuerSettings) -> bool {
        let claim = settings.audience_claim.name();
        self.text(claim) == Some(audience) || self.lists(claim, audience)
    }

    /// A claim that is text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        member(&self.payload, name).and_then(as_text)
    }

    /// A claim is an array with this word.
    pub(super) fn lists(&self, name: &str, wanted: &str) -> bool {
        let items = match member(&self.payload, name) {
            Some(Value::Array(items)) => items.as_slice(),
            _ => &[],
        };
        items.iter().any(|item| as_text(item) == Some(wanted))
    }

    /// The token has a scope: in the claim that `names` say, else in `scope` (RFC 8693 section 4.2; an array as IdentityServer
    /// has it) or `scp` as Entra and Okta have it.
    pub(super) fn has_scope(&self, wanted: &str, names: &ClaimNames) -> bool {
        let is_named = |text: &str| text.split(' ').any(|scope| scope == wanted);
        let is_in = |name: &str| self.text(name).is_some_and(is_named) || self.lists(name, wanted);
        match &names.scope {
            Some(name) => is_in(name),
            None => is_in("scope") || is_in("scp"),
        }
    }

    /// When the token was issued, in seconds since the epoch.
    pub(super) fn issued(&self) -> Option<i64> {
        self.issued
    }

    /// The subject: the first of the issuer's `subject_claims` that is present and not empty.
    pub(super) fn subject(&self, settings: &IssuerSettings) -> Result<&str, TokenError> {
        for name in &settings.subject_claims {
            match member(&self.payload, name) {
                Some(Value::String(text)) if !text.is_empty() => {
                    return self.text(name).ok_or(wrong("sub"));
                }
                // As providers send it for programs.
                None | Some(Value::Null | Value::String(_)) => {}
                Some(_) if name == "sub" => return Err(wrong("sub")),
                Some(_) => return Err(TokenError::BadClaim("sub", ClaimProblem::OtherSubject)),
            }
        }
        Err(TokenError::BadClaim("sub", ClaimProblem::NoSubject))
    }

    fn non_empty_text(&self, name: &'static str) -> Result<(), TokenError> {
        match member(&self.payload, name) {
            Some(Value::String(text)) if !text.is_empty() => Ok(()),
            None => Err(missing(name)),
            Some(_) => Err(wrong(name)),
        }
    }

    /// The claims as the policy sees them.
    pub fn document(&self) -> &Value {
        &self.payload
    }
}

fn missing(name: &'static str) -> TokenError {
    TokenError::BadClaim(name, ClaimProblem::Missing)
}

fn wrong(name: &'static str) -> TokenError {
    TokenError::BadClaim(name, ClaimProblem::Wrong)
}

/// The payload is that of an access token of `settings`.
fn check_kind(payload: &Value, header_type: Option<&str>, settings: &IssuerSettings) -> Result<(), TokenError> {
    let typ = kinds::media_type(header_type.unwrap_or_default());
    kinds::check(payload, kinds::Origin::Jwt { typ: &typ })?;
    let needs_use = settings.preset == Preset::Cognito;
    if needs_use && member(payload, "token_use").is_none() { Err(TokenError::WrongType) } else { Ok(()) }
}

/// An introspection answer in which null is absent: every member is OPTIONAL (RFC 7662 section 2.2). `confirmation` is that of the token
/// itself, for an answer without one.
fn without_nulls(answer: Value, confirmation: Option<&Value>) -> Value {
    let Some(object) = answer.as_object() else { return answer };
    let has_null = object.iter().any(|(_, value)| matches!(value, Value::Null));
    let lacks_confirmation =
        confirmation.is_some() && !matches!(member(&answer, "cnf"), Some(it) if !matches!(it, Value::Null));
    if !has_null && !lacks_confirmation {
        return answer;
    }
    let mut members: Vec<(Value, Value)> = object
        .iter()
        .filter(|(_, value)| !matches!(value, Value::Null))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if lacks_confirmation {
        members.extend(confirmation.map(|confirmation| (Value::from("cnf"), confirmation.clone())));
    }
    Value::object(members)
}

/// A NumericDate (RFC 7519 section 2), rounded down; a claim of another type or out of range is an error, not absent.
fn date(payload: &Value, name: &'static str) -> Result<Option<i64>, TokenError> {
    let Some(value) = member(payload, name) else { return Ok(None) };
    numeric_date(value).map(Some).ok_or(wrong(name))
}

/// Seconds since the epoch, however JSON spells the number; nothing where it is none, or no date before the year 10000.
pub fn numeric_date(value: &Value) -> Option<i64> {
    let Value::Number(number) = value else { return None };
    match number.as_f64() {
        #[expect(clippy::cast_possible_truncation, reason = "the range is checked, rounding down is meant")]
        seconds if (0.0..=MAX_DATE).contains(&seconds) => Some(seconds.floor() as i64),
        _ => None,
    }
}
