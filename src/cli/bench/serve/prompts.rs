//! The prompts: random ones of a given length, or those of a file.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    client::{Failure, Server},
    random::Random,
    request::{Endpoint, Prompt},
};

/// Short words that vocabularies have as one token, mostly.
const WORDS: [&str; 64] = [
    "the", "of", "and", "to", "in", "is", "that", "for", "it", "was", "on", "are", "as", "with", "his", "they", "at",
    "be", "this", "from", "have", "or", "by", "one", "had", "not", "but", "what", "all", "were", "when", "we", "there",
    "can", "an", "your", "which", "their", "said", "if", "do", "will", "each", "about", "how", "up", "out", "them",
    "then", "she", "many", "some", "so", "these", "would", "other", "into", "has", "more", "her", "two", "like", "him",
    "see",
];

/// Where prompts come from. The prompt of an index is always the same, so that none need be kept.
pub(super) enum Prompts {
    Ids { ids: Ids, tokens: u32, seed: u64 },
    Words { costs: WordCosts, tokens: u32, seed: u64 },
    File(Vec<FilePrompt>),
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct FilePrompt {
    pub prompt: Prompt,
    max_tokens: Option<u32>,
}

impl Prompts {
    /// Returns the prompt of a request, and how many tokens its answer may have.
    pub fn get(&self, index: usize, output_tokens: u32) -> (Prompt, u32) {
        match self {
            Self::Ids { ids, tokens, seed } => {
                (Prompt::Ids(ids.random(*tokens, &mut Random::new(*seed, index as u64))), output_tokens)
            }
            Self::Words { costs, tokens, seed } => {
                (Prompt::Text(costs.text(*tokens, &mut Random::new(*seed, index as u64))), output_tokens)
            }
            Self::File(lines) => {
                let line = &lines[index % lines.len()];
                (line.prompt.clone(), line.max_tokens.unwrap_or(output_tokens))
            }
        }
    }
}

/// Token ids of the words, and those that begin every prompt, such as `<bos>`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ids {
    begin: Vec<u32>,
    words: Vec<u32>,
}

impl Ids {
    /// Returns None if the server has no `/tokenize`.
    pub async fn of(server: &Server, model: &str) -> Option<Self> {
        let text = all_words();
        let with_special = tokenize(server, model, &text, true).await?;
        let words = tokenize(server, model, &text, false).await?;
        let begin = with_special.strip_suffix(&words[..]).unwrap_or_default().to_vec();
        (!words.is_empty()).then_some(Self { begin, words })
    }

    fn random(&self, tokens: u32, random: &mut Random) -> Vec<u32> {
        let rest = (tokens as usize).saturating_sub(self.begin.len());
        self.begin.iter().copied().chain((0..rest).map(|_| *random.choose(&self.words))).collect()
    }

    /// Returns a short prompt.
    pub fn some(&self) -> Vec<u32> {
        self.begin.iter().chain(&self.words[..1]).copied().collect()
    }
}

/// How many tokens words are in a prompt.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct WordCosts {
    /// Tokens of each word.
    costs: Vec<f64>,
    /// Tokens that every prompt has beyond its words: `<bos>`, the chat template.
    fixed: f64,
}

impl WordCosts {
    /// Measures by the server's `/tokenize`; returns None if it has none. `count` returns the
    /// server's count of the tokens of a whole prompt with a text.
    pub async fn by_tokenizing(
        server: &Server,
        model: &str,
        count: impl AsyncFn(&str) -> Result<Option<u64>, Failure>,
    ) -> Result<Option<Self>, Failure> {
        const REPEATS: usize = 9;
        let mut costs = Vec::new();
        for word in WORDS {
            // A word that begins a text may have other tokens than after a space.
            let Some(one) = tokenize(server, model, word, false).await else { return Ok(None) };
            let Some(many) = tokenize(server, model, &[word; REPEATS].join(" "), false).await else { return Ok(None) };
            costs.push(many.len().saturating_sub(one.len()) as f64 / (REPEATS - 1) as f64);
        }
        let whole = count(&all_words()).await?;
        let fixed = whole.map_or(0.0, |whole| whole as f64 - costs.iter().sum::<f64>());
        Ok(Some(Self { costs, fixed }))
    }

    /// Measures the mean of all words by the server's counts of two prompts' tokens; returns None
    /// if it does not count.
    pub async fn by_usage(count: impl AsyncFn(&str) -> Result<Option<u64>, Failure>) -> Result<Option<Self>, Failure> {
        let text = all_words();
        let (one, two) = (count(&text).await?, count(&format!("{text} {text}")).await?);
        let words = WORDS.len() as f64;
        Ok(one.zip(two).filter(|(one, two)| two > one).map(|(one, two)| {
            let cost = (two - one) as f64 / words;
            Self { costs: vec![cost; WORDS.len()], fixed: one as f64 - cost * words }
        }))
    }

    /// Takes each word for a token.
    pub fn one_each() -> Self {
        Self { costs: vec![1.0; WORDS.len()], fixed: 0.0 }
    }

    /// Returns random words of this many tokens in all, or the nearest number that words make.
    fn text(&self, tokens: u32, random: &mut Random) -> String {
        let mut rest = f64::from(tokens) - self.fixed;
        let mut words = Vec::new();
        let mut fitting: Vec<usize> = (0..WORDS.len()).collect();
        loop {
            // Less than half a token too much is nearer than more than half too little. A word
            // without a token would have no end.
            fitting.retain(|&word| self.costs[word] > 0.0 && self.costs[word] < rest + 0.5);
            if fitting.is_empty() {
                break;
            }
            let word = *random.choose(&fitting);
            words.push(WORDS[word]);
            rest -= self.costs[word];
        }
        if words.is_empty() {
            words.push(WORDS[0]); // servers refuse empty messages
        }
        words.join(" ")
    }
}

/// Returns all words, separated by spaces.
pub(super) fn all_words() -> String {
    WORDS.join(" ")
}

/// Returns the token ids of a text by the server's `/tokenize`, or None if it has none. The request
/// is vLLM's and llama-server's at once.
async fn tokenize(server: &Server, model: &str, text: &str, special: bool) -> Option<Vec<u32>> {
    let request = json!({
        "model": model,
        "prompt": text, "add_special_tokens": special,
        "content": text, "add_special": special,
    });
    let reply = server.post("/tokenize", &request).await.ok()?;
    serde_json::from_value(reply.get("tokens")?.clone()).ok()
}

/// Reads a file of prompts: one JSON object a line, as `generate --input` takes them.
pub(super) fn read(path: &Path, endpoint: Endpoint) -> Result<Vec<FilePrompt>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read the prompts {}", path.display()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let prompts: Result<Vec<FilePrompt>> = lines
        .map(|(i, line)| parse(line, endpoint).with_context(|| format!("{}, line {}", path.display(), i + 1)))
        .collect();
    let prompts = prompts?;
    ensure!(!prompts.is_empty(), "{} has no prompts", path.display());
    Ok(prompts)
}

#[derive(Deserialize)]
struct Line {
    prompt: Option<String>,
    messages: Option<Value>,
    tokens: Option<Vec<u32>>,
    max_tokens: Option<u32>,
}

fn parse(line: &str, endpoint: Endpoint) -> Result<FilePrompt> {
    let line: Line = serde_json::from_str(line)?;
    let prompt = match (line.prompt, line.messages, line.tokens) {
        (Some(text), None, None) => Prompt::Text(text),
        (None, Some(messages), None) if endpoint == Endpoint::Chat => Prompt::Messages(messages),
        (None, Some(_), None) => bail!("messages need --endpoint chat"),
        (None, None, Some(ids)) if endpoint == Endpoint::Completions => Prompt::Ids(ids),
        (None, None, Some(_)) => bail!("tokens need --endpoint completions"),
        _ => bail!("a line needs one of prompt, messages and tokens"),
    };
    Ok(FilePrompt { prompt, max_tokens: line.max_tokens })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_the_tokens_that_were_asked_for() {
        let mut costs = vec![1.0; WORDS.len()];
        costs[3] = 2.0;
        costs[5] = 3.0;
        let costs = WordCosts { costs, fixed: 10.0 };
        for tokens in 11..200 {
            let text = costs.text(tokens, &mut Random::new(3, tokens.into()));
            let cost = |word: &str| costs.costs[WORDS.iter().position(|&other| other == word).unwrap()];
            assert_eq!(text.split(' ').map(cost).sum::<f64>(), f64::from(tokens) - 10.0);
        }
        assert_eq!(costs.text(5, &mut Random::new(3, 0)), "the");
        // 1.3 tokens each: 77 words are 100.1 tokens.
        let costs = WordCosts { costs: vec![1.3; WORDS.len()], fixed: 0.0 };
        assert_eq!(costs.text(100, &mut Random::new(3, 0)).split(' ').count(), 77);
    }

    #[test]
    fn random_prompts_differ_and_are_the_same_again() {
        let ids = Ids { begin: vec![2], words: (10..74).collect() };
        let prompts = Prompts::Ids { ids, tokens: 32, seed: 5 };
        let ids = |index| match prompts.get(index, 8) {
            (Prompt::Ids(ids), 8) => ids,
            other => panic!("{other:?}"),
        };
        assert_eq!(ids(0), ids(0));
        assert_ne!(ids(0)[1..5], ids(1)[1..5]);
        assert!(ids(0).len() == 32 && ids(0)[0] == 2 && ids(0)[1..].iter().all(|id| (10..74).contains(id)));
    }

    #[test]
    fn lines_are_checked_against_the_endpoint() {
        let (chat, completions) = (Endpoint::Chat, Endpoint::Completions);
        let text = FilePrompt { prompt: Prompt::Text("a".into()), max_tokens: Some(3) };
        assert_eq!(parse(r#"{"prompt":"a","max_tokens":3,"other":1}"#, chat).unwrap(), text);
        assert!(parse(r#"{"messages":[{"role":"user","content":"a"}]}"#, chat).is_ok());
        assert!(parse(r#"{"tokens":[1,2]}"#, completions).is_ok());
        for (line, endpoint, words) in [
            (r#"{"messages":[]}"#, completions, "--endpoint chat"),
            (r#"{"tokens":[1]}"#, chat, "--endpoint completions"),
            (r#"{"prompt":"a","tokens":[1]}"#, completions, "one of"),
            ("{}", chat, "one of"),
            ("[", chat, "EOF"),
        ] {
            let error = format!("{:#}", parse(line, endpoint).unwrap_err());
            assert!(error.contains(words), "{error}");
        }
    }
}
