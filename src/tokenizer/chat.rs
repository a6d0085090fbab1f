//! The chat format: the template of `tokenizer_config.json`, or Gemma's own.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::TokenizerError;

/// Who speaks. Gemma knows no system role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    User,
    /// The model; `assistant` in templates, which write `model`.
    Assistant,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub role: Role,
    pub content: String,
}

impl Message {
    /// A turn of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: Role::User, content: content.into() }
    }

    /// A turn of the model.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self { role: Role::Assistant, content: content.into() }
    }
}

/// Gemma's format, as in the model card: turns alternate, start with the user, and are trimmed.
const GEMMA: &str = "{{ bos_token }}{% for message in messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('turns must alternate between user and model, starting with the user') }}{% endif %}\
{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}\
{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}";

/// A compiled chat template.
pub struct ChatTemplate(minijinja::Environment<'static>);

const NAME: &str = "chat";

impl ChatTemplate {
    /// The template of a model directory. The first of several named ones is called `default` by convention.
    pub(super) fn from_dir(dir: &Path) -> Result<Self, TokenizerError> {
        let path = dir.join("tokenizer_config.json");
        let damaged = |reason: String| TokenizerError::Damaged { path: path.clone(), reason };
        if let Ok(text) = std::fs::read_to_string(dir.join("chat_template.jinja")) {
            return Self::compile(text).map_err(damaged); // where newer exports put it
        }
        let Ok(text) = std::fs::read_to_string(&path) else { return Ok(Self::gemma()) };
        let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
        match json.get("chat_template") {
            None | Some(serde_json::Value::Null) => Ok(Self::gemma()),
            Some(serde_json::Value::String(template)) => Self::compile(template.clone()).map_err(damaged),
            Some(serde_json::Value::Array(named)) => {
                let default = named.iter().find(|t| t["name"] == "default").and_then(|t| t["template"].as_str());
                let template = default.ok_or_else(|| damaged("it has no default chat template".into()))?;
                Self::compile(template.to_owned()).map_err(damaged)
            }
            Some(_) => Err(damaged("its chat_template is not a string".into())),
        }
    }

    /// Gemma's own template.
    pub fn gemma() -> Self {
        Self::compile(GEMMA.to_owned()).expect("our own template compiles")
    }

    fn compile(source: String) -> Result<Self, String> {
        let mut environment = minijinja::Environment::new();
        // As transformers sets jinja up.
        let syntax = minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| e.to_string())?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned(NAME, source).map_err(|e| format!("its chat template is broken: {e}"))?;
        Ok(Self(environment))
    }

    /// The conversation as text, with the opening of the model's answer at its end.
    pub(super) fn render(&self, messages: &[Message]) -> Result<String, TokenizerError> {
        let context = minijinja::context! {
            messages => minijinja::value::Serde(messages),
            bos_token => "<bos>",
            eos_token => "<eos>",
            add_generation_prompt => true,
        };
        let template = self.0.get_template(NAME).expect("added when it was compiled");
        template.render(context).map_err(|e| {
            let reason = e.detail().map_or_else(|| e.to_string(), str::to_owned);
            TokenizerError::Template(reason)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gemma_format() {
        let text = ChatTemplate::gemma()
            .render(&[Message::user(" Hi "), Message::assistant("Hello!"), Message::user("2+2?")])
            .unwrap();
        assert_eq!(
            text,
            "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n\
             <start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n"
        );
    }

    #[test]
    fn turns_must_alternate() {
        for bad in [vec![Message::assistant("x")], vec![Message::user("a"), Message::user("b")]] {
            let error = ChatTemplate::gemma().render(&bad).unwrap_err().to_string();
            assert!(error.contains("alternate"), "{error}");
        }
    }
}
