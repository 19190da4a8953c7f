//! Statements of bodies: `some`, assignments, unifications, negations, loops.

use super::super::hir::{Expr, ExprKind, Root, Term, VarId};
use super::{
    ASSIGNED_IN_NEGATION, GENERATED, Hidden, Modifiers, Occurrence, Resolver, Scope, declared_names, is_wildcard,
    pattern_vars, syntax_vars,
};
use crate::syntax::{self, TermKind};
use crate::value::Value;

impl Resolver<'_> {
    pub(super) fn statement(&mut self, expr: &syntax::Expr) {
        let with = self.modifiers(&expr.with);
        match &expr.kind {
            syntax::ExprKind::Term(syntax::Term { at, kind: TermKind::Call(function, args) }) => {
                self.call_statement(expr, *at, function, args, &with);
            }
            syntax::ExprKind::Term(term) => {
                let term = self.term(term, &with);
                self.finish(expr, ExprKind::Term(term), &with);
            }
            syntax::ExprKind::Unify(left, right) => self.unify(expr, left, right, &with),
            syntax::ExprKind::Assign(left, right) => self.assign(expr, left, right, &with),
            syntax::ExprKind::Some(names) => {
                for name in names {
                    if let TermKind::Var(text) = &name.kind {
                        if is_wildcard(text) {
                            self.fail("rego_compile_error", expr.at, "declared var _ unused");
                        }
                        self.declare(text, Occurrence::Declared, expr.at);
                    }
                }
            }
            syntax::ExprKind::SomeIn { key, value, collection } => {
                self.some_in(expr, key.as_ref(), value, collection, &with);
            }
            syntax::ExprKind::Every { key, value, domain, body } => {
                let domain_id = self.generate();
                let domain_term = self.term(domain, &with);
                let bind = ExprKind::Eq { left: Term::Var(domain_id), right: domain_term, assigned: true };
                self.push(domain.at, bind, &with);
                let mark = self.pending.len();
                self.scopes.push(Scope::new());
                let mut hidden = declared_names(body);
                let mut variable = |resolver: &mut Self, term: Option<&syntax::Term>| match term.map(|it| &it.kind) {
                    Some(TermKind::Var(name)) => {
                        hidden.insert(name.clone());
                        resolver.declare(name, Occurrence::Declared, expr.at)
                    }
                    _ => resolver.generate(),
                };
                let key = variable(self, key.as_ref());
                let value = variable(self, Some(value));
                self.hidden.push(hidden);
                let body = self.nested_body(body);
                self.hidden.pop();
                self.scopes.pop();
                self.refuse_unused(mark, &body, std::iter::empty());
                self.finish(expr, ExprKind::Every { key, value, domain: Term::Var(domain_id), body }, &with);
            }
            syntax::ExprKind::Not { body, braces } => {
                if let ([syntax::Expr { kind: syntax::ExprKind::Assign(..), .. }], false) = (body.as_slice(), braces) {
                    return self.fail("rego_compile_error", expr.at, ASSIGNED_IN_NEGATION);
                }
                let mark = self.pending.len();
                self.scopes.push(Scope::new());
                self.hidden.push(declared_names(body));
                let body = self.nested_body(body);
                self.hidden.pop();
                self.scopes.pop();
                self.refuse_unused(mark, &body, std::iter::empty());
                let operands = if *braces { Vec::new() } else { self.operands(&body) };
                self.finish(expr, ExprKind::Not { body, operands }, &with);
            }
        }
    }

    /// The variables of the statements of one operand that its author wrote, comprehensions apart.
    fn operands(&self, body: &[Expr]) -> Vec<VarId> {
        let mut operands = Vec::new();
        for expr in body {
            expr.terms(&mut |term| term.open_vars(&mut |var| operands.push(var)));
        }
        operands.retain(|var| self.name_of(*var) != GENERATED);
        operands
    }

    pub(super) fn finish(&mut self, expr: &syntax::Expr, kind: ExprKind, with: &Modifiers) {
        self.body.push(Expr { at: expr.at, negated: expr.negated, kind, with: with.clone() });
    }

    pub(super) fn unify(&mut self, expr: &syntax::Expr, left: &syntax::Term, right: &syntax::Term, with: &Modifiers) {
        let call = |term: &syntax::Term| matches!(term.kind, TermKind::Call(..));
        // `x = f(y)` is one statement, unless it is negated: then the call stands outside the negation.
        if !expr.negated && call(right) && !call(left) {
            let out = self.term(left, with);
            return self.call_into(expr.at, right, out, with);
        }
        let left = self.term(left, with);
        let right = self.term(right, with);
        self.finish(expr, ExprKind::Eq { left, right, assigned: false }, with);
    }

    fn assign(&mut self, expr: &syntax::Expr, left: &syntax::Term, right: &syntax::Term, with: &Modifiers) {
        if expr.negated {
            return self.fail("rego_compile_error", expr.at, ASSIGNED_IN_NEGATION);
        }
        if let TermKind::Call(..) = right.kind {
            let mark = self.body.len();
            let placeholder = self.generate();
            self.call_into(expr.at, right, Term::Var(placeholder), with);
            let out = self.target(left, with);
            // The last statement is the call; its result is the target.
            if let Some(Expr { kind: ExprKind::Call { out: slot, .. }, .. }) =
                self.body.get_mut(mark..).and_then(|it| it.last_mut())
            {
                *slot = Some(out);
                return;
            }
            return self.finish(expr, ExprKind::Eq { left: out, right: Term::Var(placeholder), assigned: true }, with);
        }
        let right = self.term(right, with);
        let left = self.target(left, with);
        self.finish(expr, ExprKind::Eq { left, right, assigned: true }, with);
    }

    /// The left side of `:=`: variables, alone or in arrays and values of objects.
    fn target(&mut self, term: &syntax::Term, with: &Modifiers) -> Term {
        match &term.kind {
            TermKind::Var(name) if is_wildcard(name) => Term::Var(self.loose(name)),
            TermKind::Var(name) => Term::Var(self.declare(name, Occurrence::Assigned, term.at)),
            TermKind::Array(items) => Term::Array(items.iter().map(|item| self.target(item, with)).collect()),
            TermKind::Object(members) => {
                let members =
                    members.iter().map(|(key, value)| (self.term(key, with), self.target(value, with))).collect();
                Term::Object(members)
            }
            TermKind::Null | TermKind::Bool(_) | TermKind::Number(_) | TermKind::String(_) => {
                self.fail("rego_compile_error", term.at, format!("cannot assign to {}", syntax::kind_name(&term.kind)));
                Term::Const(Value::Null)
            }
            kind => {
                self.fail("rego_compile_error", term.at, format!("cannot assign to {}", syntax::kind_name(kind)));
                Term::Const(Value::Null)
            }
        }
    }

    fn some_in(
        &mut self,
        expr: &syntax::Expr,
        key: Option<&syntax::Term>,
        value: &syntax::Term,
        collection: &syntax::Term,
        with: &Modifiers,
    ) {
        let mut used = Hidden::new();
        syntax_vars(collection, &mut used);
        let mut new = Vec::new();
        for pattern in key.into_iter().chain([value]) {
            pattern_vars(pattern, &mut new);
        }
        for (name, at) in new {
            let known = self.scopes.last().is_some_and(|scope| scope.contains_key(&name));
            let stays = used.contains(&name) || (known && is_wildcard(&name));
            if !stays {
                self.declare(&name, Occurrence::Declared, at);
            }
        }
        let collection_term = self.term(collection, with);
        let (root, mut path) = match collection_term {
            Term::Var(id) => (Root::Var(id), Vec::new()),
            Term::Ref(root, path) => (root, path),
            term => {
                let id = self.generate();
                self.push(collection.at, ExprKind::Eq { left: Term::Var(id), right: term, assigned: true }, with);
                (Root::Var(id), Vec::new())
            }
        };
        let key = match key {
            Some(key) => self.term(key, with),
            // Nothing can mention it.
            None => Term::Var(self.make_var("_0", true)),
        };
        path.push(key);
        let left = self.term(value, with);
        self.finish(expr, ExprKind::Eq { left, right: Term::Ref(root, path), assigned: false }, with);
    }
}
