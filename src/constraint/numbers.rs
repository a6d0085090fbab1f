//! Numbers in JSON come to an end. A grammar of JSON allows digits without end, and a model that is
//! held to it may go on with them.

/// The most digits in a row: as many as the largest u64 has.
const MAX_DIGITS: usize = 20;
/// The most digits of an exponent, so that each number fits an f64.
const MAX_EXPONENT_DIGITS: usize = 2;

/// Where in a JSON text an answer is, as far as numbers are concerned.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NumberLimit {
    in_string: bool,
    /// After a backslash.
    escaped: bool,
    in_exponent: bool,
    /// Digits in a row.
    digits: usize,
}

impl NumberLimit {
    /// Reads more of the text.
    pub fn read(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.read_byte(byte);
        }
    }

    fn read_byte(&mut self, byte: u8) {
        if self.in_string {
            self.in_string = self.escaped || byte != b'"';
            self.escaped = !self.escaped && byte == b'\\';
            return;
        }
        match byte {
            b'0'..=b'9' => self.digits += 1,
            // Those of "true" and "false", too, where no digits follow.
            b'e' | b'E' => *self = Self { in_exponent: true, ..Self::default() },
            b'+' | b'-' => self.digits = 0,
            _ => *self = Self { in_string: byte == b'"', ..Self::default() },
        }
    }

    /// Returns whether no further digit should follow.
    pub fn is_reached(&self) -> bool {
        self.digits >= if self.in_exponent { MAX_EXPONENT_DIGITS } else { MAX_DIGITS }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_reached(text: &str) -> bool {
        let mut limit = NumberLimit::default();
        limit.read(text.as_bytes());
        limit.is_reached()
    }

    #[test]
    fn digits_are_counted_outside_of_strings() {
        let digits = "1".repeat(MAX_DIGITS);
        for text in [format!("[{digits}"), format!("{{\"a\\\"\": -{digits}"), format!("0.{digits}"), "1e-12".into()] {
            assert!(is_reached(&text), "{text}");
        }
        for text in [
            format!("[{digits}.1"),
            format!("{{\"{digits}"),
            format!("[{digits},"),
            "1e1".into(),
            "[true, 12".into(),
            format!("\"\\\\\"{}", &digits[1..]),
        ] {
            assert!(!is_reached(&text), "{text}");
        }
    }
}
