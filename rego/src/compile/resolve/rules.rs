//! Whole rules and queries.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::annotations::OfRule;
use super::{Hidden, Modifiers, Occurrence, Resolver, declared_names, is_root, is_wildcard};
use crate::compile::hir::{Clause, Expr, Rule, Term, VarId, VarInfo};
use crate::compile::{CompileError, Names};
use crate::syntax::{self, HeadKind, Location, TermKind};
use crate::value::{Text, Value};

/// Resolves one definition with its `else`s.
pub(crate) fn resolve_rule(
    names: &Names<'_>,
    rule: &syntax::Rule,
    metadata: OfRule<'_>,
) -> Result<Rule, Vec<CompileError>> {
    let mut resolver = Resolver::new(names);
    resolver.metadata = Some(metadata);
    let resolved = resolver.rule(rule);
    if resolver.errors.is_empty() { Ok(resolved) } else { Err(resolver.errors) }
}

/// A resolved query: its statements, its variables, and those that the answer shows, by name.
#[derive(Debug)]
pub(crate) struct ResolvedQuery {
    pub body: Vec<Expr>,
    pub vars: Vec<VarInfo>,
    pub shown: BTreeMap<Text, VarId>,
    /// For each statement as written, but `some`, its place among those resolved.
    pub places: Vec<usize>,
}

pub(crate) fn resolve_query(names: &Names<'_>, body: &[syntax::Expr]) -> Result<ResolvedQuery, Vec<CompileError>> {
    let mut resolver = Resolver::new(names);
    resolver.hidden.push(declared_names(body));
    let mut places = Vec::new();
    for expr in body {
        resolver.statement(expr);
        if !matches!(expr.kind, syntax::ExprKind::Some(_)) {
            places.push(resolver.body.len().saturating_sub(1));
        }
    }
    let resolved = std::mem::take(&mut resolver.body);
    resolver.refuse_unused(0, &resolved, std::iter::empty());
    if !resolver.errors.is_empty() {
        return Err(resolver.errors);
    }
    let scope = resolver.scopes.pop().unwrap_or_default();
    let shown = scope
        .into_iter()
        .filter(|(name, _)| !is_wildcard(name))
        .map(|(name, (id, _))| (Text::from(&*name), id))
        .collect();
    Ok(ResolvedQuery { body: resolved, vars: resolver.vars, shown, places })
}

impl Resolver<'_> {
    fn rule(&mut self, rule: &syntax::Rule) -> Rule {
        let none: Modifiers = Arc::new([]);
        if self.names.strict
            && let Some(TermKind::Var(name)) = rule.head.path.first().map(|part| &part.kind)
            && is_root(name)
        {
            let message = format!("rules must not shadow {name} (use a different rule name)");
            self.fail("rego_compile_error", rule.at, message);
        }
        let mut hidden = Hidden::new();
        for arg in rule.head.args.iter().flatten() {
            super::syntax_vars(arg, &mut hidden);
            let mut patterns = Vec::new();
            super::pattern_vars(arg, &mut patterns);
            for (name, at) in patterns.into_iter().filter(|(name, _)| is_root(name)) {
                let message = format!("args must not shadow {name} (use a different variable name)");
                self.fail("rego_compile_error", at, message);
            }
        }
        self.hidden.push(hidden);
        self.in_arguments = true;
        let args: Option<Vec<Term>> =
            rule.head.args.as_ref().map(|args| args.iter().map(|arg| self.argument(arg)).collect());
        self.in_arguments = false;
        let arg_support = std::mem::take(&mut self.body);
        let arg_scope = self.scopes.first().cloned().unwrap_or_default();

        // The constant part of the path; what follows belongs to the body.
        let mut path = self.names.package.clone();
        let mut parts = rule.head.path.iter();
        if let Some(TermKind::Var(name)) = parts.next().map(|term| &term.kind) {
            path.push(Value::from(&**name));
        }
        let mut tail_terms = Vec::new();
        for part in parts {
            let constant = syntax::is_constant(part) && tail_terms.is_empty();
            if constant && let Term::Const(value) = self.term(part, &none) {
                path.push(value);
            } else {
                tail_terms.push(part);
            }
        }

        let mut tail = Vec::new();
        let mut clauses = Vec::new();
        let (value, is_contains) = match &rule.head.kind {
            HeadKind::Value(value) => (value, false),
            HeadKind::Contains(value) => (value, true),
        };
        let clause = self.clause(rule.at, value, &rule.body, &arg_support, |resolver| {
            tail = tail_terms.iter().map(|term| resolver.head_term(term, &(Arc::new([]) as Modifiers))).collect();
            tail.clone()
        });
        clauses.push(clause);
        for next in &rule.otherwise {
            self.scopes = vec![arg_scope.clone()];
            self.loose.clear();
            let clause = self.clause(next.at, &next.value, &next.body, &arg_support, |_| Vec::new());
            clauses.push(clause);
        }
        if self.names.shared.refuses_unused {
            self.refuse_unused_arguments(rule.at, args.as_deref().unwrap_or_default(), &clauses);
        }
        Rule {
            at: rule.at,
            file: self.names.file.clone(),
            path,
            tail,
            args,
            is_default: rule.is_default,
            is_contains,
            clauses,
            vars: std::mem::take(&mut self.vars),
        }
    }

    /// Mirrors: the check of arguments in `rewriteLocalVars`.
    fn refuse_unused_arguments(&mut self, at: Location, args: &[Term], clauses: &[Clause]) {
        let mut used = Vec::new();
        for clause in clauses {
            clause.value.all_vars(&mut |var| used.push(var));
            clause.body.iter().for_each(|expr| expr.all_vars(&mut |var| used.push(var)));
        }
        let mut unused = Vec::new();
        // An argument that stands twice compares both places: that is a use.
        args.iter().for_each(|arg| {
            arg.open_vars(&mut |var| if unused.contains(&var) { used.push(var) } else { unused.push(var) });
        });
        unused.retain(|var| !used.contains(var) && self.vars.get(*var as usize).is_some_and(|info| !info.generated));
        for var in unused {
            let message = format!("unused argument {}. (hint: use _ (wildcard variable) instead)", self.name_of(var));
            self.fail("rego_compile_error", at, message);
        }
    }

    fn clause(
        &mut self,
        at: Location,
        value: &syntax::Term,
        body: &[syntax::Expr],
        arg_support: &[Expr],
        head: impl FnOnce(&mut Self) -> Vec<Term>,
    ) -> Clause {
        let none: Modifiers = Arc::new([]);
        self.hidden.push(declared_names(body));
        self.body = arg_support.to_vec();
        self.statements(body);
        let tail = head(self);
        let value = self.head_term(value, &none);
        self.hidden.pop();
        let body = std::mem::take(&mut self.body);
        self.refuse_unused(0, &body, tail.iter().chain([&value]));
        Clause { at, value, body }
    }

    /// An argument: its variables are bound by the call.
    fn argument(&mut self, term: &syntax::Term) -> Term {
        match &term.kind {
            TermKind::Var(name) if is_wildcard(name) => Term::Var(self.generate()),
            TermKind::Var(name) => match self.declared(name) {
                Some(id) => Term::Var(id),
                None => Term::Var(self.declare(name, Occurrence::Argument, term.at)),
            },
            TermKind::Array(items) => {
                super::constant(Term::Array(items.iter().map(|item| self.argument(item)).collect()))
            }
            TermKind::Object(members) => {
                let none: Modifiers = Arc::new([]);
                let members =
                    members.iter().map(|(key, value)| (self.term(key, &none), self.argument(value))).collect();
                super::constant(Term::Object(members))
            }
            TermKind::Ref(head, _) => {
                let name = if let TermKind::Var(name) = &head.kind { name } else { "_" };
                self.fail("rego_unsafe_var_error", term.at, format!("var {name} is unsafe"));
                Term::Const(Value::Null)
            }
            TermKind::Call(..) => {
                self.fail("rego_compile_error", term.at, "rule arguments cannot contain calls");
                Term::Const(Value::Null)
            }
            _ => self.term(term, &(Arc::new([]) as Modifiers)),
        }
    }
}
