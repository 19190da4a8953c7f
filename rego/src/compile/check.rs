//! The check of types: references that can lead nowhere, arguments that a function never takes, sides that are never equal.
//!
//! Such a statement is undefined for every input. Under `not` it is true, so a slip of the pen would open what it should close.
//!
//! Mirrors: OPA `v1/ast/check.go` and `env.go`, v1.19.0.

mod places;
mod unify;

use std::collections::HashMap;
use std::sync::Arc;

pub(crate) use self::places::Types;
use super::CompileError;
use super::hir::{self, Comprehension, Expr, ExprKind, Function, Root, Term, VarId, VarInfo, WithTarget, WithValue};
use crate::builtins;
use crate::policy::GroupId;
use crate::syntax::Location;
use crate::typing::{Arguments, Type};
use crate::value::Value;

/// Checks every rule after those that it refers to.
pub(super) fn rules(
    order: &[GroupId],
    members: &super::tree::Members,
    rules: &[hir::Rule],
) -> (Types, Vec<CompileError>) {
    let mut types = Types::default();
    let mut errors = Vec::new();
    let groups = order.iter().filter_map(|&group| members.get(group as usize));
    for rule in groups.flatten().filter_map(|&at| rules.get(at)) {
        for (at, clause) in rule.clauses.iter().enumerate() {
            let mut checker = Checker::new(&types, &rule.vars, rule.file.clone());
            checker.body(&clause.body);
            let tail = if at == 0 { &*rule.tail } else { &[] };
            let own = if checker.errors.is_empty() { checker.rule(rule, clause, tail) } else { Type::any() };
            errors.append(&mut checker.errors);
            types.insert(&rule.path, own);
        }
    }
    errors.sort_by(|a, b| (&a.file, a.at.row, a.at.col).cmp(&(&b.file, b.at.row, b.at.col)));
    errors.dedup();
    (types, errors)
}

/// Checks a query.
pub(super) fn query(types: &Types, body: &[Expr], vars: &[VarInfo], file: &Arc<str>) -> Vec<CompileError> {
    let mut checker = Checker::new(types, vars, file.clone());
    checker.compares_freely = true;
    checker.body(body);
    checker.errors
}

/// The type of what a reference leads to from `from`; `Unknown` where it leads nowhere.
fn select(from: Type, path: &[Term]) -> Type {
    path.iter().fold(from, |from, part| match (&from, part.as_const()) {
        (Type::Unknown, _) => Type::Unknown,
        (_, Some(key)) if is_scalar(key) => from.select(key),
        _ => from.values(),
    })
}

fn is_scalar(value: &Value) -> bool {
    !matches!(value, Value::Array(_) | Value::Object(_) | Value::Set(_))
}

/// Checks one body and those inside it.
struct Checker<'a> {
    types: &'a Types,
    vars: &'a [VarInfo],
    file: Arc<str>,
    /// The types of variables; the innermost body last.
    scopes: Vec<HashMap<VarId, Type>>,
    /// The types of comprehensions that were checked, by their addresses.
    checked: HashMap<*const Comprehension, Type>,
    /// In queries, `==` may compare anything.
    compares_freely: bool,
    errors: Vec<CompileError>,
}

impl<'a> Checker<'a> {
    fn new(types: &'a Types, vars: &'a [VarInfo], file: Arc<str>) -> Self {
        Self {
            types,
            vars,
            file,
            scopes: vec![HashMap::new()],
            checked: HashMap::new(),
            compares_freely: false,
            errors: Vec::new(),
        }
    }

    fn fail(&mut self, at: Location, message: String) {
        self.errors.push(CompileError { code: "rego_type_error", file: self.file.clone(), at, message });
    }

    /// The type of a definition's value, after checking its body.
    fn rule(&mut self, rule: &hir::Rule, clause: &hir::Clause, tail: &[Term]) -> Type {
        if let Some(args) = &rule.args {
            let mut vars = Vec::new();
            args.iter().for_each(|arg| arg.all_vars(&mut |var| vars.push(var)));
            for var in vars {
                if self.of_var(var) == Type::Unknown {
                    self.put(var, Type::any());
                }
            }
            let args = args.iter().map(|arg| self.of(arg)).collect();
            return Type::function(args, Some(self.of(&clause.value)));
        }
        let value = match self.of(&clause.value) {
            Type::Unknown => return Type::Unknown,
            member if rule.is_contains => Type::set(member),
            value => value,
        };
        let keys: Vec<Type> = tail.iter().map(|key| self.of(key)).collect();
        if keys.contains(&Type::Unknown) {
            return Type::Unknown;
        }
        keys.into_iter().rev().fold(value, |value, key| Type::object(Vec::new(), Some((key, value))))
    }

    fn body(&mut self, body: &[Expr]) {
        for expr in body {
            self.statement(expr);
        }
    }

    fn statement(&mut self, expr: &Expr) {
        let before = self.errors.len();
        self.closures(expr);
        self.references(expr);
        let known = self.errors.len() == before;
        if let Err((vague, message)) = self.expr(expr) {
            // An unknown that follows from an error is no second error.
            if known || !vague {
                self.fail(expr.at, message);
            }
        }
    }

    /// Checks the comprehensions of a statement, those in nested bodies too.
    fn closures(&mut self, expr: &Expr) {
        let mut found = Vec::new();
        expr.terms(&mut |term| term.closures(&mut |it| found.push(it)));
        expr.with_terms(&mut |term| term.closures(&mut |it| found.push(it)));
        for comprehension in found {
            self.comprehension(comprehension);
        }
        if let ExprKind::Every { body, .. } | ExprKind::Not { body, .. } = &expr.kind {
            body.iter().for_each(|expr| self.closures(expr));
        }
    }

    fn comprehension(&mut self, it: &Comprehension) {
        let before = self.errors.len();
        self.scopes.push(HashMap::new());
        self.body(&it.body);
        let own = if self.errors.len() > before {
            Type::Unknown
        } else {
            let value = self.of(&it.value);
            match it.kind {
                hir::Collection::Array => Type::array(Vec::new(), Some(value)),
                hir::Collection::Set => Type::set(value),
                hir::Collection::Object => {
                    let key = it.key.as_ref().map_or(Type::Unknown, |key| self.of(key));
                    Type::object(Vec::new(), Some((key, value)))
                }
            }
        };
        self.scopes.pop();
        self.checked.insert(it, own);
    }

    // References

    fn references(&mut self, expr: &Expr) {
        expr.terms(&mut |term| self.references_in(term, expr.at));
        if let ExprKind::Every { body, .. } | ExprKind::Not { body, .. } = &expr.kind {
            body.iter().for_each(|expr| self.references(expr));
        }
    }

    fn references_in(&mut self, term: &Term, at: Location) {
        match term {
            Term::Const(_) | Term::Var(_) | Term::Comprehension(_) => {}
            Term::Array(items) | Term::Set(items) => items.iter().for_each(|item| self.references_in(item, at)),
            Term::Object(members) => members.iter().for_each(|(key, value)| {
                self.references_in(key, at);
                self.references_in(value, at);
            }),
            Term::Ref(root, path) => {
                path.iter().for_each(|part| self.references_in(part, at));
                if let Err(detail) = self.reference(*root, path) {
                    self.fail(at, format!("undefined ref: {}{detail}", self.shown(*root, path)));
                }
            }
        }
    }

    /// Checks that the reference can lead somewhere; otherwise returns the problem, for the message.
    ///
    /// Mirrors: `checkRef`.
    fn reference(&mut self, root: Root, path: &[Term]) -> Result<(), String> {
        match root {
            Root::Input => self.inside(Type::any(), root, path, 0),
            Root::Var(var) => {
                if self.of_var(var) == Type::Unknown {
                    self.put(var, Type::any());
                }
                self.inside(self.of_var(var), root, path, 0)
            }
            Root::Data => {
                let mut here = &self.types.root;
                for (at, part) in path.iter().enumerate() {
                    if let Some(key) = part.as_const() {
                        if at < 2 && !matches!(key, Value::String(_)) && !here.children.is_empty() {
                            return Err(self.misfit(root, path, at, None, &Type::String));
                        }
                        let Some(child) = here.children.get(key) else { break };
                        here = child;
                        if let Some(own) = &here.own {
                            return self.inside(own.clone(), root, path, at.saturating_add(1));
                        }
                    } else {
                        self.key(part, &here.extent().keys().unwrap_or(Type::Unknown), root, path, at)?;
                        break;
                    }
                }
                self.inside(Type::any(), root, path, 0)
            }
        }
    }

    /// `path` can lead on from a value of type `from`, starting with its part `at`.
    ///
    /// Mirrors: `checkRefLeaf`.
    fn inside(&mut self, mut from: Type, root: Root, path: &[Term], at: usize) -> Result<(), String> {
        for (at, part) in path.iter().enumerate().skip(at) {
            let Some(keys) = from.keys() else {
                let upto = path.get(..at).unwrap_or_default();
                let carets = "^".repeat(self.shown(root, upto).chars().count());
                return Err(format!("\n\t{}\n\t{carets}\n\thave: {from}", self.shown(root, path)));
            };
            from = match part.as_const() {
                Some(key) if is_scalar(key) => match from.select(key) {
                    Type::Unknown => return Err(self.misfit(root, path, at, Some(&from), &keys)),
                    next => next,
                },
                _ => {
                    self.key(part, &keys, root, path, at)?;
                    from.values()
                }
            };
        }
        Ok(())
    }

    /// An unknown key: the term in brackets must be able to be one of `keys`, and a new variable is.
    fn key(&mut self, part: &Term, keys: &Type, root: Root, path: &[Term], at: usize) -> Result<(), String> {
        match part {
            Term::Var(var) if self.of_var(*var) == Type::Unknown => {
                self.put(*var, keys.clone());
                Ok(())
            }
            Term::Array(_) | Term::Object(_) | Term::Set(_) | Term::Const(_) => {
                if self.unify(part, keys, false) {
                    Ok(())
                } else {
                    Err(self.misfit(root, path, at, None, keys))
                }
            }
            _ => match self.of(part) {
                Type::Unknown => Ok(()),
                own if own.unifies(keys) => Ok(()),
                own => Err(self.misfit(root, path, at, Some(&own), keys)),
            },
        }
    }

    /// OPA's lines about a part that does not fit.
    fn misfit(&self, root: Root, path: &[Term], at: usize, have: Option<&Type>, want: &Type) -> String {
        let pad = " ".repeat(self.shown(root, path.get(..at).unwrap_or_default()).chars().count().saturating_add(1));
        let constant = path.get(at).and_then(Term::as_const);
        let names: Vec<String> = match have {
            Some(Type::Object(object)) => object.members.iter().map(|(key, _)| key.to_string()).collect(),
            _ => Vec::new(),
        };
        let have = match (constant, have) {
            (Some(key), _) => format!("have: {key}"),
            (None, Some(have)) => format!("have (type): {have}"),
            (None, None) => "have (type): ???".to_owned(),
        };
        let want = match names.is_empty() {
            true => format!("want (type): {want}"),
            false => format!("want (one of): [{}]", names.join(" ")),
        };
        format!("\n\t{}\n\t{pad}^\n\t{pad}{have}\n\t{pad}{want}", self.shown(root, path))
    }

    /// A reference as OPA writes it.
    fn shown(&self, root: Root, path: &[Term]) -> String {
        let name = |var: VarId| match self.vars.get(var as usize) {
            Some(info) if !info.generated => info.name.to_string(),
            _ => "_".to_owned(),
        };
        let mut text = match root {
            Root::Input => "input".to_owned(),
            Root::Data => "data".to_owned(),
            Root::Var(var) => name(var),
        };
        for part in path {
            match part {
                Term::Const(key) => text.push_str(&hir::path_part(key)),
                Term::Var(var) => text.push_str(&format!("[{}]", name(*var))),
                Term::Ref(root, path) => text.push_str(&format!("[{}]", self.shown(*root, path))),
                _ => text.push_str("[_]"),
            }
        }
        text
    }

    // Statements

    /// Checks one statement; the flag of an error says that something in it is unknown.
    fn expr(&mut self, expr: &Expr) -> Result<(), (bool, String)> {
        for with in &*expr.with {
            if let (WithTarget::Function(target), WithValue::Function(value)) = (&with.target, &with.value) {
                let (wanted, given) = (self.of_function(target), self.of_function(value));
                if let (Type::Function(wanted), Type::Function(given)) = (&wanted, &given)
                    && (wanted.args.len() != given.args.len()
                        || !wanted.args.iter().zip(&given.args).all(|(a, b)| a.unifies(b)))
                {
                    return Err((false, argument_message(&target.name(), "arity mismatch", &given.args, &wanted.args)));
                }
            }
        }
        match &expr.kind {
            ExprKind::Eq { left, right, .. } => self.equal(left, right),
            ExprKind::Call { function: Function::Builtin(builtin), args, out: None }
                if builtin.name == "equal" && !self.compares_freely =>
            {
                match args.as_slice() {
                    [left, right] => self.equal(left, right),
                    _ => Ok(()),
                }
            }
            ExprKind::Call { function, args, out } => self.call(function, args.iter().chain(out)),
            ExprKind::Term(_) | ExprKind::Every { .. } | ExprKind::Not { .. } => Ok(()),
        }
    }

    fn equal(&mut self, left: &Term, right: &Term) -> Result<(), (bool, String)> {
        let (a, b) = (self.of(left), self.of(right));
        if self.unify_terms(left, &a, right, &b) {
            return Ok(());
        }
        let message = format!("match error\n\tleft  : {a}\n\tright : {b}");
        Err((a.is_vague() || b.is_vague(), message))
    }

    fn call<'t>(&mut self, function: &Function, args: impl Iterator<Item = &'t Term>) -> Result<(), (bool, String)> {
        let Type::Function(wanted) = self.of_function(function) else { return Ok(()) };
        let args: Vec<&Term> = args.collect();
        let given: Vec<Type> = args.iter().map(|arg| self.of(arg)).collect();
        let wanted: Vec<Type> = wanted.args.iter().chain(&wanted.result).cloned().collect();
        for ((arg, have), want) in args.iter().zip(&given).zip(&wanted) {
            let refused = if !have.is_vague() && !have.unifies(want) {
                Some(given.clone())
            } else if !self.unify(arg, want, false) {
                Some(args.iter().map(|arg| self.of(arg)).collect())
            } else {
                None
            };
            if let Some(given) = refused {
                let vague = given.iter().any(Type::is_vague);
                return Err((vague, argument_message(&function.name(), "invalid argument(s)", &given, &wanted)));
            }
        }
        Ok(())
    }

    // Types of terms

    fn of_function(&self, function: &Function) -> Type {
        match function {
            Function::Builtin(builtin) => builtins::signature(builtin.name).cloned().unwrap_or(Type::Unknown),
            Function::Rule(path) => {
                let mut here = &self.types.root;
                for key in path.iter() {
                    match here.children.get(key) {
                        Some(child) => here = child,
                        None => return Type::Unknown,
                    }
                }
                here.own.clone().unwrap_or(Type::Unknown)
            }
        }
    }

    fn of_var(&self, var: VarId) -> Type {
        self.scopes.iter().rev().find_map(|scope| scope.get(&var)).cloned().unwrap_or(Type::Unknown)
    }

    fn put(&mut self, var: VarId, own: Type) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(var, own);
        }
    }

    fn of(&self, term: &Term) -> Type {
        match term {
            Term::Const(value) => Type::of(value),
            Term::Var(var) => self.of_var(*var),
            Term::Ref(Root::Input, _) => Type::any(),
            Term::Ref(Root::Var(var), path) => select(self.of_var(*var), path),
            Term::Ref(Root::Data, path) => self.of_data(path),
            Term::Array(items) => Type::array(items.iter().map(|item| self.of(item)).collect(), None),
            Term::Set(items) => match items.iter().fold(Type::Unknown, |sum, item| sum.or(self.of(item))) {
                Type::Unknown => Type::set(Type::any()),
                of => Type::set(of),
            },
            Term::Object(members) => {
                let mut known = Vec::new();
                let mut rest = None;
                for (key, value) in members {
                    match key.as_const() {
                        Some(key) => known.push((key.clone(), self.of(value))),
                        None => rest = Some((self.of(key), self.of(value))),
                    }
                }
                Type::object(known, rest)
            }
            Term::Comprehension(it) => self.checked.get(&std::ptr::from_ref(&**it)).cloned().unwrap_or(Type::Unknown),
        }
    }

    /// Mirrors: `TypeEnv.GetByRef`.
    fn of_data(&self, path: &[Term]) -> Type {
        let mut here = &self.types.root;
        for (at, part) in path.iter().enumerate() {
            let rest = path.get(at..).unwrap_or_default();
            match (part.as_const().map(|key| here.children.get(key)), &here.own) {
                (Some(Some(child)), _) => here = child,
                (_, Some(own)) => return select(own.clone(), rest),
                (None, None) => return select(here.extent(), rest),
                (Some(None), None) => return Type::any(),
            }
        }
        here.extent()
    }
}

fn argument_message(name: &str, what: &str, given: &[Type], wanted: &[Type]) -> String {
    format!("{name}: {what}\n\thave: {}\n\twant: {}", Arguments(given), Arguments(wanted))
}
