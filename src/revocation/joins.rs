//! Joins: the ways in which events name users, each tied to a claim of tokens.

/// Joins of an issuer, `sub` not counted.
pub const MAX_JOINS: usize = 8;
/// Bytes of a value that becomes a key.
pub const MAX_VALUE_BYTES: usize = 512;

/// The form of a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fold {
    /// Byte for byte.
    #[default]
    Exact,
    /// An e-mail address: trimmed, in small letters.
    Email,
    /// A UUID: in small letters with hyphens.
    Uuid,
}

impl Fold {
    /// The form; `None` for what names no one.
    pub fn apply(self, value: &str) -> Option<String> {
        let folded = match self {
            Self::Exact => value.to_owned(),
            Self::Email => value.trim().to_lowercase(),
            Self::Uuid => uuid::Uuid::parse_str(value).ok()?.to_string(),
        };
        let is_address = self != Self::Email || folded.matches('@').count() == 1;
        let is_good = !folded.is_empty() && folded.len() <= MAX_VALUE_BYTES && !folded.chars().any(char::is_control);
        (is_good && is_address).then_some(folded)
    }
}

/// One way of naming a user, with the claim that has the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    pub name: String,
    pub claim: String,
    pub fold: Fold,
    /// The claim must be true for the join to count.
    pub when: Option<String>,
}

/// The claims of an issuer that events are matched with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerJoins {
    /// Beside `sub`, which is always one.
    pub joins: Vec<Join>,
    pub session_claim: String,
    pub groups_claim: String,
    pub device_claim: Option<String>,
    /// Without one of them an event could name the user and not be matched.
    pub required_joins: Vec<String>,
    /// Tokens that live longer than entries are kept are accepted.
    pub allows_unbounded: bool,
}

impl Default for IssuerJoins {
    fn default() -> Self {
        Self {
            joins: Vec::new(),
            session_claim: "sid".to_owned(),
            groups_claim: "groups".to_owned(),
            device_claim: None,
            required_joins: Vec::new(),
            allows_unbounded: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_one_form() {
        for (fold, given, want) in [
            (Fold::Exact, " A ", Some(" A ")),
            (Fold::Exact, "", None),
            (Fold::Exact, "a\nb", None),
            (Fold::Email, " Ada@Example.COM ", Some("ada@example.com")),
            (Fold::Email, "ada", None),
            (Fold::Email, "a@b@c", None),
            (Fold::Uuid, "nickname", None),
            (Fold::Uuid, "6F9619FF-8B86-D011-B42D-00C04FC964FF", Some("6f9619ff-8b86-d011-b42d-00c04fc964ff")),
        ] {
            assert_eq!(fold.apply(given).as_deref(), want, "{given:?}");
        }
        assert_eq!(Fold::Exact.apply(&"x".repeat(513)), None);
    }
}
