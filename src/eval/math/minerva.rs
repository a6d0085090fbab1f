//! MATH: takes the answer after "The final answer is", normalises it (Lewkowycz et al. 2022,
//! appendix D), and compares formulas.

use std::sync::LazyLock;

use fancy_regex::Regex;

use super::{in_box, last_boxed, latex};
use crate::eval::{filter::expression as regex, template::strip};

/// Returns whether the final answers of an answer and of a solution are the same.
///
/// # Errors
/// The solution has no final answer in a box.
pub fn final_answers_agree(answer: &str, solution: &str) -> Result<bool, String> {
    static FINAL: LazyLock<Regex> =
        LazyLock::new(|| regex("Final Answer: The final answer is(.*?). I hope it is correct."));
    let no_box = || "the solution has no \\boxed{...} with the final answer".to_owned();
    // The older way to write a box ends where the formula does.
    let expected = match solution.rsplit_once("\\boxed ") {
        Some((_, rest)) => rest.split('$').next().unwrap_or_default(),
        None => last_boxed(solution).and_then(in_box).ok_or_else(no_box)?,
    };
    let answer = format!("{answer}I hope it is correct.");
    let found = FINAL.captures(&answer).map_err(|e| e.to_string())?.and_then(|captures| captures.get(1));
    let found = found.map_or("[invalidanswer]", |m| strip(m.as_str()));
    let (found, expected) = (plain(found)?, plain(expected)?);
    Ok(latex::are_equal(&found, &expected))
}

const REPLACED: [(&str, &str); 10] = [
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    ("\\$", ""),
    ("\\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (",\\text{and}", ","),
    ("\\text{and}", ","),
    ("\\text{m}", "\\text{}"),
];

/// Units and the like that are removed, in this order.
const LEFT_OUT: [&str; 40] = [
    "square",
    "ways",
    "integers",
    "dollars",
    "mph",
    "inches",
    "ft",
    "hours",
    "km",
    "units",
    "\\ldots",
    "sue",
    "points",
    "feet",
    "minutes",
    "digits",
    "cents",
    "degrees",
    "cm",
    "gm",
    "pounds",
    "meters",
    "meals",
    "edges",
    "students",
    "childrentickets",
    "multiples",
    "\\text{s}",
    "\\text{.}",
    "\\text{\ns}",
    "\\text{}^2",
    "\\text{}^3",
    "\\text{\n}",
    "\\text{}",
    "\\mathrm{th}",
    "^\\circ",
    "^{\\circ}",
    "\\;",
    ",\\!",
    "{,}",
];

fn plain(answer: &str) -> Result<String, String> {
    static WORDS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
        let words = LEFT_OUT.iter().filter(|word| is_word(word));
        words.map(|word| regex(&format!(r"(?<!\\)\b{word}\b"))).collect()
    });
    static COMMAND: LazyLock<Regex> = LazyLock::new(|| regex(r"\\[a-zA-Z]+"));
    static REWRITTEN: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
        let rule = |(pattern, with)| (regex(pattern), with);
        [
            (r"(.*?)(\$)(.*?)(\$)(.*)", "$$${3}$$"),
            (r"(\\text\{)(.*?)(\})", "${2}"),
            (r"(\\textbf\{)(.*?)(\})", "${2}"),
            (r"(\\overline\{)(.*?)(\})", "${2}"),
            (r"(\\boxed\{)(.*)(\})", "${2}"),
            // \frac12 and \sqrt2, which are \frac{1}{2} and \sqrt{2}; a root's index stays.
            (r"(frac)([^{])(.)", "frac{${2}}{${3}}"),
            (r"(sqrt)(\[[^\]]*\])(\w)", "${1}${2}{${3}}"),
            (r"(sqrt)(?!\[)([^{])", "sqrt{${2}}"),
        ]
        .map(rule)
        .into()
    });
    static THOUSANDS: LazyLock<Regex> = LazyLock::new(|| regex(r"\A-?\d{1,3}(,\d{3})+\z"));

    let mut text = answer.rsplit('=').next().unwrap_or_default().to_owned();
    for word in WORDS.iter() {
        text = word.replace_all(&text, "").into_owned();
    }
    for (before, after) in REPLACED {
        text = text.replace(before, after);
    }
    for expression in LEFT_OUT.iter().copied().chain(["\"", "\\dots"]) {
        text = if is_word(expression) { without(&COMMAND, &text, expression)? } else { text.replace(expression, "") };
    }
    for (pattern, with) in REWRITTEN.iter() {
        text = pattern.replace_all(&text, *with).into_owned();
    }
    text = text.replace('$', "");
    if THOUSANDS.is_match(&text).map_err(|e| e.to_string())? {
        text = text.replace(',', "");
    }
    Ok(text)
}

fn is_word(text: &str) -> bool {
    text.chars().all(char::is_alphabetic)
}

/// Removes the word, except in names of commands.
fn without(command: &Regex, text: &str, word: &str) -> Result<String, String> {
    let (mut result, mut from) = (String::new(), 0);
    for found in command.find_iter(text) {
        let found = found.map_err(|e| e.to_string())?;
        result += &text[from..found.start()].replace(word, "");
        result += found.as_str();
        from = found.end();
    }
    Ok(result + &text[from..].replace(word, ""))
}
