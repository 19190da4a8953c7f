//! Globs matched as `gobwas/glob` matches them.
//!
//! That library takes a choice for one of fixed length when its alternatives but the last are not, looks for pieces inside the
//! subject where it should try them in place, lets `?` match nothing, and counts bytes for characters. So `/{api/**,health}`
//! does not match `/api/x` there. A policy that allows what such a pattern matches must not allow more here; so the same
//! steps are taken, in the same order. Where the library panics, nothing matches or something does.
//!
//! Mirrors: `compiler/compiler.go` and `match/*.go` of `gobwas/glob`, v0.2.3.

mod search;

use std::cell::Cell;

use self::search::Search;
use super::TooManySteps;
use super::parse::PatternPart;

/// Bytes of the subject that one match looks at, counted each time.
pub(super) const MAX_STEPS: usize = 4_000_000;
/// Parts side by side of a pattern that is matched in this way: making it takes the cube of their number.
pub(crate) const MAX_BREADTH: usize = 80;

/// A compiled pattern.
#[derive(Debug)]
pub struct Gobwas {
    root: Node,
}

/// Something that a part of the subject is compared with.
#[derive(Clone, Debug)]
enum Node {
    Any(Vec<char>),
    Super,
    Single(Vec<char>),
    List {
        chars: Vec<char>,
        not: bool,
    },
    Range {
        low: char,
        high: char,
        not: bool,
    },
    Text(String),
    Nothing,
    /// At least so many characters.
    Min(usize),
    /// At most so many.
    Max(usize),
    /// None of these characters side by side in this order.
    Without(String),
    Contains(String),
    Prefix(String),
    Suffix(String),
    PrefixSuffix(String, String),
    PrefixAny(String, Vec<char>),
    SuffixAny(String, Vec<char>),
    AnyOf(Vec<Node>),
    EveryOf(Vec<Node>),
    Row(usize, Vec<Node>),
    Tree(Box<Tree>),
}

/// A piece that is looked for, with what must stand before and after it.
#[derive(Clone, Debug)]
struct Tree {
    value: Node,
    left: Option<Node>,
    right: Option<Node>,
}

impl Gobwas {
    pub fn new(parts: &[PatternPart], delimiters: &[char]) -> Self {
        Self { root: pattern(parts, delimiters) }
    }

    /// Matches the subject, and counts the steps.
    pub fn is_match(&self, subject: &str) -> (Result<bool, TooManySteps>, usize) {
        let search = Search { left: Cell::new(MAX_STEPS) };
        let fits = search.fits(&self.root, subject.as_bytes());
        let left = search.left.get();
        (if left == 0 { Err(TooManySteps) } else { Ok(fits) }, MAX_STEPS.saturating_sub(left))
    }
}

/// The most parts that stand side by side.
pub(super) fn breadth(parts: &[PatternPart]) -> usize {
    let inside = |part: &PatternPart| match part {
        PatternPart::Choice(alternatives) => alternatives.iter().map(|parts| breadth(parts)).max().unwrap_or(0),
        _ => 0,
    };
    parts.iter().map(inside).max().unwrap_or(0).max(parts.len())
}

// Compiling

fn pattern(parts: &[PatternPart], delimiters: &[char]) -> Node {
    if parts.is_empty() {
        return Node::Nothing;
    }
    let pieces = parts.iter().map(|part| simplified(piece(part, delimiters))).collect();
    simplified(joined(&shortened(pieces)))
}

fn piece(part: &PatternPart, delimiters: &[char]) -> Node {
    match part {
        PatternPart::Any => Node::Any(delimiters.to_vec()),
        PatternPart::Super => Node::Super,
        PatternPart::Single => Node::Single(delimiters.to_vec()),
        PatternPart::Text(text) => Node::Text(text.clone()),
        PatternPart::List { chars, not } => Node::List { chars: chars.clone(), not: *not },
        PatternPart::Range { low, high, not } => Node::Range { low: *low, high: *high, not: *not },
        PatternPart::Nothing => Node::Nothing,
        PatternPart::Choice(alternatives) => match factored(alternatives) {
            Some(parts) => pattern(&parts, delimiters),
            None => Node::AnyOf(alternatives.iter().map(|parts| simplified(alternative(parts, delimiters))).collect()),
        },
    }
}

fn alternative(parts: &[PatternPart], delimiters: &[char]) -> Node {
    match parts {
        [PatternPart::Nothing] => Node::Nothing,
        parts => pattern(parts, delimiters),
    }
}

/// The parts that all alternatives begin or end with, written once.
///
/// Mirrors: `minimizeTreeAnyOf`. Each result stands for a pattern of its own there.
fn factored(alternatives: &[Vec<PatternPart>]) -> Option<Vec<PatternPart>> {
    let (left, right) = common(alternatives);
    if left.is_empty() && right.is_empty() {
        return None;
    }
    let nested = |parts: Vec<PatternPart>| PatternPart::Choice(vec![parts]);
    let mut result = Vec::new();
    if !left.is_empty() {
        result.push(nested(left.clone()));
    }
    let mut rest: Vec<Vec<PatternPart>> = Vec::new();
    for parts in alternatives {
        let end = parts.len().saturating_sub(right.len());
        let own = parts.get(left.len()..end).unwrap_or_default();
        let own = if own.is_empty() { vec![PatternPart::Nothing] } else { own.to_vec() };
        if !rest.contains(&own) {
            rest.push(own);
        }
    }
    match rest.as_slice() {
        [only] if *only == [PatternPart::Nothing] => {}
        [only] => result.push(nested(only.clone())),
        _ => result.push(PatternPart::Choice(rest)),
    }
    if !right.is_empty() {
        result.push(nested(right));
    }
    Some(result)
}

/// Mirrors: `commonChildren`.
fn common(alternatives: &[Vec<PatternPart>]) -> (Vec<PatternPart>, Vec<PatternPart>) {
    let (mut left, mut right) = (Vec::new(), Vec::new());
    let shortest = alternatives.iter().enumerate().min_by_key(|(_, parts)| parts.len());
    let (Some((at, least)), true) = (shortest, alternatives.len() > 1) else { return (left, right) };
    let (mut left_ends, mut right_ends) = (false, false);
    let mut total = 0usize;
    for (from_left, part) in least.iter().enumerate() {
        let Some(from_right) = least.len().checked_sub(from_left.saturating_add(1)) else { break };
        if total >= least.len() || (left_ends && right_ends) {
            break;
        }
        let last = least.get(from_right);
        for (_, parts) in alternatives.iter().enumerate().filter(|(other, _)| *other != at) {
            if left_ends && right_ends {
                break;
            }
            let opposite = from_right.saturating_add(parts.len()).checked_sub(least.len());
            left_ends |= parts.get(from_left) != Some(part);
            right_ends |= !left_ends && from_right <= from_left;
            right_ends |= opposite.and_then(|at| parts.get(at)) != last;
        }
        if !left_ends {
            total = total.saturating_add(1);
            left.push(part.clone());
        }
        if !right_ends {
            total = total.saturating_add(1);
            right.extend(last.cloned());
        }
    }
    right.reverse();
    (left, right)
}

/// Mirrors: `optimizeMatcher`.
fn simplified(piece: Node) -> Node {
    match piece {
        Node::Any(delimiters) if delimiters.is_empty() => Node::Super,
        Node::AnyOf(mut pieces) if pieces.len() == 1 => pieces.pop().unwrap_or(Node::Nothing),
        Node::List { chars, not: false } if chars.len() == 1 => Node::Text(chars.into_iter().collect()),
        Node::Tree(tree) => {
            let Tree { value, left, right } = *tree;
            let (left, right) = (left.map(simplified), right.map(simplified));
            let Node::Text(text) = value else { return Node::Tree(Box::new(Tree { value, left, right })) };
            match (left, right) {
                (None, None) => Node::Text(text),
                (Some(Node::Super), Some(Node::Super)) => Node::Contains(text),
                (Some(Node::Super), None) => Node::Suffix(text),
                (None, Some(Node::Super)) => Node::Prefix(text),
                (None, Some(Node::Suffix(suffix))) => Node::PrefixSuffix(text, suffix),
                (Some(Node::Prefix(prefix)), None) => Node::PrefixSuffix(prefix, text),
                (Some(Node::Any(delimiters)), None) => Node::SuffixAny(text, delimiters),
                (None, Some(Node::Any(delimiters))) => Node::PrefixAny(text, delimiters),
                (left, right) => Node::Tree(Box::new(Tree { value: Node::Text(text), left, right })),
            }
        }
        other => other,
    }
}

/// Mirrors: `compileMatchers`.
fn joined(pieces: &[Node]) -> Node {
    if let [only] = pieces {
        return only.clone();
    }
    if let Some(glued) = glued(pieces) {
        return glued;
    }
    let longest = pieces.iter().enumerate().filter_map(|(at, piece)| Some((piece.length()?, at))).max();
    let side = |pieces: &[Node]| (!pieces.is_empty()).then(|| joined(pieces));
    let (value, left, right) = match longest {
        Some((_, at)) => {
            (pieces.get(at), pieces.get(..at).and_then(side), pieces.get(at.saturating_add(1)..).and_then(side))
        }
        None => (pieces.first(), None, pieces.get(1..).and_then(side)),
    };
    let Some(value) = value.cloned() else { return Node::Nothing };
    Node::Tree(Box::new(Tree { value, left, right }))
}

/// Mirrors: `minimizeMatchers`.
fn shortened(mut pieces: Vec<Node>) -> Vec<Node> {
    loop {
        let mut best: Option<(Node, usize, usize)> = None;
        for from in 0..pieces.len() {
            for to in (from.saturating_add(1)..=pieces.len()).rev() {
                let Some(found) = pieces.get(from..to).and_then(glued) else { continue };
                let swap = match &best {
                    None => true,
                    Some((known, start, end)) => {
                        let longer = known.length().zip(found.length()).is_some_and(|(known, found)| found > known);
                        longer || end.saturating_sub(*start) < to.saturating_sub(from)
                    }
                };
                if swap {
                    best = Some((found, from, to));
                }
            }
        }
        let Some((found, from, to)) = best else { return pieces };
        let before = pieces.len();
        pieces.splice(from..to, [found]);
        if pieces.len() == before {
            return pieces;
        }
    }
}

/// Several pieces as one, where there is such a piece.
fn glued(pieces: &[Node]) -> Option<Node> {
    if pieces.len() <= 1 {
        return None;
    }
    glued_as_every(pieces).or_else(|| {
        let lengths: Option<Vec<usize>> = pieces.iter().map(Node::length).collect();
        Some(Node::Row(lengths?.into_iter().fold(0, usize::saturating_add), pieces.to_vec()))
    })
}

/// Mirrors: `glueMatchersAsEvery`.
fn glued_as_every(pieces: &[Node]) -> Option<Node> {
    let (mut any, mut all, mut least) = (false, false, 0usize);
    let mut delimiters: Option<&[char]> = None;
    for piece in pieces {
        let own: &[char] = match piece {
            Node::Super => {
                all = true;
                &[]
            }
            Node::Any(delimiters) => {
                any = true;
                delimiters
            }
            Node::Single(chars) | Node::List { chars, not: true } => {
                least = least.saturating_add(1);
                chars
            }
            _ => return None,
        };
        if **delimiters.get_or_insert(own) != *own {
            return None;
        }
    }
    let delimiters = delimiters.unwrap_or_default();
    Some(match (any, all, least) {
        (false, true, 0) => Node::Super,
        (true, false, 0) => Node::Any(delimiters.to_vec()),
        (any, all, 1..) if (any || all) && delimiters.is_empty() => Node::Min(least),
        _ => {
            let mut every = Vec::new();
            if least > 0 {
                every.push(Node::Min(least));
                if !any && !all {
                    every.push(Node::Max(least));
                }
            }
            if !delimiters.is_empty() {
                every.push(Node::Without(delimiters.iter().collect()));
            }
            Node::EveryOf(every)
        }
    })
}

impl Node {
    /// The number of characters, where the library takes it for fixed.
    fn length(&self) -> Option<usize> {
        match self {
            Self::Single(_) | Self::List { .. } | Self::Range { .. } => Some(1),
            Self::Text(text) => Some(text.chars().count()),
            Self::Nothing => Some(0),
            Self::Row(length, _) => Some(*length),
            Self::EveryOf(pieces) => pieces.is_empty().then_some(0),
            Self::AnyOf(pieces) => {
                // Alternatives of unknown length are forgotten until one has a length.
                let mut length = None;
                for piece in pieces {
                    match (length, piece.length()) {
                        (None, own) => length = own,
                        (Some(known), Some(own)) if known == own => {}
                        _ => return None,
                    }
                }
                length
            }
            Self::Tree(tree) => {
                let side = |piece: &Option<Node>| piece.as_ref().map_or(Some(0), Node::length);
                let (left, right) = (side(&tree.left)?, side(&tree.right)?);
                Some(tree.value.length()?.saturating_add(left).saturating_add(right))
            }
            _ => None,
        }
    }
}
