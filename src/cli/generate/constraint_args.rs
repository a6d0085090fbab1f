//! The form that answers are held to, on the command line.

use std::{fs, path::Path};

use serde_json::Value;

use crate::{constraint::Constraint, model_file::without_mark};

/// At most one of these.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
pub struct ConstraintArgs {
    /// Answer with a JSON object
    #[arg(long)]
    json_object: bool,
    /// Answer with JSON of this schema: a file, or the schema itself
    #[arg(long, value_name = "SCHEMA", value_parser = parse_schema)]
    json_schema: Option<Constraint>,
    /// Answer with a text that this regular expression matches as a whole
    #[arg(long, value_name = "REGEX")]
    regex: Option<String>,
    /// Answer with one of these texts (repeated)
    #[arg(long = "choice", value_name = "TEXT")]
    choices: Vec<String>,
    /// Answer with a text of this grammar, a file in the dialect of Lark that llguidance reads
    #[arg(long, value_name = "FILE", value_parser = parse_grammar)]
    grammar: Option<Constraint>,
}

impl ConstraintArgs {
    /// Returns the constraint that is asked for.
    pub fn constraint(&self) -> Option<Constraint> {
        let object = self.json_object.then_some(Constraint::JsonObject);
        let regex = self.regex.clone().map(Constraint::Regex);
        let choices = (!self.choices.is_empty()).then(|| Constraint::Choices(self.choices.clone()));
        object.or(regex).or(choices).or_else(|| self.json_schema.clone()).or_else(|| self.grammar.clone())
    }
}

fn parse_schema(given: &str) -> Result<Constraint, String> {
    let is_schema = given.trim_start().starts_with('{') || given.parse::<bool>().is_ok();
    let text = if is_schema { given.to_owned() } else { read(given)? };
    let schema: Value = serde_json::from_str(&text).map_err(|e| format!("it is no JSON: {e}"))?;
    Ok(Constraint::JsonSchema(schema))
}

fn parse_grammar(path: &str) -> Result<Constraint, String> {
    read(path).map(Constraint::Grammar)
}

fn read(path: &str) -> Result<String, String> {
    let text = fs::read_to_string(Path::new(path)).map_err(|e| format!("cannot read {path}: {e}"))?;
    Ok(without_mark(&text).to_owned())
}
