//! Ordered statements to code.
//!
//! At every point it is known which variables have values, so that a unification becomes an assignment, a comparison or a
//! taking apart when it is compiled.

mod conditions;
mod queries;
mod references;
mod unification;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

pub(crate) use self::conditions::conditions;
pub use self::queries::{CompiledQuery, compile_query};
use super::hir::{self, Expr, ExprKind, Function, Term, VarId, VarInfo, WithTarget, WithValue};
use super::resolve::is_wildcard;
use crate::builtins::{Builtin, Prepared};
use crate::host::Place;
use crate::policy::{
    Call, Code, Comparison, GroupKind, Mock, MockValue, Node, Op, Override, Reg, Replacement, RuleCode, Src,
};
use crate::syntax::Location;
use crate::value::{TRUE, Value};

/// The tree of rules, as far as code needs it.
#[derive(Debug)]
pub(super) struct Tree<'a> {
    pub nodes: &'a [Node],
    pub kinds: Vec<GroupKind>,
    /// Some `with` replaces a comparison; then comparisons are calls as any other.
    pub replaces_comparisons: bool,
    /// The source positions of the code, when it is traced.
    pub traced: Option<RefCell<Vec<Place>>>,
    /// The code made so far calls a function that may wait.
    pub waits: Cell<bool>,
}

/// The code of one definition.
pub(super) fn rule(tree: &Tree<'_>, rule: &hir::Rule, kind: GroupKind) -> RuleCode {
    let clauses = rule.clauses.iter().enumerate().map(|(at, clause)| {
        let mut lowerer = Lowerer::new(tree, &rule.vars, &rule.file);
        lowerer.arguments(rule.args.as_deref().unwrap_or_default());
        lowerer.finish(clause, if at == 0 { &rule.tail } else { &[] })
    });
    let clauses = clauses.collect();
    let member = match kind {
        GroupKind::Set => rule.clauses.first().map(|clause| &clause.value),
        GroupKind::Object => rule.tail.first(),
        _ => None,
    };
    let keyed = member.zip(rule.clauses.first()).and_then(|(member, clause)| keyed(tree, rule, clause, member));
    RuleCode { at: rule.at, file: rule.file.clone(), clauses, keyed }
}

/// The first clause, for one member: its key comes in register 0.
fn keyed(tree: &Tree<'_>, rule: &hir::Rule, clause: &hir::Clause, member: &Term) -> Option<Code> {
    let key = VarId::try_from(rule.vars.len()).ok()?;
    let mut body = clause.body.clone();
    let kind = ExprKind::Eq { left: member.clone(), right: Term::Var(key), assigned: false };
    body.insert(0, Expr { at: clause.at, negated: false, kind, with: [].into() });
    let known = std::iter::once(key).collect();
    let body = super::safety::reorder(body, &known).ok()?;
    let mut lowerer = Lowerer::new(tree, &rule.vars, &rule.file);
    lowerer.reserve(1);
    lowerer.bind(key, Src::Reg(0));
    let clause = hir::Clause { at: clause.at, value: clause.value.clone(), body };
    Some(lowerer.finish(&clause, &rule.tail))
}

/// Makes the code of one body.
pub(super) struct Lowerer<'a> {
    tree: &'a Tree<'a>,
    vars: &'a [VarInfo],
    file: &'a Arc<str>,
    /// Where variables that have values have them.
    places: HashMap<VarId, Src>,
    /// Registers with the values at paths of the input.
    input_paths: HashMap<Vec<Value>, Reg>,
    next: Reg,
    most: Reg,
    ops: Vec<Op>,
    /// `==` gives a result to look at, instead of being the same as `=`.
    pub keeps_equal: bool,
    next_var: VarId,
}

impl<'a> Lowerer<'a> {
    pub(super) fn new(tree: &'a Tree<'a>, vars: &'a [VarInfo], file: &'a Arc<str>) -> Self {
        Self {
            tree,
            vars,
            file,
            places: HashMap::new(),
            input_paths: HashMap::new(),
            next: 0,
            most: 0,
            ops: Vec::new(),
            keeps_equal: false,
            next_var: VarId::MAX,
        }
    }

    fn finish(mut self, clause: &hir::Clause, tail: &[Term]) -> Code {
        self.body(&clause.body);
        let tail = tail.iter().map(|term| self.eval(term)).collect();
        let value = self.eval(&clause.value);
        self.visit(clause.at, true);
        Code { ops: hoisted(self.ops), frame: self.most, tail, value: Some(value) }
    }

    fn reserve(&mut self, count: Reg) {
        self.next = self.next.saturating_add(count);
        self.most = self.most.max(self.next);
    }

    fn reg(&mut self) -> Reg {
        let reg = self.next;
        self.reserve(1);
        reg
    }

    fn bind(&mut self, var: VarId, src: Src) {
        self.places.insert(var, src);
    }

    /// A variable of the compiler's own.
    fn temporary(&mut self, src: Src) -> Term {
        let var = self.next_var;
        self.next_var = self.next_var.saturating_sub(1);
        self.bind(var, src);
        Term::Var(var)
    }

    /// Arguments come in the first registers; what is made of their values needs others.
    fn arguments(&mut self, args: &[Term]) {
        self.reserve(Reg::try_from(args.len()).unwrap_or(Reg::MAX));
        let mut patterns = Vec::new();
        for (arg, reg) in args.iter().zip(0..) {
            match arg {
                Term::Var(var) if !self.places.contains_key(var) => self.bind(*var, Src::Reg(reg)),
                _ => patterns.push((arg, reg)),
            }
        }
        for (arg, reg) in patterns {
            self.destructure(arg, &Src::Reg(reg));
        }
    }

    /// Code made apart, with variables that it gives values to forgotten afterwards.
    fn with_scope<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> (Box<[Op]>, T) {
        let places = self.places.clone();
        let input_paths = self.input_paths.clone();
        let ops = std::mem::take(&mut self.ops);
        let made = make(self);
        let inner = std::mem::replace(&mut self.ops, ops);
        self.places = places;
        self.input_paths = input_paths;
        (hoisted(inner), made)
    }

    pub(super) fn body(&mut self, body: &[Expr]) {
        for expr in body {
            self.expr(expr);
        }
    }

    /// Emits a source position, when the policy is traced.
    fn visit(&mut self, at: Location, is_head: bool) {
        if let Some(places) = &self.tree.traced {
            let place = Place { file: self.file.clone(), at, is_head };
            places.borrow_mut().push(place.clone());
            self.ops.push(Op::Visit(Box::new(place)));
        }
    }

    pub(super) fn expr(&mut self, expr: &Expr) {
        self.visit(expr.at, false);
        if !expr.with.is_empty() {
            return self.with(expr);
        }
        self.bare(expr);
    }

    fn bare(&mut self, expr: &Expr) {
        if !expr.negated {
            return self.positive(&expr.kind, expr.at);
        }
        // References in operands are looked up outside the negation: if one is undefined, the body fails.
        let kind = self.operands_out(&expr.kind);
        let (ops, ()) = self.with_scope(|lowerer| lowerer.positive(&kind, expr.at));
        self.ops.push(Op::Not(ops));
    }

    /// Mirrors: `rewriteDynamics`.
    fn operands_out(&mut self, kind: &ExprKind) -> ExprKind {
        match kind {
            ExprKind::Term(term) => ExprKind::Term(self.operands_of(term)),
            ExprKind::Eq { left, right, assigned } => {
                ExprKind::Eq { left: self.operands_of(left), right: self.operands_of(right), assigned: *assigned }
            }
            ExprKind::Call { function, args, out } => {
                if let (false, Some([left, right])) = (self.keeps_equal, equality(function, args, out.as_ref())) {
                    return ExprKind::Eq {
                        left: self.operands_of(left),
                        right: self.operands_of(right),
                        assigned: false,
                    };
                }
                let args = args.iter().map(|arg| self.outside(arg)).collect();
                ExprKind::Call { function: function.clone(), args, out: out.as_ref().map(|out| self.outside(out)) }
            }
            other => other.clone(),
        }
    }

    fn operands_of(&mut self, term: &Term) -> Term {
        match term {
            Term::Ref(root, path) => Term::Ref(*root, path.iter().map(|part| self.outside(part)).collect()),
            Term::Comprehension(_) => term.clone(),
            other => self.outside(other),
        }
    }

    /// The term with its references and comprehensions evaluated here.
    fn outside(&mut self, term: &Term) -> Term {
        match term {
            Term::Ref(..) | Term::Comprehension(_) => {
                let src = self.eval(term);
                self.temporary(src)
            }
            Term::Array(items) => Term::Array(items.iter().map(|item| self.outside(item)).collect()),
            Term::Set(items) => Term::Set(items.iter().map(|item| self.outside(item)).collect()),
            Term::Object(members) => {
                Term::Object(members.iter().map(|(key, value)| (self.outside(key), self.outside(value))).collect())
            }
            other => other.clone(),
        }
    }

    fn positive(&mut self, kind: &ExprKind, at: Location) {
        match kind {
            ExprKind::Term(Term::Const(value)) if !value.is_false() => {}
            ExprKind::Term(term) => {
                let src = self.eval(term);
                self.ops.push(Op::Truth(src));
            }
            ExprKind::Eq { left, right, .. } => self.unify(left, right),
            ExprKind::Call { function, args, out } => self.call(function, args, out.as_ref(), at),
            ExprKind::Every { key, value, domain, body } => {
                let over = self.eval(domain);
                let (key_reg, value_reg) = (self.reg(), self.reg());
                let (ops, ()) = self.with_scope(|lowerer| {
                    lowerer.bind(*key, Src::Reg(key_reg));
                    lowerer.bind(*value, Src::Reg(value_reg));
                    lowerer.body(body);
                });
                self.ops.push(Op::Every { over, key: key_reg, value: value_reg, ops });
            }
            ExprKind::Not { body, .. } => {
                let (ops, ()) = self.with_scope(|lowerer| lowerer.body(body));
                self.ops.push(Op::Not(ops));
            }
        }
    }

    fn call(&mut self, function: &Function, args: &[Term], out: Option<&Term>, at: Location) {
        if let (false, Some([left, right])) = (self.keeps_equal, equality(function, args, out)) {
            return self.unify(left, right);
        }
        match function {
            Function::Builtin(builtin) if builtin.relation => self.relation(args, out),
            Function::Builtin(builtin) if builtin.name == "print" => {
                let args = args.iter().map(|arg| self.eval(arg)).collect();
                self.ops.push(Op::Print { args });
            }
            Function::Builtin(builtin) => self.builtin(builtin, args, out, at),
            Function::Rule(path) => {
                let node = path.iter().try_fold(crate::policy::ROOT, |node, key| {
                    self.tree.nodes.get(node as usize)?.children.get(key).copied()
                });
                let group = node.and_then(|node| self.tree.nodes.get(node as usize)?.group);
                let args: Box<[Src]> = args.iter().map(|arg| self.eval(arg)).collect();
                let Some(group) = group else { return self.ops.push(Op::Fail) };
                let to = self.reg();
                self.ops.push(Op::Function { group, args, to, at });
                self.result(out, to);
            }
        }
    }

    /// The use of a call's result: unified with the written term, or tested.
    fn result(&mut self, out: Option<&Term>, reg: Reg) {
        match out {
            Some(Term::Var(var)) if !self.places.contains_key(var) => self.bind(*var, Src::Reg(reg)),
            Some(term) => self.destructure(term, &Src::Reg(reg)),
            None => self.ops.push(Op::Truth(Src::Reg(reg))),
        }
    }

    fn builtin(&mut self, builtin: &'static Builtin, args: &[Term], out: Option<&Term>, at: Location) {
        self.tree.waits.set(self.tree.waits.get() || builtin.waits);
        let args: Box<[Src]> = args.iter().map(|arg| self.eval(arg)).collect();
        match (out, comparison(builtin), &*args) {
            (None, Some(comparison), [left, right]) if !self.tree.replaces_comparisons => {
                self.ops.push(Op::Compare(comparison, left.clone(), right.clone()));
            }
            (None, ..) => {
                let prepared = prepare(builtin, &args);
                self.ops.push(Op::BuiltinTest(Call { function: builtin, args, at, prepared }));
            }
            (Some(_), ..) => {
                let to = self.reg();
                let prepared = prepare(builtin, &args);
                self.ops.push(Op::Builtin { call: Call { function: builtin, args, at, prepared }, to });
                self.result(out, to);
            }
        }
    }

    /// `walk(document, [path, value])`.
    fn relation(&mut self, args: &[Term], out: Option<&Term>) {
        let over = match args.first() {
            Some(term) => self.eval(term),
            None => return,
        };
        let value = self.reg();
        match out {
            Some(Term::Array(parts)) if parts.len() == 2 => {
                let (path_term, value_term) = (parts.first(), parts.get(1));
                let unused = path_term.is_some_and(|term| self.is_unused(term));
                let path = if unused { None } else { Some(self.reg()) };
                self.ops.push(Op::Walk { over, path, value });
                if let (Some(term), Some(path)) = (path_term, path) {
                    self.destructure(term, &Src::Reg(path));
                }
                if let Some(term) = value_term {
                    self.destructure(term, &Src::Reg(value));
                }
            }
            _ => {
                let path = self.reg();
                self.ops.push(Op::Walk { over, path: Some(path), value });
                if let Some(term) = out {
                    let to = self.reg();
                    self.ops.push(Op::Array([Src::Reg(path), Src::Reg(value)].into(), to));
                    self.destructure(term, &Src::Reg(to));
                }
            }
        }
    }

    /// The value of the term is not used: a wildcard, or the key that `some x in xs` has to have.
    fn is_unused(&self, term: &Term) -> bool {
        match term {
            Term::Var(var) => {
                let info = self.vars.get(*var as usize);
                !self.places.contains_key(var) && info.is_some_and(|info| is_wildcard(&info.name))
            }
            _ => false,
        }
    }

    fn with(&mut self, expr: &Expr) {
        let overrides = expr.with.iter().flat_map(|with| self.replacements(with)).collect();
        let places = self.places.clone();
        let input_paths = std::mem::take(&mut self.input_paths);
        let ops = std::mem::take(&mut self.ops);
        self.bare(&Expr { with: [].into(), ..expr.clone() });
        // A variable that got a value in there keeps it in a register of its own.
        let mut outs = HashSet::new();
        for (var, src) in &self.places {
            if let (Src::Reg(reg), false) = (src, places.contains_key(var)) {
                outs.insert(*reg);
            }
        }
        let fresh: Vec<(VarId, Src)> = self
            .places
            .iter()
            .filter(|(var, src)| !places.contains_key(var) && matches!(src, Src::Input | Src::Data))
            .map(|(var, src)| (*var, src.clone()))
            .collect();
        for (var, src) in fresh {
            // The documents are other ones outside.
            let to = self.reg();
            self.ops.push(Op::Path { from: src, path: Box::default(), to, base: false });
            self.bind(var, Src::Reg(to));
            outs.insert(to);
        }
        self.input_paths = input_paths;
        let inner = std::mem::replace(&mut self.ops, ops);
        let mut outs: Vec<Reg> = outs.into_iter().collect();
        outs.sort_unstable();
        self.ops.push(Op::With { overrides, ops: inner.into(), outs: outs.into() });
    }

    fn replacements(&mut self, with: &hir::With) -> Vec<Override> {
        let mut found: Vec<Override> = self.replacement(with).into_iter().collect();
        // A function that is replaced by a value shows that value in its package, too.
        if let (WithTarget::Function(Function::Rule(path)), WithValue::Term(term)) = (&with.target, &with.value) {
            found.push(Override::Data(path.to_vec(), self.eval(term)));
        }
        found
    }

    fn replacement(&mut self, with: &hir::With) -> Option<Override> {
        Some(match (&with.target, &with.value) {
            (WithTarget::Input(path), WithValue::Term(term)) => Override::Input(path.clone(), self.eval(term)),
            (WithTarget::Data(path), WithValue::Term(term)) => Override::Data(path.clone(), self.eval(term)),
            (WithTarget::Function(function), value) => {
                let of = self.function(function)?;
                let by = match value {
                    WithValue::Term(term) => MockValue::Value(self.eval(term)),
                    WithValue::Function(function) => MockValue::Function(self.function(function)?),
                };
                Override::Mock(Mock { of, by })
            }
            _ => return None,
        })
    }

    fn function(&self, function: &Function) -> Option<Replacement> {
        match function {
            Function::Builtin(builtin) => {
                self.tree.waits.set(self.tree.waits.get() || builtin.waits);
                Some(Replacement::Builtin(builtin))
            }
            Function::Rule(path) => {
                let node = path.iter().try_fold(crate::policy::ROOT, |node, key| {
                    self.tree.nodes.get(node as usize)?.children.get(key).copied()
                })?;
                self.tree.nodes.get(node as usize)?.group.map(Replacement::Rule)
            }
        }
    }

    /// The value of a term whose variables have values, or get them from references in it.
    pub(super) fn eval(&mut self, term: &Term) -> Src {
        match term {
            Term::Const(value) => Src::Const(value.clone()),
            Term::Var(var) => match self.places.get(var) {
                Some(src) => src.clone(),
                None => {
                    // Safety has made sure that this cannot be.
                    self.ops.push(Op::Fail);
                    Src::Const(TRUE.clone())
                }
            },
            Term::Ref(root, path) => self.reference(*root, path),
            Term::Array(items) => {
                let items = items.iter().map(|item| self.eval(item)).collect();
                let to = self.reg();
                self.ops.push(Op::Array(items, to));
                Src::Reg(to)
            }
            Term::Set(items) => {
                let items = items.iter().map(|item| self.eval(item)).collect();
                let to = self.reg();
                self.ops.push(Op::Set(items, to));
                Src::Reg(to)
            }
            Term::Object(members) => {
                let members = members.iter().map(|(key, value)| (self.eval(key), self.eval(value))).collect();
                let to = self.reg();
                self.ops.push(Op::Object(members, to));
                Src::Reg(to)
            }
            Term::Comprehension(it) => {
                let (ops, (key, value)) = self.with_scope(|lowerer| {
                    lowerer.body(&it.body);
                    let key = it.key.as_ref().map(|key| lowerer.eval(key));
                    (key, lowerer.eval(&it.value))
                });
                let to = self.reg();
                self.ops.push(Op::Collect { kind: it.kind, ops, key, value, to });
                Src::Reg(to)
            }
        }
    }
}

/// Moves lookups in the input before the loops that do not change them. Only past operations that neither fail the
/// evaluation nor run rules, so that nothing else is evaluated than before.
fn hoisted(mut ops: Vec<Op>) -> Box<[Op]> {
    for at in 1..ops.len() {
        if !matches!(ops.get(at), Some(Op::Path { from: Src::Input, .. })) {
            continue;
        }
        let mut target = at;
        for before in (0..at).rev() {
            match ops.get(before) {
                Some(Op::Scan { .. }) => target = before,
                Some(Op::Path { .. } | Op::Get { .. } | Op::Compare(..) | Op::Truth(_)) => {}
                Some(Op::ArrayLen(..) | Op::ObjectLen(..)) => {}
                _ => break,
            }
        }
        if target < at {
            let op = ops.remove(at);
            ops.insert(target, op);
        }
    }
    ops.into()
}

/// The sides of `left == right`, where nothing looks at the result.
fn equality<'t>(function: &Function, args: &'t [Term], out: Option<&Term>) -> Option<[&'t Term; 2]> {
    match (function, args, out) {
        (Function::Builtin(builtin), [left, right], None) if builtin.name == "equal" => Some([left, right]),
        _ => None,
    }
}

/// The pattern of the call, compiled, where it is constant.
fn prepare(builtin: &Builtin, args: &[Src]) -> Option<Box<Prepared>> {
    let constants: Vec<Option<&Value>> = args
        .iter()
        .map(|src| match src {
            Src::Const(value) => Some(value),
            _ => None,
        })
        .collect();
    Prepared::of(builtin.name, &constants).map(Box::new)
}

/// The body replaces a function that comparisons are made of.
pub(super) fn replaces_comparisons(body: &[Expr]) -> bool {
    body.iter().any(|expr| {
        let replaces = expr.with.iter().any(|with| match &with.target {
            WithTarget::Function(Function::Builtin(builtin)) => comparison(builtin).is_some(),
            _ => false,
        });
        replaces
            || match &expr.kind {
                ExprKind::Every { body, .. } | ExprKind::Not { body, .. } => replaces_comparisons(body),
                _ => false,
            }
            || {
                let mut found = false;
                expr.terms(&mut |term| term.closures(&mut |it| found |= replaces_comparisons(&it.body)));
                found
            }
    })
}

fn comparison(builtin: &Builtin) -> Option<Comparison> {
    Some(match builtin.name {
        "equal" => Comparison::Equal,
        "neq" => Comparison::NotEqual,
        "lt" => Comparison::Less,
        "lte" => Comparison::LessOrEqual,
        "gt" => Comparison::Greater,
        "gte" => Comparison::GreaterOrEqual,
        _ => return None,
    })
}
