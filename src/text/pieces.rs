//! Texts of single tokens, for people to look at: never empty, and no byte lost.

use super::tokenizer::Tokenizer;
use std::collections::HashMap;

/// Shows tokens by themselves; each text is made once.
pub struct Pieces<'a> {
    tokenizer: Option<&'a Tokenizer>,
    /// A piece and its text, before which a token is decoded: decoders strip spaces from the first token of a text.
    anchor: (Vec<u32>, String),
    known: HashMap<u32, String>,
}

impl<'a> Pieces<'a> {
    /// Without a tokenizer, tokens are shown by their ids.
    pub fn new(tokenizer: Option<&'a Tokenizer>) -> Pieces<'a> {
        let ids = tokenizer.and_then(|t| t.encode("a").ok()).unwrap_or_default();
        let text = tokenizer.and_then(|t| t.decode(&ids, false).ok()).unwrap_or_default();
        Pieces { tokenizer, anchor: (ids, text), known: HashMap::new() }
    }

    /// The text of a token: as it stands within a text, its leading space included. A token that is no whole character shows
    /// its bytes, `<0xE2><0x82>`; one that has no text its id, `<id 151700>`.
    pub fn text(&mut self, id: u32) -> &str {
        if !self.known.contains_key(&id) {
            let text = self.tokenizer.and_then(|t| self.made(t, id)).filter(|text| !text.is_empty());
            self.known.insert(id, text.unwrap_or_else(|| format!("<id {id}>")));
        }
        self.known.get(&id).map_or("", String::as_str)
    }

    fn made(&self, tokenizer: &Tokenizer, id: u32) -> Option<String> {
        let raw = tokenizer.token(id)?;
        let whole = tokenizer.decode(&[&self.anchor.0[..], &[id]].concat(), false).ok();
        let text = whole.as_ref().and_then(|whole| whole.strip_prefix(&self.anchor.1));
        match text {
            Some(text) if !text.is_empty() && !text.contains(char::REPLACEMENT_CHARACTER) => Some(text.to_string()),
            // Part of a character, in the spelling of byte-level vocabularies or, as it is, of others.
            _ => Some(bytes(&raw).map_or(raw, |bytes| shown(&bytes))),
        }
    }
}

/// The bytes of a token as byte-level vocabularies spell them (GPT-2's alphabet): printable bytes stand for themselves, the
/// others for the characters from U+0100 on, in order.
fn bytes(raw: &str) -> Option<Vec<u8>> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let byte = |c: char| match u8::try_from(c) {
        Ok(byte) => printable(byte).then_some(byte),
        Err(_) => (0..=255u8).filter(|b| !printable(*b)).nth((c as usize).checked_sub(0x100)?),
    };
    raw.chars().map(byte).collect()
}

fn shown(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("<0x{byte:02X}>")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_character_are_spelled_and_ids_without_text_named() {
        let tokenizer = Tokenizer::byte_level().unwrap();
        let mut pieces = Pieces::new(Some(&tokenizer));
        let euro = tokenizer.encode(" a\n€\0<|im_end|>").unwrap();
        let texts: Vec<String> = euro.iter().map(|id| pieces.text(*id).to_string()).collect();
        assert_eq!(texts, [" ", "a", "\n", "<0xE2>", "<0x82>", "<0xAC>", "\0", "<|im_end|>"]);
        assert_eq!(pieces.text(5000), "<id 5000>");
        assert_eq!(Pieces::new(None).text(7), "<id 7>");
        // Every token of the vocabulary is shown, each differently.
        let mut all: Vec<String> = (0..259).map(|id| pieces.text(id).to_string()).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 259);
    }

    #[test]
    fn the_byte_alphabet_is_gpt_2s() {
        // A space, a euro sign, and the first two of its three bytes: "Ġ", "âĤ¬", "âĤ".
        assert_eq!(bytes("\u{120}").unwrap(), b" ");
        assert_eq!(bytes("\u{e2}\u{124}\u{ac}").unwrap(), "€".as_bytes());
        assert_eq!(shown(&bytes("\u{120}\u{e2}\u{124}").unwrap()), " <0xE2><0x82>");
        assert_eq!((bytes("▁the"), bytes("\u{144}")), (None, None));
    }
}
