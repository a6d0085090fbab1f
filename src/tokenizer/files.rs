//! The files of a model that have to do with text, beside `tokenizer.json`: which tokens begin and
//! end it, and the chat template. They are read as transformers reads them.

use std::{fs, io::ErrorKind, path::Path};

use serde_json::Value;
use tokenizers::AddedToken;

use super::{
    error::TokenizerError,
    template::{TemplateSource, TokenNames},
};
use crate::model_file::{LFS_POINTER, is_lfs_pointer, parse_json, without_mark};

/// The contents of the files; a model has any of them, or none.
#[derive(Clone, Debug, Default)]
pub struct TextFiles {
    pub tokenizer_config: Option<String>,
    pub special_tokens_map: Option<String>,
    pub chat_template_jinja: Option<String>,
    /// Why `chat_template.jinja` is there and cannot be read: an error only of what uses it.
    pub chat_template_fault: Option<String>,
    pub chat_template_json: Option<String>,
    pub generation_config: Option<String>,
    pub config: Option<String>,
}

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
const CHAT_TEMPLATE_JINJA: &str = "chat_template.jinja";
const CHAT_TEMPLATE_JSON: &str = "chat_template.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const CONFIG: &str = "config.json";

/// Ids that end a generation, and the file that names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopIds {
    pub ids: Vec<u32>,
    pub source: &'static str,
}

/// What the files say.
pub(super) struct TextSettings {
    pub names: TokenNames,
    /// From `generation_config.json` or `config.json`; otherwise `eos` ends a generation.
    pub stop: Option<StopIds>,
    pub template: TemplateSource,
    /// All control tokens that are named.
    pub control: Vec<AddedToken>,
}

impl TextFiles {
    /// Reads the files of a tokenizer's directory, and of its model's, which may be another.
    ///
    /// # Errors
    /// One is there and cannot be read as text.
    pub fn read(dir: &Path, model: &Path) -> Result<Self, TokenizerError> {
        let read = |dir: &Path, name: &str| match fs::read(dir.join(name)) {
            Ok(bytes) if is_lfs_pointer(&bytes) => Err(TokenizerError::damaged(dir.join(name), LFS_POINTER)),
            Ok(bytes) => match String::from_utf8(bytes) {
                Ok(text) => Ok(Some(text)),
                Err(e) => Err(TokenizerError::damaged(
                    dir.join(name),
                    format!("it is not UTF-8 text ({e}); download it again"),
                )),
            },
            Err(e) if e.kind() == ErrorKind::NotFound && dir.join(name).is_symlink() => Err(TokenizerError::damaged(
                dir.join(name),
                "it is a link to a file that is missing; download it again",
            )),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(TokenizerError::damaged(dir.join(name), e)),
        };
        let (chat_template_jinja, chat_template_fault) = match read(dir, CHAT_TEMPLATE_JINJA) {
            Err(TokenizerError::Damaged { reason, .. }) => (None, Some(reason)),
            read => (read?, None),
        };
        Ok(Self {
            tokenizer_config: read(dir, TOKENIZER_CONFIG)?,
            special_tokens_map: read(dir, SPECIAL_TOKENS_MAP)?,
            chat_template_jinja,
            chat_template_fault,
            chat_template_json: read(dir, CHAT_TEMPLATE_JSON)?,
            generation_config: read(model, GENERATION_CONFIG)?,
            config: read(model, CONFIG)?,
        })
    }

    /// # Errors
    /// A file is damaged.
    pub(super) fn settings(&self) -> Result<TextSettings, TokenizerError> {
        let tokens = json(TOKENIZER_CONFIG, &self.tokenizer_config)?;
        // Older exports name tokens there alone.
        let map = json(SPECIAL_TOKENS_MAP, &self.special_tokens_map)?;
        let value = |field: &str| tokens.get(field).or_else(|| map.get(field)).unwrap_or(&Value::Null);
        let stop_of = |name, text| stop_ids(name, &json(name, text)?);
        let stop = match stop_of(GENERATION_CONFIG, &self.generation_config)? {
            None => stop_of(CONFIG, &self.config)?,
            found => found,
        };
        let mut control = vec![];
        let mut named = |field| {
            let token = token(field, value(field))?;
            control.extend(token.clone());
            Ok::<_, TokenizerError>(token.map(|token| token.content))
        };
        let names = TokenNames {
            bos: named("bos_token")?.unwrap_or_else(|| "<bos>".into()),
            eos: named("eos_token")?.unwrap_or_else(|| "<eos>".into()),
            unk: named("unk_token")?,
            pad: named("pad_token")?,
        };
        // Newer files have the second name.
        for field in ["additional_special_tokens", "extra_special_tokens"] {
            for value in value(field).as_array().into_iter().flatten() {
                control.extend(token(field, value)?);
            }
        }
        Ok(TextSettings { names, stop, template: self.template(&tokens)?, control })
    }

    fn template(&self, tokens: &Value) -> Result<TemplateSource, TokenizerError> {
        if let Some(fault) = &self.chat_template_fault {
            return Ok(TemplateSource::broken(CHAT_TEMPLATE_JINJA, fault));
        }
        if let Some(source) = &self.chat_template_jinja {
            return Ok(TemplateSource::text(CHAT_TEMPLATE_JINJA, without_mark(source)));
        }
        for (file, json) in
            [(TOKENIZER_CONFIG, tokens), (CHAT_TEMPLATE_JSON, &json(CHAT_TEMPLATE_JSON, &self.chat_template_json)?)]
        {
            if let Some(source) =
                TemplateSource::given(file, &json["chat_template"]).map_err(|e| TokenizerError::damaged(file, e))?
            {
                return Ok(source);
            }
        }
        Ok(TemplateSource::gemma())
    }
}

/// Parses a file; one that is missing has no values.
fn json(name: &str, text: &Option<String>) -> Result<Value, TokenizerError> {
    let Some(text) = text else { return Ok(Value::Null) };
    let value = parse_json(text).map_err(|reason| TokenizerError::damaged(name, reason))?;
    if value.is_object() {
        return Ok(value);
    }
    Err(TokenizerError::damaged(name, "it does not hold a JSON object; download it again"))
}

/// Returns a token: its name, or an object with its `content` and where it is found in a text.
fn token(field: &str, value: &Value) -> Result<Option<AddedToken>, TokenizerError> {
    let flag = |name: &str| value.get(name).and_then(Value::as_bool).unwrap_or(false);
    match value.get("content").unwrap_or(value) {
        Value::Null => Ok(None),
        Value::String(name) => Ok(Some(
            AddedToken::from(name.as_str(), true)
                .lstrip(flag("lstrip"))
                .rstrip(flag("rstrip"))
                .single_word(flag("single_word"))
                .normalized(flag("normalized")),
        )),
        _ => {
            let reason = format!("its {field} is {value}, which is no token; write the token's text");
            Err(TokenizerError::damaged(TOKENIZER_CONFIG, reason))
        }
    }
}

/// Returns `eos_token_id`: an id, or a list of ids.
fn stop_ids(file: &'static str, json: &Value) -> Result<Option<StopIds>, TokenizerError> {
    let value = json.get("eos_token_id").unwrap_or(&Value::Null);
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids: Option<Vec<u32>> = match value {
        Value::Null => return Ok(None),
        Value::Array(all) => all.iter().map(id).collect(),
        one => id(one).map(|id| vec![id]),
    };
    match ids {
        Some(ids) => Ok(Some(StopIds { ids, source: file })),
        None => {
            let reason = format!("its eos_token_id is {value}, which is no list of token ids; write one, or an id");
            Err(TokenizerError::damaged(file, reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stops(generation: Option<&str>, config: Option<&str>) -> Result<Option<Vec<u32>>, String> {
        let text = |json: Option<&str>| json.map(str::to_owned);
        let files = TextFiles { generation_config: text(generation), config: text(config), ..TextFiles::default() };
        files.settings().map(|s| s.stop.map(|stop| stop.ids)).map_err(|e| e.to_string())
    }

    #[test]
    fn stop_ids_are_those_of_generate() {
        let (list, one) = (Some(r#"{"eos_token_id": [1, 107, 99]}"#), Some(r#"{"eos_token_id": 1}"#));
        assert_eq!(stops(list, one), Ok(Some(vec![1, 107, 99])));
        assert_eq!(stops(None, list), Ok(Some(vec![1, 107, 99])));
        assert_eq!(stops(Some(r#"{"eos_token_id": null}"#), one), Ok(Some(vec![1])));
        assert_eq!(stops(Some("{}"), None), Ok(None));
        assert_eq!(stops(Some("\u{FEFF}{\"eos_token_id\": 7}"), None), Ok(Some(vec![7])));
        for bad in [r#"{"eos_token_id": "x"}"#, r#"{"eos_token_id": [-1]}"#, "{"] {
            assert!(stops(Some(bad), None).unwrap_err().contains("generation_config.json"), "{bad}");
        }
    }

    #[test]
    fn tokens_are_strings_or_objects() {
        let names = |json: &str| {
            let files = TextFiles { tokenizer_config: Some(json.into()), ..TextFiles::default() };
            files.settings().map(|s| (s.names.bos, s.names.eos)).map_err(|e| e.to_string())
        };
        let both = r#"{"bos_token": "<s>", "eos_token": {"content": "<|im_end|>", "lstrip": false}}"#;
        assert_eq!(names(both), Ok(("<s>".into(), "<|im_end|>".into())));
        assert_eq!(names(r#"{"bos_token": null}"#), Ok(("<bos>".into(), "<eos>".into())));
        let map = Some(r#"{"bos_token": "<s>", "eos_token": "<|im_end|>"}"#.to_owned());
        let files = TextFiles {
            tokenizer_config: Some(r#"{"bos_token": "<bos>"}"#.into()),
            special_tokens_map: map,
            ..TextFiles::default()
        };
        let names_of = files.settings().unwrap().names;
        assert_eq!((names_of.bos, names_of.eos), ("<bos>".into(), "<|im_end|>".into()));
        assert!(names(r#"{"eos_token": 7}"#).unwrap_err().contains("eos_token is 7"));
    }
}
