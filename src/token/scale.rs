//! The scale of assurance of a deployment: which levels there are, and which of them the known kinds of proof reach.

/// The levels that proofs reach, by what they prove; a higher one includes the lower ones. Without a scale of its own, a
/// deployment has these.
pub const KNOWN_LEVELS: [&str; 5] = ["none", "single_factor", "mfa", "phishing_resistant", "hardware_protected"];
/// Levels of one scale.
const MAX_LEVELS: usize = 16;

/// The ordered levels of a deployment. A level that is not among `KNOWN_LEVELS` is reached by `acr` values only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scale {
    names: Vec<String>,
    /// The level of each known name: itself, or the highest known one below that is on the scale.
    reached: [usize; KNOWN_LEVELS.len()],
}

impl Default for Scale {
    fn default() -> Self {
        Self { names: KNOWN_LEVELS.map(str::to_owned).to_vec(), reached: std::array::from_fn(|level| level) }
    }
}

impl Scale {
    /// A scale of the levels named, the lowest first. The error says what is wrong with it.
    pub fn new(names: &[&str]) -> Result<Self, String> {
        if names.first() != Some(&"none") || !(2..=MAX_LEVELS).contains(&names.len()) {
            return Err(format!("expected from 2 to {MAX_LEVELS} levels, of which `none` is the first"));
        }
        for (at, name) in names.iter().enumerate() {
            let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte));
            if name.is_empty() || !is_plain || name.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(format!("`{name}` is no name of a level"));
            }
            if names.iter().take(at).any(|earlier| earlier == name) {
                return Err(format!("`{name}` is named twice"));
            }
        }
        let mut reached = [0; KNOWN_LEVELS.len()];
        let mut highest = 0;
        for (slot, known) in reached.iter_mut().zip(KNOWN_LEVELS) {
            if let Some(at) = names.iter().position(|name| *name == known) {
                if at < highest {
                    return Err(format!("`{known}` proves more than the levels above it: it belongs after them"));
                }
                highest = at;
            }
            *slot = highest;
        }
        Ok(Self { names: names.iter().map(|name| (*name).to_owned()).collect(), reached })
    }

    /// The number of the highest level.
    pub fn highest(&self) -> usize {
        self.names.len().saturating_sub(1)
    }

    /// The name of a level.
    pub fn name(&self, level: usize) -> &str {
        self.names.get(level).map_or("none", String::as_str)
    }

    /// The level of a name.
    pub fn level(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|known| known == name)
    }

    /// The level that a proof reaches which is worth `KNOWN_LEVELS[known]`.
    pub fn reached(&self, known: usize) -> usize {
        self.reached.get(known).copied().unwrap_or(0)
    }

    /// `level` includes the proofs of `KNOWN_LEVELS[known]`.
    pub fn includes(&self, level: usize, known: usize) -> bool {
        let mut above = KNOWN_LEVELS.iter().skip(known).filter_map(|name| self.level(name));
        above.next().is_some_and(|least| level >= least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proofs_reach_the_highest_level_that_they_prove() {
        let scale = Scale::new(&["none", "mfa", "in_person", "hardware_protected", "board"]).expect("a scale");
        assert_eq!([0, 1, 2, 3, 4].map(|known| scale.reached(known)), [0, 0, 1, 1, 3]);
        assert_eq!(
            ["mfa", "in_person", "board", "phr"].map(|name| scale.level(name)),
            [Some(1), Some(2), Some(4), None]
        );
        assert_eq!([0, 2, 4, 9].map(|level| scale.name(level)), ["none", "in_person", "board", "none"]);
        assert_eq!([0, 1, 2, 3, 4].map(|level| scale.includes(level, 2)), [false, true, true, true, true]);
        assert_eq!([1, 2, 3].map(|level| scale.includes(level, 3)), [false, false, true], "none that is certain below");
        assert_eq!(Scale::new(&KNOWN_LEVELS), Ok(Scale::default()));
    }

    #[test]
    fn a_scale_is_ordered_and_named() {
        for bad in [
            &["none"][..],
            &["mfa", "none"],
            &["none", "mfa", "mfa"],
            &["none", "phishing_resistant", "mfa"],
            &["none", ""],
            &["none", "3"],
            &["none", "two words"],
            &["none"; 17],
        ] {
            assert!(Scale::new(bad).is_err(), "{bad:?}");
        }
    }
}
