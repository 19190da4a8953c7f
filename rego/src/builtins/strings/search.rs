//! Searching a text for another one, however long both are.

use memchr::memmem::Finder;

use super::super::Context;
use crate::eval::EvalError;
use crate::meter::Meter as _;

/// The longest needle that is searched for at once; of a longer one the beginning is searched for, and the rest compared.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// Bytes of the text that are looked through between two polls of the deadline.
const WINDOW_BYTES: usize = 256 << 10;
/// Bytes that one step looks through or compares.
const BYTES_PER_STEP: usize = 128;

/// A text that is looked for.
pub(crate) struct Needle<'n> {
    head: Finder<'n>,
    whole: &'n [u8],
}

impl<'n> Needle<'n> {
    /// Prepares the search for `text`, which is not empty.
    pub(crate) fn new(context: &mut Context<'_>, text: &'n str) -> Result<Self, EvalError> {
        let whole = text.as_bytes();
        let head = whole.get(..MAX_HEAD_BYTES).unwrap_or(whole);
        context.work(head.len() / 16 + 1)?;
        Ok(Self { head: Finder::new(head), whole })
    }

    /// The first place in `text`, from `start` on.
    pub(crate) fn find(&self, context: &mut Context<'_>, text: &str, start: usize) -> Result<Option<usize>, EvalError> {
        let text = text.as_bytes();
        let head_len = self.head.needle().len();
        let mut from = start;
        while from.saturating_add(self.whole.len()) <= text.len() {
            let end = from.saturating_add(WINDOW_BYTES).saturating_add(head_len).min(text.len());
            let window = text.get(from..end).unwrap_or_default();
            let Some(at) = self.head.find(window) else {
                context.work(window.len() / BYTES_PER_STEP + 1)?;
                // The head may begin in this window and end in the next one.
                from = if end == text.len() { end } else { end.saturating_sub(head_len.saturating_sub(1)) };
                continue;
            };
            let at = from.saturating_add(at);
            let compared = if self.whole.len() > head_len { self.whole.len() } else { 0 };
            context.work((at.saturating_sub(from).saturating_add(compared)) / BYTES_PER_STEP + 1)?;
            if text.get(at..).is_some_and(|rest| rest.starts_with(self.whole)) {
                return Ok(Some(at));
            }
            from = at.saturating_add(1);
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::EvalOptions;
    use crate::host::Host;

    struct Quiet;

    impl Host for Quiet {
        fn now_ns(&self) -> i64 {
            0
        }

        fn random(&self, _bytes: &mut [u8]) {}
    }

    #[test]
    fn long_texts_are_found_where_short_ones_are() {
        let mut context = Context::new(&Quiet, &EvalOptions::default());
        let text = "ab".repeat(200_000) + "c";
        for needle in ["c", "ba", &("ab".repeat(20_000) + "c"), &"ab".repeat(200_000), &"ba".repeat(200_000), "x"] {
            let found = Needle::new(&mut context, needle).and_then(|it| it.find(&mut context, &text, 0));
            assert_eq!(found, Ok(text.find(needle)), "{:.20}", needle);
        }
        let needle = Needle::new(&mut context, "ba").expect("time is left");
        assert_eq!(needle.find(&mut context, &text, 2), Ok(Some(3)));
    }
}
