//! Messages of a conversation, as clients write them.

use serde::{Deserialize, Deserializer, Serialize, de::Error};

/// The author of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions; `developer` means the same. Gemma's template has no such role: there they are
    /// put before the first message of the user.
    System,
    User,
    /// The model, which may also be written `model`. Templates get `assistant`.
    Assistant,
}

impl<'de> Deserialize<'de> for Role {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "system" | "developer" => Ok(Self::System),
            "user" => Ok(Self::User),
            "assistant" | "model" => Ok(Self::Assistant),
            other => Err(D::Error::custom(format!(
                "role {other:?} is unknown; give \"system\" (or \"developer\"), \"user\" or \"assistant\" (or \"model\")"
            ))),
        }
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub role: Role,
    /// Text, or a list of parts `{"type": "text", "text": ...}`, which are joined.
    #[serde(deserialize_with = "content")]
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

    /// Returns instructions.
    pub fn system(content: impl Into<String>) -> Self {
        Self { role: Role::System, content: content.into() }
    }
}

/// Reads a message's content.
fn content<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Content {
        Text(String),
        Parts(Vec<serde_json::Map<String, serde_json::Value>>),
        Other(serde_json::Value),
    }
    match Content::deserialize(deserializer)? {
        Content::Text(text) => Ok(text),
        Content::Parts(parts) => {
            let field = |part: &serde_json::Map<_, _>, name: &str| {
                part.get(name).and_then(serde_json::Value::as_str).map(str::to_owned)
            };
            let text = |part: serde_json::Map<_, _>| match (field(&part, "type").as_deref(), field(&part, "text")) {
                (Some("text"), Some(text)) => Ok(text),
                (kind, _) => Err(D::Error::custom(format!(
                    "a part of the content is of type {:?}; Gemma 1 reads text: {{\"type\": \"text\", \"text\": \"...\"}}",
                    kind.unwrap_or_default()
                ))),
            };
            parts.into_iter().map(text).collect()
        }
        Content::Other(other) => Err(D::Error::custom(format!(
            "the content is {other}; give a string, or a list of parts {{\"type\": \"text\", \"text\": \"...\"}}"
        ))),
    }
}

/// Puts instructions before the first message of the user, and joins neighbours of the same role,
/// for templates that know only turns of user and model.
pub(super) fn alternating(messages: &[Message]) -> Vec<Message> {
    let mut turns: Vec<Message> = Vec::with_capacity(messages.len());
    for message in messages {
        let role = if message.role == Role::System { Role::User } else { message.role };
        match turns.last_mut().filter(|last| last.role == role) {
            Some(last) => {
                last.content.push_str("\n\n");
                last.content.push_str(&message.content);
            }
            None => turns.push(Message { role, content: message.content.clone() }),
        }
    }
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Message, String> {
        serde_json::from_str(json).map_err(|e| e.to_string())
    }

    #[test]
    fn roles_and_contents_are_read_as_clients_write_them() {
        assert_eq!(read(r#"{"role": "model", "content": "x"}"#), Ok(Message::assistant("x")));
        assert_eq!(read(r#"{"role": "developer", "content": "x"}"#), Ok(Message::system("x")));
        let parts = r#"{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}"#;
        assert_eq!(read(parts), Ok(Message::user("ab")));
        assert_eq!(read(r#"{"role": "user", "content": []}"#), Ok(Message::user("")));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (json, named) in [
            (r#"{"role": "tool", "content": "x"}"#, "role \"tool\" is unknown"),
            (r#"{"role": "user", "content": null}"#, "the content is null"),
            (r#"{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}"#, "of type \"image_url\""),
            (r#"{"role": "user", "content": [{"type": "text"}]}"#, "Gemma 1 reads text"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn instructions_go_into_the_first_turn() {
        let all = [Message::system("s"), Message::user("a"), Message::user("b"), Message::assistant("c")];
        assert_eq!(alternating(&all), [Message::user("s\n\na\n\nb"), Message::assistant("c")]);
    }
}
