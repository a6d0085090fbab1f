//! The kinds of answers that Math-Verify distinguishes: numbers, names, formulas, sets, intervals,
//! relations, matrices.

use super::latex::{Relation, Rules, Token, tokens, value};

#[derive(Clone, Debug)]
pub enum Value {
    Number {
        value: f64,
        is_decimal: bool,
        is_percent: bool,
    },
    /// A name, in lower case.
    Name(String),
    /// A formula. Holds its letters, if it is a product of names only.
    Formula {
        tokens: Vec<Token>,
        letters: Option<String>,
        is_percent: bool,
    },
    /// A set, or a tuple.
    List {
        is_ordered: bool,
        items: Vec<Value>,
    },
    Interval {
        ends: Box<[Value; 2]>,
        is_open: [bool; 2],
    },
    Union(Vec<Value>),
    /// Two sides or more.
    Relations {
        names: Vec<Relation>,
        sides: Vec<Value>,
    },
    Matrix(Vec<Vec<Value>>),
}

impl Value {
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
        let tokens: Vec<Token> = tokens(&latex.replace("^{\\circ}", "").replace("^\\circ", ""), Rules::MathVerify)?;
        let lower = |token| match token {
            Token::Name(name) => Token::Name(name.to_lowercase()),
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
            Self::Name(name) => value(&[Token::Name(name.clone())], point, Rules::MathVerify),
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

fn is_sign(token: &Token, signs: &str) -> bool {
    matches!(token, Token::Sign(sign) if signs.contains(*sign))
}

/// Returns the positions of these tokens outside of all brackets.
fn outside(tokens: &[Token], wanted: impl Fn(&Token) -> bool) -> Vec<usize> {
    let (mut depth, mut found) = (0, Vec::new());
    for (i, token) in tokens.iter().enumerate() {
        match token {
            Token::Sign('(' | '[' | '{') => depth += 1,
            Token::Sign(')' | ']' | '}') => depth -= 1,
            Token::Command(name) if name == "{" => depth += 1,
            Token::Command(name) if name == "}" => depth -= 1,
            _ if depth == 0 && wanted(token) => found.push(i),
            _ => {}
        }
    }
    found
}

/// Splits the tokens at these positions.
fn between<'t>(tokens: &'t [Token], places: &[usize]) -> Vec<&'t [Token]> {
    let starts = std::iter::once(0).chain(places.iter().map(|place| place + 1));
    let ends = places.iter().copied().chain([tokens.len()]);
    starts.zip(ends).map(|(start, end)| &tokens[start..end]).collect()
}

fn command(name: &str) -> impl Fn(&Token) -> bool {
    move |token| matches!(token, Token::Command(found) if found == name)
}

fn parse(tokens: &[Token], is_decimal: bool) -> Option<Value> {
    let each = |places: &[usize]| -> Option<Vec<Value>> {
        between(tokens, places).into_iter().map(|part| parse(part, is_decimal)).collect()
    };
    let commas = outside(tokens, |token| is_sign(token, ","));
    let is_relation = |token: &Token| matches!(token, Token::Relation(_)) || command("in")(token);
    let relates = |part: &[Token]| !outside(part, is_relation).is_empty();
    // x = 1, 2 is one equation; x = 1, y = 2 are two.
    let relating = between(tokens, &commas).into_iter().filter(|part| relates(part)).count();
    if !commas.is_empty() && (relating == 0 || relating == commas.len() + 1) {
        return Some(Value::List { is_ordered: false, items: each(&commas)? });
    }
    let relations = outside(tokens, is_relation);
    if !relations.is_empty() {
        let name = |&place: &usize| match tokens[place] {
            Token::Relation(name) => name,
            _ => Relation::Equal, // x is in
        };
        return Some(Value::Relations { names: relations.iter().map(name).collect(), sides: each(&relations)? });
    }
    let unions = outside(tokens, command("cup"));
    if !unions.is_empty() {
        return Some(Value::Union(each(&unions)?));
    }
    if let Some(&place) = outside(tokens, command("pm")).first() {
        let with = |sign: char| {
            let both = [&tokens[..place], &[Token::Sign(sign)], &tokens[place + 1..]].concat();
            parse(if place == 0 && sign == '+' { &both[1..] } else { &both }, is_decimal)
        };
        return Some(Value::List { is_ordered: false, items: vec![with('+')?, with('-')?] });
    }
    if let Some(value) = bracketed(tokens, is_decimal) {
        return Some(value);
    }
    match tokens {
        [Token::Number(value)] => Some(Value::Number { value: *value, is_decimal, is_percent: false }),
        [Token::Sign('-'), Token::Number(value)] => {
            Some(Value::Number { value: -value, is_decimal, is_percent: false })
        }
        [Token::Command(name)] if name == "emptyset" => Some(Value::List { is_ordered: false, items: vec![] }),
        _ => text(tokens).map(Value::Name).or_else(|| formula(tokens)),
    }
}

/// Returns the contents of `\text{...}`, or a letter with an index, or a letter in brackets.
fn text(tokens: &[Token]) -> Option<String> {
    match tokens {
        [Token::Sign('('), inner @ .., Token::Sign(')')] => text(inner),
        [Token::Command(name), Token::Sign('{'), inner @ .., Token::Sign('}')]
            if ["text", "mbox"].contains(&name.as_str()) =>
        {
            let inner = match inner {
                [Token::Sign('('), inner @ .., Token::Sign(')')] => inner,
                inner => inner,
            };
            inner.iter().map(written).collect()
        }
        [Token::Name(name)] if name != "e" => Some(name.clone()),
        [Token::Name(name), Token::Sign('_'), index @ ..] => {
            let braces = |token: &&Token| !is_sign(token, "{}");
            let index: Option<String> = index.iter().filter(braces).map(written).collect();
            Some(format!("{name}_{}", index?))
        }
        [Token::Command(name)]
            if name.chars().all(char::is_alphabetic) && !["pi", "infty"].contains(&name.as_str()) =>
        {
            Some(name.clone())
        }
        _ => None,
    }
}

fn written(token: &Token) -> Option<String> {
    match token {
        Token::Name(name) => Some(name.clone()),
        Token::Number(number) => Some(number.to_string()),
        Token::Sign(sign) => Some(sign.to_string()),
        _ => None,
    }
}

fn formula(tokens: &[Token]) -> Option<Value> {
    value(tokens, 0, Rules::MathVerify)?;
    let letters = tokens.iter().map(|token| match token {
        Token::Name(name) => Some(name.as_str()),
        _ => None,
    });
    Some(Value::Formula { tokens: tokens.to_vec(), letters: letters.collect(), is_percent: false })
}

/// Parses a set, a tuple or an interval.
fn bracketed(tokens: &[Token], is_decimal: bool) -> Option<Value> {
    let [open, inner @ .., close] = tokens else { return None };
    let is_set = command("{")(open) && command("}")(close);
    if !(is_set || is_sign(open, "([") && is_sign(close, ")]")) {
        return None;
    }
    let commas = outside(inner, |token| is_sign(token, ","));
    let items: Vec<Value> =
        between(inner, &commas).into_iter().map(|part| parse(part, is_decimal)).collect::<Option<_>>()?;
    if is_set {
        return Some(Value::List { is_ordered: false, items });
    }
    match <[Value; 2]>::try_from(items) {
        Ok(ends) => {
            let [from, to] = ends.each_ref().map(Value::constant);
            let is_empty = from.zip(to).is_some_and(|(from, to)| from >= to);
            let is_open = [is_sign(open, "("), is_sign(close, ")")];
            Some(if is_empty {
                Value::List { is_ordered: true, items: ends.into() }
            } else {
                Value::Interval { ends: Box::new(ends), is_open }
            })
        }
        Err(items) if items.len() > 2 && is_sign(open, "(") == is_sign(close, ")") => {
            Some(Value::List { is_ordered: true, items })
        }
        Err(_) => None, // brackets around a formula
    }
}

fn matrix(latex: &str) -> Option<Value> {
    let (_, rest) = latex.strip_prefix("\\begin{")?.split_once("matrix}")?;
    let (inner, end) = rest.rsplit_once("\\end{")?;
    if !end.ends_with("matrix}") {
        return None;
    }
    let row = |row: &str| row.split('&').map(Value::parse).collect::<Option<Vec<_>>>();
    inner.split("\\\\").filter(|part| !part.trim().is_empty()).map(row).collect::<Option<_>>().map(Value::Matrix)
}
