//! Parses formulas in LaTeX, as far as answers to school problems need them, and tests whether two
//! are equal.
//!
//! The references have sympy simplify the difference. Here both are evaluated at several points:
//! formulas of this kind that agree at random points are equal (Schwartz 1980). The grammar is that
//! of `sympy.parsing.latex`, or of `latex2sympy2_extended`: see [`Rules`].

/// The grammar of formulas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// `sympy.parsing.latex`: letters are names, `\pi` too; `\log` is the natural logarithm;
    /// numbers may have commas between thousands; text after a complete formula is ignored.
    Sympy,
    /// `latex2sympy2_extended`: `\pi` and `e` are constants; `\log` has base 10; commas separate; a
    /// fraction after a number is added to it.
    MathVerify,
}

/// The points at which formulas are compared.
const POINTS: u32 = 6;

/// Returns whether two formulas, or two texts that are no formulas, are equal.
pub fn are_equal(a: &str, b: &str) -> bool {
    if !a.is_empty() && a == b {
        return true;
    }
    let (Some(a), Some(b)) = (tokens(a, Rules::Sympy), tokens(b, Rules::Sympy)) else { return false };
    let of = |tokens: &[LatexToken], point| value(tokens, point, Rules::Sympy);
    values_are_equal(|point| Some((of(&a, point)?, of(&b, point)?)))
}

/// Returns whether two formulas have the same value at every point where both have one. `values`
/// returns `None` if one of them is not a formula.
pub fn values_are_equal(values: impl Fn(u32) -> Option<(f64, f64)>) -> bool {
    let mut compared = 0;
    for point in 0..POINTS {
        let Some((x, y)) = values(point) else { return false };
        if !x.is_finite() || !y.is_finite() {
            continue;
        }
        if !are_close(x, y) {
            return false;
        }
        compared += 1;
    }
    compared > 0
}

/// Returns whether two numbers are equal up to rounding.
pub fn are_close(x: f64, y: f64) -> bool {
    (x - y).abs() <= 1e-9 * x.abs().max(y.abs()).max(1.0)
}

#[derive(Clone, Debug, PartialEq)]
pub enum LatexToken {
    Number(f64),
    Name(String),
    /// `\frac` and the like, without the backslash.
    Command(String),
    /// Operators and brackets.
    Sign(char),
    Relation(Relation),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Splits a formula into tokens. `None` if some of it cannot be part of a formula.
pub fn tokens(text: &str, rules: Rules) -> Option<Vec<LatexToken>> {
    let chars: Vec<char> = text.chars().collect();
    let mut found = Vec::new();
    let mut i = 0;
    while let Some(&c) = chars.get(i) {
        i += 1;
        match c {
            c if c.is_whitespace() => {}
            '0'..='9' => i = number(&chars, i - 1, rules, &mut found),
            // A differential is one name.
            'd' if chars.get(i).is_some_and(char::is_ascii_alphabetic) => {
                found.push(LatexToken::Name(format!("d{}", chars[i])));
                i += 1;
            }
            c if c.is_ascii_alphabetic() => found.push(LatexToken::Name(c.into())),
            '\\' => {
                let name: String = chars[i..].iter().take_while(|c| c.is_ascii_alphabetic()).collect();
                i += name.len();
                if name.is_empty() {
                    let sign = *chars.get(i)?;
                    i += 1;
                    match sign {
                        '!' | ',' | ':' | ';' | ' ' => {}
                        '{' | '}' => found.push(LatexToken::Command(sign.into())),
                        _ => return None,
                    }
                    continue;
                }
                match name.as_str() {
                    "left" | "right" | "quad" | "qquad" | "displaystyle" | "limits" => {}
                    "cdot" | "times" => found.push(LatexToken::Sign('*')),
                    "div" => found.push(LatexToken::Sign('/')),
                    "ne" | "neq" => found.push(LatexToken::Relation(Relation::NotEqual)),
                    "lt" => found.push(LatexToken::Relation(Relation::Less)),
                    "le" | "leq" | "leqslant" => found.push(LatexToken::Relation(Relation::LessOrEqual)),
                    "gt" => found.push(LatexToken::Relation(Relation::Greater)),
                    "ge" | "geq" | "geqslant" => found.push(LatexToken::Relation(Relation::GreaterOrEqual)),
                    _ => found.push(LatexToken::Command(name)),
                }
            }
            '=' => found.push(LatexToken::Relation(Relation::Equal)),
            '<' => found.push(LatexToken::Relation(Relation::Less)),
            '>' => found.push(LatexToken::Relation(Relation::Greater)),
            ':' => found.push(LatexToken::Sign('/')),
            '+' | '-' | '*' | '/' | '^' | '_' | '(' | ')' | '[' | ']' | '{' | '}' | '|' | '!' | '\'' | ',' => {
                found.push(LatexToken::Sign(c))
            }
            _ => return None,
        }
    }
    Some(found)
}

/// Reads digits, with commas between thousands if the rules allow them, and decimals. Returns the
/// position of the end.
fn number(chars: &[char], from: usize, rules: Rules, found: &mut Vec<LatexToken>) -> usize {
    let digits = |from: usize| chars[from..].iter().take_while(|c| c.is_ascii_digit()).count();
    let mut end = from + digits(from);
    while rules == Rules::Sympy && chars.get(end) == Some(&',') && digits(end + 1) == 3 {
        end += 4;
    }
    if chars.get(end) == Some(&'.') && digits(end + 1) > 0 {
        end += 1 + digits(end + 1);
    }
    let text: String = chars[from..end].iter().filter(|c| **c != ',').collect();
    found.push(LatexToken::Number(text.parse().unwrap_or(f64::NAN)));
    end
}

/// Evaluates a formula at a point, on which the values of names depend. `None` if it is not a
/// formula, or an equation.
pub fn value(tokens: &[LatexToken], point: u32, rules: Rules) -> Option<f64> {
    let mut parser = Parser { tokens, at: 0, point, rules };
    let value = parser.sum()?;
    let is_whole = match rules {
        Rules::Sympy => !matches!(parser.peek(), Some(LatexToken::Relation(_))),
        Rules::MathVerify => parser.peek().is_none(),
    };
    is_whole.then_some(value)
}

struct Parser<'t> {
    tokens: &'t [LatexToken],
    at: usize,
    point: u32,
    rules: Rules,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&LatexToken> {
        self.tokens.get(self.at)
    }

    fn eat(&mut self, sign: char) -> bool {
        let found = self.peek() == Some(&LatexToken::Sign(sign));
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, sign: char) -> Option<()> {
        self.eat(sign).then_some(())
    }

    fn sum(&mut self) -> Option<f64> {
        let mut sum = self.product(true)?;
        loop {
            let before = self.at;
            let sign = if self.eat('+') {
                1.0
            } else if self.eat('-') {
                -1.0
            } else {
                return Some(sum);
            };
            match self.product(true) {
                Some(term) => sum += sign * term,
                None => {
                    self.at = before; // what follows is not looked at
                    return Some(sum);
                }
            }
        }
    }

    fn product(&mut self, functions: bool) -> Option<f64> {
        let mut product = self.signed(functions)?;
        loop {
            if self.eat('*') {
                product *= self.signed(functions)?;
            } else if self.eat('/') {
                product /= self.signed(functions)?;
            } else {
                return Some(product);
            }
        }
    }

    fn signed(&mut self, functions: bool) -> Option<f64> {
        if self.eat('-') {
            return self.signed(functions).map(|value| -value);
        }
        if self.eat('+') {
            return self.signed(functions);
        }
        let is_number = matches!(self.peek(), Some(LatexToken::Number(_)));
        let mut product = self.power()?;
        let is_fraction = matches!(self.peek(), Some(LatexToken::Command(name)) if name == "frac");
        if self.rules == Rules::MathVerify && is_number && is_fraction {
            return Some(product + self.power()?);
        }
        while self.begins_factor(functions) {
            product *= self.power()?;
        }
        Some(product)
    }

    fn begins_factor(&self, functions: bool) -> bool {
        match self.peek() {
            Some(LatexToken::Number(_) | LatexToken::Name(_)) => true,
            Some(LatexToken::Command(name)) => functions || function(name).is_none(),
            Some(LatexToken::Sign(sign)) => matches!(sign, '(' | '[' | '{'),
            _ => false,
        }
    }

    fn power(&mut self) -> Option<f64> {
        let mut base = self.atom()?;
        loop {
            if self.eat('^') {
                base = base.powf(self.argument()?);
            } else if self.eat('!') {
                base = factorial(base);
            } else {
                return Some(base);
            }
        }
    }

    /// Evaluates the argument of a power or an index: a group, or one token.
    fn argument(&mut self) -> Option<f64> {
        if self.eat('{') { self.until('}') } else { self.atom() }
    }

    fn until(&mut self, sign: char) -> Option<f64> {
        let value = self.sum()?;
        self.expect(sign)?;
        Some(value)
    }

    fn group(&mut self) -> Option<f64> {
        self.expect('{')?;
        self.until('}')
    }

    /// Evaluates the numerator or denominator of a fraction: a group, or one digit of a number.
    fn part(&mut self) -> Option<f64> {
        if self.peek() == Some(&LatexToken::Sign('{')) { self.group() } else { None }
    }

    fn atom(&mut self) -> Option<f64> {
        let token = self.peek()?.clone();
        self.at += 1;
        match token {
            LatexToken::Number(value) => Some(value),
            LatexToken::Name(name) => self.name(name),
            LatexToken::Sign('(') => self.until(')'),
            LatexToken::Sign('[') => self.until(']'),
            LatexToken::Sign('{') => self.until('}'),
            LatexToken::Sign('|') => self.until('|').map(f64::abs),
            LatexToken::Sign(_) | LatexToken::Relation(_) => None,
            LatexToken::Command(name) => self.command(name),
        }
    }

    fn command(&mut self, name: String) -> Option<f64> {
        match name.as_str() {
            "frac" | "dfrac" | "tfrac" => Some(self.part()? / self.part()?),
            "sqrt" => {
                let index = if self.eat('[') { self.until(']')? } else { 2.0 };
                let of = self.group()?;
                Some(if index == 2.0 { of.sqrt() } else { of.powf(1.0 / index) })
            }
            "binom" | "dbinom" | "tbinom" => {
                let (n, k) = (self.group()?, self.group()?);
                Some(factorial(n) / factorial(k) / factorial(n - k))
            }
            "lfloor" => self.closed_by("rfloor").map(f64::floor),
            "lceil" => self.closed_by("rceil").map(f64::ceil),
            "overline" => self.group(),
            "{" => self.closed_by("}"),
            "infty" => Some(f64::INFINITY),
            "pi" if self.rules == Rules::MathVerify => Some(std::f64::consts::PI),
            _ if function(&name).is_some() => {
                let base = if self.eat('_') { Some(self.argument()?) } else { None };
                let before = self.at;
                self.applied(&name, base).or_else(|| self.applied_to_last_digit(&name, base?, before))
            }
            _ => self.name(name),
        }
    }

    /// Applies a function to what follows. `base` is that of a logarithm.
    fn applied(&mut self, name: &str, base: Option<f64>) -> Option<f64> {
        let power = if self.eat('^') { Some(self.argument()?) } else { None };
        let of = if self.eat('(') { self.until(')')? } else { self.product(false)? };
        let is_decimal = self.rules == Rules::MathVerify && name == "log";
        let value = function(name)?(of) / base.map_or(if is_decimal { std::f64::consts::LN_10 } else { 1.0 }, f64::ln);
        Some(power.map_or(value, |power| value.powf(power)))
    }

    /// Applies a function without an argument to the last digit of its index, as sympy does:
    /// `\log_28` is `\log_2 8`.
    fn applied_to_last_digit(&mut self, name: &str, index: f64, after: usize) -> Option<f64> {
        let is_number =
            matches!(self.tokens[after - 1], LatexToken::Number(_)) && index >= 10.0 && index.fract() == 0.0;
        if self.rules != Rules::Sympy || !is_number {
            return None;
        }
        let digit = std::iter::once(LatexToken::Number(index % 10.0));
        let tokens: Vec<LatexToken> = digit.chain(self.tokens[after..].iter().cloned()).collect();
        let mut rest = Parser { tokens: &tokens, at: 0, ..*self };
        let value = rest.applied(name, Some((index / 10.0).floor()))?;
        self.at = after + rest.at - 1;
        Some(value)
    }

    fn closed_by(&mut self, name: &str) -> Option<f64> {
        let value = self.sum()?;
        let found = self.peek() == Some(&LatexToken::Command(name.into()));
        self.at += 1;
        found.then_some(value)
    }

    /// Evaluates a name with its index and primes, which are part of the name.
    fn name(&mut self, mut name: String) -> Option<f64> {
        if self.eat('_') {
            let from = self.at;
            self.argument()?;
            name += &format!("_{:?}", &self.tokens[from..self.at]);
        }
        while self.eat('\'') {
            name.push('\'');
        }
        if self.rules == Rules::MathVerify && name == "e" {
            return Some(std::f64::consts::E);
        }
        // FNV-1a, to a number from 0.5 to 1.5.
        let bytes = name.bytes().chain(self.point.to_le_bytes());
        let hash = bytes.fold(0xCBF2_9CE4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3));
        Some(0.5 + (hash >> 11) as f64 / (1u64 << 53) as f64)
    }
}

fn function(name: &str) -> Option<fn(f64) -> f64> {
    Some(match name {
        "sin" => f64::sin,
        "cos" => f64::cos,
        "tan" => f64::tan,
        "cot" => |x| 1.0 / x.tan(),
        "sec" => |x| 1.0 / x.cos(),
        "csc" => |x| 1.0 / x.sin(),
        "arcsin" => f64::asin,
        "arccos" => f64::acos,
        "arctan" => f64::atan,
        "sinh" => f64::sinh,
        "cosh" => f64::cosh,
        "tanh" => f64::tanh,
        "exp" => f64::exp,
        "ln" | "log" => f64::ln,
        _ => return None,
    })
}

/// Returns the factorial of a whole number, NaN for others.
fn factorial(n: f64) -> f64 {
    if n >= 0.0 && n.fract() == 0.0 && n <= 170.0 { (1..=n as u32).map(f64::from).product() } else { f64::NAN }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas_are_equal_in_any_form() {
        for (a, b) in [
            ("\\frac{1}{2}", "0.5"),
            ("2\\sqrt{3}", "\\sqrt{12}"),
            ("(x+1)^2", "x^2+2x+1"),
            ("1,000", "1000"),
            ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt{2}}"),
            ("\\sin^2x+\\cos^2x", "1"),
            ("\\log_2(8)", "3"),
            ("\\log_28", "3"),
            ("\\log_28^2", "6"),
            ("\\log_28^2+1", "0"),
            ("\\log_1234", "\\log_{123}{4}"),
            ("\\log_28x", "\\log_{28}x"),
            ("\\binom{5}{2}", "10"),
            ("6/2x", "3/x"),
            ("2^{10}", "2^10"),
            ("4!", "24"),
            ("|-3|", "3"),
            ("ab", "ba"),
            ("\\sqrt[3]{8}", "2"),
            ("5)", "5"),
            ("(1,2)", "(1,2)"),
        ] {
            assert!(are_equal(a, b), "{a} {b}");
        }
        for (a, b) in [
            ("\\frac{1}{2}", "0.51"),
            ("x", "y"),
            ("", ""),
            ("x=5", "5"),
            ("(1,2)", "(2,1)"),
            ("10\\%", "10"),
            ("x_1", "x_2"),
            ("\\pi", "3.14159265358979"),
            ("\\infty", "-\\infty"),
        ] {
            assert!(!are_equal(a, b), "{a} {b}");
        }
    }
}
