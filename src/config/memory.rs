//! The memory limit of the process, and the share of each consumer: one table for all defaults.

/// The memory limit of the process in bytes, where it has one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory(pub Option<u64>);

/// A consumer whose memory grows with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consumer {
    /// One policy evaluation, with the request body that it reads; part of `Evaluations`.
    Evaluation,
    Evaluations,
    BytesInFlight,
    Connections,
    UnreadAnswers,
    HeaderBlocks,
    /// Checks whose message is not complete, without its bytes.
    IncompleteMessages,
    TokenCache,
    DecisionLogBuffer,
    DecisionQueue,
    HttpSendCache,
    Proofs,
    UsedTokens,
}

/// A part of the memory.
#[derive(Clone, Copy, Debug)]
enum Fraction {
    /// The limit divided by this.
    OfLimit(u64),
    /// Sixteenths of what is left once the process, a bundle of 8 MiB and the parts of the limit are taken off: caches give way first.
    OfRest(u64),
}

/// Each consumer with its bytes where there is no limit, which it never exceeds, and its part of a limit.
const TABLE: [(Consumer, u64, Fraction); 13] = [
    (Consumer::Evaluation, 48 << 20, Fraction::OfLimit(8)),
    (Consumer::Evaluations, 512 << 20, Fraction::OfLimit(4)),
    (Consumer::BytesInFlight, 128 << 20, Fraction::OfLimit(8)),
    (Consumer::Connections, 20_000 * CONNECTION_BYTES, Fraction::OfLimit(16)),
    (Consumer::UnreadAnswers, 64 << 20, Fraction::OfLimit(64)),
    (Consumer::HeaderBlocks, 64 << 20, Fraction::OfLimit(64)),
    (Consumer::IncompleteMessages, 64 << 20, Fraction::OfLimit(32)),
    (Consumer::TokenCache, 64 << 20, Fraction::OfRest(8)),
    (Consumer::DecisionLogBuffer, 64 << 20, Fraction::OfRest(2)),
    (Consumer::DecisionQueue, 16 << 20, Fraction::OfRest(2)),
    (Consumer::HttpSendCache, 64 << 20, Fraction::OfRest(2)),
    (Consumer::Proofs, 1_000_000 * PROOF_BYTES, Fraction::OfRest(1)),
    (Consumer::UsedTokens, 500_000 * PROOF_BYTES, Fraction::OfRest(1)),
];

/// An idle connection: 15 KiB, measured with 10,000 of them.
pub(super) const CONNECTION_BYTES: u64 = 16 << 10;
/// A proof or a used token that is remembered: 16 bytes in a table that may be half empty, twice while that grows.
pub(super) const PROOF_BYTES: u64 = 48;
/// The process without requests, and a bundle of 8 MiB.
const BASE_BYTES: u64 = 14 << 20;

/// The bytes of a consumer without a memory limit, and its part of one in words.
pub(super) fn share_of(consumer: Consumer) -> (u64, String) {
    let row = TABLE.iter().find(|(it, ..)| *it == consumer);
    row.map_or((0, String::new()), |(_, most, fraction)| match fraction {
        Fraction::OfLimit(divisor) => (*most, format!("1/{divisor} of the memory limit")),
        Fraction::OfRest(sixteenths) => (*most, format!("{sixteenths}/16 of what the memory limit leaves to caches")),
    })
}

impl Memory {
    /// The bytes that a consumer may hold by default.
    pub fn default_for(self, consumer: Consumer) -> u64 {
        let row = TABLE.iter().find(|(it, ..)| *it == consumer);
        let Some((_, most, part)) = row else { return 0 };
        let Some(limit) = self.0 else { return *most };
        let share = match part {
            Fraction::OfLimit(divisor) => limit.checked_div(*divisor).unwrap_or(limit),
            Fraction::OfRest(sixteenths) => Self::rest(limit).saturating_mul(*sixteenths) / 16,
        };
        share.clamp(1, *most)
    }

    fn rest(limit: u64) -> u64 {
        let fixed = TABLE.iter().fold(0u64, |sum, (consumer, _, part)| match part {
            // Fraction of all evaluations.
            _ if *consumer == Consumer::Evaluation => sum,
            Fraction::OfLimit(divisor) => sum.saturating_add(limit.checked_div(*divisor).unwrap_or(0)),
            Fraction::OfRest(_) => sum,
        });
        limit.saturating_sub(fixed).saturating_sub(BASE_BYTES).max(limit / 64)
    }

    /// Tokens for one use that may be remembered.
    pub fn used_tokens(self) -> usize {
        usize::try_from(self.default_for(Consumer::UsedTokens) / PROOF_BYTES).unwrap_or(usize::MAX)
    }

    /// As [`Self::default_for`], for sizes in memory.
    pub fn size_for(self, consumer: Consumer) -> usize {
        usize::try_from(self.default_for(consumer)).unwrap_or(usize::MAX)
    }

    /// `most` bytes, but no more than this part of the limit.
    pub fn cap_to_fraction(self, most: u64, divisor: u64) -> u64 {
        self.0.map_or(most, |limit| limit.checked_div(divisor).unwrap_or(limit).clamp(1, most.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_defaults_together_fit_into_the_limits_of_the_manifests() {
        for limit in [32u64 << 20, 64 << 20, 256 << 20, 4 << 30] {
            let memory = Memory(Some(limit));
            let consumers = TABLE.iter().map(|(consumer, ..)| *consumer).filter(|it| *it != Consumer::Evaluation);
            let all: u64 = consumers.map(|consumer| memory.default_for(consumer)).sum();
            assert!(all + BASE_BYTES <= limit, "{limit}: {all}");
        }
        let small = Memory(Some(64 << 20));
        assert_eq!(small.default_for(Consumer::Evaluation), 8 << 20);
        assert_eq!(small.default_for(Consumer::Evaluations), 16 << 20);
        assert_eq!(Memory(None).default_for(Consumer::Evaluation), 48 << 20);
    }
}
