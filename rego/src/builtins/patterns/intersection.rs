//! `regex.globs_match`: whether two globs of the simple kind (`.`, sets, `*`, `+`) have a text in common.
//!
//! Mirrors: the library `yashtewari/glob-intersection`.

use std::collections::HashSet;

use super::super::{BuiltinError, Context, failed};

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

pub fn meet(context: &mut Context<'_>, left: &str, right: &str) -> Result<bool, BuiltinError> {
    let (left, right) = (tokens(left)?, tokens(right)?);
    context.work(left.len().saturating_mul(right.len()))?;
    // A walk over pairs of places; at each both tokens must take the same character.
    let mut open = vec![(0usize, 0usize)];
    let mut seen: HashSet<(usize, usize)> = HashSet::new();
    while let Some((a, b)) = open.pop() {
        if !seen.insert((a, b)) {
            continue;
        }
        context.step()?;
        let (Some(first), Some(second)) = (left.get(a), right.get(b)) else {
            let rest = left.get(a..).unwrap_or_default().iter().chain(right.get(b..).unwrap_or_default());
            if rest.clone().all(|token| token.repeat == Repeat::Star) {
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
        if !share(first, second) {
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

fn share(a: &Token, b: &Token) -> bool {
    match (&a.chars, &b.chars) {
        (None, _) | (_, None) => true,
        (Some(a), Some(b)) => a.iter().any(|(low, high)| b.iter().any(|(from, to)| low <= to && from <= high)),
    }
}

fn tokens(pattern: &str) -> Result<Vec<Token>, BuiltinError> {
    let bad = |why: &str| failed(format!("{why}: the input provided is invalid"));
    let mut tokens: Vec<Token> = Vec::new();
    let mut chars = pattern.chars();
    while let Some(char) = chars.next() {
        let at = pattern.chars().count().saturating_sub(chars.clone().count());
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
                Some(ranges)
            }
            ']' => {
                return Err(bad(&format!("input:{pattern}, pos:{at}, set-close ']' with no preceding '['")));
            }
            char => Some(vec![(char, char)]),
        };
        tokens.push(Token { chars: set, repeat: Repeat::Once });
    }
    Ok(tokens)
}
