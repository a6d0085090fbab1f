//! The fields of requests that ask for a constraint: OpenAI's `response_format`, vLLM's
//! `structured_outputs` and its older `guided_*`, and this program's own.

use serde_json::{Map, Value};

use super::fields::{FieldError, Fields, Result, shortened};
use crate::constraint::Constraint;

/// The fields that ask for one.
pub const CONSTRAINT_FIELDS: [&str; 9] = [
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "regex",
    "choices",
    "grammar",
];

/// Takes the constraint that the fields of a request ask for, or `default` if they do not say.
///
/// # Errors
/// A value that asks for something else, or several constraints at once.
pub fn constraint(fields: &mut Fields, mut default: Option<Constraint>) -> Result<Option<Constraint>> {
    let mut found: Option<(&'static str, Constraint)> = None;
    for field in CONSTRAINT_FIELDS {
        let Some(value) = fields.value(field) else { continue };
        let wrong = |reason: String| FieldError::new(field, format!("{field:?} {reason}"));
        let Some(constraint) = asked(field, value).map_err(wrong)? else {
            default = None;
            continue;
        };
        if let Some((other, _)) = found {
            return Err(wrong(format!("and {other:?} both ask for a form of the answer; give one of them")));
        }
        found = Some((field, constraint));
    }
    Ok(found.map_or(default, |(_, constraint)| Some(constraint)))
}

fn asked(field: &str, value: Value) -> Result<Option<Constraint>, String> {
    Ok(match field {
        "response_format" => return response_format(value),
        "structured_outputs" => return structured_outputs(value),
        "guided_json" => Some(schema(value)?),
        "guided_regex" | "regex" => Some(Constraint::Regex(text(value)?)),
        "guided_choice" | "choices" => Some(Constraint::Choices(texts(value)?)),
        _ => Some(Constraint::Grammar(text(value)?)),
    })
}

/// OpenAI's: text, any JSON object, or a schema in `json_schema`. Others write the schema beside
/// the type.
fn response_format(value: Value) -> Result<Option<Constraint>, String> {
    let mut format = object(value)?;
    let kind = format.remove("type").unwrap_or_default();
    let beside = format.remove("schema").filter(|schema| !schema.is_null());
    match kind.as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(beside.map_or(Ok(Constraint::JsonObject), schema)?)),
        Some("json_schema") => {
            let named = format.remove("json_schema").filter(|named| !named.is_null());
            let given = match named.map(object).transpose()? {
                Some(mut named) => named.remove("schema").filter(|schema| !schema.is_null()),
                None => beside,
            };
            schema(given.ok_or(r#"has no schema; write {"type": "json_schema", "json_schema": {"schema": {...}}}"#)?)
                .map(Some)
        }
        _ => Err(format!("has the type {kind}; write \"text\", \"json_object\" or \"json_schema\"")),
    }
}

/// vLLM's.
fn structured_outputs(value: Value) -> Result<Option<Constraint>, String> {
    let mut found = Vec::new();
    for (name, value) in object(value)? {
        let constraint = match (name.as_str(), value) {
            (_, Value::Null) | ("disable_fallback" | "json_object", Value::Bool(false)) => continue,
            // Here is one implementation, and none to fall back to.
            ("disable_fallback", Value::Bool(true)) => continue,
            ("json_object", Value::Bool(true)) => Ok(Constraint::JsonObject),
            ("json", value) => schema(value),
            ("regex", value) => text(value).map(Constraint::Regex),
            ("choice", value) => texts(value).map(Constraint::Choices),
            ("grammar", value) => text(value).map(Constraint::Grammar),
            (_, value) => Err(format!("is {}, which is not supported; leave it out", shortened(&value))),
        };
        found.push(constraint.map_err(|reason| format!("has {name:?}, which {reason}"))?);
    }
    match found.len() {
        0 => Err("is empty; write \"json\", \"json_object\", \"regex\", \"choice\" or \"grammar\"".into()),
        1 => Ok(found.pop()),
        _ => Err("asks for several forms of the answer; give one of them".into()),
    }
}

fn object(value: Value) -> Result<Map<String, Value>, String> {
    match value {
        Value::Object(object) => Ok(object),
        other => Err(format!("is {}; write an object", shortened(&other))),
    }
}

/// A schema, or its text.
fn schema(value: Value) -> Result<Constraint, String> {
    match value {
        Value::String(text) => match serde_json::from_str(&text) {
            Ok(schema) => Ok(Constraint::JsonSchema(schema)),
            Err(e) => Err(format!("is a text that is no JSON: {e}")),
        },
        schema => Ok(Constraint::JsonSchema(schema)),
    }
}

fn text(value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(format!("is {}; write a text", shortened(&other))),
    }
}

fn texts(value: Value) -> Result<Vec<String>, String> {
    match value {
        Value::Array(items) => items.into_iter().map(text).collect(),
        other => Err(format!("is {}; write a list of texts", shortened(&other))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn take(fields: Value) -> Result<Option<Constraint>, String> {
        let Value::Object(object) = fields else { unreachable!("all are objects") };
        let mut fields = Fields::new(object);
        let taken = constraint(&mut fields, None).map_err(|e| e.to_string())?;
        fields.ignore(&["n"]);
        fields.finish().map(|()| taken).map_err(|e| e.to_string())
    }

    #[test]
    fn fields_ask_for_constraints() {
        let schema = json!({"type": "integer"});
        let by_schema = Constraint::JsonSchema(schema.clone());
        for (fields, expected) in [
            (json!({"n": 1}), None),
            (json!({"response_format": null, "regex": null}), None),
            (json!({"response_format": {"type": "text"}}), None),
            (json!({"response_format": {"type": "json_object"}}), Some(Constraint::JsonObject)),
            (json!({"response_format": {"type": "json_object", "schema": schema}}), Some(by_schema.clone())),
            (json!({"response_format": {"type": "json_schema", "schema": schema}}), Some(by_schema.clone())),
            (
                json!({"response_format":
                    {"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}}}),
                Some(by_schema.clone()),
            ),
            (json!({"structured_outputs": {"json": schema, "regex": null}}), Some(by_schema.clone())),
            (json!({"structured_outputs": {"json_object": true}}), Some(Constraint::JsonObject)),
            (json!({"structured_outputs": {"choice": ["a"]}}), Some(Constraint::Choices(vec!["a".into()]))),
            (json!({"guided_json": schema}), Some(by_schema.clone())),
            (json!({"guided_json": schema.to_string()}), Some(by_schema)),
            (json!({"guided_regex": "a+"}), Some(Constraint::Regex("a+".into()))),
            (json!({"regex": "a+", "response_format": {"type": "text"}}), Some(Constraint::Regex("a+".into()))),
            (json!({"guided_choice": ["a", "b"]}), Some(Constraint::Choices(vec!["a".into(), "b".into()]))),
            (json!({"choices": ["a"]}), Some(Constraint::Choices(vec!["a".into()]))),
            (json!({"grammar": "start: \"a\""}), Some(Constraint::Grammar("start: \"a\"".into()))),
        ] {
            assert_eq!(take(fields.clone()), Ok(expected), "{fields}");
        }
    }

    #[test]
    fn what_asks_for_something_else_is_refused() {
        for (fields, words) in [
            (json!({"response_format": "json"}), ["\"response_format\" is \"json\"", "write an object"]),
            (json!({"response_format": {"type": "xml"}}), ["the type \"xml\"", "json_schema"]),
            (json!({"response_format": {"type": "json_schema"}}), ["has no schema", "\"schema\": {...}"]),
            (json!({"response_format": {"type": "json_schema", "json_schema": {}}}), ["has no schema", "write"]),
            (json!({"structured_outputs": {}}), ["is empty", "\"choice\""]),
            (json!({"structured_outputs": {"json": {}, "regex": "a"}}), ["several forms", "give one"]),
            (json!({"structured_outputs": {"structural_tag": "x"}}), ["has \"structural_tag\"", "leave it out"]),
            (json!({"structured_outputs": {"choice": "a"}}), ["has \"choice\"", "a list of texts"]),
            (json!({"guided_json": "{"}), ["\"guided_json\" is a text", "no JSON"]),
            (json!({"regex": 1}), ["\"regex\" is 1", "write a text"]),
            (json!({"choices": ["a", 1]}), ["\"choices\" is 1", "write a text"]),
            (json!({"regex": "a", "guided_regex": "a"}), ["\"regex\" and \"guided_regex\"", "give one"]),
        ] {
            let error = take(fields).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{words:?} is not in: {error}");
        }
    }
}
