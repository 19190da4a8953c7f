//! The code of bodies: operations over registers, in order; one that has no result ends its branch.

use super::{GroupId, NodeId};
use crate::builtins::{Builtin, Prepared};
use crate::compile::hir::Collection;
use crate::host::Place;
use crate::syntax::Location;
use crate::value::Value;

/// A register of the present frame.
pub(crate) type Reg = u32;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Src {
    Reg(Reg),
    Const(Value),
    Input,
    /// The base document.
    Data,
}

/// A body with what its head needs.
#[derive(Debug, Default)]
pub(crate) struct Code {
    pub ops: Box<[Op]>,
    /// Registers that it uses.
    pub frame: u32,
    /// The parts of the head that follow its constant path.
    pub tail: Box<[Src]>,
    pub value: Option<Src>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A part of a reference that is resolved when it runs.
#[derive(Clone, Debug)]
pub enum Operand {
    Bound(Src),
    /// Every key in turn.
    Free(Reg),
}

/// A changed document or function while an expression runs.
#[derive(Clone, Debug)]
pub enum Override {
    Input(Vec<Value>, Src),
    Data(Vec<Value>, Src),
    Mock(Mock),
}

/// A replaced function.
#[derive(Clone, Debug)]
pub struct Mock {
    pub of: Replacement,
    pub by: MockValue,
}

#[derive(Clone, Copy, Debug)]
pub enum Replacement {
    Builtin(&'static Builtin),
    Rule(GroupId),
}

#[derive(Clone, Debug)]
pub enum MockValue {
    Value(Src),
    Function(Replacement),
}

/// A call of a built-in function.
#[derive(Debug)]
pub struct Call {
    pub function: &'static Builtin,
    pub args: Box<[Src]>,
    pub at: Location,
    /// A constant pattern, compiled when the policy was.
    pub prepared: Option<Box<Prepared>>,
}

#[derive(Debug)]
pub enum Op {
    /// Reports the source position to the host.
    Visit(Box<Place>),
    /// Ends the branch.
    Fail,
    Get {
        from: Src,
        key: Src,
        to: Reg,
        /// It lies in base data, where a number finds what it spells.
        base: bool,
    },
    /// The value at a constant path.
    Path {
        from: Src,
        path: Box<[Value]>,
        to: Reg,
        base: bool,
    },
    /// Every member in turn.
    Scan {
        over: Src,
        /// Only where it is wanted.
        key: Option<Reg>,
        value: Reg,
    },
    /// Goes on unless the value is false.
    Truth(Src),
    Compare(Comparison, Src, Src),
    /// An array of exactly this many items.
    ArrayLen(Src, usize),
    /// An object of exactly this many members.
    ObjectLen(Src, usize),
    Array(Box<[Src]>, Reg),
    Set(Box<[Src]>, Reg),
    Object(Box<[(Src, Src)]>, Reg),
    /// A comprehension.
    Collect {
        kind: Collection,
        ops: Box<[Op]>,
        key: Option<Src>,
        value: Src,
        to: Reg,
    },
    Not(Box<[Op]>),
    Every {
        over: Src,
        key: Reg,
        value: Reg,
        ops: Box<[Op]>,
    },
    Builtin {
        call: Call,
        to: Reg,
    },
    /// The result must not be false.
    BuiltinTest(Call),
    Function {
        group: GroupId,
        args: Box<[Src]>,
        to: Reg,
        at: Location,
    },
    /// Every value in a document with its path; the path only where it is wanted.
    Walk {
        over: Src,
        path: Option<Reg>,
        value: Reg,
    },
    Print {
        args: Box<[Src]>,
    },
    Rule {
        group: GroupId,
        to: Reg,
    },
    /// One member of a set or object that rules define.
    Keyed {
        group: GroupId,
        key: Src,
        to: Reg,
    },
    /// The whole document at a path of the tree, rules and base data.
    Document {
        node: NodeId,
        to: Reg,
    },
    Dynamic {
        node: NodeId,
        operands: Box<[Operand]>,
        to: Reg,
    },
    With {
        overrides: Box<[Override]>,
        ops: Box<[Op]>,
        outs: Box<[Reg]>,
    },
}
