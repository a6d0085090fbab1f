//! Stop strings in a stream of text.

/// Finds stop strings across the pieces of a stream. Text that may be the beginning of one is held
/// back.
pub struct StopStrings {
    stops: Vec<String>,
    /// Text that may be the beginning of a stop string.
    held: String,
}

impl StopStrings {
    /// Returns a search for these strings. Empty ones are ignored.
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops: stops.into_iter().filter(|s| !s.is_empty()).collect(), held: String::new() }
    }

    /// Adds a piece. Returns the text that can be shown, and the stop string that follows it, if
    /// one does.
    pub fn push(&mut self, piece: &str) -> (String, Option<String>) {
        self.held.push_str(piece);
        let found = self.stops.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop)));
        if let Some((at, stop)) = found.min_by_key(|(at, _)| *at) {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), Some(stop.clone()));
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let shown = self.held.len() - keep;
        let held = self.held.split_off(shown);
        (std::mem::replace(&mut self.held, held), None)
    }

    /// Returns the text that is held back, when the stream ends without a stop string.
    pub fn take_held(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Returns the length of the longest suffix of `text` that is a prefix of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let mut ends = text.char_indices().map(|(i, _)| &text[i..]);
    ends.find(|end| stop.starts_with(end)).map_or(0, str::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_stop_string_across_pieces() {
        let mut stop = StopStrings::new(vec!["\nQ:".into(), "END".into()]);
        assert_eq!(stop.push("answer\n"), ("answer".into(), None));
        assert_eq!(stop.push("Q"), (String::new(), None));
        assert_eq!(stop.push(": next"), (String::new(), Some("\nQ:".into())));
    }

    #[test]
    fn gives_back_what_only_looked_like_one() {
        let mut stop = StopStrings::new(vec!["\u{e9}nd".into()]);
        assert_eq!(stop.push("a \u{e9}n"), ("a ".into(), None));
        assert_eq!(stop.push("t"), ("\u{e9}nt".into(), None));
        assert_eq!(stop.push("\u{e9}"), (String::new(), None));
        assert_eq!(stop.take_held(), "\u{e9}");
    }

    #[test]
    fn the_earliest_of_several_counts() {
        let mut stop = StopStrings::new(vec!["late".into(), "early".into()]);
        assert_eq!(stop.push("x early late"), ("x ".into(), Some("early".into())));
    }
}
