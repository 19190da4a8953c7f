//! Calls, `with` modifiers, `print` and template strings.

use std::sync::Arc;

use super::{Modifiers, Resolver};
use crate::compile::hir::{Collection, Comprehension, ExprKind, Function, Root, Term, With, WithTarget, WithValue};
use crate::syntax::{self, Location, TermKind};
use crate::value::Value;

impl Resolver<'_> {
    /// A call inside a term: a statement that gives its result a name.
    pub(super) fn nested_call(
        &mut self,
        at: Location,
        operator: &syntax::Term,
        args: &[syntax::Term],
        with: &Modifiers,
    ) -> Term {
        if let Some(constant) = self.metadata_call(operator) {
            return Term::Const(constant);
        }
        let out = self.generate();
        self.call(at, operator, args, Term::Var(out), with);
        Term::Var(out)
    }

    /// `out = function(args)`.
    pub(super) fn call_into(&mut self, at: Location, call: &syntax::Term, out: Term, with: &Modifiers) {
        let TermKind::Call(operator, args) = &call.kind else { return };
        if let Some(constant) = self.metadata_call(operator) {
            let kind = ExprKind::Eq { left: out, right: Term::Const(constant), assigned: true };
            return self.push(at, kind, with);
        }
        self.call(call.at, operator, args, out, with);
    }

    fn call(&mut self, at: Location, operator: &syntax::Term, args: &[syntax::Term], out: Term, with: &Modifiers) {
        let function = self.function(at, operator);
        let args: Vec<Term> = args.iter().map(|arg| self.term(arg, with)).collect();
        let Some(function) = function else { return };
        if let Function::Builtin(builtin) = &function
            && builtin.name == "print"
        {
            return self.fail("rego_type_error", at, "print(...) used as value");
        }
        let arity = self.names.arity(&function);
        if arity != Some(args.len()) {
            return self.arity_mismatch(at, &function, arity, args.len());
        }
        self.push(at, ExprKind::Call { function, args, out: Some(out) }, with);
    }

    fn arity_mismatch(&mut self, at: Location, function: &Function, arity: Option<usize>, given: usize) {
        let name = function.name();
        match (arity, function) {
            (None, _) => self.fail("rego_type_error", at, format!("undefined function {name}")),
            (Some(_), Function::Builtin(_)) => {
                self.fail("rego_type_error", at, format!("{name}: arity mismatch"));
            }
            (Some(arity), Function::Rule(_)) => {
                let arguments = if given == 1 { "argument" } else { "arguments" };
                let message = format!("function {name} has arity {arity}, got {given} {arguments}");
                self.fail("rego_type_error", at, message);
            }
        }
    }

    /// A call that is a statement: its result must not be false, or is unified with one argument more.
    pub(super) fn call_statement(
        &mut self,
        expr: &syntax::Expr,
        at: Location,
        operator: &syntax::Term,
        args: &[syntax::Term],
        with: &Modifiers,
    ) {
        match (&operator.kind, args) {
            (TermKind::Var(name), [left, right]) if &**name == "eq" && self.declared(name).is_none() => {
                return self.unify(expr, left, right, with);
            }
            (TermKind::Var(name), _) if &**name == "print" && self.names.global(name).is_none() => {
                return self.print(expr, args, with);
            }
            _ => {}
        }
        if let Some(constant) = self.metadata_call(operator) {
            return self.finish(expr, ExprKind::Term(Term::Const(constant)), with);
        }
        let function = self.function(at, operator);
        let mut args: Vec<Term> = args.iter().map(|arg| self.term(arg, with)).collect();
        let Some(function) = function else { return };
        let arity = self.names.arity(&function);
        let out = match arity {
            Some(arity) if args.len() == arity => None,
            Some(arity) if args.len() == arity.saturating_add(1) => args.pop(),
            _ => return self.arity_mismatch(expr.at, &function, arity, args.len()),
        };
        self.finish(expr, ExprKind::Call { function, args, out }, with);
    }

    /// `print`: every argument in a comprehension of its own, so that an undefined one stops nothing.
    fn print(&mut self, expr: &syntax::Expr, args: &[syntax::Term], with: &Modifiers) {
        let Some(builtin) = self.names.builtin("print") else { return };
        let args = args.iter().map(|arg| self.captured(arg, with)).collect();
        let function = Function::Builtin(builtin);
        self.finish(expr, ExprKind::Call { function, args, out: None }, with);
    }

    /// `{x | x = term}`: the set of the values that a term has, empty when it is undefined.
    fn captured(&mut self, term: &syntax::Term, with: &Modifiers) -> Term {
        let outer = std::mem::take(&mut self.body);
        let value = self.generate();
        let resolved = self.term(term, with);
        let kind = ExprKind::Eq { left: Term::Var(value), right: resolved, assigned: true };
        self.push(term.at, kind, with);
        let body = std::mem::replace(&mut self.body, outer);
        Term::Comprehension(Box::new(Comprehension { kind: Collection::Set, key: None, value: Term::Var(value), body }))
    }

    /// `$"…{x}…"`: a call of the function that joins the parts.
    pub(super) fn template(&mut self, at: Location, parts: &[syntax::Expr], with: &Modifiers) -> Term {
        let Some(builtin) = self.names.builtin("internal.template_string") else { return Term::Const(Value::Null) };
        let mut terms = Vec::new();
        for part in parts {
            let syntax::ExprKind::Term(term) = &part.kind else { continue };
            match &term.kind {
                TermKind::String(_) | TermKind::Number(_) | TermKind::Bool(_) | TermKind::Null
                    if part.with.is_empty() =>
                {
                    let term = self.term(term, with);
                    terms.push(term);
                }
                _ => {
                    if self.in_arguments || self.check_template_vars(term) {
                        let own = self.modifiers(&part.with);
                        let own = if own.is_empty() { with.clone() } else { own };
                        let captured = self.captured(term, &own);
                        terms.push(captured);
                    }
                }
            }
        }
        let out = self.generate();
        let args = vec![super::constant(Term::Array(terms))];
        let kind = ExprKind::Call { function: Function::Builtin(builtin), args, out: Some(Term::Var(out)) };
        self.push(at, kind, with);
        Term::Var(out)
    }

    /// A template gives no values to variables: each must have been met before.
    fn check_template_vars(&mut self, term: &syntax::Term) -> bool {
        let mut names = super::Hidden::new();
        super::syntax_vars(term, &mut names);
        let mut unknown: Vec<_> = names
            .into_iter()
            .filter(|name| {
                let global =
                    !self.is_hidden(name) && (matches!(&**name, "input" | "data") || self.names.global(name).is_some());
                self.declared(name).is_none() && !global && !self.loose.contains_key(name)
            })
            .collect();
        unknown.sort();
        for name in &unknown {
            let shown = if super::is_wildcard(name) { "_" } else { name };
            self.fail("rego_compile_error", term.at, format!("var {shown} is undeclared"));
        }
        unknown.is_empty()
    }

    fn metadata_call(&self, operator: &syntax::Term) -> Option<Value> {
        let TermKind::Ref(head, path) = &operator.kind else { return None };
        let name = |term: &syntax::Term| match &term.kind {
            TermKind::Var(text) | TermKind::String(text) => Some(text.clone()),
            _ => None,
        };
        let parts: Option<Vec<Arc<str>>> = std::iter::once(&**head).chain(path).map(name).collect();
        let parts = parts?;
        match parts.iter().map(|part| &**part).collect::<Vec<_>>().as_slice() {
            ["rego", "metadata", "rule"] => self.metadata.map(|it| it.primary()),
            ["rego", "metadata", "chain"] => self.metadata.map(|it| it.chain()),
            _ => None,
        }
    }

    // `with`

    pub(super) fn modifiers(&mut self, with: &[syntax::With]) -> Modifiers {
        if with.is_empty() {
            return Arc::new([]);
        }
        with.iter().filter_map(|with| self.modifier(with)).collect()
    }

    fn modifier(&mut self, with: &syntax::With) -> Option<With> {
        let target = self.with_target(&with.target)?;
        let replaces_function = match &target {
            WithTarget::Function(_) => true,
            WithTarget::Data(path) => self.names.is_function(path),
            WithTarget::Input(_) => false,
        };
        if replaces_function && let Some(function) = self.function_value(&with.value) {
            let target = match target {
                WithTarget::Data(path) => WithTarget::Function(Function::Rule(path.into())),
                other => other,
            };
            return Some(With { at: with.at, target, value: WithValue::Function(function) });
        }
        let none: Modifiers = Arc::new([]);
        let mut value = self.term(&with.value, &none);
        if value.needs_eval() {
            let id = self.generate();
            self.push(with.at, ExprKind::Eq { left: Term::Var(id), right: value, assigned: true }, &none);
            value = Term::Var(id);
        }
        let target = match target {
            WithTarget::Data(path) if replaces_function => WithTarget::Function(Function::Rule(path.into())),
            other => other,
        };
        Some(With { at: with.at, target, value: WithValue::Term(value) })
    }

    fn with_target(&mut self, target: &syntax::Term) -> Option<WithTarget> {
        let (name, path): (&Arc<str>, &[syntax::Term]) = match &target.kind {
            TermKind::Var(name) => (name, &[]),
            TermKind::Ref(head, path) => match &head.kind {
                TermKind::Var(name) => (name, path),
                _ => return self.bad_target(target.at),
            },
            _ => return self.bad_target(target.at),
        };
        let mut keys = Vec::new();
        for part in path {
            match self.term(part, &(Arc::new([]) as Modifiers)) {
                Term::Const(value) => keys.push(value),
                _ => return self.bad_target(target.at),
            }
        }
        let (root, prefix) = match &**name {
            "input" => (Root::Input, Vec::new()),
            "data" => (Root::Data, Vec::new()),
            _ => match self.names.global(name) {
                Some((root, prefix)) => (root, prefix),
                None => return self.with_builtin(target.at, name, &keys),
            },
        };
        let prefix = prefix.iter().filter_map(|term| term.as_const().cloned());
        let path: Vec<Value> = prefix.chain(keys).collect();
        match root {
            Root::Input => Some(WithTarget::Input(path)),
            _ => {
                if self.names.is_inside_rule(&path) {
                    let message = "with keyword cannot partially replace virtual document(s)";
                    self.fail("rego_compile_error", target.at, message);
                }
                Some(WithTarget::Data(path))
            }
        }
    }

    fn with_builtin(&mut self, at: Location, name: &str, keys: &[Value]) -> Option<WithTarget> {
        let mut full = name.to_owned();
        for key in keys {
            full.push('.');
            full.push_str(key.as_str()?);
        }
        let Some(builtin) = self.names.builtin(&full) else {
            return self.bad_target(at);
        };
        let refused = match builtin.name {
            "eq" | "rego.metadata.chain" | "rego.metadata.rule" => format!("replacement of \"{full}\" invalid"),
            name if name.starts_with("internal.") => format!("replacement of internal function \"{full}\" invalid"),
            _ if builtin.relation => "target must not be a relation".to_owned(),
            "print" => "target must not be a void function".to_owned(),
            _ => return Some(WithTarget::Function(Function::Builtin(builtin))),
        };
        self.fail("rego_compile_error", at, format!("with keyword replacing built-in function: {refused}"));
        None
    }

    fn bad_target(&mut self, at: Location) -> Option<WithTarget> {
        let message = "with keyword target must reference existing input, data, or a function";
        self.fail("rego_type_error", at, message);
        None
    }

    /// The function that a `with` value names without calling it.
    fn function_value(&mut self, value: &syntax::Term) -> Option<Function> {
        let (name, path): (&Arc<str>, &[syntax::Term]) = match &value.kind {
            TermKind::Var(name) => (name, &[]),
            TermKind::Ref(head, path) => match &head.kind {
                TermKind::Var(name) => (name, path),
                _ => return None,
            },
            _ => return None,
        };
        if self.declared(name).is_some() {
            return None;
        }
        let texts: Option<Vec<&str>> = path
            .iter()
            .map(|term| match &term.kind {
                TermKind::String(text) => Some(&**text),
                _ => None,
            })
            .collect();
        let texts = texts?;
        let global = if &**name == "data" { Some((Root::Data, Vec::new())) } else { self.names.global(name) };
        match global {
            Some((Root::Data, prefix)) => {
                let prefix = prefix.iter().filter_map(|term| term.as_const().cloned());
                let path: Vec<Value> = prefix.chain(texts.into_iter().map(Value::from)).collect();
                self.names.is_function(&path).then(|| Function::Rule(path.into()))
            }
            Some(_) => None,
            None => {
                let full = std::iter::once(&**name).chain(texts).collect::<Vec<_>>().join(".");
                self.names.builtin(&full).map(Function::Builtin)
            }
        }
    }
}
