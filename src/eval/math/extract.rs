//! Finds the answer in a text, and normalises its LaTeX, by the rules of Math-Verify 0.9.
//!
//! Several patterns look for an answer, from "final answer is ... I hope" over boxes to any formula
//! or number. Among the matches of the first patterns that match, the answer is the one that ends
//! last and can be parsed.

use std::sync::LazyLock;

use fancy_regex::{Captures, Regex};

use crate::eval::filter::expression;

/// The contents of a match.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// Normalised formulas in LaTeX, each with whether a percent sign follows it.
    Latex(Vec<(String, bool)>),
    /// A number, and whether a percent sign follows it.
    Number(String, bool),
    /// Arithmetic in plain text.
    Arithmetic(String),
}

/// Formulas that are written side by side, with "and" or commas between them.
const MOST_FORMULAS: usize = 6;

struct Pattern {
    regex: Regex,
    is_latex: bool,
    is_only_box: bool,
}

/// Returns the matches of each rank of patterns. Within a rank, the match to try first comes first.
pub fn candidates(text: &str) -> Vec<Vec<Found>> {
    let of_rank = |patterns: &Vec<Pattern>| {
        let mut found: Vec<(usize, usize, Found)> = Vec::new();
        for pattern in patterns {
            // A text that takes too many steps to search has no such match.
            for captures in pattern.regex.captures_iter(text).flatten() {
                let whole = captures.get(0).expect("the whole match");
                found.push((whole.end(), whole.start(), pattern.found(&captures)));
            }
        }
        found.sort_by_key(|(end, start, _)| (std::cmp::Reverse(*end), *start));
        found.into_iter().map(|(_, _, found)| found).collect()
    };
    RANKS.iter().map(of_rank).collect()
}

impl Pattern {
    fn found(&self, captures: &Captures<'_>) -> Found {
        let named = |name: &str| captures.name(name).map(|m| m.as_str()).filter(|text| !text.is_empty());
        let any = |names: &[&str]| names.iter().find_map(|name| named(name));
        if !self.is_latex {
            let integer = any(&["integer1", "integer2", "integer3"]);
            let decimal = any(&["decimal1", "decimal2", "decimal3"]);
            if integer.is_none() && decimal.is_none() {
                return Found::Arithmetic(named("expr").unwrap_or_default().to_owned());
            }
            let digits: String = integer.unwrap_or_default().chars().filter(|c| !", ".contains(*c)).collect();
            let digits = digits.trim_start_matches('0');
            let integer = if digits.is_empty() { "0" } else { digits };
            return Found::Number(
                format!("{integer}{}", decimal.unwrap_or_default().replace(',', ".")),
                named("percent").is_some(),
            );
        }
        let mut formulas = Vec::new();
        for i in 0..MOST_FORMULAS {
            let content = (0..ENVIRONMENTS).find_map(|kind| named(&format!("f{i}_{kind}")));
            if let Some(content) = content {
                let is_percent = captures.name(&format!("f{i}_percent")).is_some();
                formulas.push((plain(content, self.is_only_box), is_percent));
            }
        }
        Found::Latex(formulas)
    }
}

/// The environments that formulas are written in.
const ENVIRONMENTS: usize = 6;

/// Returns the pattern of a formula in a text, with groups named by its number.
fn environment(number: usize, is_boxed: bool) -> String {
    let content = |one: &str| {
        if is_boxed { format!(r"{one}*?\\boxed\{{{one}+?\}}{one}*?") } else { format!("{one}+?") }
    };
    let group = |kind: usize, one: &str| format!("(?P<f{number}_{kind}>{})", content(one));
    let mut ways = vec![
        format!(r"(?<!\\)\$\${}(?<!\\)\$\$", group(0, r"(?:[^$]|\$(?!\$))")),
        format!(r"(?<!\\)\\\[{}(?<!\\)\\\]", group(1, r"(?:[^\\]|\\(?!\]))")),
        format!(r"(?<!\\|\d)\${}(?<!\\)\$", group(2, r"(?:\\[$]|[^\n$])")),
        format!(r"(?<!\\)\\\({}(?<!\\)\\\)", group(3, r"(?:[^\\\n]|\\(?!\)))")),
        format!(r"\s\[{}\]\s", group(4, r"[^\n\]\[]")),
    ];
    if !is_boxed {
        let number_part = r"\{-?\d+(?:[.,]\d+)?\}";
        ways.push(format!(r"(?P<f{number}_5>-?\\frac{number_part}{number_part})"));
    }
    format!(r"(?:(?:{})\s*(?P<f{number}_percent>\\?%|[Pp]ercent|[Pp]ercentage|[Pp]ct)?)", ways.join("|"))
}

/// Returns the pattern of formulas side by side.
fn formulas(is_boxed: bool) -> String {
    let space = if is_boxed { r"\s*" } else { "" };
    let next = |i| format!(r"{space}(?:\s*(?:,?and|,?or|,)\s*{})?", environment(i, is_boxed));
    environment(0, is_boxed) + &(1..MOST_FORMULAS).map(next).collect::<String>()
}

/// Returns the patterns, by rank.
static RANKS: LazyLock<[Vec<Pattern>; 5]> = LazyLock::new(|| {
    let latex =
        |pattern: String| Pattern { regex: expression(&format!("(?s){pattern}")), is_latex: true, is_only_box: false };
    let plain = |pattern: String| Pattern { regex: expression(&pattern), is_latex: false, is_only_box: false };
    let formulas_plain = formulas(false);
    let number = [
        r"(?<!\d)(?:(?P<integer1>-?[1-9]\d{0,2}(?:[ ,]\d{3})+)(?P<decimal1>\.\d+)?",
        r"(?P<integer2>-?\d+)(?P<decimal2>[.,]\d+)",
        r"(?P<decimal3>\.\d+)",
        r"(?P<integer3>-?\d+))(?P<percent>\s*(?:%|[Pp]ercent|\s*[Pp]ercentage|\s*[Pp]ct))?",
    ]
    .join("|");
    let (operators, begins) = (r"\+\-\*\×/\^\(\)÷", r"(?:^|\s|=)(?:\*\*)?");
    let arithmetic = format!(
        r"(?:{begins}(?P<expr>-?\(?-?\d[\d.\s{operators}]*[{operators}][\d.\s{operators}]+\)?)(?:\*\*)?(?:\.|,|:|\s|\)|\$|\z))"
    );
    let number = format!("(?:{begins}[$€£¥₹₽₪₩₫฿₡₢₣₤₥₦₧₨₭₮₯₰₱₲₳₴₵₶₷₸₺₻₼₾₿]?{number})");
    let either = format!("(?:{arithmetic}|{number})");
    let end = r"\.?\s?I hope";
    let boxed = Pattern { regex: expression(r"(?s)(?P<f0_0>\\boxed\{.+\})"), is_latex: true, is_only_box: true };
    let after_answer = |colon: &str| {
        [
            latex(format!("(?i:answer){colon}.{{0,50}}?{formulas_plain}")),
            plain(format!(r"(?i:answer){colon}(?:.{{0,100}}=\s*|.{{0,50}}?){either}(?!\s*=)")),
        ]
    };
    [
        vec![
            latex(format!(r"(?i:final answer is):?\s*{formulas_plain}{end}")),
            plain(format!(r"(?i:final answer is):?\s*{either}{end}")),
        ],
        vec![
            latex(format!(r"(?i:final answer.{{0,100}}?)\s+is:?\s*{formulas_plain}")),
            latex(formulas(true)),
            boxed,
            plain(format!(r"(?i:final answer.{{0,100}}?)\s+is:?{either}")),
        ],
        after_answer(":").into(),
        after_answer("").into(),
        vec![latex(formulas_plain.clone()), plain(arithmetic.clone()), plain(number.clone())],
    ]
});

/// Normalises LaTeX for parsing. Boxes are replaced by their contents: all of them, or the last one
/// and those beside it.
fn plain(latex: &str, only_last_box: bool) -> String {
    static FENCES: LazyLock<[Regex; 2]> = LazyLock::new(|| {
        [
            r"\\m?left(\\\{|\{|\\\||\||\[|\(|\\lgroup|\\lbrace|\\lbrack|\\vert|\\lvert|\\lceil|\\lfloor|\\langle)",
            r"\\m?right(\\\}|\}|\\\||\||\]|\)|\\rgroup|\\rbrace|\\rbrack|\\vert|\\rvert|\\rceil|\\rfloor|\\rangle)",
        ]
        .map(expression)
    });
    static REMOVED: LazyLock<Regex> =
        LazyLock::new(|| expression(r#"\\mathrm\{th\}|\\!\s*|\\text\s*\{\s*\}|\\\$|\$|(?<!\\)["']|\\displaystyle"#));
    static COMMAND: LazyLock<Regex> = LazyLock::new(|| expression(r"\\\\(?=[a-zA-Z])"));
    static UNIT_TEXT: LazyLock<Regex> = LazyLock::new(|| expression(r"(\\(?:text|mbox)\{.*?\})(\^\d|\{\^\d\})?\z"));
    static UNIT: LazyLock<Regex> = LazyLock::new(|| expression(&format!(r"(\d|\}}|\s)\s*(?:{})(?:s|es)?\s*\z", UNITS)));

    let mut text = in_boxes(latex, only_last_box);
    for fence in FENCES.iter() {
        text = fence.replace_all(&text, "${1}").into_owned();
    }
    text = REMOVED.replace_all(&text, "").into_owned();
    text = synonyms(&text).replace(['\n', '\t'], " ");
    if !text.contains("matrix") {
        text = COMMAND.replace_all(&text, r"\").into_owned();
    }
    let or_before = |new: String, before: String| if new.is_empty() { before } else { new };
    text = or_before(UNIT_TEXT.replace(&text, "").trim().to_owned(), text);
    for _ in 0..2 {
        text = or_before(UNIT.replace(&text, "${1}").into_owned(), text);
    }
    if text.starts_with('.') {
        text.insert(0, '0');
    }
    if text == "0.5" {
        text = r"\frac{1}{2}".into();
    }
    mended(&text)
}

/// Replaces LaTeX commands by simpler ones of the same meaning.
fn synonyms(text: &str) -> String {
    const ALL: [(&str, &str); 17] = [
        (r"\\math(?:rm|it|bf)", r"\text"),
        (r"\\text(?:normal|bf|it|rm)", r"\text"),
        (r"\\(?:d|t|c)frac", r"\frac"),
        (r"\s\.", " 0."),
        (r"\{\.", "{0."),
        (r"\s*\{\s*,\s*\}", ","),
        (r"(?<![a-zA-Z])(?:,?\s*(?:and|or))(?![a-zA-Z])", ","),
        (r",?\s*\\text\{\s*(?:and|or)\s*\}", ","),
        (r"(?<!\\)\\\s", " "),
        ("infinity", r"\infty"),
        (r",?\\ldots", " "),
        (r"\s*\bpercentage\b|\\text\{percentage\}", r"\%"),
        (r"\s*\bpercent\b|\\text\{percent\}", r"\%"),
        (r"\s*\bpct\b|\\text\{pct\}", r"\%"),
        (r"(?<!\\)inf(?!inity)", r"\infty"),
        (" sqrt", r"\sqrt"),
        (r"\~=", r"\approx"),
    ];
    static ANY: LazyLock<Regex> = LazyLock::new(|| {
        let ways = ALL.iter().enumerate().map(|(i, (pattern, _))| format!("(?P<s{i}>{pattern})"));
        expression(&ways.collect::<Vec<_>>().join("|"))
    });
    let with = |captures: &Captures<'_>| {
        let found = (0..ALL.len()).find(|i| captures.name(&format!("s{i}")).is_some());
        found.map_or("", |i| ALL[i].1).to_owned()
    };
    ANY.replace_all(text, with).into_owned()
}

/// Adds the braces that operators lack, as in `\frac12`, `\sqrt3` and `2^(x)`, and makes a fraction
/// of `2/3`.
fn mended(text: &str) -> String {
    static RULES: LazyLock<[(Regex, &str); 7]> = LazyLock::new(|| {
        [
            (r"\^\s?\((.*?)\)", "^{${1}}"),
            (r"sqrt\s?\((.*?)\)", r"\sqrt{${1}}"),
            (r"\\frac\s?(\d)\s?(\d+)", r"\frac{${1}}{${2}}"),
            (r"\\log_\s?(\d)\s?(\d+)", r"\log_{${1}}{${2}}"),
            (r"\\frac\s?\{(.*?)\}\s?(\d)", r"\frac{${1}}{${2}}"),
            (r"\\frac\s?(\d)\s?\{(.*?)\}", r"\frac{${1}}{${2}}"),
            (r"\\sqrt\s?(\d)", r"\sqrt{${1}}"),
        ]
        .map(|(pattern, with)| (expression(pattern), with))
    });
    static SLASH: LazyLock<Regex> = LazyLock::new(|| expression(r"\A(0|-?[1-9]\d*)/(0|-?[1-9]\d*)\z"));
    let mut text = text.to_owned();
    for (pattern, with) in RULES.iter() {
        text = pattern.replace_all(&text, *with).into_owned();
    }
    text = text.replace(" sqrt", r"\sqrt");
    text = with_braces(&text, r"\sqrt", &['{', '['], 1);
    text = with_braces(&text, r"\frac", &['{'], 2);
    SLASH.replace(&text, r"\frac{${1}}{${2}}").into_owned()
}

/// Puts braces around the single-character arguments of a command, unless they begin with one of
/// `opens`.
fn with_braces(text: &str, command: &str, opens: &[char], arguments: usize) -> String {
    let mut parts = text.split(command);
    let mut new = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        new += command;
        let part = part.trim_start();
        let mut rest = part.chars();
        if !part.starts_with(opens) {
            if part.chars().count() < arguments {
                return text.to_owned();
            }
            for i in 0..arguments {
                let is_braced = i > 0 && rest.as_str().starts_with('{');
                if let Some(c) = rest.next().filter(|_| !is_braced) {
                    new += &format!("{{{c}}}");
                } else {
                    new.push('{');
                }
            }
        }
        new += rest.as_str();
    }
    new
}

/// Returns the contents of the text's boxes, separated by commas; the text itself if it has none.
fn in_boxes(text: &str, only_last: bool) -> String {
    let mut found: Vec<&str> = Vec::new();
    let (mut end, mut next_start) = (text.len(), None);
    while let Some(start) = text[..end].rfind("\\boxed").max(text[..end].rfind("\\fbox")) {
        let command = start + if text[start..].starts_with("\\boxed") { 6 } else { 5 };
        let open = command + text[command..end].len() - text[command..end].trim_start().len();
        let content = text[open..end].strip_prefix('{').and_then(|rest| Some(&rest[..closing(rest)?]));
        let Some(content) = content else {
            if found.is_empty() && open < end {
                found.push(&text[open..]);
            }
            break;
        };
        if let (true, Some(next), Some(last)) = (only_last, next_start, found.last()) {
            let between: &str = &text[open + content.len() + 2..next];
            let separated =
                between.contains([',', ';']) || between.split_whitespace().any(|word| ["and", "or"].contains(&word));
            let is_near = between.chars().count() < 10;
            if !is_near && (content.trim() == *last || between.chars().count() >= 70 || !separated) {
                break;
            }
        }
        if found.last() != Some(&content.trim()) {
            found.push(content.trim());
        }
        (end, next_start) = (start, Some(start));
    }
    if found.is_empty() { text.to_owned() } else { found.into_iter().rev().collect::<Vec<_>>().join(",") }
}

/// Returns the position of the brace that closes one opened before the text.
fn closing(text: &str) -> Option<usize> {
    let mut open = 1;
    for (i, c) in text.char_indices() {
        match c {
            '{' => open += 1,
            '}' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Some(i);
        }
    }
    None
}

/// Words at a formula's end that are removed; each may have an s or es.
const UNITS: &str = "feet|sue|digit|pound|meal|edge|student|multiple|degree|mph|kmph|ft|m square|sq m|deg|mile|prime|ratio|rd|o|gm|lb|tile|\
    per|dm|gain|ab|way|west|east|t|h|men|inches|cent|by|gal|c|acre|th|sq|mark|l|toy|coin|gallon|yr|women|am|pm|hr|square|\
    cubic|cc|s|number|day|hour|minute|min|second|man|sec|cube|more|unit|kg|g|month|km|m|cm|mm|apple|lit(?:er|re)|loss|\
    yard|pure|year|d|less|Surface|metre|meter|inch|soldier|monkey|pie|bc|excess|st|noon|kmh|rise|rupee|rounds|mtr|ohm|\
    woman|mt|sq inch|mp|hectare|rs|increase|decrease|profit|are|children ticket|no change|minw|lt|cu cm";
