//! Scores of texts by a program of the user's, such as a classifier of toxicity.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    thread,
};

use serde_json::{Value, json};

use super::{Error, Result};

/// Returns the scores that a shell command gives texts. It is started once, gets one JSON line
/// `{"text": ...}` for each text, and answers each with a line that holds a number or
/// `{"score": number}`.
///
/// # Errors
/// The command cannot be started, fails, or answers otherwise. The message says where.
pub fn score_texts(command: &str, texts: &[String]) -> Result<Vec<f64>> {
    let failed = |reason: String| {
        Error::Invalid(format!("the scorer `{command}` {reason}; it is to answer each line with a number"))
    };
    let mut child = Command::new("sh");
    let child = child.args(["-c", command]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = child.map_err(|e| failed(format!("cannot be started: {e}")))?;
    let (mut input, output) = (child.stdin.take().expect("it is piped"), child.stdout.take().expect("it is piped"));
    let scores = thread::scope(|scope| {
        // It may answer before it has all lines, so that both pipes are served at once.
        scope.spawn(move || {
            for text in texts {
                // A command that reads no more has ended, which its answers tell.
                if writeln!(input, "{}", json!({"text": text})).is_err() {
                    return;
                }
            }
        });
        let scores = answers(BufReader::new(output));
        if scores.is_err() {
            // It is of no use any more, and may have ended by itself.
            let _ = child.kill();
        }
        scores
    });
    let status = child.wait().map_err(|e| failed(format!("cannot be waited for: {e}")))?;
    let scores: Vec<f64> = scores.map_err(failed)?;
    if !status.success() {
        return Err(failed(format!("ended with {status} after {} of {} answers", scores.len(), texts.len())));
    }
    if scores.len() != texts.len() {
        return Err(failed(format!("gave {} answers to {} lines", scores.len(), texts.len())));
    }
    Ok(scores)
}

fn answers(output: impl BufRead) -> std::result::Result<Vec<f64>, String> {
    let mut scores = Vec::new();
    for line in output.lines() {
        let line = line.map_err(|e| format!("cannot be read: {e}"))?;
        let score = serde_json::from_str(&line).ok().and_then(|value: Value| score(&value));
        scores.push(score.ok_or_else(|| format!("answers line {} with {line:?}", scores.len() + 1))?);
    }
    Ok(scores)
}

fn score(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.get("score")?.as_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_text_gets_the_number_that_is_answered() {
        let texts: Vec<String> = (0..3).map(|i| format!("line\n\"{i}\"")).collect();
        let number_lines = "awk '{ print NR / 2 }'";
        assert_eq!(score_texts(number_lines, &texts).unwrap(), [0.5, 1.0, 1.5]);
        assert_eq!(score_texts("awk '{ print \"{\\\"score\\\": \" NR \"}\" }'", &texts).unwrap(), [1.0, 2.0, 3.0]);
        // More than pipes hold, both answered at once and at the end.
        let many = vec!["x".repeat(100); 5000];
        assert_eq!(score_texts(number_lines, &many).unwrap()[4999], 2500.0);
        assert_eq!(score_texts("sort | awk '{ print 1 }'", &many).unwrap(), vec![1.0; 5000]);
        assert_eq!(score_texts("cat > /dev/null; exit 0", &[]).unwrap(), Vec::<f64>::new());
    }

    #[test]
    fn a_scorer_that_fails_is_told_from_one_that_answers_wrongly() {
        let texts = vec!["a".to_owned(), "b".to_owned()];
        for (command, words) in [
            ("echo 1; cat > /dev/null", "gave 1 answers to 2 lines"),
            ("echo 1; echo high; cat > /dev/null", "answers line 2 with \"high\""),
            ("echo 1; exit 3", "exit status: 3 after 1 of 2 answers"),
            ("no-such-command", "exit status: 127 after 0 of 2 answers"),
        ] {
            let error = score_texts(command, &texts).unwrap_err().to_string();
            assert!(error.contains(command) && error.contains(words), "{error}");
        }
    }
}
