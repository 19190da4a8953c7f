//! Matches of a compiled pattern in a subject.

use std::cell::Cell;

use super::{Node, Tree};

/// One match, with the steps that it may still take.
pub(super) struct Search {
    pub(super) left: Cell<usize>,
}

/// Where a piece was found, and the lengths that it can have there, shortest first.
type Found = Option<(usize, Vec<usize>)>;

/// The characters with their places; a byte that begins none is one of its own.
fn chars(text: &[u8]) -> impl Iterator<Item = (usize, char)> + '_ {
    let mut at = 0usize;
    std::iter::from_fn(move || {
        let (char, width) = first(text.get(at..)?)?;
        let place = at;
        at = at.saturating_add(width);
        Some((place, char))
    })
}

fn first(text: &[u8]) -> Option<(char, usize)> {
    if text.is_empty() {
        return None;
    }
    let valid = |width: usize| text.get(..width).and_then(|bytes| std::str::from_utf8(bytes).ok());
    let found = (1..=4).find_map(|width| Some((valid(width)?.chars().next()?, width)));
    Some(found.unwrap_or((char::REPLACEMENT_CHARACTER, 1)))
}

/// The one character of the text, when it is one; what decoding nothing gives for nothing.
fn lone(text: &[u8]) -> Option<char> {
    match first(text) {
        None => Some(char::REPLACEMENT_CHARACTER),
        Some((char, width)) => (width == text.len()).then_some(char),
    }
}

fn find(text: &[u8], needle: &[u8]) -> Option<usize> {
    if needle.is_empty() {
        return Some(0);
    }
    text.windows(needle.len()).position(|window| window == needle)
}

fn find_last(text: &[u8], needle: &[u8]) -> Option<usize> {
    if needle.is_empty() {
        return Some(text.len());
    }
    text.windows(needle.len()).rposition(|window| window == needle)
}

/// The first place of the first of `wanted` that stands anywhere.
fn find_any(text: &[u8], wanted: &[char]) -> Option<usize> {
    wanted.iter().find_map(|char| find(text, char.encode_utf8(&mut [0; 4]).as_bytes()))
}

fn find_last_any(text: &[u8], wanted: &[char]) -> Option<usize> {
    wanted.iter().find_map(|char| find_last(text, char.encode_utf8(&mut [0; 4]).as_bytes()))
}

/// All places between characters.
fn places(text: &[u8]) -> Vec<usize> {
    chars(text).map(|(at, _)| at).chain([text.len()]).collect()
}

fn tail(text: &[u8], from: usize) -> &[u8] {
    text.get(from..).unwrap_or_default()
}

impl Search {
    /// Counts the steps for `text`; false when there are none left.
    fn go_on(&self, text: &[u8]) -> bool {
        let left = self.left.get().saturating_sub(text.len().saturating_add(1));
        self.left.set(left);
        left > 0
    }

    /// The whole text matches such a piece.
    pub(super) fn fits(&self, piece: &Node, text: &[u8]) -> bool {
        if !self.go_on(text) {
            return false;
        }
        match piece {
            Node::Any(delimiters) => find_any(text, delimiters).is_none(),
            Node::Super => true,
            Node::Single(delimiters) => lone(text).is_some_and(|char| !delimiters.contains(&char)),
            Node::List { chars, not } => lone(text).is_some_and(|char| chars.contains(&char) != *not),
            Node::Range { low, high, not } => lone(text).is_some_and(|char| (*low..=*high).contains(&char) != *not),
            Node::Text(own) => own.as_bytes() == text,
            Node::Nothing => text.is_empty(),
            Node::Min(least) => chars(text).take(*least).count() >= *least && !text.is_empty(),
            Node::Max(most) => chars(text).take(most.saturating_add(1)).count() <= *most,
            Node::Without(needle) => find(text, needle.as_bytes()).is_none(),
            Node::Contains(needle) => find(text, needle.as_bytes()).is_some(),
            Node::Prefix(prefix) => text.starts_with(prefix.as_bytes()),
            Node::Suffix(suffix) => text.ends_with(suffix.as_bytes()),
            Node::PrefixSuffix(prefix, suffix) => {
                text.starts_with(prefix.as_bytes()) && text.ends_with(suffix.as_bytes())
            }
            Node::PrefixAny(prefix, delimiters) => {
                text.strip_prefix(prefix.as_bytes()).is_some_and(|rest| find_any(rest, delimiters).is_none())
            }
            Node::SuffixAny(suffix, delimiters) => {
                text.strip_suffix(suffix.as_bytes()).is_some_and(|rest| find_any(rest, delimiters).is_none())
            }
            Node::AnyOf(pieces) => pieces.iter().any(|piece| self.fits(piece, text)),
            Node::EveryOf(pieces) => pieces.iter().all(|piece| self.fits(piece, text)),
            Node::Row(length, pieces) => chars(text).count() == *length && self.begins(pieces, text),
            Node::Tree(tree) => self.fits_tree(tree, text),
        }
    }

    /// The text begins with a row of pieces.
    fn begins(&self, pieces: &[Node], text: &[u8]) -> bool {
        let mut rest = text;
        pieces.iter().all(|piece| {
            let length = piece.length().unwrap_or(0);
            // Up to the last character that belongs to it and one byte more; a piece without length takes all.
            let most = if length == 0 { usize::MAX } else { length };
            let taken = chars(rest).take(most).collect::<Vec<_>>();
            let end = taken.last().map_or(0, |(at, _)| *at).saturating_add(1);
            let own = rest.get(..end.min(rest.len())).unwrap_or_default();
            let fits = taken.len() >= length && self.fits(piece, own);
            rest = tail(rest, end);
            fits
        })
    }

    fn fits_tree(&self, tree: &Tree, text: &[u8]) -> bool {
        let side = |piece: &Option<Node>| piece.as_ref().map_or(Some(0), Node::length);
        let (left, right) = (side(&tree.left), side(&tree.right));
        let whole = tree
            .value
            .length()
            .zip(left)
            .zip(right)
            .map(|((value, left), right)| value.saturating_add(left).saturating_add(right));
        if whole.is_some_and(|whole| whole > text.len()) {
            return false;
        }
        let mut offset = left.unwrap_or(0);
        let limit = text.len().saturating_sub(right.unwrap_or(0));
        while offset < limit {
            let Some((index, lengths)) = self.find(&tree.value, text.get(offset..limit).unwrap_or_default()) else {
                return false;
            };
            let start = offset.saturating_add(index);
            let before = text.get(..start).unwrap_or_default();
            if tree.left.as_ref().map_or(before.is_empty(), |left| self.fits(left, before)) {
                for length in lengths.iter().rev() {
                    let after = tail(text, start.saturating_add(*length));
                    if tree.right.as_ref().map_or(after.is_empty(), |right| self.fits(right, after)) {
                        return true;
                    }
                }
            }
            offset = start.saturating_add(first(tail(text, start)).map_or(0, |(_, width)| width));
            if !self.go_on(&[]) || start >= text.len() {
                return false;
            }
        }
        false
    }

    /// Looks for the piece inside the text.
    fn find(&self, piece: &Node, text: &[u8]) -> Found {
        if !self.go_on(text) {
            return None;
        }
        match piece {
            Node::Any(delimiters) => {
                let end = find_any(text, delimiters).unwrap_or(text.len());
                Some((0, places(text.get(..end).unwrap_or_default())))
            }
            Node::Super => Some((0, places(text))),
            Node::Single(delimiters) => one(text, |char| !delimiters.contains(&char)),
            Node::List { chars, not } => one(text, |char| chars.contains(&char) != *not),
            Node::Range { low, high, not } => one(text, |char| (*low..=*high).contains(&char) != *not),
            Node::Text(own) => Some((find(text, own.as_bytes())?, vec![own.len()])),
            Node::Nothing => Some((0, vec![0])),
            Node::Min(least) => {
                text.len().checked_sub(*least)?;
                let ends = chars(text).map(|(at, char)| at.saturating_add(char.len_utf8()));
                let ends: Vec<usize> = ends.skip(least.saturating_sub(1)).collect();
                (!ends.is_empty()).then_some((0, ends))
            }
            Node::Max(most) => {
                let ends = chars(text).map(|(at, char)| at.saturating_add(char.len_utf8()));
                Some((0, std::iter::once(0).chain(ends.take(*most)).collect()))
            }
            Node::Without(needle) => {
                let end = find(text, needle.as_bytes()).unwrap_or(text.len());
                Some((0, places(text.get(..end).unwrap_or_default())))
            }
            Node::Contains(needle) => {
                let offset = find(text, needle.as_bytes())?.saturating_add(needle.len());
                Some((0, places(tail(text, offset)).into_iter().map(|at| at.saturating_add(offset)).collect()))
            }
            Node::Prefix(prefix) => {
                let at = find(text, prefix.as_bytes())?;
                Some((at, ends_after(prefix.len(), tail(text, at.saturating_add(prefix.len())))))
            }
            Node::Suffix(suffix) => Some((0, vec![find(text, suffix.as_bytes())?.saturating_add(suffix.len())])),
            Node::PrefixSuffix(prefix, suffix) => {
                let at = find(text, prefix.as_bytes())?;
                let mut rest = tail(text, at);
                if suffix.is_empty() {
                    return Some((at, vec![rest.len()]));
                }
                let mut ends = Vec::new();
                while let Some(found) = find_last(rest, suffix.as_bytes()) {
                    ends.push(found.saturating_add(suffix.len()));
                    rest = rest.get(..found).unwrap_or_default();
                }
                ends.reverse();
                (!ends.is_empty()).then_some((at, ends))
            }
            Node::PrefixAny(prefix, delimiters) => {
                let at = find(text, prefix.as_bytes())?;
                let rest = tail(text, at.saturating_add(prefix.len()));
                let end = find_any(rest, delimiters).unwrap_or(rest.len());
                Some((at, ends_after(prefix.len(), rest.get(..end).unwrap_or_default())))
            }
            Node::SuffixAny(suffix, delimiters) => {
                let found = find(text, suffix.as_bytes())?;
                let last = find_last_any(text.get(..found).unwrap_or_default(), delimiters);
                let start = last.map_or(0, |at| at.saturating_add(1));
                Some((start, vec![found.saturating_add(suffix.len()).saturating_sub(start)]))
            }
            Node::AnyOf(pieces) => {
                let mut best: Found = None;
                for (at, lengths) in pieces.iter().filter_map(|piece| self.find(piece, text)) {
                    match &mut best {
                        Some((known, _)) if at > *known => {}
                        Some((known, all)) if at == *known => {
                            all.extend(lengths);
                            all.sort_unstable();
                            all.dedup();
                        }
                        _ => best = Some((at, lengths)),
                    }
                }
                best
            }
            Node::EveryOf(pieces) => self.find_every(pieces, text),
            Node::Row(length, pieces) => {
                let starts = chars(text).map(|(at, _)| at);
                let fitting = |at: &usize| tail(text, *at).len() >= *length && self.begins(pieces, tail(text, *at));
                Some((starts.into_iter().find(fitting)?, vec![*length]))
            }
            // The library never finds a tree inside a text.
            Node::Tree(_) => None,
        }
    }

    fn find_every(&self, pieces: &[Node], text: &[u8]) -> Found {
        let (mut index, mut offset) = (0usize, 0usize);
        let mut current: Vec<usize> = Vec::new();
        let mut rest = text;
        for (turn, piece) in pieces.iter().enumerate() {
            let (at, lengths) = self.find(piece, rest)?;
            if turn == 0 {
                current = lengths;
            } else {
                let shift = at.saturating_add(offset);
                let same = |known: &usize| {
                    let place = known.saturating_add(index);
                    place.checked_sub(shift).is_some_and(|length| lengths.contains(&length))
                };
                current = current
                    .iter()
                    .filter(|known| same(known))
                    .map(|known| known.saturating_add(index).saturating_sub(shift))
                    .collect();
                if current.is_empty() {
                    return None;
                }
            }
            index = at.saturating_add(offset);
            rest = tail(text, index);
            offset = offset.saturating_add(at);
        }
        Some((index, current))
    }
}

/// The first character that is wanted.
fn one(text: &[u8], wanted: impl Fn(char) -> bool) -> Found {
    chars(text).find(|(_, char)| wanted(*char)).map(|(at, char)| (at, vec![char.len_utf8()]))
}

/// `from`, and the end of each character of what follows.
fn ends_after(from: usize, text: &[u8]) -> Vec<usize> {
    let ends = chars(text).map(|(at, char)| from.saturating_add(at).saturating_add(char.len_utf8()));
    std::iter::once(from).chain(ends).collect()
}
