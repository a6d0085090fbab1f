//! The chat format: the template of the checkpoint, or Gemma's own.

use minijinja::{Value, context, value::Serde};
use serde_json::Value as Json;

use super::{
    error::TokenizerError,
    jinja::Template,
    message::{Message, alternating},
};

/// Gemma's template, as in the model card: turns alternate, start with the user, and are trimmed.
const GEMMA: &str = "{{ bos_token }}{% for message in messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('turns must alternate between user and model, starting with the user') }}{% endif %}\
{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}\
{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}";

/// Names of tokens that a chat template may write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TokenNames {
    pub bos: String,
    pub eos: String,
    pub unk: Option<String>,
    pub pad: Option<String>,
}

/// A template's text, or why there is none, and the file that it is from.
pub(super) struct TemplateSource {
    file: &'static str,
    text: Result<String, String>,
}

impl TemplateSource {
    /// Gemma's own template.
    pub fn gemma() -> Self {
        Self::text("none, so Gemma's own is used", GEMMA)
    }

    pub fn text(file: &'static str, text: &str) -> Self {
        Self { file, text: Ok(text.to_owned()) }
    }

    /// A file that is there and cannot be read.
    pub fn broken(file: &'static str, reason: &str) -> Self {
        Self { file, text: Err(reason.to_owned()) }
    }

    /// What a file has as its `chat_template`: one text, or texts with names, as a list or a
    /// mapping, of which the one called `default` is taken. `None` if it is null.
    ///
    /// # Errors
    /// It is something else.
    pub fn given<'v>(file: &'static str, value: &'v Json) -> Result<Option<Self>, String> {
        let entry = |entry: &'v Json| {
            let (name, text) = (&entry["name"], &entry["template"]);
            let no_template = || format!("an entry of its chat_template has no name or no template: {entry}; add them");
            name.as_str().zip(text.as_str()).ok_or_else(no_template)
        };
        let named = |(name, text): (&'v String, &'v Json)| {
            let no_template = || format!("its chat_template called {name:?} is {text}, which is no text; write one");
            text.as_str().map(|text| (name.as_str(), text)).ok_or_else(no_template)
        };
        let all: Vec<(&str, &str)> = match value {
            Json::Null => return Ok(None),
            Json::String(text) => return Ok(Some(Self::text(file, text))),
            Json::Array(list) => list.iter().map(entry).collect::<Result<_, _>>()?,
            Json::Object(mapping) => mapping.iter().map(named).collect::<Result<_, _>>()?,
            _ => return Err("its chat_template is neither a string nor named templates; write one as a string".into()),
        };
        if all.is_empty() {
            return Err("its chat_template has no template; remove it, or add one called default".into());
        }
        // The last one of a name counts, as where transformers makes a mapping of a list.
        if let Some((_, text)) = all.iter().rfind(|(name, _)| *name == "default") {
            return Ok(Some(Self::text(file, text)));
        }
        let names: Vec<&str> = all.iter().map(|&(name, _)| name).collect();
        let text = Err(format!(
            "its chat templates are called {}, and none is called default; copy the one that you want to \
             chat_template.jinja",
            names.join(", ")
        ));
        Ok(Some(Self { file, text }))
    }
}

/// A compiled chat template. One that is broken is an error only of what uses it.
pub(super) struct ChatTemplate {
    file: &'static str,
    text: Option<String>,
    template: Result<Template, String>,
    names: TokenNames,
}

impl ChatTemplate {
    pub fn new(source: TemplateSource, names: TokenNames) -> Self {
        let compile = |text: String| {
            Template::compile(&text).map_err(|e| format!("its chat template is broken: {e}; correct it there"))
        };
        let text = source.text.as_ref().ok().cloned();
        Self { file: source.file, text, template: source.text.and_then(compile), names }
    }

    /// Returns the template as it is in its file.
    pub fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }

    /// Returns the names of special tokens that it is rendered with.
    pub fn names(&self) -> &TokenNames {
        &self.names
    }

    /// Returns the file that it is from, in words.
    pub fn source(&self) -> &'static str {
        self.file
    }

    /// Returns the conversation as text, ending with the start of the model's answer. If the
    /// template refuses the messages as they are, instructions go into the first turn, and
    /// neighbours of the same role are joined.
    ///
    /// # Errors
    /// There is no template, or it refuses both.
    pub fn render(&self, messages: &[Message]) -> Result<String, TokenizerError> {
        self.try_render(messages).or_else(|error| {
            let turns = alternating(messages);
            if turns == messages { Err(error) } else { self.try_render(&turns).map_err(|_| error) }
        })
    }

    /// Returns whether the template has a system role.
    ///
    /// # Errors
    /// There is no template that could be asked.
    pub fn takes_system_messages(&self) -> Result<bool, TokenizerError> {
        self.try_render(&[Message::user("u")])?;
        let probe = "instructions";
        let text = self.try_render(&[Message::system(probe), Message::user("u")]);
        Ok(text.is_ok_and(|text| text.contains(probe)))
    }

    fn try_render(&self, messages: &[Message]) -> Result<String, TokenizerError> {
        let template = self.template.as_ref().map_err(|reason| TokenizerError::damaged(self.file, reason))?;
        let TokenNames { bos, eos, unk, pad } = &self.names;
        // Names that are not set are undefined in transformers, too.
        let name = |token: &Option<String>| token.as_ref().map_or(Value::UNDEFINED, Value::from);
        let values = context! {
            messages => Serde(messages),
            tools => (),
            documents => (),
            bos_token => bos,
            eos_token => eos,
            unk_token => name(unk),
            pad_token => name(pad),
            add_generation_prompt => true,
        };
        template.render(values).map_err(TokenizerError::Template)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> TokenNames {
        TokenNames { bos: "<bos>".into(), eos: "<|im_end|>".into(), unk: None, pad: Some("<pad>".into()) }
    }

    fn rendered(template: &str, messages: &[Message]) -> Result<String, String> {
        ChatTemplate::new(TemplateSource::text("test", template), names()).render(messages).map_err(|e| e.to_string())
    }

    fn hi() -> Vec<Message> {
        vec![Message::user("hi")]
    }

    #[test]
    fn gemma_format() {
        let messages = [Message::user(" Hi "), Message::assistant("Hello!"), Message::user("2+2?")];
        let text = ChatTemplate::new(TemplateSource::gemma(), names()).render(&messages).unwrap();
        assert_eq!(
            text,
            "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n\
             <start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n"
        );
    }

    #[test]
    fn turns_are_made_to_alternate_and_begin_with_the_user() {
        let joined = rendered(GEMMA, &[Message::user("a"), Message::user("b")]).unwrap();
        assert_eq!(joined, "<bos><start_of_turn>user\na\n\nb<end_of_turn>\n<start_of_turn>model\n");
        let folded = rendered(GEMMA, &[Message::system("s"), Message::user("a")]).unwrap();
        assert_eq!(folded, "<bos><start_of_turn>user\ns\n\na<end_of_turn>\n<start_of_turn>model\n");
        let error = rendered(GEMMA, &[Message::assistant("x")]).unwrap_err();
        assert!(error.contains("alternate"), "{error}");
    }

    #[test]
    fn a_template_with_a_system_role_gets_it() {
        let chatml = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";
        let text = rendered(chatml, &[Message::system("s"), Message::user("a"), Message::user("b")]).unwrap();
        assert_eq!(
            text,
            "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>user\nb<|im_end|>\n"
        );
        let takes = |t: &str| ChatTemplate::new(TemplateSource::text("test", t), names()).takes_system_messages();
        assert!(takes(chatml).unwrap() && !takes(GEMMA).unwrap());
    }

    /// Expected texts are those of jinja2 3.1 as transformers 5.23 calls it.
    #[test]
    fn what_transformers_has_beside_jinja() {
        for (template, expected) in [
            ("{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token }}", "<bos>|<|im_end|>|<pad>|"),
            ("a{%- generation %} b {%- endgeneration -%} c", "a bc"),
            ("{% for m in [1, 2, 3] %}{% if m == 2 %}{% continue %}{% endif %}{{ m }}{% endfor %}", "13"),
            ("{% for m in [1, 2, 3] %}{% if m == 2 %}{% break %}{% endif %}{{ m }}{% endfor %}", "1"),
            ("{% if tools is not none and tools | length > 0 %}x{% else %}y{% endif %}", "y"),
            ("{% if tools is iterable and tools | length > 0 %}x{% else %}y{% endif %}", "y"),
            ("{{ documents }}{{ true }}{{ none }}", "NoneTrueNone"),
            ("{{ ['a', \"b'\", 1, true] }}", "['a', \"b'\", 1, True]"),
            ("{{ messages[0] }}", "{'role': 'user', 'content': 'hi'}"),
            ("{{ messages | tojson }}", "[{\"role\": \"user\", \"content\": \"hi\"}]"),
            ("{{ {'a': [1, 2], 'b': []} | tojson(indent=2) }}", "{\n  \"a\": [\n    1,\n    2\n  ],\n  \"b\": []\n}"),
            ("{{ '<é🙂>' | tojson }}", "\"<é🙂>\""),
            ("{{ '<é🙂>' | tojson(ensure_ascii=true) }}", "\"<\\u00e9\\ud83d\\ude42>\""),
            ("{{ 'a\nb' | indent(width=2, first=true) }}{{ 'a\nb' | indent(1) }}", "  a\n  ba\n b"),
            ("{{ '%s-%03d' | format('a', 7) }}{{ '{x:>3}'.format(x=1) }}", "a-007  1"),
            ("{{ [1, 2, 3] | batch(2, 0) | list }}{{ [1, 2] | slice(2) | list }}", "[[1, 2], [3, 0]][[1], [2]]"),
            ("{{ [1] | tojson(true) }}{{ ['é'] | tojson(true, 1) }}", "[1][\n \"\\u00e9\"\n]"),
            (
                "{{ ['a\x07\u{85}é\u{301}\u{2028}\u{e000}\u{1f642}\u{e0001}\"\\\\'] }}",
                "['a\\x07\\x85é\u{301}\\u2028\\ue000\u{1f642}\\U000e0001\"\\\\']",
            ),
            ("{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}", "21"),
            (
                "{{ 'ab' is sequence }}{{ {'a': 1} is sequence }}{{ 1 is sequence }}{{ none is sequence }}",
                "TrueTrueFalseFalse",
            ),
            ("{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}", "aba"),
            ("{% set j = joiner(', ') %}{% for m in [1, 2] %}{{ j() }}{{ m }}{% endfor %}", "1, 2"),
            (
                "{{ 'abc'.removeprefix('a').removesuffix('x') }}{{ 'a-b-c'.rpartition('-')[0] }}{{ 'abc'.partition('-')[2] }}",
                "bca-b",
            ),
            ("a\r\nb\rc", "a\nb\nc"),
            ("{% if strftime_now('%Y') | int > 2025 %}now{% endif %}", "now"),
        ] {
            assert_eq!(rendered(template, &hi()).as_deref(), Ok(expected), "{template}");
        }
    }

    #[test]
    fn a_broken_template_fails_where_it_is_used() {
        for (template, named) in [
            ("{% for %}", "its chat template is broken"),
            ("{{ raise_exception('System role not supported') }}", "System role not supported"),
            ("{{ strftime_now('%Q') }}", "no time format"),
            ("{{ messages[0].content.nothing() }}", "nothing"),
            ("{{ messages | tojson(indent=70000) }}", "tojson: 70000 is above 1000"),
            ("{{ 'a' | indent(width=9999999999999) }}", "indent: 9999999999999 is above 1000"),
            ("{{ [1] | batch(9999999999999, 0) }}", "batch: 9999999999999 is above 1000"),
            ("{{ '%99999999999d' | format(1) }}", "more than 999 places"),
            ("{{ '{:99999999999}'.format(1) }}", "more than 999 places"),
            ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "more than 1000000 steps"),
            ("{% for a in range(9) %}{{ 'x' * 10000000 }}{% endfor %}", "more than 67108864 bytes"),
        ] {
            let error = rendered(template, &hi()).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn a_list_in_as_many_lists_as_there_are_steps_is_no_overflow_of_the_stack() {
        let deep = "{% set ns = namespace(x=[]) %}{% for i in range(9) %}{% for i in range(10000) %}{% set ns.x = [ns.x] %}\
                    {% endfor %}{% endfor %}";
        assert_eq!(rendered(deep, &hi()).as_deref(), Ok(""));
        for written in ["{{ ns.x }}", "{{ ns.x | tojson }}"] {
            let error = rendered(&format!("{deep}{written}"), &hi()).unwrap_err();
            assert!(error.contains("in more than 100 lists"), "{error}");
        }
        for compared in ["{{ ns.x == ns.x }}", "{{ (ns.x ~ 'a') | length }}", "{{ ns.x | string | length }}"] {
            let _ = rendered(&format!("{deep}{compared}"), &hi());
        }
    }

    #[test]
    fn of_several_templates_default_is_used() {
        let given = |value: &Json| TemplateSource::given("tokenizer_config.json", value);
        let list = |called: &[&str]| {
            let entry = |name: &&str| serde_json::json!({"name": name, "template": format!("this is {name}")});
            let source = given(&called.iter().map(entry).collect()).unwrap().unwrap();
            ChatTemplate::new(source, names()).render(&hi()).map_err(|e| e.to_string())
        };
        assert_eq!(list(&["tool_use", "default"]).as_deref(), Ok("this is default"));
        let error = list(&["tool_use", "rag"]).unwrap_err();
        assert!(error.contains("tool_use, rag"), "{error}");
        for (value, words) in [
            (serde_json::json!([{"name": "default"}]), "no name or no template"),
            (serde_json::json!({"default": 3}), "called \"default\" is 3"),
            (serde_json::json!({}), "has no template"),
            (serde_json::json!([]), "has no template"),
            (serde_json::json!(3), "neither a string nor named templates"),
        ] {
            let error = given(&value).err().unwrap();
            assert!(error.contains(words), "{error}");
        }
    }
}
