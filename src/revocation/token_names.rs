//! The names by which entries know a token: its user by every join, session, token, client, groups, device, bound key and issuer.

use super::joins::{IssuerJoins, MAX_JOINS, MAX_VALUE_BYTES};
use super::key::{HubKey, Key, Kind};
use crate::value::{Value, as_text, items, member};

/// Groups of a token that are looked at.
const MAX_GROUPS: usize = 256;

/// One name of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenName {
    pub kind: Kind,
    /// The join of a user, `jti` or `digest`, `jkt` or `x5t`; empty for other kinds.
    pub name: String,
    pub value: String,
}

/// All names of a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenNames {
    pub names: Vec<TokenName>,
    /// Joins that gave a name of the user.
    pub mapped_by: Vec<String>,
    /// An event could name the user and not be matched.
    pub unmappable: bool,
}

impl TokenName {
    /// The key of the entry.
    pub fn key(&self, issuer: &str, hub: &HubKey) -> Key {
        // A key belongs to no issuer.
        let issuer = if self.kind == Kind::Key { "" } else { issuer };
        hub.key(self.kind, issuer, &self.name, &self.value)
    }
}

impl TokenNames {
    /// The names of a token with these claims; `digest` is that of a token that was verified here.
    pub fn of(claims: &Value, digest: Option<&str>, settings: &IssuerJoins) -> Self {
        let text = |name: &str| member(claims, name).and_then(as_text).filter(|text| text.len() <= MAX_VALUE_BYTES);
        let mut names = Vec::new();
        let mut mapped_by = Vec::new();
        let mut add = |kind: Kind, name: &str, value: &str| {
            names.push(TokenName { kind, name: name.to_owned(), value: value.to_owned() });
        };
        add(Kind::Issuer, "", "");
        if let Some(subject) = text("sub") {
            add(Kind::User, "sub", subject);
            mapped_by.push("sub".to_owned());
        }
        for join in settings.joins.iter().take(MAX_JOINS) {
            let is_true = |claim: &String| member(claims, claim) == Some(&Value::Bool(true));
            if join.when.as_ref().is_none_or(is_true)
                && let Some(value) = text(&join.claim).and_then(|value| join.fold.apply(value))
            {
                add(Kind::User, &join.name, &value);
                mapped_by.push(join.name.clone());
            }
        }
        for (kind, claim) in
            [(Kind::Session, Some(&settings.session_claim)), (Kind::Device, settings.device_claim.as_ref())]
        {
            if let Some(value) = claim.and_then(|claim| text(claim)) {
                add(kind, "", value);
            }
        }
        if let Some(id) = text("jti") {
            add(Kind::Token, "jti", id);
        }
        if let Some(digest) = digest {
            add(Kind::Token, "digest", digest);
        }
        if let Some(client) = ["client_id", "azp", "appid"].into_iter().find_map(text) {
            add(Kind::Client, "", client);
        }
        let groups = member(claims, &settings.groups_claim).map(items).unwrap_or_default();
        let groups = groups.iter().take(MAX_GROUPS).filter_map(|group| as_text(group));
        groups.for_each(|group| add(Kind::Group, "", group));
        let confirmation = member(claims, "cnf");
        for (name, claim) in [("jkt", "jkt"), ("x5t", "x5t#S256")] {
            if let Some(thumbprint) = confirmation.and_then(|cnf| member(cnf, claim)).and_then(as_text) {
                add(Kind::Key, name, thumbprint);
            }
        }
        // Entra leaves groups out of a token that would be too long.
        let has_overage = member(claims, "_claim_names").is_some() || member(claims, "hasgroups").is_some();
        let lacks = settings.required_joins.iter().any(|join| !mapped_by.contains(join));
        Self { names, unmappable: lacks || has_overage || mapped_by.is_empty(), mapped_by }
    }
}
