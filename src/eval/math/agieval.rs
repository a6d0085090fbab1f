//! AGIEval's problems of mathematics: takes the last formula or number of each answer, normalises
//! it (Hendrycks et al. 2021), and compares texts.

use std::sync::LazyLock;

use fancy_regex::Regex;

use super::{in_box, last_boxed};
use crate::eval::filter::expression;

/// Returns whether both texts end with the same answer.
pub fn same_answer(answer: &str, target: &str) -> bool {
    let (a, b) = (last_part(answer), last_part(target));
    match (a.as_deref().and_then(plain), b.as_deref().and_then(plain)) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// Returns the contents of the last box, or the text between dollar signs, or after the last equals
/// sign, or the last number.
fn last_part(text: &str) -> Option<String> {
    static FORMULA: LazyLock<Regex> = LazyLock::new(|| expression(r"\$(.*)\$"));
    static NUMBER: LazyLock<Regex> = LazyLock::new(|| expression(r"(?:\$)?\d+(?:\.\d+)?(?![\w\d])"));
    let after_equals = |text: &str| match text.rsplit_once('=') {
        Some((_, last)) => last.trim_start_matches(' ').to_owned(),
        None => text.to_owned(),
    };
    if text.contains("\\boxed") {
        return last_boxed(text).and_then(in_box).map(after_equals);
    }
    let formula = FORMULA.captures_iter(text).flatten().last().map(|found| after_equals(&found[1]));
    formula.filter(|formula| !formula.is_empty()).or_else(|| match text.rsplit_once('=') {
        Some((_, last)) => {
            let last = last.trim_start_matches(' ').trim_end_matches('.');
            Some(last.split("\\n").next().unwrap_or_default().to_owned())
        }
        None => NUMBER.find_iter(text).flatten().last().map(|found| found.as_str().to_owned()),
    })
}

/// Normalises an answer. `None` where the rules do not fit the text.
fn plain(text: &str) -> Option<String> {
    let mut text = text.replace('\n', "");
    for (before, after) in [
        ("\\!", ""),
        ("\\\\", "\\"),
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        ("\\left", ""),
        ("\\right", ""),
        ("^{\\circ}", ""),
        ("^\\circ", ""),
        ("\\$", ""),
    ] {
        text = text.replace(before, after);
    }
    // Units on the right.
    let with_units: Vec<&str> = text.split("\\text{ ").collect();
    text = match with_units[..] {
        [all] => all.to_owned(),
        [number, _] => number.to_owned(),
        _ => return None,
    };
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.");
    if text.is_empty() {
        return Some(text);
    }
    if text.starts_with('.') {
        text.insert(0, '0');
    }
    // "k = 5"
    if let [name, value] = text.split('=').collect::<Vec<_>>()[..]
        && name.chars().count() <= 2
    {
        text = value.to_owned();
    }
    text = with_braces_of_roots(&text)?.replace(' ', "");
    text = with_braces_of_fractions(&text)?;
    if text == "0.5" {
        text = "\\frac{1}{2}".into();
    }
    if let [a, b] = text.split('/').collect::<Vec<_>>()[..]
        && let (Ok(x), Ok(y)) = (a.parse::<i64>(), b.parse::<i64>())
        && text == format!("{x}/{y}")
    {
        text = format!("\\frac{{{x}}}{{{y}}}");
    }
    Some(text)
}

/// `\sqrt3` is `\sqrt{3}`.
fn with_braces_of_roots(text: &str) -> Option<String> {
    let mut parts = text.split("\\sqrt");
    let mut result = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let first = part.chars().next()?;
        result += &match first {
            '{' => format!("\\sqrt{part}"),
            _ => format!("\\sqrt{{{first}}}{}", &part[first.len_utf8()..]),
        };
    }
    Some(result)
}

/// `\frac1b` and `\frac1{b}` are `\frac{1}{b}`.
fn with_braces_of_fractions(text: &str) -> Option<String> {
    let mut parts = text.split("\\frac");
    let mut result = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let mut chars = part.chars();
        let first = chars.next()?;
        if first == '{' {
            result += &format!("\\frac{part}");
            continue;
        }
        let Some(second) = chars.next() else { return Some(text.to_owned()) };
        result += &match second {
            '{' => format!("\\frac{{{first}}}{{{}", chars.as_str()),
            _ => format!("\\frac{{{first}}}{{{second}}}{}", chars.as_str()),
        };
    }
    Some(result)
}
