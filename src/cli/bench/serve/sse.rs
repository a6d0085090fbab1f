//! Server-sent events (WHATWG HTML, 9.2), as far as OpenAI's streams use them: lines of data.

/// Splits a body that arrives in pieces into the data of its events.
#[derive(Default)]
pub(super) struct Events {
    /// The line that has not ended.
    line: Vec<u8>,
    /// The data lines of the event that has not ended.
    data: Vec<u8>,
}

impl Events {
    /// Takes a piece of the body, and returns the data of the events that end in it. Comments and
    /// fields other than `data` are skipped.
    pub fn push(&mut self, piece: &[u8]) -> Vec<Vec<u8>> {
        let mut events = Vec::new();
        let mut rest = piece;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            self.line.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            let line = std::mem::take(&mut self.line);
            let line = line.strip_suffix(b"\r").unwrap_or(&line);
            if let Some(data) = line.strip_prefix(b"data:") {
                if !self.data.is_empty() {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
            } else if line.is_empty() && !self.data.is_empty() {
                events.push(std::mem::take(&mut self.data));
            }
        }
        self.line.extend_from_slice(rest);
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_the_same_however_the_body_is_split() {
        let body = b": keep-alive\n\ndata: {\"a\":\r\ndata: 1}\r\n\r\nevent: x\ndata:two\nid: 3\n\ndata: unfinished\n";
        let expected = [b"{\"a\":\n1}".to_vec(), b"two".to_vec()];
        for size in 1..=body.len() {
            let mut events = Events::default();
            let found: Vec<Vec<u8>> = body.chunks(size).flat_map(|piece| events.push(piece)).collect();
            assert_eq!(found, expected, "in pieces of {size} bytes");
        }
    }
}
