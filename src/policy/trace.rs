//! Where an evaluation came by, for `stepgate eval --explain`, `--profile`, `--coverage` and `stepgate test --coverage`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use stepgate_rego::Place;

/// Steps that an explanation shows at most.
const MAX_STEPS: usize = 100_000;

/// Evaluation count and time of a source location.
#[derive(Clone, Copy, Debug, Default)]
pub struct Visits {
    pub count: u64,
    pub took: Duration,
}

/// One step of an evaluation.
#[derive(Clone, Debug)]
pub enum Step {
    At(Place),
    /// The arguments of `trace`.
    Note(String),
}

/// The complete record of evaluations.
#[derive(Debug, Default)]
pub struct Trail {
    pub visits: BTreeMap<Place, Visits>,
    /// In order; the first `MAX_STEPS`.
    pub steps: Vec<Step>,
    last: Option<(Place, Instant)>,
}

impl Trail {
    pub fn visit(&mut self, place: &Place) {
        self.pause();
        self.visits.entry(place.clone()).or_default().count += 1;
        self.step(Step::At(place.clone()));
        self.last = Some((place.clone(), Instant::now()));
    }

    pub fn note(&mut self, text: &str) {
        self.step(Step::Note(text.to_owned()));
    }

    /// Counts the time since the last place to it.
    pub fn pause(&mut self) {
        if let Some((place, since)) = self.last.take() {
            self.visits.entry(place).or_default().took += since.elapsed();
        }
    }

    fn step(&mut self, step: Step) {
        if self.steps.len() < MAX_STEPS {
            self.steps.push(step);
        }
    }
}
