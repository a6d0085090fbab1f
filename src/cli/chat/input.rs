//! The user's lines: from an editor with history on a terminal, from standard input elsewhere.

use std::{
    borrow::Cow,
    env,
    io::{self, BufRead, IsTerminal},
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use rustyline::{
    Config, Context, Editor, Helper,
    completion::Completer,
    error::ReadlineError,
    highlight::Highlighter,
    hint::Hinter,
    history::DefaultHistory,
    validate::{ValidationContext, ValidationResult, Validator},
};

use super::commands::COMMANDS;
use crate::{cli::note, model_file::without_mark};

/// The source of the user's lines.
pub enum LineReader {
    Terminal {
        editor: Box<Editor<EditorHelper, DefaultHistory>>,
        history: Option<PathBuf>,
    },
    Lines {
        /// True until the first line is read.
        is_new: bool,
    },
}

/// The end of a wait for a line.
pub enum InputEvent {
    Line(String),
    /// A line that is not UTF-8.
    NotText,
    /// Ctrl-C while no answer was being written.
    Interrupt,
    End,
}

impl LineReader {
    /// Opens an editor if stdin and stdout are a terminal, else plain lines.
    ///
    /// # Errors
    /// The terminal cannot be set up.
    pub fn open() -> Result<Self> {
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return Ok(Self::Lines { is_new: true });
        }
        let config = Config::builder().auto_add_history(true).max_history_size(1000)?.build();
        let mut editor = Editor::with_config(config)?;
        editor.set_helper(Some(EditorHelper { colours: colours(&io::stdout()) }));
        let history = history_file();
        if let Some(path) = history.as_ref().filter(|path| path.exists())
            && let Err(problem) = editor.load_history(path)
        {
            note(&format!("note: the history {} cannot be read ({problem})", path.display()));
        }
        Ok(Self::Terminal { editor: Box::new(editor), history })
    }

    /// Returns whether there is a user who can be asked.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal { .. })
    }

    /// Waits for a line. On a terminal, a line that ends in a backslash continues in the next.
    ///
    /// # Errors
    /// Input cannot be read.
    pub fn line(&mut self, prompt: &str) -> Result<InputEvent> {
        match self {
            Self::Lines { is_new } => {
                let mut bytes = Vec::new();
                let read = io::stdin().lock().read_until(b'\n', &mut bytes).context("cannot read standard input")?;
                if read == 0 {
                    return Ok(InputEvent::End);
                }
                let Ok(line) = String::from_utf8(bytes) else { return Ok(InputEvent::NotText) };
                let is_first = std::mem::take(is_new);
                Ok(InputEvent::Line(if is_first { without_mark(&line).to_owned() } else { line }))
            }
            Self::Terminal { editor, history } => {
                let line = match editor.readline(prompt) {
                    Ok(line) => line.replace("\\\n", "\n"),
                    Err(ReadlineError::Interrupted) => return Ok(InputEvent::Interrupt),
                    Err(ReadlineError::Eof) => return Ok(InputEvent::End),
                    Err(error) => return Err(error).context("cannot read from the terminal"),
                };
                // After each line, so that the history survives a crash. A full disk is no reason
                // to end the chat.
                if let Some(path) = history {
                    let _ = editor.append_history(path);
                }
                Ok(InputEvent::Line(line))
            }
        }
    }
}

/// Returns `$XDG_STATE_HOME/gemma-pjrt/history`, after creating its directory.
fn history_file() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME").filter(|path| path.is_absolute());
    let dir = state.or_else(|| Some(set("HOME")?.join(".local/state")))?.join("gemma-pjrt");
    std::fs::create_dir_all(&dir).ok()?;
    Some(dir.join("history"))
}

/// Returns whether to write colours to this stream.
pub fn colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The editor's features: a bold prompt, completion of commands by Tab, continued lines.
pub struct EditorHelper {
    colours: bool,
}

impl Helper for EditorHelper {}

impl Hinter for EditorHelper {
    type Hint = String;
}

impl Highlighter for EditorHelper {
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _default: bool) -> Cow<'b, str> {
        if self.colours { Cow::Owned(format!("\x1b[1m{prompt}\x1b[0m")) } else { Cow::Borrowed(prompt) }
    }
}

impl Completer for EditorHelper {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = &line[..at];
        let matching = COMMANDS.iter().filter(|(name, ..)| typed.starts_with('/') && name.starts_with(typed));
        Ok((
            0,
            matching
                .map(|(name, takes, _)| if takes.is_empty() { (*name).into() } else { format!("{name} ") })
                .collect(),
        ))
    }
}

impl Validator for EditorHelper {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(if context.input().ends_with('\\') { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}
