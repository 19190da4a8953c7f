//! Types of terms, as far as they are known before any evaluation.
//!
//! Mirrors: OPA `v1/types/types.go`, v1.19.0. What grows over a limit is widened, so that no policy makes its check slow;
//! a wider type refuses less.

use std::fmt;
use std::sync::Arc;

use crate::value::Value;

/// The most alternatives of one type; beyond, it is any.
const MAX_ALTERNATIVES: usize = 256;
/// The most parts of one type, all levels together; beyond, what is inside is any.
const MAX_PARTS: usize = 20_000;
/// The most levels of one type; below, it is any.
const MAX_DEPTH: usize = 64;

/// The type of a term.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Type {
    /// Nothing is known: what has it unifies with nothing.
    Unknown,
    Null,
    Boolean,
    Number,
    String,
    Array(Arc<ArrayType>),
    Object(Arc<ObjectType>),
    Set(Arc<SetType>),
    /// One of several, in order; of none: anything.
    Any(Arc<[Type]>),
    Function(Arc<FunctionType>),
}

/// The summary of a composite without looking inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Extent {
    parts: usize,
    depth: usize,
    /// Some part inside is unknown.
    vague: bool,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ArrayType {
    extent: Extent,
    pub items: Vec<Type>,
    /// The type of the further items.
    pub rest: Option<Type>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ObjectType {
    extent: Extent,
    /// By key, in order.
    pub members: Vec<(Value, Type)>,
    /// The key and value of other members.
    pub rest: Option<(Type, Type)>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SetType {
    extent: Extent,
    pub of: Type,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FunctionType {
    pub args: Vec<Type>,
    /// `None`: it gives nothing.
    pub result: Option<Type>,
}

impl Extent {
    fn of<'a>(parts: impl Iterator<Item = &'a Type>) -> Self {
        parts.map(Type::extent).fold(Self { parts: 1, depth: 1, vague: false }, |sum, part| Self {
            parts: sum.parts.saturating_add(part.parts),
            depth: sum.depth.max(part.depth.saturating_add(1)),
            vague: sum.vague || part.vague,
        })
    }

    fn is_too_large(self) -> bool {
        self.parts > MAX_PARTS || self.depth > MAX_DEPTH
    }
}

impl Type {
    pub(crate) fn any() -> Self {
        Self::Any(Arc::new([]))
    }

    pub(crate) fn is_any(&self) -> bool {
        matches!(self, Self::Any(alternatives) if alternatives.is_empty())
    }

    pub(crate) fn array(items: Vec<Type>, rest: Option<Type>) -> Self {
        let extent = Extent::of(items.iter().chain(&rest));
        if extent.is_too_large() {
            return Self::array(Vec::new(), Some(Self::any()));
        }
        Self::Array(Arc::new(ArrayType { extent, items, rest }))
    }

    pub(crate) fn object(mut members: Vec<(Value, Type)>, rest: Option<(Type, Type)>) -> Self {
        members.sort_by(|(a, _), (b, _)| a.cmp(b));
        let rests = rest.iter().flat_map(|(key, value)| [key, value]);
        let extent = Extent::of(members.iter().map(|(_, value)| value).chain(rests));
        if extent.is_too_large() {
            return Self::object(Vec::new(), Some((Self::any(), Self::any())));
        }
        Self::Object(Arc::new(ObjectType { extent, members, rest }))
    }

    pub(crate) fn set(of: Type) -> Self {
        let extent = Extent::of(std::iter::once(&of));
        if extent.is_too_large() {
            return Self::set(Self::any());
        }
        Self::Set(Arc::new(SetType { extent, of }))
    }

    pub(crate) fn function(args: Vec<Type>, result: Option<Type>) -> Self {
        Self::Function(Arc::new(FunctionType { args, result }))
    }

    /// The type of a constant.
    pub(crate) fn of(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(_) => Self::Boolean,
            Value::Number(_) => Self::Number,
            Value::String(_) => Self::String,
            Value::Array(items) => {
                let items: Vec<_> = items.iter().take(MAX_PARTS).map(Self::of).collect();
                let rest = items.is_empty().then(Self::any);
                Self::array(items, rest)
            }
            Value::Object(object) => {
                let members: Vec<_> =
                    object.iter().take(MAX_PARTS).map(|(key, value)| (key.clone(), Self::of(value))).collect();
                let rest = members.is_empty().then(|| (Self::any(), Self::any()));
                Self::object(members, rest)
            }
            Value::Set(set) if set.is_empty() => Self::set(Self::any()),
            Value::Set(set) => Self::set(
                set.iter().fold(Self::Unknown, |of, item| if of.is_any() { of } else { of.or(Self::of(item)) }),
            ),
        }
    }

    fn extent(&self) -> Extent {
        match self {
            Self::Array(it) => it.extent,
            Self::Object(it) => it.extent,
            Self::Set(it) => it.extent,
            // Alternatives that are unknown inside do not make the whole unknown.
            Self::Any(alternatives) => Extent { vague: false, ..Extent::of(alternatives.iter()) },
            _ => Extent { parts: 1, depth: 0, vague: self.is_vague() },
        }
    }

    /// It, or something inside it, is unknown.
    pub(crate) fn is_vague(&self) -> bool {
        match self {
            Self::Unknown => true,
            Self::Array(it) => it.extent.vague,
            Self::Object(it) => it.extent.vague,
            Self::Set(it) => it.extent.vague,
            Self::Function(it) => it.args.iter().chain(&it.result).any(Self::is_vague),
            _ => false,
        }
    }

    /// The union of two types.
    pub(crate) fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Unknown, known) | (known, Self::Unknown) => known,
            (Self::Function(a), Self::Function(b)) if a.args.len() == b.args.len() => {
                let args = a.args.iter().zip(&b.args).map(|(a, b)| a.clone().or(b.clone())).collect();
                let result = match (&a.result, &b.result) {
                    (Some(a), Some(b)) => Some(a.clone().or(b.clone())),
                    (a, b) => a.clone().or_else(|| b.clone()),
                };
                Self::function(args, result)
            }
            (Self::Function(_), _) | (_, Self::Function(_)) => Self::Unknown,
            (Self::Any(a), Self::Any(b)) => {
                if a.is_empty() || b.is_empty() {
                    return Self::any();
                }
                b.iter().fold(Self::Any(a), |sum, it| sum.or(it.clone()))
            }
            (Self::Any(all), one) | (one, Self::Any(all)) => Self::with_alternative(all, one),
            (a, b) if a == b => a,
            (a, b) => Self::Any(if a < b { [a, b].into() } else { [b, a].into() }),
        }
    }

    fn with_alternative(all: Arc<[Self]>, one: Self) -> Self {
        if all.is_empty() {
            return Self::Any(all);
        }
        match all.binary_search(&one) {
            Ok(_) => Self::Any(all),
            Err(_) if all.len() >= MAX_ALTERNATIVES => Self::any(),
            Err(at) => {
                let mut all = all.to_vec();
                all.insert(at, one);
                Self::Any(all.into())
            }
        }
    }

    /// Every value of `other` is known to be one of its own.
    fn contains(&self, other: &Self) -> bool {
        match self {
            Self::Any(all) => all.is_empty() || all.binary_search(other).is_ok(),
            one => one == other,
        }
    }

    /// The type of the member at `key`; `Unknown` where there is none.
    pub(crate) fn select(&self, key: &Value) -> Self {
        match self {
            Self::Array(array) => {
                let Value::Number(number) = key else { return Self::Unknown };
                number.as_i64().and_then(|at| usize::try_from(at).ok()).map_or(Self::Unknown, |at| array.at(at))
            }
            Self::Object(object) => object.at(key),
            Self::Set(set) => {
                let own = Self::of(key);
                if set.of.contains(&own) { own } else { Self::Unknown }
            }
            Self::Any(all) if all.is_empty() => Self::any(),
            Self::Any(all) => all.iter().fold(Self::Unknown, |sum, it| it.select(key).or(sum)),
            _ => Self::Unknown,
        }
    }

    /// The type of a key in brackets behind it; `None` when there can be none.
    pub(crate) fn keys(&self) -> Option<Self> {
        match self {
            Self::Array(_) => Some(Self::Number),
            Self::Object(object) => {
                let keys = object.members.iter().map(|(key, _)| Self::of(key));
                keys.chain(object.rest.iter().map(|(key, _)| key.clone())).reduce(Self::or)
            }
            Self::Set(set) => Some(set.of.clone()),
            Self::Any(all) if all.is_empty() => Some(Self::any()),
            Self::Any(all) => all.iter().filter_map(Self::keys).reduce(Self::or),
            _ => None,
        }
    }

    /// The type of what is found behind it in brackets.
    pub(crate) fn values(&self) -> Self {
        match self {
            Self::Array(array) => array.items.iter().chain(&array.rest).cloned().fold(Self::Unknown, Self::or),
            Self::Object(object) => {
                let values = object.members.iter().map(|(_, value)| value.clone());
                values.chain(object.rest.iter().map(|(_, value)| value.clone())).fold(Self::Unknown, Self::or)
            }
            Self::Set(set) => set.of.clone(),
            Self::Any(all) if all.is_empty() => Self::any(),
            Self::Any(all) => all.iter().fold(Self::Unknown, |sum, it| it.values().or(sum)),
            _ => Self::Unknown,
        }
    }

    /// A value can have both types. An unknown type has none.
    ///
    /// Mirrors: `unifies`, OPA `v1/ast/check.go`, v1.19.0.
    pub(crate) fn unifies(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unknown, _) | (_, Self::Unknown) => false,
            (Self::Any(all), one) | (one, Self::Any(all)) => match one {
                Self::Function(_) => false,
                Self::Any(others) if others.is_empty() => true,
                _ => all.is_empty() || all.iter().any(|it| it.unifies(one)),
            },
            (Self::Array(a), Self::Array(b)) => {
                a.holds_items_of(b) && b.holds_items_of(a) && both(a.known_rest(), b.known_rest())
            }
            (Self::Object(a), Self::Object(b)) => {
                a.holds_members_of(b) && b.holds_members_of(a) && both(a.known_rest(), b.known_rest())
            }
            (Self::Set(a), Self::Set(b)) => a.of.unifies(&b.of),
            (Self::Function(a), Self::Function(b)) => {
                a.args.len() == b.args.len() && a.args.iter().zip(&b.args).all(|(a, b)| a.unifies(b))
            }
            (a, b) => a == b,
        }
    }

    /// The type of two definitions of one rule together.
    ///
    /// Mirrors: `mergeTypes`, OPA `v1/ast/env.go`, v1.19.0.
    pub(crate) fn merge(self, other: Self) -> Self {
        match (self, other) {
            (Self::Object(a), Self::Object(b)) if a.members.is_empty() && b.members.is_empty() => {
                let rest = match (&a.rest, &b.rest) {
                    (Some((a_key, a_value)), Some((b_key, b_value))) => {
                        Some((a_key.clone().or(b_key.clone()), a_value.clone().merge(b_value.clone())))
                    }
                    (a, b) => a.clone().or_else(|| b.clone()),
                };
                Self::object(Vec::new(), rest)
            }
            (Self::Set(a), Self::Set(b)) => Self::set(a.of.clone().or(b.of.clone())),
            (Self::Object(one), Self::Any(all)) | (Self::Any(all), Self::Object(one)) if one.members.is_empty() => {
                // It joins the first object among the alternatives whose members are not known either.
                let is_open = |it: &&Self| matches!(it, Self::Object(it) if it.members.is_empty());
                match (all.iter().find(is_open), &one.rest) {
                    (Some(Self::Object(known)), Some((key, value))) => {
                        let rest = known.rest.clone().map_or((key.clone(), value.clone()), |(own, values)| {
                            (own.or(key.clone()), values.or(value.clone()))
                        });
                        let joined = Self::object(Vec::new(), Some(rest));
                        let others = all.iter().filter(|it| !matches!(it, Self::Object(it) if Arc::ptr_eq(it, known)));
                        others.cloned().fold(joined, Self::or)
                    }
                    _ => Self::Any(all).or(Self::Object(one)),
                }
            }
            (a, b) => a.or(b),
        }
    }
}

fn both(a: Option<&Type>, b: Option<&Type>) -> bool {
    a.zip(b).is_none_or(|(a, b)| a.unifies(b))
}

impl ArrayType {
    /// The type of the items that follow; of which nothing is known, there are none, as in OPA.
    pub(crate) fn known_rest(&self) -> Option<&Type> {
        self.rest.as_ref().filter(|rest| **rest != Type::Unknown)
    }

    /// The type of the item at `at`.
    pub(crate) fn at(&self, at: usize) -> Type {
        self.items.get(at).or(self.rest.as_ref()).cloned().unwrap_or(Type::Unknown)
    }

    fn holds_items_of(&self, other: &Self) -> bool {
        other.items.iter().enumerate().all(|(at, item)| item.unifies(&self.at(at)))
    }
}

impl ObjectType {
    /// The type of other members' values; of which nothing is known, there are none, as in OPA.
    pub(crate) fn known_rest(&self) -> Option<&Type> {
        self.rest.as_ref().map(|(_, value)| value).filter(|value| **value != Type::Unknown)
    }

    fn at(&self, key: &Value) -> Type {
        if let Ok(found) = self.members.binary_search_by(|(own, _)| own.cmp(key)) {
            return self.members.get(found).map_or(Type::Unknown, |(_, value)| value.clone());
        }
        match &self.rest {
            Some((own, value)) if own.contains(&Type::of(key)) => value.clone(),
            _ => Type::Unknown,
        }
    }

    fn holds_members_of(&self, other: &Self) -> bool {
        other.members.iter().all(|(key, value)| match self.at(key) {
            Type::Unknown => self.known_rest().is_some() || other.known_rest().is_some(),
            own => own.unifies(value),
        })
    }
}

/// As OPA prints types.
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("???"),
            Self::Null => f.write_str("null"),
            Self::Boolean => f.write_str("boolean"),
            Self::Number => f.write_str("number"),
            Self::String => f.write_str("string"),
            Self::Array(array) => {
                f.write_str("array")?;
                listed(f, array.items.iter().map(Self::to_string))?;
                array.rest.iter().try_for_each(|rest| write!(f, "[{rest}]"))
            }
            Self::Object(object) => {
                f.write_str("object")?;
                let plain = |key: &Value| key.as_str().map_or_else(|| key.to_string(), str::to_owned);
                listed(f, object.members.iter().map(|(key, value)| format!("{}: {value}", plain(key))))?;
                object.rest.iter().try_for_each(|(key, value)| write!(f, "[{key}: {value}]"))
            }
            Self::Set(set) => write!(f, "set[{}]", set.of),
            Self::Any(all) => {
                f.write_str("any")?;
                listed(f, all.iter().map(Self::to_string))
            }
            Self::Function(function) => {
                write!(f, "{}", Arguments(&function.args))?;
                function.result.iter().try_for_each(|result| write!(f, " => {result}"))
            }
        }
    }
}

/// `<a, b>`, nothing for nothing.
fn listed(f: &mut fmt::Formatter<'_>, items: impl Iterator<Item = String>) -> fmt::Result {
    let items: Vec<String> = items.collect();
    if items.is_empty() { Ok(()) } else { write!(f, "<{}>", items.join(", ")) }
}

/// `(a, b)`.
pub(crate) struct Arguments<'a>(pub &'a [Type]);

impl fmt::Display for Arguments<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: Vec<String> = self.0.iter().map(Type::to_string).collect();
        write!(f, "({})", shown.join(", "))
    }
}
