//! Fingerprints: whether what was saved belongs to the same model, data and settings.

use sha2::{Digest, Sha256};

/// SHA-256 of a stream of values, each told from its neighbours by its length.
#[derive(Clone, Default)]
pub struct Fingerprint(Sha256);

impl Fingerprint {
    pub fn new() -> Fingerprint {
        Fingerprint::default()
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    pub fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    pub fn number(&mut self, number: u64) {
        self.bytes(&number.to_le_bytes());
    }

    pub fn ids(&mut self, ids: &[u32]) {
        self.bytes(bytemuck::cast_slice(ids));
    }

    pub fn floats(&mut self, values: &[f32]) {
        self.bytes(bytemuck::cast_slice(values));
    }

    /// 64 hexadecimal digits.
    pub fn hex(self) -> String {
        self.0.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_told_apart_and_nothing_else() {
        let of = |parts: &[&str]| {
            let mut fingerprint = Fingerprint::new();
            parts.iter().for_each(|part| fingerprint.text(part));
            fingerprint.hex()
        };
        assert_eq!(of(&["ab", "c"]), of(&["ab", "c"]));
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        // The hash of nothing, as everyone knows it.
        assert!(of(&[]).starts_with("e3b0c44298fc1c14"));
    }
}
