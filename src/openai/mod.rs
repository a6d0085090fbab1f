//! Requests and answers in the JSON of OpenAI's interface, with the fields that vLLM and
//! llama-server add to it: for lines of `generate --input`, and for the server.

mod choices;
mod constraint;
mod fields;
mod prompt;
mod request;

pub use choices::{Choices, TextOffset, finite, stop_reason};
pub use constraint::CONSTRAINT_FIELDS;
pub use fields::{FieldError, Fields, Result, shortened};
pub use prompt::{Prompt, messages};
pub use request::request;
