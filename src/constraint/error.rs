//! Why a constraint is refused, and why an answer cannot go on under one.

/// A constraint that cannot be honoured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    #[error("the {what} has {bytes} bytes, more than the {most} that are possible; shorten it")]
    TooLarge { what: &'static str, bytes: usize, most: usize },
    #[error("the {what} is nested deeper than {most} levels; flatten it")]
    TooDeep { what: &'static str, most: usize },
    #[error("the {what} cannot be honoured: {reason}")]
    Refused { what: &'static str, reason: String },
    /// No constraint can be honoured with this tokenizer.
    #[error("answers cannot be held to a form with this tokenizer: {0}")]
    Tokenizer(String),
}

/// An answer that cannot go on under its constraint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MatchError {
    #[error("the constraint allows no token after {tokens} of them: {reason}; simplify it")]
    NoToken { tokens: usize, reason: String },
    #[error("token {token} does not fit the constraint after {tokens} tokens: {reason}")]
    Unexpected { token: u32, tokens: usize, reason: String },
}

/// The first line of what llguidance says, without the marks that it adds, and what a regular
/// expression's error comes down to.
pub(super) fn first_line(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or("unknown reason");
    let cause = lines.find_map(|line| line.strip_prefix("error: "));
    cause.map_or_else(|| first.to_owned(), |cause| format!("{first} {cause}"))
}
