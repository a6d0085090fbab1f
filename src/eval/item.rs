//! Documents as what is asked of the model: contexts and continuations, as the harness builds them.

use serde::Deserialize;
use serde_json::Value;

use super::{Dataset, Doc, Error, Random, Result, Task, Templates, template::trailing_space};
use crate::tokenizer::Tokenizer;

/// What the harness seeds its draws of examples with.
const FEWSHOT_SEED: u32 = 1234;

/// A document of a task.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its number in the split.
    pub id: usize,
    pub doc: Doc,
    /// The answers to choose from.
    pub choices: Vec<String>,
    /// The right one's number, as far as there is one.
    pub gold: Option<usize>,
    /// What the task says is right: a number or a text.
    pub target: Value,
    /// Of each choice whether it is true, for tasks that have that.
    pub labels: Vec<i64>,
    /// One for each choice.
    pub pairs: Vec<Pair>,
}

/// A continuation whose likelihood is asked for.
#[derive(Clone, Debug)]
pub struct Pair {
    pub context: String,
    pub continuation: String,
    /// Tokens of both; those of the context may be cut from the left.
    pub context_tokens: Vec<u32>,
    pub continuation_tokens: Vec<u32>,
}

/// A document's question and answers, or several questions with one answer.
struct Turn {
    questions: Vec<String>,
    answers: Vec<String>,
    target: Value,
}

/// Documents `0..limit` of a task, of which only those that `keep` says are built; and how many there are in all. Few-shot examples
/// are drawn for every document, since a draw depends on those before it.
pub fn items(
    task: &Task,
    dataset: &Dataset,
    tokenizer: &Tokenizer,
    num_fewshot: usize,
    limit: Option<usize>,
    max_length: usize,
    keep: impl Fn(usize) -> bool,
) -> Result<(Vec<Item>, usize)> {
    let builder = Builder { task, templates: Templates::default() };
    let docs = dataset.split(&task.split)?;
    let examples = match &task.shots {
        Some(shots) if num_fewshot > 0 => dataset.split(&shots.split)?,
        _ => vec![],
    };
    if num_fewshot > 0 && examples.len() <= num_fewshot {
        let message =
            format!("{} has {} examples to draw from, {num_fewshot} are asked for", task.name, examples.len());
        return Err(Error::Invalid(message));
    }
    let config = serde_json::json!({"config": task.config});
    let description = builder.templates.render(&task.description, &config).map_err(Error::Invalid)?;
    let mut random = Random::new(FEWSHOT_SEED);
    let mut items = Vec::new();
    for (id, doc) in docs.iter().enumerate().take(limit.unwrap_or(usize::MAX)) {
        let wrong = |reason: String| Error::Document { task: task.name.clone(), doc: id, reason };
        let shots = draw(task, &mut random, &examples, doc, num_fewshot);
        if keep(id) {
            let header = builder.header(&description, &shots).map_err(wrong)?;
            items.push(builder.item(id, doc, &header, tokenizer, max_length).map_err(wrong)?);
        }
    }
    Ok((items, docs.len()))
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

struct Builder<'t> {
    task: &'t Task,
    templates: Templates,
}

impl Builder<'_> {
    fn evaluate<T: for<'de> Deserialize<'de>>(&self, expression: &str, doc: &Doc) -> std::result::Result<T, String> {
        self.templates.evaluate(expression, doc)
    }

    fn turn(&self, doc: &Doc) -> std::result::Result<Turn, String> {
        let task = self.task;
        let target: Value = self.evaluate(&task.target, doc)?;
        if let (Some(contexts), Some(continuation)) = (&task.contexts, &task.continuation) {
            let answers = vec![self.evaluate(continuation, doc)?];
            return Ok(Turn { questions: self.evaluate(contexts, doc)?, answers, target });
        }
        let choices = task.choices.as_ref().ok_or("the task has neither choices nor contexts")?;
        let question = self.templates.render(&task.text, doc)?;
        Ok(Turn { questions: vec![question], answers: self.evaluate(choices, doc)?, target })
    }

    /// The description and the examples.
    fn header(&self, description: &str, shots: &[&Doc]) -> std::result::Result<String, String> {
        let mut text = description.to_owned();
        for doc in shots {
            let Turn { questions, answers, target } = self.turn(doc)?;
            let at = |list: &[String]| -> std::result::Result<String, String> {
                let index = target.as_u64().and_then(|i| list.get(i as usize));
                index.cloned().ok_or_else(|| format!("an example's target {target} is no choice"))
            };
            let (question, answer) = match (&target, questions.len()) {
                (_, 2..) => (at(&questions)?, answers[0].clone()),
                (Value::String(text), _) => (questions[0].clone(), text.clone()),
                _ => (questions[0].clone(), at(&answers)?),
            };
            text += &question;
            if answer.is_empty() {
                continue;
            }
            text += &self.task.delimiter;
            text += &answer;
            text += &self.task.shot_delimiter;
        }
        Ok(text)
    }

    fn item(
        &self,
        id: usize,
        doc: &Doc,
        header: &str,
        tokenizer: &Tokenizer,
        max_length: usize,
    ) -> std::result::Result<Item, String> {
        let Turn { questions, answers, target } = self.turn(doc)?;
        let several_questions = questions.len() > 1;
        let texts: Vec<(String, String)> = if several_questions {
            questions
                .iter()
                .map(|q| (format!("{header}{q}"), format!("{}{}", self.task.delimiter, answers[0])))
                .collect()
        } else {
            let context = format!("{header}{}", questions[0]);
            answers.iter().map(|answer| (context.clone(), format!("{}{answer}", self.task.delimiter))).collect()
        };
        let choices = if several_questions { questions } else { answers };
        let gold = match &target {
            Value::String(text) => choices.iter().position(|choice| choice == text),
            other => other.as_u64().map(|i| i as usize).filter(|&i| i < choices.len()),
        };
        let labels =
            self.task.labels.as_ref().map(|labels| self.evaluate(labels, doc)).transpose()?.unwrap_or_default();
        let pair = |(context, continuation)| Pair::new(context, continuation, tokenizer, max_length);
        let pairs = texts.into_iter().map(pair).collect::<std::result::Result<_, _>>()?;
        Ok(Item { id, doc: doc.clone(), choices, gold, target, labels, pairs })
    }
}

impl Pair {
    /// Encodes both as one text, which is cut where the context's own tokens end; spaces at the context's end go to the continuation.
    /// An empty context is `<bos>`. What is longer than `max_length` tokens before the last one is cut from the left.
    pub fn new(
        context: String,
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
        let (context_tokens, continuation_tokens) = (context_tokens[excess..].to_vec(), continuation_tokens.to_vec());
        Ok(Self { context, continuation, context_tokens, continuation_tokens })
    }
}
