//! The bytes of tokens: what each one adds to a text, whatever stands before it.

use super::{Tokenizer, TokenizerError};

impl Tokenizer {
    /// Returns the bytes that each token adds to a text, by id. Control tokens, and ids that no
    /// token has, add none.
    ///
    /// # Errors
    /// The tokenizer's decoder is not of Gemma's kind, so that the bytes of a token depend on those
    /// before it.
    pub fn token_bytes(&self) -> Result<Vec<Vec<u8>>, TokenizerError> {
        let vocabulary = self.inner.get_vocab(true);
        let ids = vocabulary.values().max().map_or(0, |&id| id as usize + 1);
        let mut bytes = vec![Vec::new(); ids];
        let mut texts = Vec::with_capacity(ids);
        for (name, &id) in vocabulary.iter().filter(|(_, id)| !self.control.contains_key(id)) {
            match byte(name) {
                Some(byte) => {
                    bytes[id as usize] = vec![byte];
                    if byte.is_ascii() {
                        self.check_bytes(&[id], &[byte])?;
                    }
                }
                None => {
                    bytes[id as usize] = name.replace('\u{2581}', " ").into_bytes();
                    texts.push(id);
                }
            }
        }
        texts.sort_unstable();
        // One decoding of all tokens that are text shows that each is decoded by itself.
        let expected: Vec<u8> = texts.iter().flat_map(|&id| &bytes[id as usize]).copied().collect();
        self.check_bytes(&texts, &expected)?;
        Ok(bytes)
    }

    fn check_bytes(&self, ids: &[u32], expected: &[u8]) -> Result<(), TokenizerError> {
        let decoded = self.decode(ids)?;
        if decoded.as_bytes() == expected {
            return Ok(());
        }
        let at = decoded.bytes().zip(expected).take_while(|(a, b)| a == *b).count();
        let shown = |bytes: &[u8]| {
            String::from_utf8_lossy(&bytes[at.min(bytes.len())..(at + 20).min(bytes.len())]).into_owned()
        };
        Err(TokenizerError::Encode(format!(
            "its decoder does not write tokens one by one: {:?} in the place of {:?}; an answer cannot be held to a form with it",
            shown(decoded.as_bytes()),
            shown(expected)
        )))
    }
}

/// The byte that a token such as `<0xE6>` stands for.
fn byte(name: &str) -> Option<u8> {
    let digits = name.strip_prefix("<0x")?.strip_suffix('>').filter(|digits| digits.len() == 2)?;
    u8::from_str_radix(digits, 16).ok()
}
