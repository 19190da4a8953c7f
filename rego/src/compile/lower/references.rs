//! References: into the input, into values, and into the tree of rules and data.

use super::Lowerer;
use crate::compile::hir::{Root, Term};
use crate::policy::{GroupKind, NodeId, Op, Operand, ROOT, Reg, Src};
use crate::value::{TRUE, Value};

impl Lowerer<'_> {
    pub(super) fn reference(&mut self, root: Root, path: &[Term]) -> Src {
        match root {
            Root::Input => self.chain(Src::Input, path),
            Root::Data => self.data(path),
            Root::Var(var) => {
                let src = self.eval(&Term::Var(var));
                self.chain(src, path)
            }
        }
    }

    /// Follows `path` from a value.
    fn chain(&mut self, from: Src, path: &[Term]) -> Src {
        let base = from == Src::Data;
        let mut src = from;
        let mut rest = path;
        while let Some((first, after)) = rest.split_first() {
            let constants: Vec<Value> = rest.iter().map_while(|term| term.as_const().cloned()).collect();
            if !constants.is_empty() {
                rest = rest.get(constants.len()..).unwrap_or_default();
                if src == Src::Input {
                    if let Some(reg) = self.input_paths.get(&constants) {
                        src = Src::Reg(*reg);
                        continue;
                    }
                    self.input_paths.insert(constants.clone(), self.next);
                }
                let to = self.reg();
                self.ops.push(Op::Path { from: src, path: constants.into(), to, base });
                src = Src::Reg(to);
                continue;
            }
            rest = after;
            src = self.member(src, first, base);
        }
        if src == Src::Input {
            // A look at the whole document fails where there is none.
            let to = self.reg();
            self.ops.push(Op::Path { from: src, path: Box::default(), to, base });
            return Src::Reg(to);
        }
        src
    }

    /// One step: a lookup when the key has a value, else every member in turn.
    fn member(&mut self, from: Src, key: &Term, base: bool) -> Src {
        let to = self.reg();
        if self.can_eval(key) {
            let key = self.eval(key);
            self.ops.push(Op::Get { from, key, to, base });
            return Src::Reg(to);
        }
        if self.is_unused(key) {
            self.ops.push(Op::Scan { over: from, key: None, value: to });
            return Src::Reg(to);
        }
        let key_reg = self.reg();
        self.ops.push(Op::Scan { over: from, key: Some(key_reg), value: to });
        self.destructure(key, &Src::Reg(key_reg));
        Src::Reg(to)
    }

    fn data(&mut self, path: &[Term]) -> Src {
        let mut node = ROOT;
        let mut at = 0usize;
        while let Some(here) = self.tree.nodes.get(node as usize) {
            let rest = path.get(at..).unwrap_or_default();
            if let Some(group) = here.group {
                return self.group(group, rest);
            }
            if let Some(group) = here.dynamic {
                return match rest.first() {
                    Some(key) if self.can_eval(key) => self.group(group, rest),
                    _ => self.document(node, rest),
                };
            }
            let Some((first, _)) = rest.split_first() else { return self.document(node, &[]) };
            let Some(key) = first.as_const() else { return self.dynamic(node, rest) };
            match here.children.get(key) {
                Some(&child) => {
                    node = child;
                    at = at.saturating_add(1);
                }
                None => break,
            }
        }
        // No rule lies there: base data alone.
        self.chain(Src::Data, path)
    }

    fn document(&mut self, node: NodeId, rest: &[Term]) -> Src {
        let to = self.reg();
        self.ops.push(Op::Document { node, to });
        self.chain(Src::Reg(to), rest)
    }

    fn group(&mut self, group: u32, rest: &[Term]) -> Src {
        let kind = self.tree.kinds.get(group as usize);
        match (kind, rest.split_first()) {
            (Some(GroupKind::Function), _) => {
                self.ops.push(Op::Fail);
                Src::Const(TRUE.clone())
            }
            (Some(GroupKind::Set | GroupKind::Object), Some((key, after))) if self.can_eval(key) => {
                let key = self.eval(key);
                let to = self.reg();
                self.ops.push(Op::Keyed { group, key, to });
                self.chain(Src::Reg(to), after)
            }
            _ => {
                let to = self.reg();
                self.ops.push(Op::Rule { group, to });
                self.chain(Src::Reg(to), rest)
            }
        }
    }

    /// A variable where packages are: resolved when it runs.
    fn dynamic(&mut self, node: NodeId, rest: &[Term]) -> Src {
        let mut operands = Vec::new();
        let mut patterns: Vec<(&Term, Reg)> = Vec::new();
        for part in rest {
            if self.can_eval(part) {
                operands.push(Operand::Bound(self.eval(part)));
                continue;
            }
            let reg = self.reg();
            operands.push(Operand::Free(reg));
            match part {
                // The same variable further on must have the same value.
                Term::Var(var) => self.bind(*var, Src::Reg(reg)),
                _ => patterns.push((part, reg)),
            }
        }
        let to = self.reg();
        self.ops.push(Op::Dynamic { node, operands: operands.into(), to });
        for (pattern, reg) in patterns {
            self.destructure(pattern, &Src::Reg(reg));
        }
        Src::Reg(to)
    }
}
