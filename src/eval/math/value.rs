//! The kinds of answers that Math-Verify distinguishes: numbers, names, formulas, sets, intervals,
//! relations, matrices.

use super::latex::{LatexToken, Relation, Rules, tokens, value};

#[derive(Clone, Debug)]
pub enum MathValue {
    Number {
        value: f64,
        is_decimal: bool,
        is_percent: bool,
    },
    /// A name, in lower case.
    Name(String),
    /// A formula. Holds its letters, if it is a product of names only.
    Formula {
        tokens: Vec<LatexToken>,
        letters: Option<String>,
        is_percent: bool,
    },
    /// A set, or a tuple.
    List {
        is_ordered: bool,
        items: Vec<MathValue>,
    },
    Interval {
        ends: Box<[MathValue; 2]>,
        is_open: [bool; 2],
    },
    Union(Vec<MathValue>),
    /// Two sides or more.
    Relations {
        names: Vec<Relation>,
        sides: Vec<MathValue>,
    },
    Matrix(Vec<Vec<MathValue>>),
}

impl MathValue {
    pub fn number(text: &str, is_percent: bool) -> Option<Self> {
        Some(Self::Number { value: text.parse().ok()?, is_decimal: text.contains('.'), is_percent })
    }

    pub fn percent(self) -> Self {
        match self {
            Self::Number { value, is_decimal, .. } => Self::Number { value, is_decimal, is_percent: true },
            Self::Formula { tokens, letters, .. } => Self::Formula { tokens, letters, is_percent: true },
            other => other,
        }
    }

    pub fn parse(latex: &str) -> Option<Self> {
        let latex = latex.trim();
        if let Some(rest) = latex.strip_suffix('%').filter(|rest| !rest.ends_with('\\')) {
            return Self::parse(rest).map(Self::percent);
        }
        if is_with_thousands(latex) {
            return Self::number(&latex.replace(',', ""), false);
        }
        if let Some(value) = matrix(latex) {
            return Some(value);
        }
        let tokens: Vec<LatexToken> =
            tokens(&latex.replace("^{\\circ}", "").replace("^\\circ", ""), Rules::MathVerify)?;
        let lower = |token| match token {
            LatexToken::Name(name) => LatexToken::Name(name.to_lowercase()),
            other => other,
        };
        let is_decimal = latex.contains('.');
        parse(&tokens.into_iter().map(lower).collect::<Vec<_>>(), is_decimal)
    }

    pub fn at(&self, point: u32) -> Option<f64> {
        let percent = |value: f64, is_percent: bool| if is_percent { value / 100.0 } else { value };
        match self {
            Self::Number { value, is_percent, .. } => Some(percent(*value, *is_percent)),
            Self::Formula { tokens, is_percent, .. } => {
                value(tokens, point, Rules::MathVerify).map(|value| percent(value, *is_percent))
            }
            Self::Name(name) => value(&[LatexToken::Name(name.clone())], point, Rules::MathVerify),
            _ => None,
        }
    }

    /// Returns the value, if it is the same at all points.
    pub fn constant(&self) -> Option<f64> {
        let (a, b) = (self.at(0)?, self.at(1)?);
        (a == b).then_some(a)
    }

    /// Returns the letters of a name or of a product of names.
    pub fn letters(&self) -> Option<&str> {
        match self {
            Self::Name(name) => Some(name),
            Self::Formula { letters, .. } => letters.as_deref(),
            _ => None,
        }
    }
}

/// Returns whether a text is a number with commas between thousands, such as `1,234,567` or
/// `-1,234.5`.
fn is_with_thousands(text: &str) -> bool {
    let text = text.strip_prefix('-').unwrap_or(text);
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let mut groups = whole.split(',');
    let digits = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    let first = groups.next().is_some_and(|first| first.len() <= 3 && digits(first));
    first && text.contains(',') && groups.all(|group| group.len() == 3 && digits(group)) && digits(decimals)
}

fn is_sign(token: &LatexToken, signs: &str) -> bool {
    matches!(token, LatexToken::Sign(sign) if signs.contains(*sign))
}

/// Returns the positions of these tokens outside of all brackets.
fn outside(tokens: &[LatexToken], wanted: impl Fn(&LatexToken) -> bool) -> Vec<usize> {
    let (mut depth, mut found) = (0, Vec::new());
    for (i, token) in tokens.iter().enumerate() {
        match token {
            LatexToken::Sign('(' | '[' | '{') => depth += 1,
            LatexToken::Sign(')' | ']' | '}') => depth -= 1,
            LatexToken::Command(name) if name == "{" => depth += 1,
            LatexToken::Command(name) if name == "}" => depth -= 1,
            _ if depth == 0 && wanted(token) => found.push(i),
            _ => {}
        }
    }
    found
}

/// Splits the tokens at these positions.
fn between<'t>(tokens: &'t [LatexToken], places: &[usize]) -> Vec<&'t [LatexToken]> {
    let starts = std::iter::once(0).chain(places.iter().map(|place| place + 1));
    let ends = places.iter().copied().chain([tokens.len()]);
    starts.zip(ends).map(|(start, end)| &tokens[start..end]).collect()
}

fn command(name: &str) -> impl Fn(&LatexToken) -> bool {
    move |token| matches!(token, LatexToken::Command(found) if found == name)
}

fn parse(tokens: &[LatexToken], is_decimal: bool) -> Option<MathValue> {
    let each = |places: &[usize]| -> Option<Vec<MathValue>> {
        between(tokens, places).into_iter().map(|part| parse(part, is_decimal)).collect()
    };
    let commas = outside(tokens, |token| is_sign(token, ","));
    let is_relation = |token: &LatexToken| matches!(token, LatexToken::Relation(_)) || command("in")(token);
    let relates = |part: &[LatexToken]| !outside(part, is_relation).is_empty();
    // x = 1, 2 is one equation; x = 1, y = 2 are two.
    let relating = between(tokens, &commas).into_iter().filter(|part| relates(part)).count();
    if !commas.is_empty() && (relating == 0 || relating == commas.len() + 1) {
        return Some(MathValue::List { is_ordered: false, items: each(&commas)? });
    }
    let relations = outside(tokens, is_relation);
    if !relations.is_empty() {
        let name = |&place: &usize| match tokens[place] {
            LatexToken::Relation(name) => name,
            _ => Relation::Equal, // x is in
        };
        return Some(MathValue::Relations { names: relations.iter().map(name).collect(), sides: each(&relations)? });
    }
    let unions = outside(tokens, command("cup"));
    if !unions.is_empty() {
        return Some(MathValue::Union(each(&unions)?));
    }
    if let Some(&place) = outside(tokens, command("pm")).first() {
        let with = |sign: char| {
            let both = [&tokens[..place], &[LatexToken::Sign(sign)], &tokens[place + 1..]].concat();
            parse(if place == 0 && sign == '+' { &both[1..] } else { &both }, is_decimal)
        };
        return Some(MathValue::List { is_ordered: false, items: vec![with('+')?, with('-')?] });
    }
    if let Some(value) = bracketed(tokens, is_decimal) {
        return Some(value);
    }
    match tokens {
        [LatexToken::Number(value)] => Some(MathValue::Number { value: *value, is_decimal, is_percent: false }),
        [LatexToken::Sign('-'), LatexToken::Number(value)] => {
            Some(MathValue::Number { value: -value, is_decimal, is_percent: false })
        }
        [LatexToken::Command(name)] if name == "emptyset" => Some(MathValue::List { is_ordered: false, items: vec![] }),
        _ => text(tokens).map(MathValue::Name).or_else(|| formula(tokens)),
    }
}

/// Returns the contents of `\text{...}`, or a letter with an index, or a letter in brackets.
fn text(tokens: &[LatexToken]) -> Option<String> {
    match tokens {
        [LatexToken::Sign('('), inner @ .., LatexToken::Sign(')')] => text(inner),
        [LatexToken::Command(name), LatexToken::Sign('{'), inner @ .., LatexToken::Sign('}')]
            if ["text", "mbox"].contains(&name.as_str()) =>
        {
            let inner = match inner {
                [LatexToken::Sign('('), inner @ .., LatexToken::Sign(')')] => inner,
                inner => inner,
            };
            inner.iter().map(written).collect()
        }
        [LatexToken::Name(name)] if name != "e" => Some(name.clone()),
        [LatexToken::Name(name), LatexToken::Sign('_'), index @ ..] => {
            let braces = |token: &&LatexToken| !is_sign(token, "{}");
            let index: Option<String> = index.iter().filter(braces).map(written).collect();
            Some(format!("{name}_{}", index?))
        }
        [LatexToken::Command(name)]
            if name.chars().all(char::is_alphabetic) && !["pi", "infty"].contains(&name.as_str()) =>
        {
            Some(name.clone())
        }
        _ => None,
    }
}

fn written(token: &LatexToken) -> Option<String> {
    match token {
        LatexToken::Name(name) => Some(name.clone()),
        LatexToken::Number(number) => Some(number.to_string()),
        LatexToken::Sign(sign) => Some(sign.to_string()),
        _ => None,
    }
}

fn formula(tokens: &[LatexToken]) -> Option<MathValue> {
    value(tokens, 0, Rules::MathVerify)?;
    let letters = tokens.iter().map(|token| match token {
        LatexToken::Name(name) => Some(name.as_str()),
        _ => None,
    });
    Some(MathValue::Formula { tokens: tokens.to_vec(), letters: letters.collect(), is_percent: false })
}

/// Parses a set, a tuple or an interval.
fn bracketed(tokens: &[LatexToken], is_decimal: bool) -> Option<MathValue> {
    let [open, inner @ .., close] = tokens else { return None };
    let is_set = command("{")(open) && command("}")(close);
    if !(is_set || is_sign(open, "([") && is_sign(close, ")]")) {
        return None;
    }
    let commas = outside(inner, |token| is_sign(token, ","));
    let items: Vec<MathValue> =
        between(inner, &commas).into_iter().map(|part| parse(part, is_decimal)).collect::<Option<_>>()?;
    if is_set {
        return Some(MathValue::List { is_ordered: false, items });
    }
    match <[MathValue; 2]>::try_from(items) {
        Ok(ends) => {
            let [from, to] = ends.each_ref().map(MathValue::constant);
            let is_empty = from.zip(to).is_some_and(|(from, to)| from >= to);
            let is_open = [is_sign(open, "("), is_sign(close, ")")];
            Some(if is_empty {
                MathValue::List { is_ordered: true, items: ends.into() }
            } else {
                MathValue::Interval { ends: Box::new(ends), is_open }
            })
        }
        Err(items) if items.len() > 2 && is_sign(open, "(") == is_sign(close, ")") => {
            Some(MathValue::List { is_ordered: true, items })
        }
        Err(_) => None, // brackets around a formula
    }
}

fn matrix(latex: &str) -> Option<MathValue> {
    let (_, rest) = latex.strip_prefix("\\begin{")?.split_once("matrix}")?;
    let (inner, end) = rest.rsplit_once("\\end{")?;
    if !end.ends_with("matrix}") {
        return None;
    }
    let row = |row: &str| row.split('&').map(MathValue::parse).collect::<Option<Vec<_>>>();
    inner.split("\\\\").filter(|part| !part.trim().is_empty()).map(row).collect::<Option<_>>().map(MathValue::Matrix)
}
