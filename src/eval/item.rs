//! Documents as what is asked of the model: contexts and continuations, as the harness builds them.

use serde::Deserialize;
use serde_json::Value;

use super::{Dataset, Doc, Error, Generate, Random, Result, Shots, Task, Templates, template::trailing_space};
use crate::tokenizer::Tokenizer;

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
    let builder = Builder { task, templates: Templates::with(&task.values), tokenizer, max_length };
    let docs = dataset.split(&task.split)?;
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
    for (id, doc) in docs.iter().enumerate().take(limit.unwrap_or(usize::MAX)) {
        let wrong = |reason: String| Error::Document { task: task.name.clone(), doc: id, reason };
        let shots = draw(task, &mut random, &examples, doc, num_fewshot);
        if keep(id) {
            let header = builder.header(&shots).map_err(wrong)?;
            items.push(builder.item(id, doc, &header).map_err(wrong)?);
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

fn with_fields(reason: String, doc: &Doc) -> String {
    format!("{reason}; the document has the fields {}", doc.keys().map(String::as_str).collect::<Vec<_>>().join(", "))
}

struct Builder<'t> {
    task: &'t Task,
    templates: Templates,
    tokenizer: &'t Tokenizer,
    max_length: usize,
}

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

    /// The description and the examples.
    fn header(&self, shots: &[&Doc]) -> std::result::Result<String, String> {
        let mut text = self.task.description.clone();
        for doc in shots {
            let Turn { questions, answers, target } = self.turn(doc)?;
            let target = target.as_array().and_then(|all| all.first()).unwrap_or(&target);
            let at = |list: &[String]| -> std::result::Result<String, String> {
                let index = target.as_u64().and_then(|i| list.get(i as usize));
                index.cloned().ok_or_else(|| format!("an example's target {target} is no choice"))
            };
            let (question, answer) = match (target, questions.len()) {
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

    fn item(&self, id: usize, doc: &Doc, header: &str) -> std::result::Result<Item, String> {
        let turn = self.turn(doc)?;
        let target = turn.target.clone();
        let ask = match &self.task.generate {
            Some(generate) => self.words(generate, format!("{header}{}", turn.questions[0]))?,
            None => Ask::Choices(self.choices(doc, header, turn)?),
        };
        Ok(Item { id, doc: doc.clone(), target, ask })
    }

    fn words(&self, generate: &Generate, context: String) -> std::result::Result<Ask, String> {
        let room = self.max_length.checked_sub(generate.max_tokens).filter(|room| *room > 0).ok_or_else(|| {
            let (max, context) = (generate.max_tokens, self.max_length);
            format!(
                "answers of {max} tokens leave no room for a question in a context of {context}; use a longer --context"
            )
        })?;
        let mut tokens = self.tokenizer.encode(&context).map_err(|e| e.to_string())?;
        tokens.drain(..tokens.len().saturating_sub(room));
        Ok(Ask::Words { context, tokens })
    }

    fn choices(&self, doc: &Doc, header: &str, turn: Turn) -> std::result::Result<Choices, String> {
        let Turn { questions, answers, target } = turn;
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
        let pair = |(context, continuation)| Pair::new(context, continuation, self.tokenizer, self.max_length);
        let pairs = texts.into_iter().map(pair).collect::<std::result::Result<_, _>>()?;
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
