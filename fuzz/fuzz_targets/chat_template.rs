//! Chats: `template NUL messages`. Without a template it is Gemma's own. What is no list of
//! messages is one message.
#![no_main]

use gemma_pjrt::tokenizer::{Message, TextFiles, Tokenizer};
use gemma_pjrt_fuzz::{expect_shielded_panics, on_own_thread, parts, small_tokenizer, text};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: expect_shielded_panics(), |data: &[u8]| on_own_thread(|| render(data)));

fn render(data: &[u8]) {
    let [template, messages] = parts(data);
    let template = text(template).map(str::to_owned);
    let is_gemmas = template.is_none();
    let files = TextFiles { chat_template_jinja: template, ..TextFiles::default() };
    let tokenizer = small_tokenizer(&files).expect("a broken template is an error of what uses it");
    let messages = String::from_utf8_lossy(messages);
    let messages: Vec<Message> =
        serde_json::from_str(&messages).unwrap_or_else(|_| vec![Message::user(messages.clone())]);
    let _ = tokenizer.takes_system_messages();
    let ids = match tokenizer.encode_chat(&messages) {
        Ok(ids) => ids,
        Err(error) => return drop(error.to_string()),
    };
    assert_eq!(ids[0], tokenizer.special().bos);
    if is_gemmas {
        let harmless = |message: &Message| Message { role: message.role, content: "a".into() };
        let harmless: Vec<Message> = messages.iter().map(harmless).collect();
        let expected = tokenizer.encode_chat(&harmless).expect("the roles are the same");
        assert_eq!(control(&tokenizer, &ids), control(&tokenizer, &expected), "a message wrote control tokens");
    }
}

/// The control tokens among ids.
fn control(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<u32> {
    let all = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"];
    let all: Vec<u32> = all.iter().filter_map(|token| tokenizer.control_token(token)).collect();
    ids.iter().copied().filter(|id| all.contains(id)).collect()
}
