//! The forms that a request can hold its answers to.

use serde_json::{Value, json};

use super::error::ConstraintError;

/// The form that an answer is held to.
#[derive(Clone, Debug, PartialEq)]
pub enum Constraint {
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema allows. Properties stand in the schema's order.
    JsonSchema(Value),
    /// A regular expression in the syntax of Rust's `regex`; it matches the whole answer.
    Regex(String),
    /// One of these texts.
    Choices(Vec<String>),
    /// A grammar in the dialect of Lark that llguidance reads.
    Grammar(String),
}

/// The most bytes of a schema, expression or grammar, and of all choices together.
const MAX_BYTES: usize = 256 * 1024;
/// The most levels of a schema. serde_json reads no more of them from text.
const MAX_LEVELS: usize = 128;

impl Constraint {
    /// Name in messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::JsonObject => "JSON object",
            Self::JsonSchema(_) => "JSON schema",
            Self::Regex(_) => "regular expression",
            Self::Choices(_) => "list of choices",
            Self::Grammar(_) => "grammar",
        }
    }

    /// Returns true if answers are JSON.
    pub fn is_json(&self) -> bool {
        matches!(self, Self::JsonObject | Self::JsonSchema(_))
    }

    /// Checks what can be checked without a tokenizer.
    pub(super) fn check(&self) -> Result<(), ConstraintError> {
        let what = self.name();
        let bytes = match self {
            Self::JsonObject => 0,
            Self::JsonSchema(schema) => {
                if levels(schema) > MAX_LEVELS {
                    return Err(ConstraintError::TooDeep { what, most: MAX_LEVELS });
                }
                schema.to_string().len()
            }
            Self::Regex(text) | Self::Grammar(text) => text.len(),
            Self::Choices(choices) => choices.iter().map(String::len).sum(),
        };
        if bytes > MAX_BYTES {
            return Err(ConstraintError::TooLarge { what, bytes, most: MAX_BYTES });
        }
        match self.problem() {
            Some(reason) => Err(ConstraintError::Refused { what, reason }),
            None => Ok(()),
        }
    }

    fn problem(&self) -> Option<String> {
        match self {
            Self::JsonSchema(Value::Object(schema)) if schema.contains_key(OPTIONS) => {
                Some(format!("it has {OPTIONS:?}, which changes what other parts mean; leave that out"))
            }
            Self::JsonSchema(Value::Object(_) | Value::Bool(true)) => None,
            Self::JsonSchema(Value::Bool(false)) => Some("false allows nothing".into()),
            Self::JsonSchema(other) => Some(format!("it is {}, and must be an object", kind(other))),
            Self::Choices(choices) if choices.is_empty() => Some("it is empty; give one text at least".into()),
            Self::Choices(choices) if choices.iter().any(String::is_empty) => {
                Some("one of them is empty; give each a text".into())
            }
            Self::Grammar(text) if text.contains("::=") => {
                Some("it is GBNF or BNF (::=); write it in Lark, such as start: \"yes\" | \"no\"".into())
            }
            Self::JsonObject | Self::Regex(_) | Self::Choices(_) | Self::Grammar(_) => None,
        }
    }

    /// The schema that llguidance compiles, if it is one.
    pub(super) fn schema(&self) -> Option<Value> {
        let mut schema = match self {
            Self::JsonObject => json!({"type": "object"}),
            Self::JsonSchema(Value::Object(schema)) => Value::Object(schema.clone()),
            Self::JsonSchema(_) => json!({}),
            Self::Regex(_) | Self::Choices(_) | Self::Grammar(_) => return None,
        };
        schema[OPTIONS] = json!({"whitespace_pattern": WHITE_SPACE});
        Some(schema)
    }
}

/// Where llguidance looks for its own options in a schema.
const OPTIONS: &str = "x-guidance";

/// White space between the parts of JSON: a space or two, or a line's end and what indents the next
/// one. As much as people write, and no more, since a model that sees no end to it may go on for
/// ever.
const WHITE_SPACE: &str = r"[ \t]{1,2}|\r?\n[ \t]{0,40}";

/// The levels of a value's lists and objects.
fn levels(value: &Value) -> usize {
    let mut most = 0;
    let mut remaining = vec![(value, 0)];
    while let Some((value, level)) = remaining.pop() {
        most = most.max(level);
        match value {
            Value::Array(items) => remaining.extend(items.iter().map(|item| (item, level + 1))),
            Value::Object(items) => remaining.extend(items.values().map(|item| (item, level + 1))),
            _ => {}
        }
    }
    most
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
