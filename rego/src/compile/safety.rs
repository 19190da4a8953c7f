//! The order of statements in which every variable has a value before it is needed.
//!
//! Mirrors: `reorderBodyForSafety` and what it calls, OPA `v1/ast/compile.go`, v1.19.0.

use std::collections::BTreeSet;

use super::hir::{Comprehension, Expr, ExprKind, Root, Term, VarId};
use crate::syntax::Location;

pub(super) type Vars = BTreeSet<VarId>;

/// A variable that no order of the statements gives a value to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Unsafe {
    pub at: Location,
    pub var: VarId,
}

/// Orders `body` and the bodies inside it; `known` have values before it begins.
pub(super) fn reorder(body: Vec<Expr>, known: &Vars) -> Result<Vec<Expr>, Vec<Unsafe>> {
    let mut body_vars = Vars::new();
    body.iter().for_each(|expr| needed_vars(expr, &mut body_vars));
    let mut safe = known.clone();
    let mut waiting: Vec<Option<Expr>> = body.into_iter().map(Some).collect();
    let mut ordered: Vec<Expr> = Vec::with_capacity(waiting.len());
    loop {
        let before = ordered.len();
        for slot in &mut waiting {
            let Some(expr) = slot else { continue };
            let outputs = outputs(expr, &safe);
            let mut closed_over = Vars::new();
            closure_vars(expr, &mut closed_over);
            let closes_early = closed_over.iter().any(|var| body_vars.contains(var) && !safe.contains(var));
            let mut needed = Vars::new();
            needed_vars(expr, &mut needed);
            if closes_early || needed.iter().any(|var| !safe.contains(var) && !outputs.contains(var)) {
                continue;
            }
            safe.extend(outputs);
            ordered.extend(slot.take());
        }
        if ordered.len() == before {
            break;
        }
    }
    let mut errors: Vec<Unsafe> = Vec::new();
    for expr in waiting.iter().flatten() {
        let outputs = outputs(expr, &safe);
        let mut needed = Vars::new();
        needed_vars(expr, &mut needed);
        closure_vars(expr, &mut needed);
        let missing = needed.into_iter().filter(|var| {
            (body_vars.contains(var) || known.contains(var)) && !safe.contains(var) && !outputs.contains(var)
        });
        errors.extend(missing.map(|var| Unsafe { at: expr.at, var }));
    }
    if errors.is_empty() {
        // The rest needs, in a comprehension, a variable that only it gives a value to: `x = [x | x = 1]`.
        for expr in waiting.iter().flatten() {
            let outputs = outputs(expr, &safe);
            let mut closed_over = Vars::new();
            closure_vars(expr, &mut closed_over);
            errors.extend(closed_over.intersection(&outputs).map(|var| Unsafe { at: expr.at, var: *var }));
        }
    }
    if !errors.is_empty() || waiting.iter().any(Option::is_some) {
        errors.sort();
        errors.dedup();
        return Err(errors);
    }

    // Bodies inside know what stands before them.
    let mut known = known.clone();
    let mut errors = Vec::new();
    for expr in &mut ordered {
        reorder_closures(expr, &known, &mut errors);
        needed_vars(expr, &mut known);
    }
    if errors.is_empty() { Ok(ordered) } else { Err(errors) }
}

/// The variables outside comprehensions and nested bodies.
fn needed_vars(expr: &Expr, vars: &mut Vars) {
    expr.terms(&mut |term| {
        term.open_vars(&mut |var| {
            vars.insert(var);
        })
    });
    expr.with_terms(&mut |term| {
        term.open_vars(&mut |var| {
            vars.insert(var);
        })
    });
    if let ExprKind::Not { operands, .. } = &expr.kind {
        vars.extend(operands);
    }
}

/// The variables inside comprehensions and nested bodies.
fn closure_vars(expr: &Expr, vars: &mut Vars) {
    let mut closures: Vec<&Comprehension> = Vec::new();
    expr.terms(&mut |term| term.closures(&mut |it| closures.push(it)));
    expr.with_terms(&mut |term| term.closures(&mut |it| closures.push(it)));
    let mut add = |var| {
        vars.insert(var);
    };
    for closure in closures {
        closure.key.iter().for_each(|term| term.all_vars(&mut add));
        closure.value.all_vars(&mut add);
        closure.body.iter().for_each(|expr| expr.all_vars(&mut add));
    }
    match &expr.kind {
        ExprKind::Every { body, .. } | ExprKind::Not { body, .. } => {
            body.iter().for_each(|expr| expr.all_vars(&mut add));
        }
        _ => {}
    }
}

fn reorder_closures(expr: &mut Expr, known: &Vars, errors: &mut Vec<Unsafe>) {
    let at = expr.at;
    match &mut expr.kind {
        ExprKind::Term(term) => reorder_in_term(term, at, known, errors),
        ExprKind::Eq { left, right, .. } => {
            reorder_in_term(left, at, known, errors);
            reorder_in_term(right, at, known, errors);
        }
        ExprKind::Call { args, out, .. } => {
            args.iter_mut().chain(out).for_each(|term| reorder_in_term(term, at, known, errors));
        }
        ExprKind::Every { key, value, body, .. } => {
            let mut known = known.clone();
            known.extend([*key, *value]);
            reorder_body(body, &known, errors);
        }
        ExprKind::Not { body, .. } => reorder_body(body, known, errors),
    }
}

fn reorder_body(body: &mut Vec<Expr>, known: &Vars, errors: &mut Vec<Unsafe>) {
    match reorder(std::mem::take(body), known) {
        Ok(ordered) => *body = ordered,
        Err(more) => errors.extend(more),
    }
}

fn reorder_in_term(term: &mut Term, at: Location, known: &Vars, errors: &mut Vec<Unsafe>) {
    match term {
        Term::Const(_) | Term::Var(_) => {}
        Term::Ref(_, items) | Term::Array(items) | Term::Set(items) => {
            items.iter_mut().for_each(|term| reorder_in_term(term, at, known, errors));
        }
        Term::Object(members) => members.iter_mut().for_each(|(key, value)| {
            reorder_in_term(key, at, known, errors);
            reorder_in_term(value, at, known, errors);
        }),
        Term::Comprehension(it) => {
            let mut available = known.clone();
            it.body.iter().for_each(|expr| needed_vars(expr, &mut available));
            let mut head = Vars::new();
            let mut add = |var| {
                head.insert(var);
            };
            it.key.iter().for_each(|term| term.open_vars(&mut add));
            it.value.open_vars(&mut add);
            errors.extend(head.into_iter().filter(|var| !available.contains(var)).map(|var| Unsafe { at, var }));
            reorder_body(&mut it.body, known, errors);
        }
    }
}

/// The variables that the statement gives values to when those in `safe` have theirs.
pub(super) fn outputs(expr: &Expr, safe: &Vars) -> Vars {
    if expr.negated {
        return Vars::new();
    }
    let mut with_safe = true;
    expr.with_terms(&mut |term| term.open_vars(&mut |var| with_safe &= safe.contains(&var)));
    if !with_safe {
        return Vars::new();
    }
    match &expr.kind {
        ExprKind::Term(term) => {
            let mut out = Vars::new();
            ref_outputs(term, safe, &mut out);
            out
        }
        ExprKind::Eq { left, right, assigned } => eq_outputs(left, right, *assigned, safe),
        ExprKind::Call { args, out, .. } => {
            let mut outputs = Vars::new();
            args.iter().for_each(|term| ref_outputs(term, safe, &mut outputs));
            if let Some(term) = out {
                ref_outputs(term, safe, &mut outputs);
                let mut ready = true;
                args.iter().for_each(|term| {
                    term.open_vars(&mut |var| ready &= safe.contains(&var) || outputs.contains(&var));
                });
                if !ready {
                    return Vars::new();
                }
                pattern_outputs(term, &mut outputs);
            }
            outputs
        }
        ExprKind::Every { domain, .. } => {
            let mut out = Vars::new();
            ref_outputs(domain, safe, &mut out);
            out
        }
        ExprKind::Not { .. } => Vars::new(),
    }
}

/// References give values to the variables in their brackets, once their head has one.
fn ref_outputs(term: &Term, safe: &Vars, out: &mut Vars) {
    match term {
        Term::Const(_) | Term::Var(_) | Term::Comprehension(_) => {}
        Term::Ref(root, path) => {
            if let Root::Var(var) = root
                && !safe.contains(var)
            {
                return;
            }
            for part in path {
                ref_outputs(part, safe, out);
                if !matches!(part, Term::Ref(..)) {
                    part.open_vars(&mut |var| {
                        out.insert(var);
                    });
                }
            }
        }
        Term::Array(items) | Term::Set(items) => items.iter().for_each(|term| ref_outputs(term, safe, out)),
        Term::Object(members) => members.iter().for_each(|(key, value)| {
            ref_outputs(key, safe, out);
            ref_outputs(value, safe, out);
        }),
    }
}

fn eq_outputs(left: &Term, right: &Term, assigned: bool, safe: &Vars) -> Vars {
    let mut output = Vars::new();
    ref_outputs(left, safe, &mut output);
    ref_outputs(right, safe, &mut output);
    let mut all: Vars = output.union(safe).copied().collect();
    if assigned {
        left.all_vars(&mut |var| {
            all.remove(&var);
        });
    }
    let unified = unify(left, right, &all);
    let mut result: Vars = all.difference(safe).copied().collect();
    result.extend(unified.into_iter().filter(|var| !safe.contains(var)));
    result
}

/// Patterns give values to the variables in arrays and in the values of objects.
fn pattern_outputs(term: &Term, out: &mut Vars) {
    match term {
        Term::Var(var) => {
            out.insert(*var);
        }
        Term::Array(items) => items.iter().for_each(|item| pattern_outputs(item, out)),
        Term::Object(members) => members.iter().for_each(|(_, value)| pattern_outputs(value, out)),
        _ => {}
    }
}

/// The variables that unifying both sides makes safe.
///
/// Mirrors: OPA `v1/ast/unify.go`, v1.19.0.
fn unify(left: &Term, right: &Term, safe: &Vars) -> Vars {
    let mut unifier = Unifier { safe, unified: Vars::new(), pending: Vec::new() };
    unifier.unify(left, right);
    // Statements that waited for a variable are tried again until nothing changes.
    loop {
        let before = unifier.unified.len();
        for (var, terms) in std::mem::take(&mut unifier.pending) {
            if unifier.is_safe(var) {
                for term in terms {
                    unifier.mark(term);
                }
            } else {
                let ready = terms.iter().any(|term| unifier.is_ground(term));
                if ready {
                    unifier.unified.insert(var);
                    terms.iter().for_each(|term| unifier.mark(term));
                } else {
                    unifier.pending.push((var, terms));
                }
            }
        }
        if unifier.unified.len() == before {
            return unifier.unified;
        }
    }
}

struct Unifier<'a> {
    safe: &'a Vars,
    unified: Vars,
    pending: Vec<(VarId, Vec<&'a Term>)>,
}

impl<'a> Unifier<'a> {
    fn is_safe(&self, var: VarId) -> bool {
        self.safe.contains(&var) || self.unified.contains(&var)
    }

    fn is_ground(&self, term: &Term) -> bool {
        let mut ground = true;
        term.open_vars(&mut |var| ground &= self.is_safe(var));
        ground
    }

    fn mark(&mut self, term: &Term) {
        pattern_outputs(term, &mut self.unified);
    }

    fn unify(&mut self, left: &'a Term, right: &'a Term) {
        match (left, right) {
            (Term::Var(var), other) | (other, Term::Var(var)) => {
                if self.is_safe(*var) {
                    self.mark_pattern(other);
                } else if self.is_ground(other) {
                    self.unified.insert(*var);
                } else {
                    self.pending.push((*var, vec![other]));
                }
            }
            (Term::Ref(root, _), other) | (other, Term::Ref(root, _)) => {
                let reachable = match root {
                    Root::Var(var) => self.is_safe(*var),
                    _ => true,
                };
                if reachable {
                    self.mark_pattern(other);
                }
            }
            (Term::Comprehension(_), other) | (other, Term::Comprehension(_)) => self.mark_pattern(other),
            (Term::Array(a), Term::Array(b)) if a.len() == b.len() => {
                a.iter().zip(b).for_each(|(a, b)| self.unify(a, b));
            }
            (Term::Object(a), Term::Object(b)) if a.len() == b.len() => {
                for (key, value) in a {
                    if let Some((_, other)) = b.iter().find(|(other, _)| other == key) {
                        self.unify(value, other);
                    }
                }
            }
            (Term::Const(_) | Term::Set(_), other) | (other, Term::Const(_) | Term::Set(_)) => {
                self.mark_pattern(other);
            }
            _ => {}
        }
    }

    /// The other side is known: what is a pattern here is known then, too.
    fn mark_pattern(&mut self, term: &'a Term) {
        match term {
            Term::Var(_) | Term::Array(_) | Term::Object(_) => self.mark(term),
            _ => {}
        }
    }
}
