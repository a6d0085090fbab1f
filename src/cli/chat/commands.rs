//! The commands of a chat: lines of the user that are not for the model.

/// Each command with its argument and a description, in the order of `/help`.
pub const COMMANDS: [(&str, &str, &str); 8] = [
    ("/reset", "", "begin a new conversation"),
    ("/undo", "", "take back the last turn"),
    ("/regenerate", "", "answer the last question again (when sampling, with another seed)"),
    ("/save", " FILE", "write the conversation as JSON"),
    ("/load", " FILE", "continue a saved conversation"),
    ("/stats", "", "tokens, speed, memory"),
    ("/help", "", "this list"),
    ("/exit", "", "leave; so does Ctrl-D"),
];

/// A line of the user: a question, or a command.
#[derive(Debug, PartialEq, Eq)]
pub enum UserInput<'a> {
    Empty,
    Question(&'a str),
    Reset,
    Undo,
    Regenerate,
    Save(&'a str),
    Load(&'a str),
    Stats,
    Help,
    Exit,
}

impl<'a> UserInput<'a> {
    /// Parses a line. Commands begin with a slash. A question that begins with one is written with
    /// two.
    ///
    /// # Errors
    /// There is no such command, or its argument is missing or not wanted. The message says which.
    pub fn parse(line: &'a str) -> Result<Self, String> {
        let line = line.trim();
        if line.is_empty() {
            return Ok(Self::Empty);
        }
        if !line.starts_with('/') || line.starts_with("//") {
            return Ok(Self::Question(line.strip_prefix('/').unwrap_or(line)));
        }
        let (command, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let argument = argument.trim();
        let Some((_, takes, _)) = COMMANDS.iter().find(|(name, ..)| *name == command) else {
            return Err(format!(
                "there is no command {command}; /help lists them. For a question that begins with /, type //"
            ));
        };
        match (takes.is_empty(), argument.is_empty()) {
            (true, false) => return Err(format!("{command} takes nothing after it, not {argument:?}")),
            (false, true) => return Err(format!("{command} takes the name of a file: {command}{takes}")),
            _ => {}
        }
        Ok(match command {
            "/reset" => Self::Reset,
            "/undo" => Self::Undo,
            "/regenerate" => Self::Regenerate,
            "/save" => Self::Save(argument),
            "/load" => Self::Load(argument),
            "/stats" => Self::Stats,
            "/help" => Self::Help,
            _ => Self::Exit,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_questions_or_commands() {
        assert_eq!(UserInput::parse("  "), Ok(UserInput::Empty));
        assert_eq!(UserInput::parse(" What is 2 / 1? "), Ok(UserInput::Question("What is 2 / 1?")));
        assert_eq!(UserInput::parse("//etc is a question"), Ok(UserInput::Question("/etc is a question")));
        assert_eq!(UserInput::parse("/save my chat.json "), Ok(UserInput::Save("my chat.json")));
        assert!(UserInput::parse("/save").unwrap_err().contains("/save FILE"));
        assert!(UserInput::parse("/undo 2").unwrap_err().contains("nothing after it"));
        assert!(UserInput::parse("/quit").unwrap_err().contains("/help"));
    }

    #[test]
    fn every_command_of_the_list_is_one() {
        for (name, takes, _) in COMMANDS {
            assert!(UserInput::parse(&format!("{name}{takes}")).is_ok(), "{name}");
        }
    }
}
