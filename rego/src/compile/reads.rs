//! Which places of the input rules look at.

use std::collections::{BTreeSet, HashSet};

use super::hir::{self, Expr, ExprKind, Root, Term};
use crate::policy::{GroupId, GroupKind, NodeId, Policy, ROOT};
use crate::value::{Text, Value};

/// The places of the input that an evaluation can look at, by the names that lead there. All else could be missing, and
/// nothing would change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    places: BTreeSet<Vec<Text>>,
}

impl Reads {
    /// Some part of the member of the input is read.
    pub fn contains(&self, member: &str) -> bool {
        self.places.iter().any(|place| place.first().is_none_or(|name| name == member))
    }

    /// The places, without those that lie in others; one without names is the input as a whole.
    pub fn places(&self) -> impl Iterator<Item = &[Text]> {
        let mut last: Option<&[Text]> = None;
        // Paths below a path come right after it.
        self.places.iter().map(Vec::as_slice).filter(move |place| {
            let is_inside = last.is_some_and(|last| place.starts_with(last));
            if !is_inside {
                last = Some(place);
            }
            !is_inside
        })
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.places.extend(other.places.iter().cloned());
    }

    /// The reads of the definition itself.
    pub(super) fn of(rule: &hir::Rule) -> Self {
        let mut reads = Self::default();
        rule.args.iter().flatten().chain(&rule.tail).for_each(|term| reads.term(term));
        for clause in &rule.clauses {
            reads.term(&clause.value);
            reads.body(&clause.body);
        }
        reads
    }

    fn body(&mut self, body: &[Expr]) {
        for expr in body {
            expr.terms(&mut |term| self.term(term));
            expr.with_terms(&mut |term| self.term(term));
            if let ExprKind::Every { body, .. } | ExprKind::Not { body, .. } = &expr.kind {
                self.body(body);
            }
        }
    }

    fn term(&mut self, term: &Term) {
        match term {
            Term::Const(_) | Term::Var(_) => {}
            Term::Array(items) | Term::Set(items) => items.iter().for_each(|item| self.term(item)),
            Term::Object(members) => members.iter().for_each(|(key, value)| {
                self.term(key);
                self.term(value);
            }),
            Term::Comprehension(it) => {
                it.key.iter().chain([&it.value]).for_each(|term| self.term(term));
                self.body(&it.body);
            }
            Term::Ref(root, path) => {
                if *root == Root::Input {
                    self.input(path);
                }
                path.iter().for_each(|part| self.term(part));
            }
        }
    }

    /// Looked at is what the names lead to, as far as they are known.
    fn input(&mut self, path: &[Term]) {
        let name = |term: &Term| match term {
            Term::Const(Value::String(name)) => Some(name.clone()),
            _ => None,
        };
        // The input is an object: what is no name finds nothing.
        if !matches!(path.first(), Some(Term::Const(key)) if key.as_str().is_none()) {
            self.places.insert(path.iter().map_while(name).collect());
        }
    }
}

impl Policy {
    /// The reads of the input by an evaluation of `data` at `path`.
    pub fn reads(&self, path: &[Value]) -> Reads {
        let mut open: Vec<GroupId> = Vec::new();
        let mut here = Some(ROOT);
        for key in path {
            let Some(node) = here.and_then(|here| self.nodes.get(here as usize)) else { break };
            open.extend(node.group.into_iter().chain(node.dynamic));
            here = node.children.get(key).copied();
        }
        if here.is_some() {
            open.extend(self.groups_below(path));
        }
        let mut seen: HashSet<GroupId> = HashSet::new();
        let mut reads = Reads::default();
        while let Some(group) = open.pop() {
            if !seen.insert(group) {
                continue;
            }
            if let Some(group) = self.groups.get(group as usize) {
                reads.add(&group.reads);
                open.extend(&group.refers_to);
                // Members that variables in heads define are those of one object with the rules below it.
                if group.kind == GroupKind::Object {
                    open.extend(self.groups_below(&group.path));
                }
            }
        }
        reads
    }

    /// The rules whose paths go on from `path`.
    fn groups_below(&self, path: &[Value]) -> Vec<GroupId> {
        let mut found = Vec::new();
        let mut places: Vec<NodeId> = self.node_at(path).into_iter().collect();
        while let Some(node) = places.pop().and_then(|place| self.nodes.get(place as usize)) {
            found.extend(node.group.into_iter().chain(node.dynamic));
            places.extend(node.children.values());
        }
        found
    }
}
