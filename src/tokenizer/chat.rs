//! The chat format: the template of the checkpoint, or Gemma's own.

use serde::{Deserialize, Serialize};

use super::TokenizerError;

/// The author of a message. Gemma has no system role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    User,
    /// The model. Templates get `assistant`, and write `model`.
    Assistant,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub role: Role,
    pub content: String,
}

impl Message {
    /// Returns a message of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: Role::User, content: content.into() }
    }

    /// Returns a message of the model.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self { role: Role::Assistant, content: content.into() }
    }
}

/// Gemma's template, as in the model card: turns alternate, start with the user, and are trimmed.
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
    /// Compiles the template in `tokenizer_config.json`, or Gemma's own if it has none. Of several
    /// named ones, it takes `default`.
    ///
    /// # Errors
    /// The file is not JSON, or its template is not valid.
    pub fn of_config(json: &str) -> Result<Self, String> {
        let json: serde_json::Value = serde_json::from_str(json).map_err(|e| e.to_string())?;
        match json.get("chat_template") {
            None | Some(serde_json::Value::Null) => Ok(Self::gemma()),
            Some(serde_json::Value::String(template)) => Self::compile(template.clone()),
            Some(serde_json::Value::Array(named)) => {
                let default = named.iter().find(|t| t["name"] == "default").and_then(|t| t["template"].as_str());
                Self::compile(default.ok_or("it has no default chat template")?.to_owned())
            }
            Some(_) => Err("its chat_template is not a string".into()),
        }
    }

    /// Returns Gemma's own template.
    pub fn gemma() -> Self {
        Self::compile(GEMMA.to_owned()).expect("our own template compiles")
    }

    pub(super) fn compile(source: String) -> Result<Self, String> {
        let mut environment = minijinja::Environment::new();
        // These are the settings of transformers.
        let syntax = minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| e.to_string())?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned(NAME, source).map_err(|e| format!("its chat template is broken: {e}"))?;
        Ok(Self(environment))
    }

    /// Returns the conversation as text, ending with the start of the model's answer.
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
