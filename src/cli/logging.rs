//! What the library reports with `tracing`, as lines for the user.

use std::fmt::{Debug, Write};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context, prelude::*};

use super::outcome::note;

/// Shows warnings and notes from now on. Whatever is less important is left out.
pub fn install() {
    // An application that uses this library as a program may have its own.
    let _ = tracing_subscriber::registry().with(Lines).try_init();
}

struct Lines;

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let (level, is_ours) = (*event.metadata().level(), event.metadata().target().starts_with("gemma_pjrt"));
        if !is_ours || level > Level::INFO {
            return;
        }
        let mut message = Message::default();
        event.record(&mut message);
        let kind = if level == Level::INFO { "note" } else { "warning" };
        note(&format!("{kind}: {}", message.0));
    }
}

/// An event's text.
#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            let _ = write!(self.0, "{value:?}");
        }
    }
}
