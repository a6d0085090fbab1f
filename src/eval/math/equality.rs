//! Compares two values, each kind in its own way.

use super::{
    latex::{LatexToken, Relation, are_close, values_are_equal},
    value::MathValue,
};

/// Returns whether a value is an equation of a name, of which only the last side counts.
fn is_assignment(value: &MathValue) -> bool {
    let is_function = |side: &MathValue| match side {
        MathValue::Formula { tokens, .. } => {
            matches!(
                &tokens[..],
                [LatexToken::Name(_), LatexToken::Sign('('), LatexToken::Name(_), LatexToken::Sign(')')]
            )
        }
        _ => false,
    };
    let is_name = |side: &MathValue| side.letters().is_some() || is_function(side);
    matches!(value, MathValue::Relations { sides, .. } if is_equation(value) && is_name(&sides[0]))
}

fn is_equation(value: &MathValue) -> bool {
    matches!(value, MathValue::Relations { names, .. } if names.iter().all(|name| *name == Relation::Equal))
}

/// Reduces a chain of relations to its first and last side.
fn shortened(value: MathValue) -> MathValue {
    match value {
        MathValue::Relations { names, mut sides } if sides.len() > 2 => {
            let last = sides.swap_remove(sides.len() - 1);
            MathValue::Relations { names: names[..1].to_vec(), sides: vec![sides.swap_remove(0), last] }
        }
        other => other,
    }
}

fn last_side(value: MathValue) -> MathValue {
    match value {
        MathValue::Relations { mut sides, .. } => sides.pop().expect("relations have sides"),
        other => other,
    }
}

/// Returns whether the value that was found equals the solution's. Not symmetric: the solution
/// decides whether an equation or its right side is wanted.
pub fn equal(gold: MathValue, found: MathValue) -> bool {
    let (gold_assigns, found_assigns) = (is_assignment(&gold), is_assignment(&found));
    let (gold_equates, found_equates) = (is_equation(&gold), is_equation(&found));
    let (mut gold, mut found) =
        (if gold_assigns { shortened(gold) } else { gold }, if found_assigns { shortened(found) } else { found });
    if found_equates && !gold_equates {
        found = last_side(found);
    } else if gold_assigns && !found_equates {
        gold = last_side(gold);
    }
    if matches!(found, MathValue::Interval { .. } | MathValue::Union(_)) {
        gold = as_interval(gold);
    }
    match (&gold, &found) {
        (MathValue::Relations { names: a, sides: x }, MathValue::Relations { names: b, sides: y }) => {
            relations_are_equal((a, x), (b, y))
        }
        (MathValue::Matrix(a), MathValue::Matrix(b)) => {
            let rows_are_equal = |(a, b): (&Vec<MathValue>, &Vec<MathValue>)| a.len() == b.len() && all_equal(a, b);
            a.len() == b.len() && a.iter().zip(b).all(rows_are_equal)
        }
        (MathValue::Relations { .. } | MathValue::Matrix(_), _)
        | (_, MathValue::Relations { .. } | MathValue::Matrix(_)) => false,
        (MathValue::List { .. } | MathValue::Interval { .. } | MathValue::Union(_), _)
        | (_, MathValue::List { .. } | MathValue::Interval { .. } | MathValue::Union(_)) => {
            sets_are_equal(&gold, &found)
        }
        (MathValue::Name(_), _) | (_, MathValue::Name(_)) => {
            gold.letters().is_some() && gold.letters() == found.letters()
        }
        _ => numbers_are_equal(&gold, &found),
    }
}

fn all_equal(a: &[MathValue], b: &[MathValue]) -> bool {
    a.iter().zip(b).all(|(a, b)| equal(a.clone(), b.clone()))
}

fn numbers_are_equal(gold: &MathValue, found: &MathValue) -> bool {
    if let (
        MathValue::Number { value: a, is_decimal: false, .. },
        MathValue::Number { value: b, is_decimal: false, .. },
    ) = (gold, found)
    {
        // 9% is 9.
        return a == b;
    }
    let is_decimal = |value: &MathValue| matches!(value, MathValue::Number { is_decimal: true, .. });
    if let (true, Some(a), Some(b)) = (is_decimal(gold) || is_decimal(found), gold.constant(), found.constant()) {
        // 1/3 is 0.333333.
        return (a * 1e6).round() == (b * 1e6).round();
    }
    let infinite = |value: &MathValue| value.at(0).filter(|value| value.is_infinite());
    let both_infinite = infinite(gold).zip(infinite(found)).is_some_and(|(a, b)| a == b);
    both_infinite || values_are_equal(|point| Some((gold.at(point)?, found.at(point)?)))
}

fn sets_are_equal(gold: &MathValue, found: &MathValue) -> bool {
    let pair = |value: &MathValue| match value {
        MathValue::Interval { ends, is_open: [true, true] } => Some(ends.to_vec()),
        _ => None,
    };
    let items = |value: &MathValue| match value {
        MathValue::List { is_ordered: true, items } => Some(items.clone()),
        MathValue::List { items, .. } => Some(distinct(items)),
        MathValue::Interval { .. } | MathValue::Union(_) => pair(value),
        single => Some(vec![single.clone()]),
    };
    match (gold, found) {
        (MathValue::Interval { ends: a, is_open: x }, MathValue::Interval { ends: b, is_open: y }) => {
            x == y && all_equal(&a[..], &b[..])
        }
        (MathValue::Union(a), MathValue::Union(b)) => same_members(a, b),
        (MathValue::Union(_), _) | (_, MathValue::Union(_)) => false,
        _ => match (items(gold), items(found)) {
            (Some(a), Some(b)) if a.len() == b.len() => {
                // A set is sorted only where the solution has one.
                if matches!(gold, MathValue::List { is_ordered: true, .. } | MathValue::Interval { .. }) {
                    all_equal(&a, &b)
                } else {
                    same_members(&a, &b)
                }
            }
            _ => false,
        },
    }
}

/// Returns whether both lists have the same members, in any order.
fn same_members(a: &[MathValue], b: &[MathValue]) -> bool {
    let mut left: Vec<&MathValue> = b.iter().collect();
    a.len() == b.len()
        && a.iter().all(|a| {
            let place = left.iter().position(|b| equal(a.clone(), (*b).clone()));
            place.map(|place| left.swap_remove(place)).is_some()
        })
}

fn flipped(name: Relation) -> Relation {
    match name {
        Relation::Less => Relation::Greater,
        Relation::LessOrEqual => Relation::GreaterOrEqual,
        Relation::Greater => Relation::Less,
        Relation::GreaterOrEqual => Relation::LessOrEqual,
        same => same,
    }
}

/// Compares chains of relations link by link. Two relations are equal if the differences of their
/// sides are; two equations, if these are equal up to a factor.
fn relations_are_equal((a, x): (&[Relation], &[MathValue]), (b, y): (&[Relation], &[MathValue])) -> bool {
    if a.len() != b.len() {
        return false;
    }
    (0..a.len()).all(|i| {
        if a[i] == b[i] && all_equal(&x[i..i + 2], &y[i..i + 2]) {
            return true;
        }
        let difference = |sides: &[MathValue], point| Some(sides[i].at(point)? - sides[i + 1].at(point)?);
        let ratio = |point| Some(difference(x, point)? / difference(y, point)?);
        let Some(first) = ratio(0) else { return false };
        let is_same =
            first.is_finite() && first != 0.0 && (1..4).all(|point| ratio(point).is_some_and(|r| are_close(r, first)));
        // Equations are solved, inequalities are not.
        let name = if first < 0.0 { flipped(b[i]) } else { b[i] };
        is_same && a[i] == name && (a[i] == Relation::Equal || are_close(first.abs(), 1.0))
    })
}

/// Turns `1 < x < 2` into an interval. Leaves other values as they are.
fn as_interval(value: MathValue) -> MathValue {
    use Relation::{Greater, GreaterOrEqual, Less, LessOrEqual};
    let MathValue::Relations { names, sides } = &value else { return value };
    let infinity = |value: f64| MathValue::Number { value, is_decimal: false, is_percent: false };
    let interval = |from: &MathValue, to: &MathValue, is_open| MathValue::Interval {
        ends: Box::new([from.clone(), to.clone()]),
        is_open,
    };
    let is_name = |side: &MathValue| side.letters().is_some();
    match (&names[..], &sides[..]) {
        ([a @ (Less | LessOrEqual), b @ (Less | LessOrEqual)], [from, x, to]) if is_name(x) => {
            interval(from, to, [*a == Less, *b == Less])
        }
        ([name @ (Less | LessOrEqual)], [x, to]) if is_name(x) => {
            interval(&infinity(f64::NEG_INFINITY), to, [true, *name == Less])
        }
        ([name @ (Greater | GreaterOrEqual)], [x, from]) if is_name(x) => {
            interval(from, &infinity(f64::INFINITY), [*name == Greater, true])
        }
        _ => value,
    }
}

/// Removes duplicates.
fn distinct(items: &[MathValue]) -> Vec<MathValue> {
    let mut kept: Vec<MathValue> = Vec::new();
    for item in items {
        if !kept.iter().any(|other| equal(other.clone(), item.clone())) {
            kept.push(item.clone());
        }
    }
    kept
}
