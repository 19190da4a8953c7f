//! The conditions of a definition on the input or its arguments, for the index.

use std::collections::HashMap;

use crate::builtins::glob_prefix;
use crate::compile::hir::{Expr, ExprKind, Function, Root, Rule, Term, VarId};
use crate::policy::{Condition, KeyPath, Test};
use crate::value::{Text, Value};

/// The conditions without which the definition cannot succeed.
pub(crate) fn conditions(rule: &Rule) -> Vec<Condition> {
    // With `else`, a failing first body says nothing about the others.
    let [clause] = rule.clauses.as_slice() else { return Vec::new() };
    let mut finder = Finder { aliases: HashMap::new(), found: Vec::new() };
    for (arg, at) in rule.args.iter().flatten().zip(0..) {
        let path = KeyPath { argument: Some(at), path: Box::default() };
        match arg {
            Term::Var(var) => {
                finder.aliases.insert(*var, path);
            }
            pattern => finder.equal(path, pattern),
        }
    }
    for expr in clause.body.iter().filter(|expr| !expr.negated && expr.with.is_empty()) {
        finder.statement(expr);
    }
    finder.found
}

struct Finder {
    /// Variables that stand for a path.
    aliases: HashMap<VarId, KeyPath>,
    found: Vec<Condition>,
}

impl Finder {
    fn statement(&mut self, expr: &Expr) {
        match &expr.kind {
            ExprKind::Eq { left, right, .. } => {
                if let (Term::Var(var), Some(path)) = (left, self.path(right))
                    && !self.aliases.contains_key(var)
                {
                    self.aliases.insert(*var, path);
                    return;
                }
                self.either(left, right);
            }
            ExprKind::Call { function: Function::Builtin(builtin), args, out: None } => {
                match (builtin.name, args.as_slice()) {
                    ("equal", [left, right]) => self.either(left, right),
                    ("startswith", [subject, Term::Const(Value::String(prefix))]) => {
                        self.begins(subject, prefix.clone());
                    }
                    ("glob.match", [Term::Const(Value::String(pattern)), _, subject]) => {
                        self.begins(subject, Text::from(glob_prefix(pattern)));
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn either(&mut self, left: &Term, right: &Term) {
        for (subject, value) in [(left, right), (right, left)] {
            if let Some(path) = self.path(subject) {
                self.equal(path, value);
            }
        }
    }

    fn begins(&mut self, subject: &Term, prefix: Text) {
        if let (Some(path), false) = (self.path(subject), prefix.is_empty()) {
            self.found.push(Condition { path, test: Test::Begins(prefix) });
        }
    }

    /// A constant asks for itself, an array for the constants in it.
    fn equal(&mut self, path: KeyPath, value: &Term) {
        match value {
            Term::Const(value) => self.found.push(Condition { path, test: Test::Equals(value.clone()) }),
            Term::Array(items) => {
                for (item, at) in items.iter().zip(0i64..) {
                    if let Term::Const(value) = item {
                        let inner = path.path.iter().cloned().chain([Value::from(at)]).collect();
                        let path = KeyPath { argument: path.argument, path: inner };
                        self.found.push(Condition { path, test: Test::Equals(value.clone()) });
                    }
                }
            }
            _ => {}
        }
    }

    /// The path that a term stands for, if it is a constant one into the input or an argument.
    fn path(&self, term: &Term) -> Option<KeyPath> {
        let (root, rest) = match term {
            Term::Var(var) => return self.aliases.get(var).cloned(),
            Term::Ref(root, rest) => (root, rest),
            _ => return None,
        };
        let start = match root {
            Root::Input => KeyPath { argument: None, path: Box::default() },
            Root::Var(var) => self.aliases.get(var)?.clone(),
            Root::Data => return None,
        };
        let rest: Option<Vec<Value>> = rest.iter().map(|term| term.as_const().cloned()).collect();
        let path = start.path.iter().cloned().chain(rest?).collect();
        Some(KeyPath { path, ..start })
    }
}
