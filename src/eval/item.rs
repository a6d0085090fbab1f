//! Builds the requests of a task's documents: prompts, contexts and continuations, as
//! lm-evaluation-harness builds them.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::{
    Dataset, Doc, Error, FewShot, GenerationConfig, PythonRandom, Result, Task, Templates, template::trailing_space,
};
use crate::tokenizer::{Message, Tokenizer};

/// The seed by which the harness draws few-shot examples.
const FEWSHOT_SEED: u32 = 1234;

/// A document of a task, with what the model is asked about it.
#[derive(Clone, Debug)]
pub struct Item {
    /// The document's number in its split.
    pub id: usize,
    pub doc: Doc,
    /// The right answer by the task: a number, a text, or a list of them.
    pub target: Value,
    pub request: EvalRequest,
}

/// A request to the model about a document. The names are the harness's `output_type`s.
#[derive(Clone, Debug)]
pub enum EvalRequest {
    /// The log-likelihood of each of several choices.
    Loglikelihood(MultipleChoice),
    /// A text that continues the context. `tokens` are the context's, truncated from the left where
    /// it is too long.
    GenerateUntil { context: String, tokens: Vec<u32> },
}

/// The choices of a document, and which of them are right.
#[derive(Clone, Debug)]
pub struct MultipleChoice {
    pub texts: Vec<String>,
    /// The indices of the right choices; empty where the document has none.
    pub gold: Vec<usize>,
    /// 1 for each true choice and 0 for each false one, in tasks that have such labels.
    pub labels: Vec<i64>,
    /// One for each choice.
    pub instances: Vec<Instance>,
}

impl Item {
    /// Returns the number of tokens of the longest text that the model is given.
    pub fn tokens(&self) -> usize {
        match &self.request {
            EvalRequest::Loglikelihood(choices) => {
                choices.instances.iter().map(Instance::tokens).max().unwrap_or_default()
            }
            EvalRequest::GenerateUntil { tokens, .. } => tokens.len(),
        }
    }
}

/// A context and a continuation whose log-likelihood is asked for.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Shared by the choices of a document, which mostly have one context.
    pub context: Arc<str>,
    pub continuation: String,
    /// The context's tokens, truncated from the left where both together are too long.
    pub context_tokens: Arc<[u32]>,
    pub continuation_tokens: Vec<u32>,
}

/// The format of prompts.
#[derive(Clone, Copy)]
pub struct PromptFormat<'t> {
    pub tokenizer: &'t Tokenizer,
    /// Few-shot examples in each prompt; the task's own number if `None`.
    pub num_fewshot: Option<usize>,
    /// The most tokens that a text may have before its last one.
    pub max_length: usize,
    pub chat: Option<ChatFormat>,
}

/// The format of prompts as conversations, by the tokenizer's chat template. A task's description
/// is the system's message. It is left out where the template has no such role, as Gemma's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChatFormat {
    /// Each example is a turn of the user and a turn of the model.
    Multiturn,
    /// All examples and the question are one turn of the user.
    SingleTurn,
}

impl PromptFormat<'_> {
    /// Returns the number of few-shot examples in each of a task's prompts.
    pub fn shots(&self, task: &Task) -> usize {
        self.num_fewshot.unwrap_or(task.num_fewshot)
    }
}

/// A document after its templates were rendered: a question with its answers, or several questions
/// with one answer.
struct RenderedDoc {
    questions: Vec<String>,
    answers: Vec<String>,
    target: Value,
}

/// Reads the documents of a task.
///
/// # Errors
/// The dataset lacks them, or one has no list where the task expects it.
pub fn docs(task: &Task, dataset: &Dataset) -> Result<Vec<Doc>> {
    let rows = match &task.file {
        Some(file) => dataset.file(file)?,
        None => dataset.split(&task.split)?,
    };
    let Some(field) = &task.explode else { return Ok(rows) };
    let mut docs = Vec::new();
    for (id, mut row) in rows.into_iter().enumerate() {
        let Some(Value::Array(elements)) = row.get_mut(field).map(Value::take) else {
            let reason = with_fields(format!("it has no list {field}"), &row);
            return Err(Error::Document { task: task.name.clone(), doc: id, reason });
        };
        docs.extend(elements.into_iter().map(|element| {
            let mut doc = row.clone();
            doc.insert(field.clone(), element);
            doc
        }));
    }
    Ok(docs)
}

/// Builds the items of those documents whose numbers `keep` accepts. `docs` are the first documents
/// of the task's split. Few-shot examples, from the same dataset, are drawn for every document: a
/// draw depends on those before it.
///
/// # Errors
/// There are too few examples to draw from, or a document does not fit the task's templates.
pub fn items(
    task: &Task,
    dataset: &Dataset,
    docs: &[Doc],
    format: PromptFormat<'_>,
    keep: impl Fn(usize) -> bool,
) -> Result<Vec<Item>> {
    let num_fewshot = format.shots(task);
    let builder = Builder { task, templates: Templates::with(&task.values), format };
    let examples = match &task.shots {
        Some(FewShot { split: Some(split), .. }) if num_fewshot > 0 => dataset.split(split)?,
        Some(shots) => shots.samples.clone(),
        None => vec![],
    };
    let needed = num_fewshot + usize::from(task.shots.as_ref().is_some_and(|shots| shots.one_more && num_fewshot > 0));
    if task.shots.is_some() && examples.len() < needed {
        let message = format!("{} has {} examples to draw from, {needed} are needed", task.name, examples.len());
        return Err(Error::Invalid(message));
    }
    let mut random = PythonRandom::new(FEWSHOT_SEED);
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

/// Draws the examples for a document, as the harness does.
fn draw<'d>(task: &Task, random: &mut PythonRandom, examples: &'d [Doc], doc: &Doc, n: usize) -> Vec<&'d Doc> {
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
    // The document occurs more than once, and was drawn as often.
    let rest: Vec<&Doc> = examples.iter().filter(|other| *other != doc).collect();
    random.sample(rest.len(), n).into_iter().map(|i| rest[i]).collect()
}

fn with_fields(reason: String, doc: &Doc) -> String {
    format!("{reason}; the document has the fields {}", doc.keys().map(String::as_str).collect::<Vec<_>>().join(", "))
}

struct Builder<'t> {
    task: &'t Task,
    templates: Templates,
    format: PromptFormat<'t>,
}

/// A question, and its answer, which may be empty.
type Example = (String, String);

impl Builder<'_> {
    fn evaluate<T: for<'de> Deserialize<'de>>(&self, expression: &str, doc: &Doc) -> std::result::Result<T, String> {
        self.templates.evaluate(expression, doc).map_err(|reason| with_fields(reason, doc))
    }

    fn turn(&self, doc: &Doc) -> std::result::Result<RenderedDoc, String> {
        let task = self.task;
        let target: Value = self.evaluate(&task.target, doc)?;
        if let (Some(contexts), Some(continuation)) = (&task.contexts, &task.continuation) {
            let answers = vec![self.evaluate(continuation, doc)?];
            return Ok(RenderedDoc { questions: self.evaluate(contexts, doc)?, answers, target });
        }
        let question = self.templates.render(&task.text, doc).map_err(|reason| with_fields(reason, doc))?;
        let answers = task.choices.as_ref().map(|choices| self.evaluate(choices, doc)).transpose()?.unwrap_or_default();
        Ok(RenderedDoc { questions: vec![question], answers, target })
    }

    fn examples(&self, shots: &[&Doc]) -> std::result::Result<Vec<Example>, String> {
        let example = |doc: &&Doc| {
            let RenderedDoc { questions, answers, target } = self.turn(doc)?;
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

    /// Returns the whole prompt of a question: description, examples, question.
    fn context(&self, examples: &[Example], question: &str) -> std::result::Result<String, String> {
        let Task { delimiter, shot_delimiter, description, .. } = self.task;
        let as_text = |(question, answer): &Example| {
            let answer = if answer.is_empty() { String::new() } else { format!("{delimiter}{answer}{shot_delimiter}") };
            format!("{question}{answer}")
        };
        let plain = || examples.iter().map(as_text).collect::<String>() + question;
        let turns = match self.format.chat {
            None => return Ok(format!("{description}{}", plain())),
            Some(ChatFormat::SingleTurn) => vec![Message::user(plain())],
            Some(ChatFormat::Multiturn) => {
                let turns = |(question, answer): &Example| {
                    let answer = (!answer.is_empty()).then(|| Message::assistant(answer));
                    std::iter::once(Message::user(question)).chain(answer)
                };
                examples.iter().flat_map(turns).chain([Message::user(question)]).collect()
            }
        };
        let tokenizer = self.format.tokenizer;
        let has_system = !description.is_empty() && tokenizer.takes_system_messages().map_err(|e| e.to_string())?;
        let system = has_system.then(|| Message::system(description));
        let messages: Vec<Message> = system.into_iter().chain(turns).collect();
        // As the harness does it: a document's text may have control tokens.
        tokenizer.render_chat_as_text(&messages).map_err(|e| e.to_string())
    }

    fn item(&self, id: usize, doc: &Doc, examples: &[Example]) -> std::result::Result<Item, String> {
        let turn = self.turn(doc)?;
        let target = turn.target.clone();
        let request = match &self.task.generate {
            Some(generate) => self.generate_until(generate, self.context(examples, &turn.questions[0])?)?,
            None => EvalRequest::Loglikelihood(self.multiple_choice(doc, examples, turn)?),
        };
        Ok(Item { id, doc: doc.clone(), target, request })
    }

    fn generate_until(&self, generate: &GenerationConfig, context: String) -> std::result::Result<EvalRequest, String> {
        let context_len = self.format.max_length;
        let room = context_len.checked_sub(generate.max_tokens).filter(|room| *room > 0).ok_or_else(|| {
            let max = generate.max_tokens;
            format!(
                "answers of {max} tokens leave no room for a question in a context of {context_len}; use a longer --context"
            )
        })?;
        let mut tokens = self.format.tokenizer.encode(&context).map_err(|e| e.to_string())?;
        tokens.drain(..tokens.len().saturating_sub(room));
        Ok(EvalRequest::GenerateUntil { context, tokens })
    }

    fn multiple_choice(
        &self,
        doc: &Doc,
        examples: &[Example],
        turn: RenderedDoc,
    ) -> std::result::Result<MultipleChoice, String> {
        let RenderedDoc { questions, answers, target } = turn;
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
        let mut instances: Vec<Instance> = Vec::new();
        for (context, continuation) in texts {
            let mut instance = Instance::new(context, continuation, self.format.tokenizer, self.format.max_length)?;
            if let Some(last) = instances.last().filter(|last| last.context_tokens == instance.context_tokens) {
                instance.context_tokens = last.context_tokens.clone();
            }
            instances.push(instance);
        }
        Ok(MultipleChoice { texts: choices, gold, labels, instances })
    }
}

impl Instance {
    /// Returns the number of tokens of context and continuation together.
    pub fn tokens(&self) -> usize {
        self.context_tokens.len() + self.continuation_tokens.len()
    }

    /// Tokenizes context and continuation as one text, and splits it where the context's own tokens
    /// end. Spaces at the context's end go to the continuation. An empty context is `<bos>`. A text
    /// of more than `max_length` tokens before its last one is truncated from the left.
    ///
    /// # Errors
    /// The text cannot be tokenized, or the continuation has no tokens, or more than `max_length`.
    pub fn new(
        context: Arc<str>,
        continuation: String,
        tokenizer: &Tokenizer,
        max_length: usize,
    ) -> std::result::Result<Self, String> {
        let encode = |text: &str| tokenizer.encode(text).map_err(|e| e.to_string());
        let before = &context[..context.len() - trailing_space(&context).len()];
        let whole = encode(&format!("{context}{continuation}"))?;
        let split = encode(before)?.len().min(whole.len()); // 1, the <bos>, where there is no context
        let (context_tokens, continuation_tokens) = whole.split_at(split);
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
