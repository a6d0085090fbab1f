//! Documents as what is asked of the model: contexts and continuations, as the harness builds them.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::{Dataset, Doc, Error, Generate, Random, Result, Shots, Task, Templates, template::trailing_space};
use crate::tokenizer::{Message, Tokenizer};

/// What the harness seeds its draws of examples with.
const FEWSHOT_SEED: u32 = 1234;

/// A document of a task.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its number in the split.
    pub id: usize,
    pub doc: Doc,
    /// What the task says is right: a number, a text, or a list of them.
    pub target: Value,
    pub ask: Ask,
}

/// What the model is asked.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Which of several choices is the likeliest.
    Choices(Choices),
    /// An answer in words, after this text; its tokens may be cut from the left.
    Words { context: String, tokens: Vec<u32> },
}

#[derive(Clone, Debug)]
pub struct Choices {
    pub texts: Vec<String>,
    /// The right ones' numbers, as far as there are any.
    pub gold: Vec<usize>,
    /// Of each choice whether it is true, for tasks that have that.
    pub labels: Vec<i64>,
    /// One for each choice.
    pub pairs: Vec<Pair>,
}

impl Item {
    /// The most tokens that its texts have.
    pub fn tokens(&self) -> usize {
        match &self.ask {
            Ask::Choices(choices) => choices.pairs.iter().map(Pair::tokens).max().unwrap_or_default(),
            Ask::Words { tokens, .. } => tokens.len(),
        }
    }
}

/// A continuation whose likelihood is asked for.
#[derive(Clone, Debug)]
pub struct Pair {
    /// Choices of one document mostly have the same, which is there once.
    pub context: Arc<str>,
    pub continuation: String,
    /// Tokens of both; those of the context may be cut from the left.
    pub context_tokens: Arc<[u32]>,
    pub continuation_tokens: Vec<u32>,
}

/// How documents are put to the model.
#[derive(Clone, Copy)]
pub struct Format<'t> {
    pub tokenizer: &'t Tokenizer,
    /// Examples in each prompt; as many as the task says if `None`.
    pub num_fewshot: Option<usize>,
    /// The most tokens of a text before its last one.
    pub max_length: usize,
    pub chat: Option<Chat>,
}

/// Prompts as conversations, by the tokenizer's chat template. What a task says before everything is left out: the harness gives it to the
/// system role, which Gemma does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chat {
    /// Examples are turns of their own.
    Multiturn,
    /// Examples are in the user's only turn, before the question.
    SingleTurn,
}

impl Format<'_> {
    /// Examples in each of a task's prompts.
    pub fn shots(&self, task: &Task) -> usize {
        self.num_fewshot.unwrap_or(task.num_fewshot)
    }
}

/// A document's question and answers, or several questions with one answer.
struct Turn {
    questions: Vec<String>,
    answers: Vec<String>,
    target: Value,
}

/// Documents of a task's split, from its first one on, of which only those that `keep` says are built. Few-shot examples are drawn for
/// every document, since a draw depends on those before it; they are of the same dataset.
pub fn items(
    task: &Task,
    dataset: &Dataset,
    docs: &[Doc],
    format: Format<'_>,
    keep: impl Fn(usize) -> bool,
) -> Result<Vec<Item>> {
    let num_fewshot = format.shots(task);
    let builder = Builder { task, templates: Templates::with(&task.values), format };
    let examples = match &task.shots {
        Some(Shots { split: Some(split), .. }) if num_fewshot > 0 => dataset.split(split)?,
        Some(shots) => shots.samples.clone(),
        None => vec![],
    };
    let needed = num_fewshot + usize::from(task.shots.as_ref().is_some_and(|shots| shots.one_more && num_fewshot > 0));
    if task.shots.is_some() && examples.len() < needed {
        let message = format!("{} has {} examples to draw from, {needed} are needed", task.name, examples.len());
        return Err(Error::Invalid(message));
    }
    let mut random = Random::new(FEWSHOT_SEED);
    let mut items = Vec::new();
    for (id, doc) in docs.iter().enumerate() {
        let wrong = |reason: String| Error::Document { task: task.name.clone(), doc: id, reason };
        let shots = draw(task, &mut random, &examples, doc, num_fewshot);
        if keep(id) {
            let examples = builder.examples(&shots).map_err(wrong)?;
            items.push(builder.item(id, doc, &examples).map_err(wrong)?);
        }
    }
    Ok(items)
}

/// The examples for a document.
fn draw<'d>(task: &Task, random: &mut Random, examples: &'d [Doc], doc: &Doc, n: usize) -> Vec<&'d Doc> {
    let Some(shots) = task.shots.as_ref().filter(|_| n > 0) else { return vec![] };
    let others = |docs: Vec<&'d Doc>| docs.into_iter().filter(|other| *other != doc).take(n).collect::<Vec<_>>();
    if shots.first_n {
        return examples.iter().take(n).collect();
    }
    let pick = |indices: Vec<usize>| indices.into_iter().map(|i| &examples[i]).collect::<Vec<_>>();
    if !shots.one_more {
        return pick(random.sample(examples.len(), n));
    }
    let found = others(pick(random.sample(examples.len(), n + 1)));
    if found.len() == n {
        return found;
    }
    // The document is there more than once, and was drawn as often.
    let rest: Vec<&Doc> = examples.iter().filter(|other| *other != doc).collect();
    random.sample(rest.len(), n).into_iter().map(|i| rest[i]).collect()
}

fn with_fields(reason: String, doc: &Doc) -> String {
    format!("{reason}; the document has the fields {}", doc.keys().map(String::as_str).collect::<Vec<_>>().join(", "))
}

struct Builder<'t> {
    task: &'t Task,
    templates: Templates,
    format: Format<'t>,
}

/// A question and its answer, which may be empty.
type Example = (String, String);

impl Builder<'_> {
    fn evaluate<T: for<'de> Deserialize<'de>>(&self, expression: &str, doc: &Doc) -> std::result::Result<T, String> {
        self.templates.evaluate(expression, doc).map_err(|reason| with_fields(reason, doc))
    }

    fn turn(&self, doc: &Doc) -> std::result::Result<Turn, String> {
        let task = self.task;
        let target: Value = self.evaluate(&task.target, doc)?;
        if let (Some(contexts), Some(continuation)) = (&task.contexts, &task.continuation) {
            let answers = vec![self.evaluate(continuation, doc)?];
            return Ok(Turn { questions: self.evaluate(contexts, doc)?, answers, target });
        }
        let question = self.templates.render(&task.text, doc).map_err(|reason| with_fields(reason, doc))?;
        let answers = task.choices.as_ref().map(|choices| self.evaluate(choices, doc)).transpose()?.unwrap_or_default();
        Ok(Turn { questions: vec![question], answers, target })
    }

    fn examples(&self, shots: &[&Doc]) -> std::result::Result<Vec<Example>, String> {
        let example = |doc: &&Doc| {
            let Turn { questions, answers, target } = self.turn(doc)?;
            let target = target.as_array().and_then(|all| all.first()).unwrap_or(&target);
            let at = |list: &[String]| -> std::result::Result<String, String> {
                let index = target.as_u64().and_then(|i| list.get(i as usize));
                index.cloned().ok_or_else(|| format!("an example's target {target} is no choice"))
            };
            Ok(match (target, questions.len()) {
                (_, 2..) => (at(&questions)?, answers[0].clone()),
                (Value::String(text), _) => (questions[0].clone(), text.clone()),
                _ => (questions[0].clone(), at(&answers)?),
            })
        };
        shots.iter().map(example).collect()
    }

    /// The whole prompt of a question.
    fn context(&self, examples: &[Example], question: &str) -> std::result::Result<String, String> {
        let Task { delimiter, shot_delimiter, description, .. } = self.task;
        let written = |(question, answer): &Example| {
            let answer = if answer.is_empty() { String::new() } else { format!("{delimiter}{answer}{shot_delimiter}") };
            format!("{question}{answer}")
        };
        let plain = || examples.iter().map(written).collect::<String>() + question;
        let messages = match self.format.chat {
            None => return Ok(format!("{description}{}", plain())),
            Some(Chat::SingleTurn) => vec![Message::user(plain())],
            Some(Chat::Multiturn) => {
                let turns = |(question, answer): &Example| {
                    let answer = (!answer.is_empty()).then(|| Message::assistant(answer));
                    std::iter::once(Message::user(question)).chain(answer)
                };
                examples.iter().flat_map(turns).chain([Message::user(question)]).collect()
            }
        };
        self.format.tokenizer.render_chat(&messages).map_err(|e| e.to_string())
    }

    fn item(&self, id: usize, doc: &Doc, examples: &[Example]) -> std::result::Result<Item, String> {
        let turn = self.turn(doc)?;
        let target = turn.target.clone();
        let ask = match &self.task.generate {
            Some(generate) => self.words(generate, self.context(examples, &turn.questions[0])?)?,
            None => Ask::Choices(self.choices(doc, examples, turn)?),
        };
        Ok(Item { id, doc: doc.clone(), target, ask })
    }

    fn words(&self, generate: &Generate, context: String) -> std::result::Result<Ask, String> {
        let context_len = self.format.max_length;
        let room = context_len.checked_sub(generate.max_tokens).filter(|room| *room > 0).ok_or_else(|| {
            let max = generate.max_tokens;
            format!(
                "answers of {max} tokens leave no room for a question in a context of {context_len}; use a longer --context"
            )
        })?;
        let mut tokens = self.format.tokenizer.encode(&context).map_err(|e| e.to_string())?;
        tokens.drain(..tokens.len().saturating_sub(room));
        Ok(Ask::Words { context, tokens })
    }

    fn choices(&self, doc: &Doc, examples: &[Example], turn: Turn) -> std::result::Result<Choices, String> {
        let Turn { questions, answers, target } = turn;
        let several_questions = questions.len() > 1;
        // A turn of the model begins with its answer.
        let delimiter = if self.format.chat.is_some() { "" } else { &self.task.delimiter };
        let contexts = questions.iter().map(|question| Ok(self.context(examples, question)?.into()));
        let contexts: Vec<Arc<str>> = contexts.collect::<std::result::Result<_, String>>()?;
        let texts: Vec<(Arc<str>, String)> = if several_questions {
            contexts.into_iter().map(|context| (context, format!("{delimiter}{}", answers[0]))).collect()
        } else {
            answers.iter().map(|answer| (contexts[0].clone(), format!("{delimiter}{answer}"))).collect()
        };
        let choices = if several_questions { questions } else { answers };
        let number = |target: &Value| match target {
            Value::String(text) => choices.iter().position(|choice| choice == text),
            other => other.as_u64().map(|i| i as usize).filter(|&i| i < choices.len()),
        };
        let gold = match &target {
            Value::Array(several) => several.iter().filter_map(number).collect(),
            one => number(one).into_iter().collect(),
        };
        let labels =
            self.task.labels.as_ref().map(|labels| self.evaluate(labels, doc)).transpose()?.unwrap_or_default();
        let mut pairs: Vec<Pair> = Vec::new();
        for (context, continuation) in texts {
            let mut pair = Pair::new(context, continuation, self.format.tokenizer, self.format.max_length)?;
            if let Some(last) = pairs.last().filter(|last| last.context_tokens == pair.context_tokens) {
                pair.context_tokens = last.context_tokens.clone();
            }
            pairs.push(pair);
        }
        Ok(Choices { texts: choices, gold, labels, pairs })
    }
}

impl Pair {
    /// Of both.
    pub fn tokens(&self) -> usize {
        self.context_tokens.len() + self.continuation_tokens.len()
    }

    /// Encodes both as one text, which is cut where the context's own tokens end; spaces at the context's end go to the continuation.
    /// An empty context is `<bos>`. What is longer than `max_length` tokens before the last one is cut from the left.
    pub fn new(
        context: Arc<str>,
        continuation: String,
        tokenizer: &Tokenizer,
        max_length: usize,
    ) -> std::result::Result<Self, String> {
        let encode = |text: &str| tokenizer.encode(text).map_err(|e| e.to_string());
        let before = &context[..context.len() - trailing_space(&context).len()];
        let whole = encode(&format!("{context}{continuation}"))?;
        let cut = encode(before)?.len().min(whole.len()); // 1, the <bos>, where there is no context
        let (context_tokens, continuation_tokens) = whole.split_at(cut);
        if continuation_tokens.is_empty() {
            return Err(format!("the continuation {continuation:?} has no tokens of its own"));
        }
        if continuation_tokens.len() > max_length {
            let n = continuation_tokens.len();
            return Err(format!(
                "a continuation has {n} tokens, the context holds {max_length}; use a longer --context"
            ));
        }
        let excess = whole.len().saturating_sub(max_length + 1);
        let (context_tokens, continuation_tokens) = (context_tokens[excess..].into(), continuation_tokens.to_vec());
        Ok(Self { context, continuation, context_tokens, continuation_tokens })
    }
}
