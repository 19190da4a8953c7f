//! Rules: heads, bodies, `else` and `default`.

use super::super::lexer::{Lexeme, Location, SyntaxError};
use super::super::tree::{Body, Else, ExprKind, Head, HeadKind, Rule, Term, TermKind};
use super::{Parsed, Parser, Version, is_constant, kind_name};

impl Parser {
    pub(super) fn rules(&mut self) -> Parsed<Vec<Rule>> {
        let at = self.here();
        let is_default = self.take_keyword("default")?;
        if self.name().is_none() {
            return Err(self.unexpected(""));
        }
        let (mut head, has_value) = self.head()?;
        if is_default {
            check_default(at, &head, has_value)?;
            return Ok(vec![Rule { at, is_default, head, body: Vec::new(), otherwise: Vec::new() }]);
        }
        let has_if = self.is_keyword("if");
        let contains = matches!(head.kind, HeadKind::Contains(_));
        self.settle_brackets(&mut head, has_if, has_value)?;

        let body = if has_if {
            self.step()?;
            self.body_after_if()?
        } else if self.is_sign("{") {
            if self.version == Version::V1 {
                return Err(SyntaxError::new(at, "`if` keyword is required before rule body"));
            }
            self.braced_body()?
        } else if contains {
            return Ok(vec![Rule { at, is_default, head, body: Vec::new(), otherwise: Vec::new() }]);
        } else {
            return Err(self.unexpected(""));
        };
        if self.version == Version::V1 && !contains && matches!(head.kind, HeadKind::Contains(_)) {
            return Err(SyntaxError::new(at, "`contains` keyword is required for partial set rules"));
        }

        let mut rule = Rule { at, is_default, head, body, otherwise: Vec::new() };
        while self.is_keyword("else") {
            let ground = rule.head.path.iter().skip(1).all(is_constant);
            if !ground {
                return Err(self.error("else keyword cannot be used on rules with variables in head"));
            }
            if matches!(rule.head.kind, HeadKind::Contains(_)) {
                return Err(self.error("else keyword cannot be used on multi-value rules"));
            }
            let (next, ends) = self.otherwise()?;
            rule.otherwise.push(next);
            if ends {
                break;
            }
        }
        let mut rules = vec![rule];
        while self.is_sign("{") {
            let Some(first) = rules.first() else { break };
            if !first.otherwise.is_empty() {
                return Err(self.error("expected else keyword"));
            }
            let (at, head) = (self.here(), first.head.clone());
            let body = self.braced_body()?;
            rules.push(Rule { at, is_default, head, body, otherwise: Vec::new() });
        }
        Ok(rules)
    }

    /// The meaning of `p[x]`: a member of a set in version 0 without `if`, else a key whose value is `true`.
    fn settle_brackets(&self, head: &mut Head, has_if: bool, has_value: bool) -> Parsed<()> {
        let contains = matches!(head.kind, HeadKind::Contains(_));
        if has_if || contains || has_value || head.args.is_some() || head.path.len() != 2 {
            return Ok(());
        }
        if let Some(member) = head.path.pop() {
            head.kind = HeadKind::Contains(member);
        }
        if self.version == Version::V1 && !self.is_sign("{") {
            return Err(SyntaxError::new(head.at, "`contains` keyword is required for partial set rules"));
        }
        Ok(())
    }

    fn head(&mut self) -> Parsed<(Head, bool)> {
        let at = self.here();
        let term = self.head_reference()?;
        let (operator, args) = match term.kind {
            // Without arguments it is a rule like any other.
            TermKind::Call(operator, args) => (*operator, Some(args).filter(|args| !args.is_empty())),
            _ => (term, None),
        };
        let path = match operator.kind {
            TermKind::Ref(head, rest) => {
                if !matches!(head.kind, TermKind::Var(_)) {
                    return Err(SyntaxError::new(at, "rule head ref invalid"));
                }
                std::iter::once(*head).chain(rest).collect()
            }
            TermKind::Var(_) => vec![operator],
            _ => return Err(self.unexpected("expected rule head name")),
        };
        let kind_true = HeadKind::Value(Term { at, kind: TermKind::Bool(true) });
        if self.take_keyword("contains")? {
            if args.is_some() {
                return Err(self.unexpected("the contains keyword can only be used with multi-value rule definitions"));
            }
            let member = self.infix(false)?;
            return Ok((Head { at, path, args, kind: HeadKind::Contains(member) }, true));
        }
        if self.take_sign("=")? || self.take_sign(":=")? {
            let value = self.infix(true)?;
            return Ok((Head { at, path, args, kind: HeadKind::Value(value) }, true));
        }
        Ok((Head { at, path, args, kind: kind_true }, false))
    }

    fn braced_body(&mut self) -> Parsed<Body> {
        self.expect_sign("{")?;
        self.body()
    }

    fn body_after_if(&mut self) -> Parsed<Body> {
        let brace = self.is_sign("{");
        let literal = self.attempt(|parser| {
            let literal = parser.literal()?;
            match &literal.kind {
                ExprKind::Term(Term { kind: TermKind::Set(_), .. }) if brace && !literal.negated => {
                    Err(parser.unexpected("expected rule body"))
                }
                _ => Ok(vec![literal]),
            }
        });
        match literal {
            Ok(body) => Ok(body),
            Err(error) if !brace => Err(error),
            Err(_) => self.braced_body(),
        }
    }

    /// One `else`, and whether no other may follow it: it has no body.
    fn otherwise(&mut self) -> Parsed<(Else, bool)> {
        let at = self.here();
        self.step()?;
        let value = if self.take_sign("=")? || self.take_sign(":=")? {
            self.infix(true)?
        } else if self.is_keyword("if") || self.is_sign("{") {
            Term { at, kind: TermKind::Bool(true) }
        } else {
            return Err(self.unexpected("expected else value term or rule body"));
        };
        let body = if self.take_keyword("if")? {
            if self.is_sign("{") { self.braced_body()? } else { vec![self.literal()?] }
        } else if self.is_sign("{") {
            if self.version == Version::V1 {
                return Err(SyntaxError::new(at, "`if` keyword is required before rule body"));
            }
            self.braced_body()?
        } else {
            return Ok((Else { at, value, body: Vec::new() }, true));
        };
        Ok((Else { at, value, body }, false))
    }

    /// `p := 1`, `p[x]`, `f(x) = y`: a statement that defines.
    ///
    /// Mirrors: `ParseRuleFromBody` and what it calls.
    pub(super) fn bodiless_rule(&mut self, as_rule: SyntaxError) -> Parsed<Rule> {
        let at = self.here();
        let parsed = self.attempt(|parser| {
            let (head, has_value) = parser.head()?;
            let ends = parser.token().on_new_line || matches!(parser.token().lexeme, Lexeme::End | Lexeme::Sign(";"));
            if ends { Ok((head, has_value)) } else { Err(parser.unexpected("")) }
        });
        let (mut head, has_value) = parsed.map_err(|error| {
            // The error that lies further on explains more.
            if error.at >= as_rule.at { error } else { as_rule }
        })?;
        if !has_value && head.args.is_none() && head.path.len() == 2 {
            if self.version == Version::V1 {
                return Err(SyntaxError::new(at, "`contains` keyword is required for partial set rules"));
            }
            if let Some(member) = head.path.pop() {
                head.kind = HeadKind::Contains(member);
            }
        } else if !has_value && head.args.is_none() && self.version == Version::V1 {
            let message = if head.path.len() == 1 {
                "var cannot be used for rule name"
            } else {
                "rule must have value assignment and/or body declaration"
            };
            return Err(SyntaxError::new(at, message));
        } else if !has_value && head.args.is_none() {
            return Err(SyntaxError::new(at, "var cannot be used for rule name"));
        }
        Ok(Rule { at, is_default: false, head, body: Vec::new(), otherwise: Vec::new() })
    }
}

/// The value of a default rule is known when the policy is loaded, and its arguments only name.
fn check_default(at: Location, head: &Head, has_value: bool) -> Parsed<()> {
    let refused = |message: String| Err(SyntaxError::new(at, message));
    let HeadKind::Value(value) = &head.kind else {
        return refused("default rules cannot be multi-value".to_owned());
    };
    if !has_value {
        return refused("illegal default rule (must have a value)".to_owned());
    }
    if let Some(what) = forbidden_in_default(value) {
        return refused(format!("illegal default rule (value cannot contain {what})"));
    }
    let mut seen: Vec<&str> = Vec::new();
    for arg in head.args.iter().flatten() {
        let TermKind::Var(name) = &arg.kind else {
            return refused(format!("illegal default rule (arguments cannot contain {})", kind_name(&arg.kind)));
        };
        if seen.contains(&&**name) {
            return refused(format!("illegal default rule (arguments cannot be repeated {name})"));
        }
        seen.push(name);
    }
    if head.path.iter().skip(1).any(|part| !is_constant(part)) {
        return refused("illegal default rule (ref cannot contain variables)".to_owned());
    }
    Ok(())
}

fn forbidden_in_default(term: &Term) -> Option<&'static str> {
    match &term.kind {
        TermKind::Var(_) => Some("var"),
        TermKind::Ref(..) => Some("ref"),
        TermKind::Call(..) => Some("call"),
        TermKind::Array(items) | TermKind::Set(items) => items.iter().find_map(forbidden_in_default),
        TermKind::Object(pairs) => {
            pairs.iter().find_map(|(key, value)| forbidden_in_default(key).or_else(|| forbidden_in_default(value)))
        }
        _ => None,
    }
}
