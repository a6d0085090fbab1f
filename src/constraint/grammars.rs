//! Constraints, compiled.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
};

use llguidance::{
    ParserFactory,
    api::TopLevelGrammar,
    earley::SlicedBiasComputer,
    toktrie::{InferenceCapabilities, TokEnv},
};
use serde_json::Value;

use super::{
    asked::Constraint,
    error::{ConstraintError, first_line},
    matcher::Matcher,
    vocabulary::Vocabulary,
};
use crate::{shield::shielded, tokenizer::Tokenizer};

/// Compiles constraints for one tokenizer.
pub struct Grammars {
    tokenizer: Arc<Tokenizer>,
    compiler: OnceLock<Result<Compiler, ConstraintError>>,
    /// Those compiled last, by their texts; the one used last is the last.
    recent: Mutex<Vec<(String, Grammar)>>,
}

/// How many compiled constraints are kept: requests of one program often have the same.
const RECENT: usize = 32;

/// The part that all constraints share. Building it takes about a second for 256,000 tokens.
struct Compiler {
    vocabulary: Arc<Vocabulary>,
    factory: ParserFactory,
}

impl Grammars {
    /// Constraints for answers in this tokenizer's tokens. Nothing is built yet.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer, compiler: OnceLock::new(), recent: Mutex::default() }
    }

    /// Builds in the background what the first constraint would otherwise wait for.
    pub fn prepare(self: &Arc<Self>) {
        let grammars = self.clone();
        // Without a thread, the first constraint builds it.
        let _ = std::thread::Builder::new().name("grammars".into()).spawn(move || grammars.compiler().is_ok());
    }

    fn compiler(&self) -> Result<&Compiler, ConstraintError> {
        let made = self.compiler.get_or_init(|| Compiler::new(self.tokenizer.clone()));
        made.as_ref().map_err(Clone::clone)
    }

    /// Compiles a constraint, unless that was done not long ago.
    ///
    /// # Errors
    /// It cannot be honoured, and why.
    pub fn compile(&self, constraint: &Constraint) -> Result<Grammar, ConstraintError> {
        constraint.check()?;
        // The order of a schema's properties counts.
        let text = format!("{constraint:?}");
        let mut recent = self.recent();
        if let Some(at) = recent.iter().position(|(known, _)| *known == text) {
            let known = recent.remove(at);
            let grammar = known.1.clone();
            recent.push(known);
            return Ok(grammar);
        }
        drop(recent);
        let grammar = self.compiler()?.compile(constraint)?;
        let mut recent = self.recent();
        if recent.len() >= RECENT {
            recent.remove(0);
        }
        recent.push((text, grammar.clone()));
        Ok(grammar)
    }

    fn recent(&self) -> MutexGuard<'_, Vec<(String, Grammar)>> {
        self.recent.lock().expect("no panic while held")
    }
}

impl Compiler {
    fn new(tokenizer: Arc<Tokenizer>) -> Result<Self, ConstraintError> {
        let cannot = |e: &dyn fmt::Display| ConstraintError::Tokenizer(first_line(e));
        let vocabulary = shielded(|| Vocabulary::new(tokenizer)).map_err(|e| cannot(&e))?.map_err(|e| cannot(&e))?;
        let vocabulary = Arc::new(vocabulary);
        let env: TokEnv = vocabulary.clone();
        let slices = SlicedBiasComputer::general_slices();
        let factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices);
        let mut factory = factory.map_err(|e| cannot(&e))?;
        let limits = factory.limits_mut();
        limits.max_grammar_size = MAX_SYMBOLS;
        limits.max_lexer_states = MAX_LEXER_STATES;
        limits.verbose_errors = false;
        factory.quiet();
        Ok(Self { vocabulary, factory })
    }

    fn compile(&self, constraint: &Constraint) -> Result<Grammar, ConstraintError> {
        let refused = |e: anyhow::Error| ConstraintError::Refused { what: constraint.name(), reason: first_line(&e) };
        let parser = self.factory.create_parser(top_level(constraint)).map_err(refused)?;
        let matcher = llguidance::Matcher::new(Ok(parser));
        let (vocabulary, is_json) = (self.vocabulary.clone(), constraint.is_json());
        let grammar = Grammar(Arc::new(Compiled { matcher, vocabulary, is_json }));
        // A constraint that allows nothing at all is refused here, and not in the middle of a step.
        grammar.matcher().mask().map_err(|e| refused(e.into()))?;
        Ok(grammar)
    }
}

/// The most symbols of a grammar.
const MAX_SYMBOLS: usize = 200_000;
/// The most states of an answer's lexer, 1 to 2 kB each.
const MAX_LEXER_STATES: usize = 50_000;

/// The constraint as llguidance takes it.
fn top_level(constraint: &Constraint) -> TopLevelGrammar {
    if let Some(schema) = constraint.schema() {
        return TopLevelGrammar::from_json_schema(schema);
    }
    match constraint {
        Constraint::Regex(regex) => TopLevelGrammar::from_regex(without_anchors(regex)),
        Constraint::Choices(choices) => {
            // A text in JSON is one in Lark.
            let texts: Vec<String> = choices.iter().map(|choice| Value::from(choice.as_str()).to_string()).collect();
            TopLevelGrammar::from_lark(format!("start: {}", texts.join(" | ")))
        }
        Constraint::Grammar(text) => TopLevelGrammar::from_lark(text.clone()),
        Constraint::JsonObject | Constraint::JsonSchema(_) => unreachable!("they have a schema"),
    }
}

/// The expression without `^` at its beginning and `$` at its end, which llguidance does not know:
/// it matches whole answers anyway.
fn without_anchors(regex: &str) -> &str {
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    let Some(inner) = regex.strip_suffix('$') else { return regex };
    let backslashes = inner.bytes().rev().take_while(|&byte| byte == b'\\').count();
    if backslashes % 2 == 0 { inner } else { regex }
}

/// A compiled constraint. Copies share it.
#[derive(Clone)]
pub struct Grammar(Arc<Compiled>);

struct Compiled {
    /// At the beginning of an answer.
    matcher: llguidance::Matcher,
    vocabulary: Arc<Vocabulary>,
    is_json: bool,
}

impl Grammar {
    /// Returns a matcher for one answer.
    pub fn matcher(&self) -> Matcher {
        // Answers share no states: one cannot use up the limit of another.
        Matcher::new(self.0.matcher.deep_clone(), self.0.vocabulary.clone(), self.0.is_json)
    }

    /// Returns the ids that end an answer where the constraint lets it end.
    pub fn end_ids(&self) -> &[u32] {
        &self.0.vocabulary.ends
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").field("is_json", &self.0.is_json).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_are_dropped_where_they_are_anchors() {
        for (given, expected) in [("^a$", "a"), ("a", "a"), (r"a\$", r"a\$"), (r"a\\$", r"a\\"), ("^$", ""), ("$", "")]
        {
            assert_eq!(without_anchors(given), expected, "{given}");
        }
    }
}
