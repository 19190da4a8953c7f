//! The common values of two terms, and the types of variables that follow.
//!
//! Mirrors: `unify1` and `unify2` of OPA `v1/ast/check.go`, v1.19.0.

use super::Checker;
use crate::compile::hir::Term;
use crate::typing::Type;

impl Checker<'_> {
    /// Both terms can have one value.
    pub(super) fn unify_terms(&mut self, left: &Term, a: &Type, right: &Term, b: &Type) -> bool {
        match (a.is_vague(), b.is_vague()) {
            (true, false) => return self.unify(left, b, false),
            (false, true) => return self.unify(right, a, false),
            (false, false) => return a.unifies(b),
            (true, true) => {}
        }
        match (left, right) {
            (Term::Array(a), Term::Array(b)) => {
                a.len() == b.len()
                    && a.iter().zip(b).all(|(a, b)| {
                        let (of_a, of_b) = (self.of(a), self.of(b));
                        self.unify_terms(a, &of_a, b, &of_b)
                    })
            }
            (Term::Object(a), Term::Object(b)) => {
                a.len() == b.len()
                    && a.iter().all(|(key, value)| {
                        let Some((_, other)) = b.iter().find(|(other, _)| other == key) else { return false };
                        let (of_a, of_b) = (self.of(value), self.of(other));
                        self.unify_terms(value, &of_a, other, &of_b)
                    })
            }
            (Term::Var(_), Term::Var(_)) => {
                self.unify(left, &Type::any(), false) && {
                    let known = self.of(left);
                    self.unify(right, &known, false)
                }
            }
            (Term::Var(_), Term::Array(_) | Term::Object(_)) => {
                self.unify(right, &Type::any(), false) && {
                    let known = self.of(right);
                    self.unify(left, &known, false)
                }
            }
            (Term::Array(_) | Term::Object(_), Term::Var(_)) => {
                self.unify(left, &Type::any(), false) && {
                    let known = self.of(left);
                    self.unify(right, &known, false)
                }
            }
            (Term::Var(_), _) if *a == Type::Unknown && *b != Type::Unknown => self.unify(left, b, false),
            (_, Term::Var(_)) if *b == Type::Unknown && *a != Type::Unknown => self.unify(right, a, false),
            _ => false,
        }
    }

    /// The term can be of the type; unknown variables become of it, or (`joins`) of it too.
    pub(super) fn unify(&mut self, term: &Term, wanted: &Type, joins: bool) -> bool {
        match term {
            Term::Var(var) => {
                let known = self.of_var(*var);
                if joins {
                    self.put(*var, known.or(wanted.clone()));
                    return true;
                }
                if known == Type::Unknown {
                    self.put(*var, wanted.clone());
                    return true;
                }
                known.unifies(wanted)
            }
            Term::Const(value) => Type::of(value).unifies(wanted),
            Term::Ref(..) | Term::Comprehension(_) => self.of(term).unifies(wanted),
            Term::Array(_) | Term::Object(_) | Term::Set(_) => match wanted {
                Type::Any(all) if all.is_empty() => {
                    self.loosen(term);
                    true
                }
                Type::Any(all) => {
                    let mut fits = false;
                    for one in all.iter() {
                        fits |= self.unify(term, one, true);
                    }
                    fits
                }
                wanted => self.unify_inside(term, wanted, joins),
            },
        }
    }

    /// An item of a composite of any type is of any type.
    fn loosen(&mut self, term: &Term) {
        match term {
            Term::Array(items) | Term::Set(items) => items.iter().for_each(|item| {
                self.unify(item, &Type::any(), true);
            }),
            Term::Object(members) => members.iter().for_each(|(key, value)| {
                self.unify(key, &Type::any(), true);
                self.unify(value, &Type::any(), true);
            }),
            _ => {}
        }
    }

    fn unify_inside(&mut self, term: &Term, wanted: &Type, joins: bool) -> bool {
        match (term, wanted) {
            (Term::Array(items), Type::Array(wanted)) => {
                (items.len() == wanted.items.len() || wanted.known_rest().is_some())
                    && items.iter().enumerate().all(|(at, item)| self.unify(item, &wanted.at(at), joins))
            }
            (Term::Set(items), Type::Set(wanted)) => items.iter().all(|item| self.unify(item, &wanted.of, joins)),
            (Term::Object(members), Type::Object(object)) => {
                if members.len() != object.members.len() && object.known_rest().is_none() {
                    return false;
                }
                members.iter().all(|(key, value)| match key.as_const() {
                    Some(key) => match wanted.select(key) {
                        Type::Unknown => false,
                        wanted => self.unify(value, &wanted, joins),
                    },
                    None => {
                        self.unify(value, &Type::any(), joins);
                        true
                    }
                })
            }
            _ => false,
        }
    }
}
