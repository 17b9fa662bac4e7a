//! The tokenizer of a checkpoint, or a byte-level one for models that start from nothing.

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// Files that make up a tokenizer, copied with a checkpoint byte for byte and fetched with a model of the hub.
pub const FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
];
/// End of text, and padding, of the byte-level tokenizer.
const END: &str = "<|endoftext|>";

/// Token ids for text, and text for token ids.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    eos_ids: Vec<u32>,
    /// Names of special tokens that chat templates use: `bos_token`, `eos_token`, ...
    special: BTreeMap<String, String>,
    /// The tokenizer's files as they were read, for [`Tokenizer::save`].
    files: Vec<(String, Vec<u8>)>,
}

impl Tokenizer {
    /// The tokenizer of a checkpoint folder. What ends a response is looked for in `generation_config.json`, then
    /// `config.json`, then `tokenizer_config.json`, as the peers do; several ids may.
    pub fn from_dir(dir: &Path) -> Result<Tokenizer> {
        Tokenizer::from_dir_beside(dir, None)
    }

    /// [`Tokenizer::from_dir`] of a folder that need not say what ends a response where another, `base`, does.
    pub fn from_dir_beside(dir: &Path, base: Option<&Path>) -> Result<Tokenizer> {
        let path = dir.join("tokenizer.json");
        let bytes = fs::read(&path).with_context(|| format!("cannot read the tokenizer {}", path.display()))?;
        let inner = tokenizers::Tokenizer::from_bytes(&bytes)
            .map_err(|e| anyhow!("{} is no tokenizer that can be read: {e}", path.display()))?;
        let config = read_json(&dir.join("tokenizer_config.json"))?.unwrap_or(Value::Null);
        let special = ["bos_token", "eos_token", "pad_token", "unk_token"]
            .iter()
            .filter_map(|key| Some((key.to_string(), token_text(config.get(*key)?)?)))
            .collect::<BTreeMap<_, _>>();
        let mut eos_ids = Vec::new();
        let folders = std::iter::once(dir).chain(base);
        for path in folders.flat_map(|dir| ["generation_config.json", "config.json"].map(|file| dir.join(file))) {
            if eos_ids.is_empty() {
                eos_ids = ids(read_json(&path)?.as_ref().and_then(|c| c.get("eos_token_id")), &path)?;
            }
        }
        if eos_ids.is_empty() {
            eos_ids = special.get("eos_token").and_then(|t| inner.token_to_id(t)).into_iter().collect();
        }
        let mut files = Vec::new();
        for name in FILES {
            let path = dir.join(name);
            if path.is_file() {
                files.push((
                    name.to_string(),
                    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?,
                ));
            }
        }
        Ok(Tokenizer { inner, eos_ids, special, files })
    }

    /// One token a byte, and three special tokens: for models that are initialised here. Any text round-trips.
    pub fn byte_level() -> Result<Tokenizer> {
        let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
        alphabet.sort_unstable();
        let vocab: BTreeMap<String, u32> =
            alphabet.iter().enumerate().map(|(i, c)| (c.to_string(), i as u32)).collect();
        let model = BPE::builder()
            .vocab_and_merges(vocab.into_iter().collect::<Vocab>(), Vec::new())
            .build()
            .map_err(|e| anyhow!("the byte-level vocabulary was refused: {e}"))?;
        let mut inner = tokenizers::Tokenizer::new(model);
        inner.with_pre_tokenizer(Some(ByteLevel::new(false, true, false)));
        inner.with_decoder(Some(ByteLevel::default()));
        let special = [END, "<|im_start|>", "<|im_end|>"].map(|t| AddedToken::from(t, true));
        inner.add_special_tokens(&special);
        let json = inner.to_string(true).map_err(|e| anyhow!("the byte-level tokenizer cannot be written: {e}"))?;
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END,
            "pad_token": END,
            "clean_up_tokenization_spaces": false,
        });
        let files = vec![
            ("tokenizer.json".to_string(), json.into_bytes()),
            ("tokenizer_config.json".to_string(), format!("{config:#}\n").into_bytes()),
        ];
        let eos_ids = inner.token_to_id(END).into_iter().collect();
        let special = ["eos_token", "pad_token"].map(|key| (key.to_string(), END.to_string()));
        Ok(Tokenizer { inner, eos_ids, special: special.into(), files })
    }

    /// Ids of a text. Special tokens that are written out in it are recognised; none are added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| anyhow!("the tokenizer failed: {e}"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of ids. Ids beyond the vocabulary (models may have more rows than tokens) are left out.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(|e| anyhow!("the tokenizer could not decode: {e}"))
    }

    /// A token as the vocabulary spells it; `None` beyond its end.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Number of tokens, special ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Any of these ends a response.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// Special tokens by the names that templates use.
    pub fn special_tokens(&self) -> &BTreeMap<String, String> {
        &self.special
    }

    /// Writes the tokenizer's files into `dir`, a loaded one's as they were read.
    pub fn save(&self, dir: &Path) -> Result<()> {
        for (name, bytes) in &self.files {
            let path: PathBuf = dir.join(name);
            fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

fn read_json(path: &Path) -> Result<Option<Value>> {
    if !path.is_file() {
        return Ok(None);
    }
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Some(serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))?))
}

/// A token's text, written as text or as an object with `content`.
fn token_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_string)
}

/// `eos_token_id`: absent, a number or a list.
fn ids(value: Option<&Value>, path: &Path) -> Result<Vec<u32>> {
    let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    let found = match value {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(one).collect::<Option<Vec<u32>>>(),
        Some(number) => one(number).map(|id| vec![id]),
    };
    match (found, value) {
        (Some(ids), _) => {
            ensure!(ids.len() <= 1000, "{}: eos_token_id lists {} ids", path.display(), ids.len());
            Ok(ids)
        }
        (None, value) => bail!(
            "{}: eos_token_id = {}: expected a token id or a list of them",
            path.display(),
            value.unwrap_or(&Value::Null)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_round_trips_through_bytes(text in "\\PC{0,40}") {
            let t = Tokenizer::byte_level().unwrap();
            let ids = t.encode(&text).unwrap();
            prop_assert_eq!(ids.len(), text.len());
            prop_assert_eq!(t.decode(&ids, false).unwrap(), text);
        }
    }

    #[test]
    fn special_tokens_are_one_token_and_can_be_left_out() {
        let t = Tokenizer::byte_level().unwrap();
        let ids = t.encode("ab<|endoftext|>").unwrap();
        assert_eq!((ids.len(), ids[2], t.vocab_size()), (3, t.eos_ids()[0], 259));
        assert_eq!(t.decode(&ids, true).unwrap(), "ab");
        assert_eq!(t.decode(&[ids[0], 5_000_000], false).unwrap(), "a");
    }

    #[test]
    fn a_saved_tokenizer_reads_back_and_is_copied_byte_for_byte() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Tokenizer::byte_level().unwrap().save(a.path()).unwrap();
        fs::write(a.path().join("generation_config.json"), r#"{"eos_token_id": [3, 256]}"#).unwrap();
        let t = Tokenizer::from_dir(a.path()).unwrap();
        assert_eq!(t.eos_ids(), &[3, 256]);
        t.save(b.path()).unwrap();
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            assert_eq!(fs::read(a.path().join(file)).unwrap(), fs::read(b.path().join(file)).unwrap());
        }
    }

    #[test]
    fn broken_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = |dir: &Path| format!("{:#}", Tokenizer::from_dir(dir).unwrap_err());
        assert!(error(dir.path()).contains("tokenizer.json"));
        fs::write(dir.path().join("tokenizer.json"), "{").unwrap();
        assert!(error(dir.path()).contains("tokenizer.json"));
        Tokenizer::byte_level().unwrap().save(dir.path()).unwrap();
        fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": "x"}"#).unwrap();
        assert!(error(dir.path()).contains("eos_token_id"));
    }
}
