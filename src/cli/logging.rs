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
        #[cfg(feature = "serve")]
        if event.metadata().target() == crate::serve::ACCESS_LOG {
            return access_log(event);
        }
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

/// Writes a line about a request of the server: text, or a JSON object.
#[cfg(feature = "serve")]
fn access_log(event: &Event<'_>) {
    let mut fields = Fields::default();
    event.record(&mut fields);
    if super::outcome::writes_json() {
        let time = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
        fields.0.insert(0, ("time", time.into()));
        let object: serde_json::Map<_, _> =
            fields.0.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        return note(&serde_json::Value::Object(object).to_string());
    }
    let time = chrono::Local::now().format("%Y-%m-%d %H:%M:%S");
    let plain = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let fields: Vec<String> = fields.0.iter().map(|(name, value)| format!("{name}={}", plain(value))).collect();
    note(&format!("{time} request {}", fields.join(" ")));
}

/// An event's fields.
#[cfg(feature = "serve")]
#[derive(Default)]
struct Fields(Vec<(&'static str, serde_json::Value)>);

#[cfg(feature = "serve")]
impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.push((field.name(), format!("{value:?}").into()));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), value.into()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.push((field.name(), value.into()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.push((field.name(), value.into()));
    }

    /// Times that there are not are negative.
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.push((field.name(), if value < 0.0 { serde_json::Value::Null } else { value.into() }));
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
