//! Which rows of policies evaluations came by, as `opa test --coverage` reports it.
//!
//! Mirrors: OPA `v1/cover/cover.go`, v1.19.0.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value as Json, json};
use stepgate_rego::Policy;

use crate::policy::Trail;

#[derive(Debug, Default)]
struct Rows {
    covered: BTreeSet<u32>,
    missed: BTreeSet<u32>,
}

/// The rows of each file that has rules.
#[derive(Debug)]
pub struct Coverage {
    files: BTreeMap<String, Rows>,
}

impl Coverage {
    pub fn of(policy: &Policy, trail: &Trail) -> Self {
        let mut files: BTreeMap<String, Rows> = BTreeMap::new();
        for place in policy.places() {
            let rows = files.entry(place.file.to_string()).or_default();
            if trail.visits.contains_key(place) {
                rows.covered.insert(place.at.row);
            } else {
                rows.missed.insert(place.at.row);
            }
        }
        for rows in files.values_mut() {
            rows.missed.retain(|row| !rows.covered.contains(row));
        }
        Self { files }
    }

    /// Covered rows among all, in percent.
    pub fn percent(&self) -> f64 {
        let (covered, missed) = self.count();
        percent(covered, missed)
    }

    fn count(&self) -> (usize, usize) {
        self.files.values().fold((0, 0), |(covered, missed), rows| {
            (covered.saturating_add(rows.covered.len()), missed.saturating_add(rows.missed.len()))
        })
    }

    pub fn as_json(&self) -> Json {
        let files: serde_json::Map<String, Json> = self
            .files
            .iter()
            .map(|(file, rows)| {
                let report = json!({
                    "covered": ranges(&rows.covered),
                    "not_covered": ranges(&rows.missed),
                    "covered_lines": rows.covered.len(),
                    "not_covered_lines": rows.missed.len(),
                    "coverage": percent(rows.covered.len(), rows.missed.len()),
                });
                (file.clone(), report)
            })
            .collect();
        let (covered, missed) = self.count();
        json!({
            "files": files,
            "covered_lines": covered,
            "not_covered_lines": missed,
            "coverage": percent(covered, missed),
        })
    }
}

/// To two places, as OPA rounds it; nothing to cover is all covered.
fn percent(covered: usize, missed: usize) -> f64 {
    let all = covered.saturating_add(missed);
    if all == 0 {
        return 100.0;
    }
    (covered as f64 / all as f64 * 10_000.0).round() / 100.0
}

/// Rows that follow each other as one range.
fn ranges(rows: &BTreeSet<u32>) -> Json {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &row in rows {
        match ranges.last_mut() {
            Some((_, end)) if end.saturating_add(1) == row => *end = row,
            _ => ranges.push((row, row)),
        }
    }
    ranges.into_iter().map(|(start, end)| json!({"start": {"row": start}, "end": {"row": end}})).collect()
}
