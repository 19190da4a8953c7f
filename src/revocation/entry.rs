//! An entry and how changes merge into it: times only grow, so that replays and any order of them end alike.

/// A time that never comes: the entry does not expire.
pub const PERMANENT: u32 = u32::MAX;

/// The revocations of one key. Times are seconds since the epoch; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Tokens issued at or before it are revoked.
    pub not_before: u32,
    /// Tokens whose holder authenticated at or before it need a new authentication.
    pub authenticated_not_before: u32,
    /// `not_before`, `authenticated_not_before` and `deny` count until then.
    pub until: u32,
    /// Sources that disable the key: bit = source.
    pub disabled: u16,
    /// `disabled` counts until then.
    pub disabled_until: u32,
    pub deny: bool,
}

/// A change of an entry, by one source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub not_before: u32,
    pub authenticated_not_before: u32,
    pub until: u32,
    /// The source sets its bit, or clears it.
    pub disable: Option<(u8, bool)>,
    pub disabled_until: u32,
    pub deny: Option<bool>,
}

impl Entry {
    /// Bytes of an entry.
    pub const BYTES: usize = 19;

    /// The entry in bytes: the four times, the sources that disable it, flags (bit 0 is `deny`), each big-endian.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let times = [self.not_before, self.authenticated_not_before, self.until, self.disabled_until];
        let mut bytes = [0; Self::BYTES];
        let parts = times.iter().flat_map(|time| time.to_be_bytes()).chain(self.disabled.to_be_bytes());
        bytes.iter_mut().zip(parts.chain([u8::from(self.deny)])).for_each(|(byte, part)| *byte = part);
        bytes
    }

    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s] = bytes;
        Self {
            not_before: u32::from_be_bytes([a, b, c, d]),
            authenticated_not_before: u32::from_be_bytes([e, f, g, h]),
            until: u32::from_be_bytes([i, j, k, l]),
            disabled_until: u32::from_be_bytes([m, n, o, p]),
            disabled: u16::from_be_bytes([q, r]),
            deny: s & 1 != 0,
        }
    }

    /// Merges a change in the order of the ledger: times by maximum, bits and `deny` by the last.
    pub fn apply(&mut self, change: &Change) {
        self.not_before = self.not_before.max(change.not_before);
        self.authenticated_not_before = self.authenticated_not_before.max(change.authenticated_not_before);
        self.until = self.until.max(change.until);
        if let Some((source, is_set)) = change.disable {
            let bit = 1u16.checked_shl(source.into()).unwrap_or(0);
            self.disabled = if is_set { self.disabled | bit } else { self.disabled & !bit };
            self.disabled_until = match self.disabled {
                0 => 0,
                // Its own end: of several sources it is the last one's.
                alone if is_set && alone == bit => change.disabled_until,
                _ => self.disabled_until.max(change.disabled_until),
            };
        }
        if let Some(deny) = change.deny {
            self.deny = deny;
        }
    }

    /// The entry of two ledgers that lost each other: in doubt revoked.
    pub fn union(&mut self, other: &Self) {
        self.not_before = self.not_before.max(other.not_before);
        self.authenticated_not_before = self.authenticated_not_before.max(other.authenticated_not_before);
        self.until = self.until.max(other.until);
        self.disabled |= other.disabled;
        self.disabled_until = self.disabled_until.max(other.disabled_until);
        self.deny |= other.deny;
    }

    /// Nothing of it counts any more.
    pub fn is_over(&self, now: u32) -> bool {
        (self.until <= now || (!self.deny && self.not_before == 0 && self.authenticated_not_before == 0))
            && (self.disabled == 0 || self.disabled_until <= now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn change() -> impl Strategy<Value = Change> {
        (0..5u32, 0..5u32, 0..9u32).prop_map(|(not_before, authenticated_not_before, until)| Change {
            not_before,
            authenticated_not_before,
            until,
            ..Change::default()
        })
    }

    proptest! {
        #[test]
        fn times_end_alike_in_any_order_and_number(changes in proptest::collection::vec(change(), 0..20), again in 0..20usize) {
            let of = |changes: &mut dyn Iterator<Item = &Change>| {
                let mut entry = Entry::default();
                changes.for_each(|change| entry.apply(change));
                entry
            };
            let once = of(&mut changes.iter());
            let backwards = of(&mut changes.iter().rev());
            let repeated = of(&mut changes.iter().chain(changes.iter().take(again)));
            prop_assert_eq!(once, backwards);
            prop_assert_eq!(once, repeated);
        }

        #[test]
        fn no_change_lowers_a_time(changes in proptest::collection::vec(change(), 1..20)) {
            let mut entry = Entry::default();
            for change in &changes {
                let before = entry;
                entry.apply(change);
                prop_assert!(entry.not_before >= before.not_before && entry.until >= before.until);
                prop_assert!(entry.authenticated_not_before >= before.authenticated_not_before);
            }
        }
    }

    #[test]
    fn one_source_cannot_undo_another() {
        let disable =
            |source, is_set| Change { disable: Some((source, is_set)), disabled_until: PERMANENT, ..Change::default() };
        let mut entry = Entry::default();
        for change in [disable(1, true), disable(2, true), disable(1, false)] {
            entry.apply(&change);
        }
        assert!(entry.disabled == 0b100 && !entry.is_over(PERMANENT - 1));
        entry.apply(&disable(2, false));
        assert!(entry.disabled == 0 && entry.is_over(1));
        entry.apply(&disable(40, true));
        assert_eq!(entry.disabled, 0, "there is no such source");
    }
}
