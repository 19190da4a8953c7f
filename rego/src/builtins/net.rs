//! Networks.
//!
//! Mirrors: OPA `v1/topdown/cidr.go`, v1.19.0; Go `net` for what an address and a network are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Builtin, BuiltinError, Context, Outcome, excerpt, failed, function, items, operand, text};
use crate::eval::EvalError;
use crate::meter::{HEADER_BYTES, ITEM_BYTES, Meter as _};
use crate::value::Value;

pub(super) const TABLE: &[Builtin] = &[
    function("net.cidr_contains", 2, contains),
    function("net.cidr_overlap", 2, contains),
    function("net.cidr_intersects", 2, |_, args| {
        let (a, b) = (Network::parse(text(args, 1)?)?, Network::parse(text(args, 2)?)?);
        Ok(Value::Bool(a.holds(b.first()) || b.holds(a.first())))
    }),
    function("net.cidr_is_valid", 1, |_, args| {
        Ok(Value::Bool(operand(args, 1)?.as_str().is_some_and(|cidr| Network::parse(cidr).is_ok())))
    }),
    function("net.cidr_contains_matches", 2, contains_matches),
    function("net.cidr_expand", 1, expand),
    function("net.cidr_merge", 1, merge),
];

/// An address as bits, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Address {
    width: u32,
    bits: u128,
}

impl Address {
    /// IPv6 addresses that stand for IPv4 ones count as those.
    fn parse(text: &str) -> Option<Self> {
        let address = match text.parse::<IpAddr>().ok()? {
            IpAddr::V6(address) => address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4),
            address @ IpAddr::V4(_) => address,
        };
        Some(match address {
            IpAddr::V4(address) => Self { width: 32, bits: u128::from(u32::from(address)) },
            IpAddr::V6(address) => Self { width: 128, bits: u128::from(address) },
        })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match u32::try_from(self.bits) {
            Ok(bits) if self.width == 32 => Ipv4Addr::from(bits).fmt(f),
            _ => Ipv6Addr::from(self.bits).fmt(f),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Network {
    address: Address,
    prefix: u32,
}

impl Network {
    fn parse(text: &str) -> Result<Self, BuiltinError> {
        let invalid = || failed(format!("invalid CIDR address: {}", excerpt(text)));
        let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
        let written_width = if address.contains(':') { 128 } else { 32 };
        let plain = !prefix.is_empty() && prefix.len() <= 3 && prefix.bytes().all(|byte| byte.is_ascii_digit());
        let prefix: u32 = prefix.parse().ok().filter(|prefix| plain && *prefix <= written_width).ok_or_else(invalid)?;
        let address = Address::parse(address).ok_or_else(invalid)?;
        // The last 32 bits of the mask count for an address that stands for an IPv4 one.
        let prefix = prefix.saturating_sub(written_width.saturating_sub(address.width));
        Ok(Self { address, prefix })
    }

    fn host_bits(self) -> u32 {
        self.address.width.saturating_sub(self.prefix)
    }

    fn mask(self) -> u128 {
        let all = if self.address.width == 32 { u128::from(u32::MAX) } else { u128::MAX };
        all & !1u128.checked_shl(self.host_bits()).map_or(u128::MAX, |bit| bit - 1)
    }

    fn first(self) -> Address {
        Address { bits: self.address.bits & self.mask(), ..self.address }
    }

    fn last(self) -> Address {
        let all = if self.address.width == 32 { u128::from(u32::MAX) } else { u128::MAX };
        Address { bits: self.first().bits | (all & !self.mask()), ..self.address }
    }

    fn holds(self, address: Address) -> bool {
        address.width == self.address.width && address.bits & self.mask() == self.first().bits
    }
}

fn contains(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let network = Network::parse(text(args, 1)?)?;
    holds(network, text(args, 2)?).map(Value::Bool)
}

fn holds(network: Network, other: &str) -> Result<bool, BuiltinError> {
    if let Some(address) = Address::parse(other) {
        return Ok(network.holds(address));
    }
    let other = Network::parse(other).map_err(|_| {
        failed(format!("not a valid textual representation of an IP address or CIDR: {}", excerpt(other)))
    })?;
    Ok(network.holds(other.first()) && network.holds(other.last()))
}

/// The networks of an operand, each with what names it in the result.
fn named<'v>(
    context: &mut Context<'_>,
    args: &[&'v Value],
    position: usize,
) -> Result<Vec<(&'v str, Value)>, BuiltinError> {
    let wrong = || failed(format!("operand {position}: element must be string or non-empty array"));
    let cidr = |value: &'v Value| -> Result<&'v str, BuiltinError> {
        match value {
            Value::String(text) => Ok(text),
            Value::Array(parts) => match parts.first() {
                Some(first) => first.as_str().ok_or_else(|| super::wrong_type(1, first, &["string"])),
                None => Err(wrong()),
            },
            _ => Err(wrong()),
        }
    };
    let given: Box<dyn Iterator<Item = (&'v Value, Value)>> = match operand(args, position)? {
        text @ Value::String(_) => Box::new(std::iter::once((text, text.clone()))),
        Value::Array(list) => Box::new(list.iter().enumerate().map(|(at, item)| (item, Value::from(at)))),
        Value::Set(set) => Box::new(set.iter().map(|item| (item, item.clone()))),
        Value::Object(object) => Box::new(object.iter().map(|(key, item)| (item, key.clone()))),
        _ => Box::new(std::iter::empty()),
    };
    let mut list = Vec::new();
    for (item, name) in given {
        context.step()?;
        context.allocate(3 * size_of::<(&str, Value)>())?;
        list.push((cidr(item)?, name));
    }
    Ok(list)
}

fn contains_matches(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (networks, others) = (named(context, args, 1)?, named(context, args, 2)?);
    let mut found = Vec::new();
    for (cidr, first) in &networks {
        context.work(4)?;
        let network = Network::parse(cidr);
        for (other, second) in &others {
            context.work(4)?;
            if holds(network.clone()?, other)? {
                context.allocate(HEADER_BYTES + 2 * ITEM_BYTES)?;
                context.push(&mut found, Value::array(vec![first.clone(), second.clone()]))?;
            }
        }
    }
    context.set(found)
}

fn expand(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let network = Network::parse(text(args, 1)?)?;
    let count = 1usize.checked_shl(network.host_bits()).unwrap_or(usize::MAX);
    let first = network.first();
    let mut addresses = Vec::new();
    for offset in 0..count {
        context.work(8)?;
        let address = Address { bits: first.bits.saturating_add(offset as u128), ..first };
        let address = context.text(&address.to_string())?;
        context.push(&mut addresses, address)?;
    }
    context.set(addresses)
}

fn merge(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let list = items(operand(args, 1)?).ok_or_else(|| failed("operand must be an array"))?;
    let mut ranges = Vec::new();
    for item in list {
        context.work(8)?;
        context.allocate(6 * size_of::<(Address, Address, Option<Network>)>())?;
        let given = item.as_str().ok_or_else(|| failed("element must be string"))?;
        let network = match Address::parse(given) {
            None => Network::parse(given)?,
            Some(address) if address.width == 32 => Network { address, prefix: class_of(address) },
            Some(_) => return Err(failed("IPv6 invalid: needs prefix length")),
        };
        ranges.push((network.first(), network.last(), Some(network)));
    }
    // Sorting cannot be interrupted: a few instructions for each comparison.
    let rounds = ranges.len().max(1).ilog2().saturating_add(1) as usize;
    if ranges.len() > MAX_MERGED {
        return Err(EvalError::budget("too many networks to merge").into());
    }
    context.work(ranges.len().saturating_mul(rounds) / 4)?;
    ranges.sort_by_key(|(first, last, _)| (*last, *first));
    // From the end: what touches or overlaps the one before is joined to it.
    let mut merged: Vec<(Address, Address, Option<Network>)> = Vec::new();
    for (first, last, network) in ranges {
        context.step()?;
        let mut joined = (first, last, network);
        while let Some(&(before, end, _)) = merged.last() {
            let touches = before.width == joined.0.width && joined.0.bits.saturating_sub(1) <= end.bits;
            if !touches {
                break;
            }
            merged.pop();
            joined = (before.min(joined.0), joined.1, None);
        }
        merged.push(joined);
    }
    let mut found = Vec::new();
    for (first, last, network) in merged {
        match network {
            Some(network) => {
                let text = context.text(&format!("{}/{}", network.first(), network.prefix))?;
                context.push(&mut found, text)?;
            }
            None => cover(context, first, last, &mut found)?,
        }
    }
    context.set(found)
}

/// Networks that are merged at once.
const MAX_MERGED: usize = 200_000;

/// Go's `DefaultMask`.
fn class_of(address: Address) -> u32 {
    match address.bits >> 24 {
        0..=127 => 8,
        128..=191 => 16,
        _ => 24,
    }
}

/// The fewest networks that make up a range.
fn cover(context: &mut Context<'_>, first: Address, last: Address, found: &mut Vec<Value>) -> Result<(), BuiltinError> {
    let mut from = first.bits;
    loop {
        let aligned = from.trailing_zeros().min(first.width);
        let left = last.bits.wrapping_sub(from);
        let fitting = match left.checked_add(1) {
            Some(count) => 127u32.saturating_sub(count.leading_zeros()),
            None => 128,
        };
        let bits = aligned.min(fitting);
        let address = Address { bits: from, ..first };
        context.work(8)?;
        let text = context.text(&format!("{address}/{}", first.width.saturating_sub(bits)))?;
        context.push(found, text)?;
        let Some(next) = 1u128.checked_shl(bits).and_then(|step| from.checked_add(step)) else { return Ok(()) };
        if next > last.bits {
            return Ok(());
        }
        from = next;
    }
}
