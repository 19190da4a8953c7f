//! Terms: scalars, references, calls, collections, comprehensions and infix operators.

use std::sync::Arc;

use super::{Body, Lexeme, Location, MAX_HEIGHT, Parsed, Parser, SyntaxError, Term, TermKind};

/// Operators by how tightly they bind, loosest first, and the functions that they stand for.
const LEVELS: [&[(&str, &str)]; 5] = [
    &[("==", "equal"), ("!=", "neq"), ("<", "lt"), (">", "gt"), ("<=", "lte"), (">=", "gte")],
    &[("|", "or")],
    &[("&", "and")],
    &[("+", "plus"), ("-", "minus")],
    &[("*", "mul"), ("/", "div"), ("%", "rem")],
];

/// The greatest decimal exponent of a number.
const MAX_EXPONENT: i64 = 30_000;

impl Parser {
    /// A term with infix operators. With `key_value`, `key, value in collection` is one too.
    pub(super) fn infix(&mut self, key_value: bool) -> Parsed<Term> {
        self.nested(|parser| {
            let left = parser.level(0)?;
            parser.membership(left, key_value)
        })
    }

    /// Goes on with `in` after `left`.
    fn membership(&mut self, mut left: Term, key_value: bool) -> Parsed<Term> {
        loop {
            if key_value && self.keywords.r#in && self.is_sign(",") {
                let pair = self.attempt(|parser| {
                    parser.step()?;
                    let middle = parser.level(0)?;
                    if !parser.take_keyword("in")? {
                        return Err(parser.unexpected(""));
                    }
                    Ok((middle, parser.right(|parser| parser.level(0))?))
                });
                if let Ok((middle, right)) = pair {
                    left = call(left.at, "internal.member_3", vec![left, middle, right]);
                    continue;
                }
            }
            if !self.take_keyword("in")? {
                return Ok(left);
            }
            let right = self.right(|parser| parser.level(0))?;
            left = call(left.at, "internal.member_2", vec![left, right]);
        }
    }

    fn level(&mut self, level: usize) -> Parsed<Term> {
        if level >= LEVELS.len() {
            return self.term();
        }
        let left = self.level(level.saturating_add(1))?;
        self.level_after(left, level)
    }

    /// Goes on with operators of `level` after `left`.
    fn level_after(&mut self, mut left: Term, level: usize) -> Parsed<Term> {
        while let Some(function) = self.operator(level) {
            let place = self.here();
            self.step()?;
            let right = self.right(|parser| parser.level(level.saturating_add(1)))?;
            let mut term = call(left.at, function, vec![left, right]);
            if let TermKind::Call(operator, _) = &mut term.kind {
                operator.at = place;
            }
            left = term;
        }
        Ok(left)
    }

    /// The right operand of an operator whose left one was just read.
    fn right(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<Term>) -> Parsed<Term> {
        let left = std::mem::take(&mut self.height);
        let right = parse(self)?;
        self.height = left.max(self.height).saturating_add(1);
        if self.height > MAX_HEIGHT {
            return Err(self.error(&format!("more than {MAX_HEIGHT} operators depend on each other")));
        }
        Ok(right)
    }

    /// Goes on with operators of every level and with `in` after a term that was parsed alone.
    fn infix_after(&mut self, term: Term) -> Parsed<Term> {
        let mut left = term;
        for level in (0..LEVELS.len()).rev() {
            left = self.level_after(left, level)?;
        }
        self.membership(left, false)
    }

    fn operator(&self, level: usize) -> Option<&'static str> {
        let Lexeme::Sign(sign) = self.token().lexeme else { return None };
        LEVELS.get(level)?.iter().find(|(it, _)| *it == sign).map(|(_, function)| *function)
    }

    /// A term without infix operators.
    pub(super) fn term(&mut self) -> Parsed<Term> {
        self.nested(|parser| {
            let at = parser.here();
            if parser.is_sign("-") {
                parser.step()?;
                if parser.name().is_none() {
                    return parser.number("-", at);
                }
                let operand = parser.term()?;
                let zero = Term { at, kind: TermKind::Number("0".into()) };
                return Ok(call(at, "minus", vec![zero, operand]));
            }
            let head = parser.primary()?;
            parser.reference(head)
        })
    }

    fn primary(&mut self) -> Parsed<Term> {
        let at = self.here();
        let kind = match self.token().lexeme.clone() {
            Lexeme::Number(_) | Lexeme::Sign(".") => return self.number("", at),
            Lexeme::String(text) => {
                self.step()?;
                TermKind::String(text)
            }
            Lexeme::Template { .. } => self.template()?,
            Lexeme::Sign("[") => self.array()?,
            Lexeme::Sign("{") => self.braces()?,
            Lexeme::Sign("(") => {
                self.step()?;
                let mut inner = self.infix(true)?;
                if !self.take_sign(")")? {
                    return Err(self.error("non-terminated expression"));
                }
                inner.at = at;
                return Ok(inner);
            }
            Lexeme::Name(name) if self.name().is_some() || &*name == "contains" => {
                self.step()?;
                if &*name == "_" { self.wildcard() } else { TermKind::Var(name) }
            }
            Lexeme::Name(name) if matches!(&*name, "true" | "false" | "null") => {
                self.step()?;
                match &*name {
                    "true" => TermKind::Bool(true),
                    "false" => TermKind::Bool(false),
                    _ => TermKind::Null,
                }
            }
            _ => return Err(self.unexpected("")),
        };
        Ok(Term { at, kind })
    }

    fn number(&mut self, sign: &str, at: Location) -> Parsed<Term> {
        let mut text = sign.to_owned();
        if self.take_sign(".")? {
            text.push_str("0.");
        }
        let Lexeme::Number(digits) = self.token().lexeme.clone() else {
            return Err(self.unexpected("expected number"));
        };
        self.step()?;
        text.push_str(&digits);
        let (_, exponent) = text.split_once(['e', 'E']).unwrap_or((&text, "0"));
        if exponent.parse::<i64>().is_ok_and(|exponent| exponent.abs() <= MAX_EXPONENT) {
            return Ok(Term { at, kind: TermKind::Number(text.into()) });
        }
        Err(self.error("number too big"))
    }

    /// `.name`, `[term]` and `(arguments)` after `head`, as long as no white space comes between.
    fn reference(&mut self, head: Term) -> Parsed<Term> {
        let at = head.at;
        let mut term = head;
        loop {
            let adjacent = !self.token().spaced;
            match self.token().lexeme {
                Lexeme::Sign("." | "[") if adjacent => {
                    check_reference_head(&term)?;
                    let operand = self.operand()?;
                    term = match term.kind {
                        TermKind::Ref(head, mut path) => {
                            path.push(operand);
                            Term { at, kind: TermKind::Ref(head, path) }
                        }
                        kind => Term { at, kind: TermKind::Ref(Box::new(Term { at, kind }), vec![operand]) },
                    };
                }
                Lexeme::Sign("(") if adjacent && matches!(term.kind, TermKind::Var(_) | TermKind::Ref(..)) => {
                    term = self.arguments(term)?;
                }
                _ => return Ok(term),
            }
        }
    }

    /// A rule's head: as a reference, but white space may stand before the first bracket.
    pub(super) fn head_reference(&mut self) -> Parsed<Term> {
        let at = self.here();
        let Some(name) = self.name() else { return Err(self.unexpected("expected rule head name")) };
        self.step()?;
        let kind = if &*name == "_" { self.wildcard() } else { TermKind::Var(name) };
        let head = Term { at, kind };
        let token = self.token();
        if !token.on_new_line && token.spaced && matches!(token.lexeme, Lexeme::Sign("(" | "[")) {
            let first = if self.is_sign("(") {
                self.arguments(head)?
            } else {
                let operand = self.operand()?;
                Term { at, kind: TermKind::Ref(Box::new(head), vec![operand]) }
            };
            return self.reference(first);
        }
        self.reference(head)
    }

    fn operand(&mut self) -> Parsed<Term> {
        if self.take_sign(".")? {
            let at = self.here();
            let Lexeme::Name(name) = self.token().lexeme.clone() else {
                return Err(self.unexpected("expected identifier"));
            };
            if self.token().spaced {
                return Err(self.unexpected("expected identifier"));
            }
            self.step()?;
            return Ok(Term { at, kind: TermKind::String(name) });
        }
        self.expect_sign("[")?;
        let operand = self.infix(true)?;
        self.expect_sign("]")?;
        Ok(operand)
    }

    fn arguments(&mut self, function: Term) -> Parsed<Term> {
        let at = function.at;
        self.expect_sign("(")?;
        let args = self.list(")", Vec::new())?;
        if args.is_empty() && matches!(&function.kind, TermKind::Var(name) if &**name == "set") {
            return Ok(Term { at, kind: TermKind::Set(Vec::new()) });
        }
        Ok(Term { at, kind: TermKind::Call(Box::new(function), args) })
    }

    /// Terms up to the sign `end`, which is taken. A comma may stand before it.
    fn list(&mut self, end: &str, mut terms: Vec<Term>) -> Parsed<Vec<Term>> {
        loop {
            if self.take_sign(end)? {
                return Ok(terms);
            }
            terms.push(self.infix(false)?);
            if !self.is_sign(end) && !self.take_sign(",")? {
                return Err(self.unexpected(&format!("expected \",\" or \"{end}\"")));
            }
        }
    }

    /// Goes on after the first term of a list.
    fn list_after(&mut self, end: &str, first: Term) -> Parsed<Vec<Term>> {
        if !self.is_sign(end) && !self.take_sign(",")? {
            return Err(self.unexpected(&format!("expected \",\" or \"{end}\"")));
        }
        self.list(end, vec![first])
    }

    fn array(&mut self) -> Parsed<TermKind> {
        self.expect_sign("[")?;
        if self.take_sign("]")? {
            return Ok(TermKind::Array(Vec::new()));
        }
        if self.take_sign(",")? {
            return self.list("]", Vec::new()).map(TermKind::Array);
        }
        let head = self.term()?;
        if self.is_sign("|")
            && let Some(body) = self.comprehension_body("]")?
        {
            return Ok(TermKind::ArrayComprehension(Box::new(head), body));
        }
        let first = self.infix_after(head)?;
        self.list_after("]", first).map(TermKind::Array)
    }

    /// The body of a comprehension after `|`; nothing where a union turns out to be meant.
    fn comprehension_body(&mut self, end: &str) -> Parsed<Option<Body>> {
        let mut failed_at_comma = false;
        let body = self.attempt(|parser| {
            parser.step()?;
            let body = parser.nested(|parser| parser.statements(end));
            failed_at_comma = parser.is_sign(",");
            body
        });
        match body {
            Ok(body) => Ok(Some(body)),
            Err(_) if failed_at_comma => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A set, an object, or a comprehension of either.
    fn braces(&mut self) -> Parsed<TermKind> {
        self.expect_sign("{")?;
        if self.take_sign("}")? {
            return Ok(TermKind::Object(Vec::new()));
        }
        let comma = self.take_sign(",")?;
        let head = self.term()?;
        if !comma
            && self.is_sign("|")
            && let Some(body) = self.comprehension_body("}")?
        {
            return Ok(TermKind::SetComprehension(Box::new(head), body));
        }
        let first = self.infix_after(head)?;
        if !self.take_sign(":")? {
            if !self.is_sign("}") && !self.is_sign(",") {
                return Err(self.unexpected("non-terminated set"));
            }
            return self.list_after("}", first).map(TermKind::Set);
        }
        self.object(first, comma)
    }

    fn object(&mut self, key: Term, comma: bool) -> Parsed<TermKind> {
        let head = self.term()?;
        if !comma
            && self.is_sign("|")
            && let Some(body) = self.comprehension_body("}")?
        {
            return Ok(TermKind::ObjectComprehension(Box::new((key, head)), body));
        }
        let value = self.infix_after(head)?;
        let mut pairs = vec![(key, value)];
        loop {
            if self.take_sign("}")? {
                return Ok(TermKind::Object(pairs));
            }
            if !self.take_sign(",")? {
                return Err(self.unexpected("non-terminated object"));
            }
            if self.take_sign("}")? {
                return Ok(TermKind::Object(pairs));
            }
            let key = self.infix(false)?;
            self.expect_sign(":")?;
            pairs.push((key, self.infix(false)?));
        }
    }
}

fn call(at: Location, function: &str, args: Vec<Term>) -> Term {
    let name: Arc<str> = function.into();
    Term { at, kind: TermKind::Call(Box::new(Term { at, kind: TermKind::Var(name) }), args) }
}

fn check_reference_head(term: &Term) -> Parsed<()> {
    match &term.kind {
        TermKind::Null | TermKind::Bool(_) | TermKind::Number(_) | TermKind::String(_) | TermKind::Template(_) => {
            let what = super::kind_name(&term.kind);
            Err(SyntaxError::new(term.at, format!("illegal ref (head cannot be {what})")))
        }
        _ => Ok(()),
    }
}
