//! `left = right` when it is known which side has a value.

use super::Lowerer;
use crate::compile::hir::{Root, Term};
use crate::policy::{Comparison, Op, Src};
use crate::value::Value;

impl Lowerer<'_> {
    pub(super) fn unify(&mut self, left: &Term, right: &Term) {
        let mut pairs = vec![(left.clone(), right.clone())];
        while !pairs.is_empty() {
            let mut waiting = Vec::new();
            let before = pairs.len();
            let mut split = false;
            for (left, right) in pairs {
                match self.step(&left, &right) {
                    Step::Done => {}
                    Step::Split(more) => {
                        split = true;
                        waiting.extend(more);
                    }
                    Step::Waits => waiting.push((left, right)),
                }
            }
            if !split && waiting.len() == before {
                // Safety has made sure that this cannot be.
                return self.ops.push(Op::Fail);
            }
            pairs = waiting;
        }
    }

    fn step(&mut self, left: &Term, right: &Term) -> Step {
        for (var, other) in [(left, right), (right, left)] {
            if let Term::Var(id) = var
                && !self.places.contains_key(id)
            {
                if !self.can_eval(other) {
                    continue;
                }
                let src = self.eval(other);
                match self.places.get(id).cloned() {
                    // The other side has given it a value: `x = list[x]`.
                    Some(bound) => self.ops.push(Op::Compare(Comparison::Equal, bound, src)),
                    None => self.bind(*id, src),
                }
                return Step::Done;
            }
        }
        if let Some(pairs) = self.split(left, right) {
            return pairs;
        }
        match (self.can_eval(left), self.can_eval(right)) {
            (true, true) => {
                let left = self.eval(left);
                let right = self.eval(right);
                self.ops.push(Op::Compare(Comparison::Equal, left, right));
                Step::Done
            }
            (true, false) => {
                let src = self.eval(left);
                self.destructure_if_ready(right, &src, left)
            }
            (false, true) => {
                let src = self.eval(right);
                self.destructure_if_ready(left, &src, right)
            }
            (false, false) => Step::Waits,
        }
    }

    fn destructure_if_ready(&mut self, pattern: &Term, src: &Src, _: &Term) -> Step {
        self.destructure(pattern, src);
        Step::Done
    }

    /// Two arrays, or two objects with the same constant keys, are unified part by part.
    fn split(&mut self, left: &Term, right: &Term) -> Option<Step> {
        let array = |term: &Term| match term {
            Term::Array(items) => Some(items.clone()),
            Term::Const(Value::Array(items)) => Some(items.iter().cloned().map(Term::Const).collect()),
            _ => None,
        };
        let object = |term: &Term| -> Option<Members> {
            match term {
                Term::Object(members) => Some(members.clone()),
                Term::Const(Value::Object(object)) => {
                    let member =
                        |(key, value): (&Value, &Value)| (Term::Const(key.clone()), Term::Const(value.clone()));
                    Some(object.iter().map(member).collect())
                }
                _ => None,
            }
        };
        if let (Some(a), Some(b)) = (array(left), array(right)) {
            if a.len() != b.len() {
                self.ops.push(Op::Fail);
                return Some(Step::Done);
            }
            return Some(Step::Split(a.into_iter().zip(b).collect()));
        }
        let (Some(a), Some(b)) = (object(left), object(right)) else { return None };
        let constant = |members: &[(Term, Term)]| members.iter().all(|(key, _)| key.as_const().is_some());
        if !constant(&a) || !constant(&b) {
            return None;
        }
        if a.len() != b.len() {
            self.ops.push(Op::Fail);
            return Some(Step::Done);
        }
        let mut pairs = Vec::new();
        for (key, value) in a {
            match b.iter().find(|(other, _)| *other == key) {
                Some((_, other)) => pairs.push((value, other.clone())),
                None => {
                    self.ops.push(Op::Fail);
                    return Some(Step::Done);
                }
            }
        }
        Some(Step::Split(pairs))
    }

    /// Every variable has a value, or gets one from a reference inside.
    pub(super) fn can_eval(&self, term: &Term) -> bool {
        match term {
            Term::Const(_) | Term::Comprehension(_) => true,
            Term::Var(var) => self.places.contains_key(var),
            Term::Ref(root, _) => match root {
                Root::Var(var) => self.places.contains_key(var),
                _ => true,
            },
            Term::Array(items) | Term::Set(items) => items.iter().all(|item| self.can_eval(item)),
            Term::Object(members) => members.iter().all(|(key, value)| self.can_eval(key) && self.can_eval(value)),
        }
    }

    /// Takes the value at `src` with_scope as `pattern` says.
    pub(super) fn destructure(&mut self, pattern: &Term, src: &Src) {
        match pattern {
            Term::Var(var) if !self.places.contains_key(var) => self.bind(*var, src.clone()),
            Term::Array(items) if !self.can_eval(pattern) => {
                self.ops.push(Op::ArrayLen(src.clone(), items.len()));
                for (item, at) in items.iter().zip(0i64..) {
                    let to = self.reg();
                    self.ops.push(Op::Path { from: src.clone(), path: [Value::from(at)].into(), to, base: false });
                    self.destructure(item, &Src::Reg(to));
                }
            }
            Term::Object(members) if !self.can_eval(pattern) => {
                self.ops.push(Op::ObjectLen(src.clone(), members.len()));
                for (key, value) in members {
                    let key = self.eval(key);
                    let to = self.reg();
                    self.ops.push(Op::Get { from: src.clone(), key, to, base: false });
                    self.destructure(value, &Src::Reg(to));
                }
            }
            term => {
                let right = self.eval(term);
                self.ops.push(Op::Compare(Comparison::Equal, src.clone(), right));
            }
        }
    }
}

type Members = Vec<(Term, Term)>;

enum Step {
    Done,
    Split(Vec<(Term, Term)>),
    Waits,
}
