//! Jinja templates and expressions over documents, with the methods and filters of Python that
//! tasks use.

use fancy_regex::Regex;
use minijinja::{Environment, Error as JinjaError, ErrorKind, State, UndefinedBehavior, Value, value::Serde};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::{Serialize, de::DeserializeOwned};

use super::Doc;

/// Renders templates and evaluates expressions.
pub struct Templates(Environment<'static>);

impl Default for Templates {
    fn default() -> Self {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        let syntax = minijinja::syntax::SyntaxConfig::builder().keep_trailing_newline(true).build();
        environment.set_syntax(syntax.expect("the delimiters are the usual ones"));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(method);
        environment.add_filter("strip", |text: &str| strip(text).to_owned());
        environment.add_filter("regex_replace", |text: &str, pattern: &str, with: &str| {
            let replaced = Regex::new(pattern).and_then(|regex| Ok(regex.try_replacen(text, 0, with)?.into_owned()));
            replaced.map_err(|e| JinjaError::new(ErrorKind::InvalidOperation, e.to_string()))
        });
        Self(environment)
    }
}

impl Templates {
    /// Returns templates that know these constants beside a document's fields.
    pub fn with(values: &Doc) -> Self {
        let mut templates = Self::default();
        for (name, value) in values {
            templates.0.add_global(name.clone(), Value::from(Serde(value)));
        }
        templates
    }

    /// Renders a template.
    ///
    /// # Errors
    /// The template is not valid, or uses a field that the context lacks.
    pub fn render(&self, template: &str, context: &impl Serialize) -> Result<String, String> {
        self.0.render_str(template, Serde(context)).map_err(explain)
    }

    /// Evaluates an expression.
    ///
    /// # Errors
    /// The expression is not valid, uses a field that the context lacks, or has a value of another
    /// type.
    pub fn evaluate<T: DeserializeOwned>(&self, expression: &str, context: &impl Serialize) -> Result<T, String> {
        let value = self.0.compile_expression(expression).and_then(|e| e.eval(Serde(context))).map_err(explain)?;
        T::deserialize(value).map_err(|e| format!("{expression} has a wrong value: {e}"))
    }
}

fn explain(error: JinjaError) -> String {
    format!("{error:#}").lines().next().unwrap_or_default().to_owned()
}

/// Python's methods of strings and lists that minijinja lacks, or has with other semantics.
fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, JinjaError> {
    if let ("index", [wanted]) = (name, args) {
        let found = value.try_iter()?.position(|item| item == *wanted);
        let missing = || JinjaError::new(ErrorKind::InvalidOperation, format!("{wanted} is not in {value}"));
        return found.map(Value::from).ok_or_else(missing);
    }
    let Some(text) = value.as_str() else { return unknown_method_callback(state, value, name, args) };
    Ok(match (name, args.len()) {
        ("strip", 0) => strip(text).into(),
        ("lstrip", 0) => text.trim_start_matches(is_space).into(),
        ("rstrip", 0) => text.trim_end_matches(is_space).into(),
        _ => return unknown_method_callback(state, value, name, args),
    })
}

/// Returns whether Python's `str.isspace` is true: for Unicode's white space and four separators of
/// ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Removes white space at both ends, as Python's `strip` does.
pub(super) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Returns the trailing white space that Python's `rstrip` would remove.
pub(super) fn trailing_space(text: &str) -> &str {
    &text[text.trim_end_matches(is_space).len()..]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn python_in_jinja() {
        let templates = Templates::default();
        let doc = json!({"a": " hEllo World ", "list": ["x", "y"], "deep": {"label": ["A", "B"]}, "s": "a_b_c"});
        let render = |template: &str| templates.render(template, &doc);
        assert_eq!(render("{{a.strip().capitalize()}}\n").unwrap(), "Hello world\n");
        assert_eq!(render("{{'x [t] y [u]' | regex_replace('\\\\[.*?\\\\]', '')}}").unwrap(), "x  y ");
        assert_eq!(templates.evaluate::<usize>("deep.label.index('B')", &doc).unwrap(), 1);
        assert_eq!(templates.evaluate::<Vec<String>>("list | map('upper')", &doc).unwrap(), ["X", "Y"]);
        assert_eq!(templates.evaluate::<String>("s.split('_', 1)[1]", &doc).unwrap(), "b_c");
        assert!(render("{{missing}}").unwrap_err().contains("undefined"));
        assert!(templates.evaluate::<usize>("deep.label.index('C')", &doc).unwrap_err().contains("is not in"));
    }
}
