//! Why an event would reject a token, or would not: for `stepgate hub explain`. Uses the configuration alone, and no ledger.

use std::collections::BTreeSet;

use serde_json::Value as Json;

use super::scim::{LinkedValue, linked_values};
use super::ssf::subject_keys;
use super::{HubSettings, ScimSettings, StreamSettings};
use crate::revocation::{HubKey, IssuerJoins, TokenName, TokenNames};
use crate::value::{Value, as_text, member};

/// Lines for a reader, and whether the token would be rejected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    pub lines: Vec<String>,
    pub is_match: bool,
}

/// The issuer of a token, its joins and its names.
struct Token<'a> {
    issuer: &'a str,
    joins: &'a IssuerJoins,
    names: Vec<TokenName>,
}

fn token<'a>(settings: &'a HubSettings, claims: &'a Value, of: &[String]) -> Result<Token<'a>, Explanation> {
    let issuer = member(claims, "iss").and_then(as_text).unwrap_or_default();
    let no = |line: String| Explanation { lines: vec![line], is_match: false };
    let joins = settings.issuers.get(issuer);
    let joins =
        joins.ok_or_else(|| no(format!("the token is of `{issuer}`, which is none of the configured issuers")))?;
    if !of.iter().any(|known| known == issuer) {
        return Err(no(format!("the token is of `{issuer}`, and the source speaks for {}", of.join(", "))));
    }
    Ok(Token { issuer, joins, names: TokenNames::of(claims, None, joins).names })
}

impl Explanation {
    /// The effect on a token with these claims when `provider` disables `user`.
    ///
    /// # Errors
    /// The user is none that SCIM could have.
    pub fn of_user(
        settings: &HubSettings,
        provider: &ScimSettings,
        user: &Json,
        claims: &Value,
    ) -> Result<Self, String> {
        let token = match token(settings, claims, &provider.issuers) {
            Ok(token) => token,
            Err(explanation) => return Ok(explanation),
        };
        let mut explained = Self::default();
        for LinkedValue { link, values } in linked_values(provider, user)? {
            let claim = match (link.join.as_str(), token.joins.joins.iter().find(|join| join.name == link.join)) {
                ("sub", _) => "sub",
                (_, Some(join)) => join.claim.as_str(),
                (_, None) => {
                    explained
                        .lines
                        .push(format!("{} -> {}: `{}` has no such join", link.attribute, link.join, token.issuer));
                    continue;
                }
            };
            let of_token =
                token.names.iter().find(|name| name.name == link.join && name.kind == crate::revocation::Kind::User);
            let fold =
                token.joins.joins.iter().find(|join| join.name == link.join).map(|join| join.fold).unwrap_or_default();
            let folded: Vec<String> = values.iter().filter_map(|value| fold.apply(value)).collect();
            let verdict = match (of_token, folded.as_slice()) {
                (_, []) if values.is_empty() => format!("the user has no `{}`", link.attribute),
                (_, []) => format!("`{}` of the user is not of the form of the join", link.attribute),
                (None, _) => format!("the token has no usable claim `{claim}`"),
                (Some(name), folded) if folded.contains(&name.value) => {
                    explained.is_match = true;
                    format!("match, by the claim `{claim}`")
                }
                (Some(name), folded) => {
                    format!("the user has `{}`, the claim `{claim}` is `{}`", folded.join("`, `"), name.value)
                }
            };
            explained.lines.push(format!("{} -> {}: {verdict}", link.attribute, link.join));
        }
        Ok(explained)
    }

    /// The effect of an event about `subject` on a token with these claims.
    ///
    /// # Errors
    /// It is no subject.
    pub fn of_subject(
        settings: &HubSettings,
        stream: &StreamSettings,
        subject: &Json,
        claims: &Value,
    ) -> Result<Self, String> {
        let token = match token(settings, claims, &stream.issuers) {
            Ok(token) => token,
            Err(explanation) => return Ok(explanation),
        };
        // Any key does: both sides are made with it.
        let hub_key = HubKey::new(&[0; HubKey::BYTES]);
        let named: BTreeSet<_> = subject_keys(stream, &settings.issuers, &hub_key, subject)?;
        let mut explained = Self::default();
        if named.is_empty() {
            explained.lines.push("the subject names no one: `subject_issuers`, `opaque_is`, `format_is`, `tenant` or the joins of the issuers".to_owned());
        }
        for name in &token.names {
            let is_named = named.contains(&name.key(token.issuer, &hub_key));
            explained.is_match |= is_named;
            let what = [name.kind.name(), &name.name, &name.value].into_iter().filter(|part| !part.is_empty());
            let what = what.collect::<Vec<_>>().join(" ");
            explained.lines.push(format!("{what}: {}", if is_named { "match" } else { "not named by the event" }));
        }
        Ok(explained)
    }
}
