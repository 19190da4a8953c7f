//! `regex.globs_match`: whether two globs of the simple kind (`.`, sets, `*`, `+`) have a text in common.
//!
//! Mirrors: the library `yashtewari/glob-intersection`.

use std::collections::HashSet;

use super::super::{BuiltinError, Context, excerpt, failed};
use crate::eval::EvalError;
use crate::meter::Meter as _;

#[derive(Clone, Debug)]
struct Token {
    /// Nothing means any character.
    chars: Option<Vec<(char, char)>>,
    repeat: Repeat,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Repeat {
    Once,
    Star,
    Plus,
}

/// Bytes of a token beside its set, and of one range in that.
const TOKEN_BYTES: usize = 3 * size_of::<Token>();
const RANGE_BYTES: usize = 3 * size_of::<(char, char)>();
/// A visited state, in a table that is half empty, and one to visit.
const PLACE_BYTES: usize = 6 * size_of::<(usize, usize)>();

pub(super) fn meet(context: &mut Context<'_>, left: &str, right: &str) -> Result<bool, BuiltinError> {
    let (left, right) = (tokens(context, left)?, tokens(context, right)?);
    // A walk over pairs of places; at each both tokens must take the same character.
    let mut open = vec![(0usize, 0usize)];
    let mut seen: HashSet<(usize, usize), ahash::RandomState> = HashSet::default();
    while let Some((a, b)) = open.pop() {
        context.step()?;
        if !seen.insert((a, b)) {
            continue;
        }
        context.allocate(PLACE_BYTES)?;
        let (Some(first), Some(second)) = (left.get(a), right.get(b)) else {
            let mut rest = left.get(a..).unwrap_or_default().iter().chain(right.get(b..).unwrap_or_default());
            context.step()?;
            if rest.all(|token| token.repeat == Repeat::Star) {
                return Ok(true);
            }
            continue;
        };
        if first.repeat == Repeat::Star {
            open.push((a.saturating_add(1), b));
        }
        if second.repeat == Repeat::Star {
            open.push((a, b.saturating_add(1)));
        }
        if !share(context, first, second)? {
            continue;
        }
        let stays = |repeat: Repeat| repeat != Repeat::Once;
        let (next_a, next_b) = (a.saturating_add(1), b.saturating_add(1));
        open.push((next_a, next_b));
        if stays(first.repeat) {
            open.push((a, next_b));
        }
        if stays(second.repeat) {
            open.push((next_a, b));
        }
    }
    Ok(false)
}

/// There is a character that both take. The ranges are sorted and disjoint.
fn share(context: &mut Context<'_>, a: &Token, b: &Token) -> Result<bool, BuiltinError> {
    let (Some(a), Some(b)) = (&a.chars, &b.chars) else { return Ok(true) };
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    while let (Some((low, high)), Some((from, to))) = (a.peek(), b.peek()) {
        context.step()?;
        if low <= to && from <= high {
            return Ok(true);
        }
        _ = if high < from { a.next() } else { b.next() };
    }
    Ok(false)
}

/// Ranges in order, with those that overlap joined.
fn joined(mut ranges: Vec<(char, char)>) -> Vec<(char, char)> {
    ranges.sort_unstable();
    let mut joined: Vec<(char, char)> = Vec::new();
    for (low, high) in ranges {
        match joined.last_mut() {
            Some(last) if low <= last.1 => last.1 = last.1.max(high),
            _ => joined.push((low, high)),
        }
    }
    joined
}

/// The longest glob: taking it apart cannot be interrupted.
const MAX_GLOB_BYTES: usize = 256 << 10;

fn tokens(context: &mut Context<'_>, pattern: &str) -> Result<Vec<Token>, BuiltinError> {
    if pattern.len() > MAX_GLOB_BYTES {
        return Err(EvalError::budget("a glob is too long").into());
    }
    context.work(pattern.len() / 2)?;
    context.allocate(pattern.len().saturating_mul(RANGE_BYTES))?;
    let bad = |why: &str| failed(format!("{why}: the input provided is invalid"));
    let mut tokens: Vec<Token> = Vec::new();
    let mut chars = pattern.chars();
    loop {
        let rest = chars.as_str();
        let Some(char) = chars.next() else { return Ok(tokens) };
        let set = match char {
            '*' | '+' => {
                let last = tokens.last_mut().filter(|last| last.repeat == Repeat::Once);
                let Some(last) = last else { return Err(bad("flag must be preceded by a character")) };
                last.repeat = if char == '*' { Repeat::Star } else { Repeat::Plus };
                continue;
            }
            '.' => None,
            '\\' => {
                let next = chars.next().ok_or_else(|| bad("escape at the end"))?;
                Some(vec![(next, next)])
            }
            '[' => {
                let mut members = Vec::new();
                loop {
                    let next = chars.next().ok_or_else(|| bad("set is not closed"))?;
                    match next {
                        ']' => break,
                        '\\' => members.push((chars.next().ok_or_else(|| bad("escape at the end"))?, true)),
                        next => members.push((next, false)),
                    }
                }
                let mut ranges = Vec::new();
                let mut rest = members.as_slice();
                while let Some(((low, _), after)) = rest.split_first() {
                    rest = after;
                    if let [('-', false), (high, _), more @ ..] = after {
                        if high < low {
                            return Err(bad("range is out of order"));
                        }
                        ranges.push((*low, *high));
                        rest = more;
                    } else {
                        ranges.push((*low, *low));
                    }
                }
                if ranges.is_empty() {
                    return Err(bad("set is empty"));
                }
                Some(joined(ranges))
            }
            ']' => {
                let before = pattern.get(..pattern.len().saturating_sub(rest.len())).unwrap_or_default();
                let at = before.chars().count().saturating_add(1);
                return Err(bad(&format!("input:{}, pos:{at}, set-close ']' with no preceding '['", excerpt(pattern))));
            }
            char => Some(vec![(char, char)]),
        };
        context.allocate(TOKEN_BYTES)?;
        tokens.push(Token { chars: set, repeat: Repeat::Once });
    }
}
