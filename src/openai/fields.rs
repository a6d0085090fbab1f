//! The fields of a JSON object, taken one by one, so that a mistyped name is noticed.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// A request that is wrong, and the field to blame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct FieldError {
    /// The field's name, or its path, such as `messages[2]`.
    pub param: Option<String>,
    pub problem: String,
}

impl FieldError {
    pub fn new(param: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { param: Some(param.into()), problem: problem.into() }
    }
}

pub type Result<T, E = FieldError> = std::result::Result<T, E>;

/// Fields that are not taken yet, and the names that were asked for.
pub struct Fields {
    remaining: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Fields {
    /// Returns the fields of an object. Those that are null count as not given.
    pub fn new(mut object: Map<String, Value>) -> Self {
        object.retain(|_, value| !value.is_null());
        Self { remaining: object, known: vec![] }
    }

    /// Takes a field's value, if it is given.
    pub fn value(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.remaining.remove(name)
    }

    /// Returns whether a field is given.
    pub fn has(&self, name: &str) -> bool {
        self.remaining.contains_key(name)
    }

    /// Takes a number, which some clients write as a string.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn number(&mut self, name: &'static str) -> Result<Option<f32>> {
        let text = self.remaining.get(name).and_then(Value::as_str);
        if let Some(number) = text.and_then(|text| text.trim().parse::<f32>().ok()) {
            self.value(name);
            return Ok(Some(number));
        }
        self.take(name)
    }

    /// Takes a field of this type, if it is given.
    ///
    /// # Errors
    /// The value is of another type, or out of the type's range.
    pub fn take<T: DeserializeOwned>(&mut self, name: &'static str) -> Result<Option<T>> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let shown = shortened(&value);
        let wrong = |e| FieldError::new(name, format!("{name:?} is {shown}: {e}"));
        serde_json::from_value(value).map(Some).map_err(wrong)
    }

    /// Drops fields that change nothing here.
    pub fn ignore(&mut self, names: &[&'static str]) {
        for name in names {
            self.value(name);
        }
    }

    /// Checks that a field is left out, or has one of these values, which change nothing.
    ///
    /// # Errors
    /// It has another value. The message ends with the advice.
    pub fn allow(&mut self, name: &'static str, values: &[Value], advice: &str) -> Result<()> {
        match self.value(name) {
            Some(value) if !values.contains(&value) => {
                Err(FieldError::new(name, format!("{name:?} is {}: {advice}", shortened(&value))))
            }
            _ => Ok(()),
        }
    }

    /// Returns the fields that are not taken.
    pub fn into_rest(self) -> Map<String, Value> {
        self.remaining
    }

    /// Checks that all fields were taken.
    ///
    /// # Errors
    /// One was not. The message suggests a known name that is like its own.
    pub fn finish(self) -> Result<()> {
        let Some(name) = self.remaining.keys().next() else { return Ok(()) };
        let problem = match self.known.iter().max_by_key(|known| common(name, known)) {
            // At most every third character differs.
            Some(known) if 3 * common(name, known) >= 2 * name.len().max(known.len()) => {
                format!("there is no field {name:?}; did you mean {known:?}?")
            }
            _ => format!("there is no field {name:?}; leave it out"),
        };
        Err(FieldError::new(name, problem))
    }
}

/// Returns the bytes that two names have in common at their beginnings and ends together.
fn common(a: &str, b: &str) -> usize {
    let equal = |(x, y): &(u8, u8)| x == y;
    let prefix = a.bytes().zip(b.bytes()).take_while(equal).count();
    let suffix = a.bytes().rev().zip(b.bytes().rev()).take_while(equal).count();
    prefix + suffix.min(a.len().min(b.len()) - prefix)
}

/// Returns the beginning of a value's JSON, for messages.
pub fn shortened(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: Value) -> Fields {
        Fields::new(value.as_object().unwrap().clone())
    }

    #[test]
    fn a_mistyped_name_is_answered_with_the_one_that_is_meant() {
        for (typo, meant) in [
            ("max_token", "max_tokens"),
            ("max-tokens", "max_tokens"),
            ("temprature", "temperature"),
            ("promt", "prompt"),
            ("Prompt", "prompt"),
        ] {
            let mut fields = fields(json!({typo: 1}));
            fields.ignore(&["prompt", "max_tokens", "temperature", "n"]);
            let error = fields.finish().unwrap_err().to_string();
            assert!(error.contains(&format!("{typo:?}; did you mean {meant:?}?")), "{error}");
        }
        let mut other = fields(json!({"colour": 1}));
        other.ignore(&["prompt", "n"]);
        assert_eq!(other.finish().unwrap_err().to_string(), "there is no field \"colour\"; leave it out");
    }

    #[test]
    fn null_is_as_if_not_given() {
        let mut fields = fields(json!({"n": null, "unknown": null}));
        assert_eq!(fields.take::<usize>("n").unwrap(), None);
        fields.finish().unwrap();
    }

    #[test]
    fn a_wrong_type_is_named_with_its_field_and_value() {
        let error = fields(json!({"n": "two"})).take::<usize>("n").unwrap_err().to_string();
        assert!(error.starts_with("\"n\" is \"two\": "), "{error}");
        let long = fields(json!({"n": "ä".repeat(100)})).take::<usize>("n").unwrap_err().to_string();
        assert!(long.contains("ä ...: "), "{long}");
    }
}
