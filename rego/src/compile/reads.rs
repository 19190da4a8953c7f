//! Which members of the input rules look at.

use std::collections::{BTreeSet, HashSet};

use super::hir::{self, Expr, ExprKind, Root, Term};
use crate::policy::{GroupId, NodeId, Policy, ROOT};
use crate::value::{Text, Value};

/// The members of the input that an evaluation can look at. All others could be missing, and nothing would change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reads {
    /// The policy takes the input as a whole, or keys that are not known before.
    All,
    Members(BTreeSet<Text>),
}

impl Default for Reads {
    fn default() -> Self {
        Self::Members(BTreeSet::new())
    }
}

impl Reads {
    pub fn contains(&self, member: &str) -> bool {
        match self {
            Self::All => true,
            Self::Members(members) => members.contains(member),
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        match (&mut *self, other) {
            (Self::Members(own), Self::Members(more)) => own.extend(more.iter().cloned()),
            _ => *self = Self::All,
        }
    }

    /// What the definition itself looks at.
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
            if let ExprKind::Every { body, .. } | ExprKind::Not(body) = &expr.kind {
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
                    self.input(path.first());
                }
                path.iter().for_each(|part| self.term(part));
            }
        }
    }

    fn input(&mut self, member: Option<&Term>) {
        match (&mut *self, member) {
            (Self::Members(members), Some(Term::Const(Value::String(name)))) => {
                members.insert(name.clone());
            }
            // The input is an object: other keys find nothing.
            (_, Some(Term::Const(_))) => {}
            _ => *self = Self::All,
        }
    }
}

impl Policy {
    /// What evaluating `data` at `path` can look at in the input.
    pub fn reads(&self, path: &[Value]) -> Reads {
        let mut open: Vec<GroupId> = Vec::new();
        let mut places: Vec<NodeId> = Vec::new();
        let mut here = Some(ROOT);
        for key in path {
            let Some(node) = here.and_then(|here| self.nodes.get(here as usize)) else { break };
            open.extend(node.group.into_iter().chain(node.dynamic));
            here = node.children.get(key).copied();
        }
        places.extend(here);
        while let Some(node) = places.pop().and_then(|place| self.nodes.get(place as usize)) {
            open.extend(node.group.into_iter().chain(node.dynamic));
            places.extend(node.children.values());
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
            }
        }
        reads
    }
}
