//! Compares answers by the rules of Math-Verify 0.9: numbers, formulas, names, sets, intervals,
//! relations and matrices, each in its own way. Where Math-Verify has sympy simplify and solve,
//! formulas are evaluated at several points here.

use super::{
    equality::equal,
    extract::{Found, candidates},
    value::MathValue,
};

/// Returns whether an answer and a solution have the same value.
pub fn verified(answer: &str, solution: &str) -> bool {
    let (gold, found) = (Extracted::of(solution), Extracted::of(answer));
    let same_value = gold.value.zip(found.value).is_some_and(|(gold, found)| equal(gold, found));
    let text = |text: Option<String>| text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    same_value || text(gold.text).zip(text(found.text)).is_some_and(|(gold, found)| gold == found)
}

/// The answer in a text: the first candidate that can be parsed, and the first candidate's text.
struct Extracted {
    value: Option<MathValue>,
    text: Option<String>,
}

impl Extracted {
    fn of(text: &str) -> Self {
        let mut first = None;
        for candidate in candidates(text).into_iter().flatten() {
            let (value, text) = read(candidate);
            if first.is_none() && !text.is_empty() {
                first = Some(text);
            }
            if value.is_some() {
                return Self { value, text: first };
            }
        }
        Self { value: None, text: first }
    }
}

fn read(found: Found) -> (Option<MathValue>, String) {
    match found {
        Found::Number(text, is_percent) => (MathValue::number(&text, is_percent), text),
        Found::Arithmetic(text) => {
            // "3/4." is a number with a point.
            let is_digit = |c: char| c.is_ascii_digit();
            let is_point = |(i, c): &(usize, char)| {
                *c != '.' || text[i + 1..].starts_with(is_digit) || !text[..*i].ends_with(is_digit)
            };
            let read = text.char_indices().filter(is_point).map(|(_, c)| c).collect::<String>();
            (MathValue::parse(&read), text)
        }
        Found::Latex(formulas) => {
            let read = |(text, is_percent): &(String, bool)| {
                let value = MathValue::parse(text)?;
                Some(if *is_percent { value.percent() } else { value })
            };
            let values: Vec<Option<MathValue>> = formulas.iter().map(read).collect();
            let all: Option<Vec<MathValue>> = values.iter().cloned().collect();
            let texts: Vec<&str> = formulas.iter().map(|(text, _)| text.as_str()).collect();
            match all {
                Some(all) if all.len() > 1 => {
                    let items = all.into_iter().flat_map(|value| match value {
                        MathValue::List { is_ordered: false, items } => items,
                        other => vec![other],
                    });
                    (Some(MathValue::List { is_ordered: false, items: items.collect() }), texts.join(" and "))
                }
                _ => (
                    values.into_iter().next().flatten(),
                    texts.first().map(|text| (*text).to_owned()).unwrap_or_default(),
                ),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by scripts/reference/lm_eval_goldens.py.
    #[test]
    fn verdicts_are_those_of_math_verify() {
        let cases: Vec<(String, String, bool)> =
            serde_json::from_str(include_str!("../../../tests/golden/eval/math_verify.json")).unwrap();
        let wrong: Vec<_> =
            cases.iter().filter(|(solution, answer, verdict)| verified(answer, solution) != *verdict).collect();
        assert!(wrong.is_empty(), "{} of {}: {wrong:#?}", wrong.len(), cases.len());
    }
}
