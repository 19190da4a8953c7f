//! Rules that depend on themselves.

use std::collections::HashSet;

use super::CompileError;
use super::hir::{self, ExprKind, Function, Root, Term, WithTarget, WithValue, data_path};
use super::tree::Members;
use crate::policy::{GroupId, Node, NodeId, ROOT, RuleSet};
use crate::value::Value;

/// Rules of one cycle that its error names.
const MAX_SHOWN: usize = 32;

/// Which rules each rule refers to, all by group.
#[derive(Debug)]
pub(super) struct Dependencies<'a> {
    graph: Vec<Vec<GroupId>>,
    groups: &'a [RuleSet],
    members: &'a Members,
    rules: &'a [hir::Rule],
}

#[derive(Clone, Copy, PartialEq)]
enum Colour {
    New,
    Open,
    Done,
}

impl<'a> Dependencies<'a> {
    pub(super) fn of(nodes: &[Node], groups: &'a [RuleSet], members: &'a Members, rules: &'a [hir::Rule]) -> Self {
        let reached = members.iter().map(|list| {
            let mut found = Found { nodes, reached: HashSet::new() };
            for rule in list.iter().filter_map(|&at| rules.get(at)) {
                found.rule(rule);
            }
            let mut reached: Vec<_> = found.reached.into_iter().collect();
            reached.sort_unstable();
            reached
        });
        Self { graph: reached.collect(), groups, members, rules }
    }

    /// For each group, those that it refers to.
    pub(super) fn into_graph(self) -> Vec<Vec<GroupId>> {
        self.graph
    }

    /// The groups, each after those that it refers to.
    pub(super) fn order(&self) -> Vec<GroupId> {
        let mut order = Vec::with_capacity(self.graph.len());
        self.walk(|group| order.push(GroupId::try_from(group).unwrap_or(GroupId::MAX)), |_| {});
        order
    }

    /// Every rule that reaches itself.
    pub(super) fn cycles(&self) -> Vec<CompileError> {
        let mut errors = Vec::new();
        let mut reported = HashSet::new();
        self.walk(|_| {}, |cycle| errors.extend(self.reports(cycle, &mut reported)));
        errors
    }

    /// Visits all groups depth first; reports when one and all below it are done, and cycles.
    fn walk(&self, mut done: impl FnMut(usize), mut cycle: impl FnMut(&[usize])) {
        let mut colours = vec![Colour::New; self.graph.len()];
        for start in 0..self.graph.len() {
            let mut stack = vec![(start, 0usize)];
            while let Some((at, next)) = stack.pop() {
                let (Some(edges), Some(colour)) = (self.graph.get(at), colours.get_mut(at)) else { continue };
                if next == 0 {
                    if *colour != Colour::New {
                        continue;
                    }
                    *colour = Colour::Open;
                }
                let Some(&target) = edges.get(next) else {
                    *colour = Colour::Done;
                    done(at);
                    continue;
                };
                stack.push((at, next.saturating_add(1)));
                match colours.get(target as usize) {
                    Some(Colour::Open) => {
                        let from = stack.iter().position(|(at, _)| *at == target as usize).unwrap_or(0);
                        let open: Vec<usize> = stack.iter().skip(from).map(|(at, _)| *at).collect();
                        cycle(&open);
                    }
                    Some(Colour::New) => stack.push((target as usize, 0)),
                    _ => {}
                }
            }
        }
    }

    /// One error for every rule on a cycle that has none yet.
    fn reports(&self, cycle: &[usize], reported: &mut HashSet<usize>) -> Vec<CompileError> {
        let name = |at: usize| self.groups.get(at).map(|group| data_path(&group.path)).unwrap_or_default();
        let report = |(turn, &at): (usize, &usize)| {
            let members = self.members.get(at)?;
            let rule = members.first().and_then(|&at| self.rules.get(at))?;
            if !reported.insert(at) {
                return None;
            }
            let path = cycle.iter().cycle().skip(turn).take(cycle.len().saturating_add(1).min(MAX_SHOWN));
            let path: Vec<String> = path.map(|&at| name(at)).collect();
            Some(CompileError {
                code: "rego_recursion_error",
                file: rule.file.clone(),
                at: rule.at,
                message: format!("rule {} is recursive: {}", name(at), path.join(" -> ")),
            })
        };
        cycle.iter().enumerate().filter_map(report).collect()
    }
}

struct Found<'a> {
    nodes: &'a [Node],
    reached: HashSet<GroupId>,
}

impl Found<'_> {
    fn rule(&mut self, rule: &hir::Rule) {
        for clause in &rule.clauses {
            self.body(&clause.body);
            self.term(&clause.value);
        }
        rule.tail.iter().chain(rule.args.iter().flatten()).for_each(|term| self.term(term));
    }

    fn body(&mut self, body: &[hir::Expr]) {
        for expr in body {
            expr.terms(&mut |term| self.term(term));
            expr.with_terms(&mut |term| self.term(term));
            for with in &*expr.with {
                if let WithValue::Function(Function::Rule(path)) = &with.value {
                    self.path(path.iter().map(Some));
                }
                if let WithTarget::Function(Function::Rule(path)) = &with.target {
                    self.path(path.iter().map(Some));
                }
            }
            match &expr.kind {
                ExprKind::Call { function: Function::Rule(path), .. } => self.path(path.iter().map(Some)),
                ExprKind::Every { body, .. } | ExprKind::Not { body, .. } => self.body(body),
                _ => {}
            }
        }
    }

    fn term(&mut self, term: &Term) {
        match term {
            Term::Const(_) | Term::Var(_) => {}
            Term::Ref(root, path) => {
                if *root == Root::Data {
                    self.path(path.iter().map(Term::as_const));
                }
                path.iter().for_each(|term| self.term(term));
            }
            Term::Array(items) | Term::Set(items) => items.iter().for_each(|term| self.term(term)),
            Term::Object(members) => members.iter().for_each(|(key, value)| {
                self.term(key);
                self.term(value);
            }),
            Term::Comprehension(it) => {
                it.key.iter().for_each(|term| self.term(term));
                self.term(&it.value);
                self.body(&it.body);
            }
        }
    }

    /// Everything that a reference with these keys can reach; an unknown key is any.
    fn path<'v>(&mut self, keys: impl Iterator<Item = Option<&'v Value>>) {
        let mut here: Vec<NodeId> = vec![ROOT];
        for key in keys {
            let mut next = Vec::new();
            for node in here.iter().filter_map(|&id| self.nodes.get(id as usize)) {
                if let Some(group) = node.group {
                    self.reached.insert(group);
                    continue;
                }
                self.reached.extend(node.dynamic);
                match key {
                    Some(key) => next.extend(node.children.get(key)),
                    None => next.extend(node.children.values()),
                }
            }
            here = next;
        }
        while let Some(id) = here.pop() {
            let Some(node) = self.nodes.get(id as usize) else { continue };
            self.reached.extend(node.group);
            self.reached.extend(node.dynamic);
            here.extend(node.children.values());
        }
    }
}
