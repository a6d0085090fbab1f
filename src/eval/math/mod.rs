//! Compares answers to problems of mathematics: by the rules of MATH's evaluation in Lewkowycz et
//! al. 2022 (`minerva_math` in lm-evaluation-harness), by those of Math-Verify, and by those of
//! AGIEval.

mod agieval;
mod equality;
mod extract;
mod latex;
mod minerva;
mod value;
mod verify;

pub use agieval::same_answer;
pub use minerva::final_answers_agree;
pub use verify::verified;

/// Returns the last `\boxed{...}` or `\fbox{...}` of a text, braces included.
fn last_boxed(text: &str) -> Option<&str> {
    let from = text.rfind("\\boxed").or_else(|| text.rfind("\\fbox"))?;
    let mut open = 0;
    for (i, c) in text[from..].char_indices() {
        match c {
            '{' => open += 1,
            '}' => {
                open -= 1;
                if open == 0 {
                    return Some(&text[from..=from + i]);
                }
            }
            _ => {}
        }
    }
    None
}

/// Returns the contents of `\boxed{...}`.
fn in_box(boxed: &str) -> Option<&str> {
    boxed.strip_prefix("\\boxed{")?.strip_suffix('}')
}
