//! Comparing, sorting and building values that may be large, with a meter that can end the work.
//!
//! Small values go the direct way; the results are the same.

use std::cmp::Ordering;

use super::{Object, Set, Value};
use crate::meter::Meter;

/// Values up to this weight are compared at once.
const DIRECT_WEIGHT: usize = 1_024;
/// Collections up to this many items, and this weight times their rounds of sorting, are sorted at once.
const DIRECT_ITEMS: usize = 1_024;
const DIRECT_SORTING: usize = 16_384;
/// Weight that is compared or hashed in one step.
const WEIGHT_PER_STEP: usize = 16;

/// The order of two values.
pub fn compare<M: Meter>(meter: &mut M, a: &Value, b: &Value) -> Result<Ordering, M::Error> {
    let weight = a.weight().min(b.weight());
    meter.work(weight.min(DIRECT_WEIGHT) / WEIGHT_PER_STEP)?;
    if weight <= DIRECT_WEIGHT {
        return Ok(a.cmp(b));
    }
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => {
            lists(meter, a.iter().map(|it| [it]), b.iter().map(|it| [it]), a.len(), b.len())
        }
        (Value::Set(a), Value::Set(b)) => {
            lists(meter, a.iter().map(|it| [it]), b.iter().map(|it| [it]), a.len(), b.len())
        }
        (Value::Object(a), Value::Object(b)) => {
            let pair = |(key, value)| [key, value];
            lists(meter, a.iter().map(pair), b.iter().map(pair), a.len(), b.len())
        }
        _ => Ok(a.cmp(b)),
    }
}

fn lists<'v, const N: usize, M: Meter>(
    meter: &mut M,
    a: impl Iterator<Item = [&'v Value; N]>,
    b: impl Iterator<Item = [&'v Value; N]>,
    a_len: usize,
    b_len: usize,
) -> Result<Ordering, M::Error> {
    for (a, b) in a.zip(b) {
        meter.work(1)?;
        for (a, b) in a.into_iter().zip(b) {
            let order = compare(meter, a, b)?;
            if order.is_ne() {
                return Ok(order);
            }
        }
    }
    Ok(a_len.cmp(&b_len))
}

/// Equality of two values.
pub fn equal<M: Meter>(meter: &mut M, a: &Value, b: &Value) -> Result<bool, M::Error> {
    let sizes = match (a, b) {
        (Value::Array(a), Value::Array(b)) => (a.len(), b.len()),
        (Value::Object(a), Value::Object(b)) => (a.len(), b.len()),
        (Value::Set(a), Value::Set(b)) => (a.len(), b.len()),
        (Value::String(a), Value::String(b)) => (a.len(), b.len()),
        (Value::Number(_), Value::Number(_)) => (0, 0),
        _ => return Ok(a == b),
    };
    if sizes.0 != sizes.1 {
        return Ok(false);
    }
    Ok(compare(meter, a, b)?.is_eq())
}

/// Sorts by a key, keeping the order of equal ones.
pub fn sort_by_key<M: Meter, T>(meter: &mut M, items: Vec<T>, key: fn(&T) -> &Value) -> Result<Vec<T>, M::Error> {
    let mut is_sorted = true;
    for pair in items.windows(2) {
        let [a, b] = pair else { continue };
        meter.work(1)?;
        if compare(meter, key(a), key(b))?.is_gt() {
            is_sorted = false;
            break;
        }
    }
    if is_sorted {
        return Ok(items);
    }
    // The halves of every level, and what they are merged into.
    let bytes = items.len().saturating_mul(size_of::<T>()).saturating_mul(3);
    meter.allocate(bytes)?;
    let sorted = merge_sort(meter, items, key);
    meter.release(bytes);
    sorted
}

fn merge_sort<M: Meter, T>(meter: &mut M, mut items: Vec<T>, key: fn(&T) -> &Value) -> Result<Vec<T>, M::Error> {
    let len = items.len();
    if len < 2 {
        return Ok(items);
    }
    if len <= DIRECT_ITEMS {
        let weight = items.iter().fold(0usize, |sum, it| sum.saturating_add(key(it).weight()));
        let work = weight.saturating_mul(len.ilog2().saturating_add(1) as usize);
        if work <= DIRECT_SORTING {
            meter.work(work / WEIGHT_PER_STEP)?;
            items.sort_by(|a, b| key(a).cmp(key(b)));
            return Ok(items);
        }
    }
    let right = items.split_off(len / 2);
    let left = merge_sort(meter, items, key)?;
    let right = merge_sort(meter, right, key)?;
    let mut merged = Vec::with_capacity(len);
    let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        meter.work(1)?;
        let next = if compare(meter, key(a), key(b))?.is_gt() { right.next() } else { left.next() };
        merged.extend(next);
    }
    merged.extend(left);
    merged.extend(right);
    Ok(merged)
}

/// A set of `items`, which were charged.
pub fn set<M: Meter>(meter: &mut M, items: Vec<Value>) -> Result<Value, M::Error> {
    if is_small(meter, items.iter())? {
        return Ok(Value::set(items));
    }
    let mut sorted: Vec<Value> = Vec::with_capacity(items.len());
    for item in sort_by_key(meter, items, |it| it)? {
        meter.work(1)?;
        match sorted.last() {
            Some(last) if equal(meter, last, &item)? => {}
            _ => sorted.push(item),
        }
    }
    Ok(Value::Set(Set::sorted(sorted, meter)?.into()))
}

/// An object of `members`, which were charged; of two equal keys the last wins.
pub fn object<M: Meter>(meter: &mut M, members: Vec<(Value, Value)>) -> Result<Value, M::Error> {
    if is_small(meter, members.iter().map(|(key, _)| key))? {
        return Ok(Value::object(members));
    }
    let mut sorted: Vec<(Value, Value)> = Vec::with_capacity(members.len());
    for member in sort_by_key(meter, members, |(key, _)| key)? {
        meter.work(1)?;
        match sorted.last_mut() {
            Some(last) if equal(meter, &last.0, &member.0)? => *last = member,
            _ => sorted.push(member),
        }
    }
    Ok(Value::Object(Object::sorted(sorted, meter)?.into()))
}

/// These keys are sorted and hashed at once, which is counted then.
fn is_small<'v, M: Meter>(meter: &mut M, keys: impl ExactSizeIterator<Item = &'v Value>) -> Result<bool, M::Error> {
    let len = keys.len();
    if len > DIRECT_ITEMS {
        return Ok(false);
    }
    let weight = keys.fold(0usize, |sum, key| sum.saturating_add(key.weight()));
    let work = weight.saturating_mul(len.max(1).ilog2().saturating_add(1) as usize);
    if work > DIRECT_SORTING {
        return Ok(false);
    }
    meter.work(work / WEIGHT_PER_STEP)?;
    Ok(true)
}

/// The item of an array that equals `item`.
pub fn contains<M: Meter>(meter: &mut M, items: &[Value], item: &Value) -> Result<bool, M::Error> {
    for known in items {
        meter.work(1)?;
        if equal(meter, known, item)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Counts the hashing of a key that is about to be looked up.
pub fn hashing<M: Meter>(meter: &mut M, key: &Value) -> Result<(), M::Error> {
    meter.work(key.weight() / WEIGHT_PER_STEP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::Unmetered;

    #[test]
    fn large_values_are_sorted_and_compared_as_small_ones() {
        let deep = |n: i64| Value::array((0..2_000).map(Value::from).chain([Value::from(n)]).collect());
        let items: Vec<Value> =
            (0..3_000i64).map(|n| Value::from(n * 7_919 % 1_009)).chain([deep(2), deep(1)]).collect();
        let Ok(made) = set(&mut Unmetered, items.clone());
        assert_eq!(made, Value::set(items.clone()));
        assert_eq!(made.get(&deep(2)), Some(&deep(2)));
        let members: Vec<_> = items.iter().cloned().zip((0..).map(|n: i64| Value::from(n))).collect();
        let Ok(made) = object(&mut Unmetered, members.clone());
        assert_eq!(made, Value::object(members));
        for (a, b) in [(deep(1), deep(2)), (deep(2), deep(2)), (deep(1), Value::from("x"))] {
            let Ok(order) = compare(&mut Unmetered, &a, &b);
            assert_eq!(order, a.cmp(&b));
            let Ok(same) = equal(&mut Unmetered, &a, &b);
            assert_eq!(same, a == b);
        }
    }
}
