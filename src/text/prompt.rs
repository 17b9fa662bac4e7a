//! A run's way of asking: messages to token ids, and token ids back to text. Token-in, token-out: what was sampled is
//! never tokenized again.

use super::chat::{ChatTemplate, Message, PromptTemplate};
use super::tokenizer::Tokenizer;
use anyhow::{Result, ensure};

/// Tokenizer, template and prompt limit of a run.
#[derive(Clone, Debug)]
pub struct PromptEncoder {
    tokenizer: Tokenizer,
    chat: Option<ChatTemplate>,
    template: PromptTemplate,
    max_prompt_tokens: usize,
}

/// A prompt in tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedPrompt {
    pub ids: Vec<u32>,
    /// Tokens that were cut from its left to keep within the limit.
    pub truncated: usize,
}

impl PromptEncoder {
    pub fn new(
        tokenizer: Tokenizer,
        chat: Option<ChatTemplate>,
        template: PromptTemplate,
        max_prompt_tokens: usize,
    ) -> Result<PromptEncoder> {
        template.check()?;
        ensure!(max_prompt_tokens > 0, "max_prompt_tokens = 0: expected room for at least one token");
        Ok(PromptEncoder { tokenizer, chat, template, max_prompt_tokens })
    }

    /// The same tokenizer and limit with another way of asking.
    pub fn with_template(&self, template: PromptTemplate) -> Result<PromptEncoder> {
        PromptEncoder::new(self.tokenizer.clone(), self.chat.clone(), template, self.max_prompt_tokens)
    }

    pub(super) fn chat(&self) -> Option<&ChatTemplate> {
        self.chat.as_ref()
    }

    pub fn template(&self) -> &PromptTemplate {
        &self.template
    }

    /// Ids of a prompt, cut from the left to the limit (the reference's convention: the end of a prompt says most).
    pub fn encode(&self, messages: &[Message]) -> Result<EncodedPrompt> {
        let text = self.template.render(self.chat.as_ref(), messages)?;
        let mut ids = self.tokenizer.encode(&text)?;
        ensure!(!ids.is_empty(), "a prompt came out empty: its template rendered no text");
        let truncated = ids.len().saturating_sub(self.max_prompt_tokens);
        ids.drain(..truncated);
        Ok(EncodedPrompt { ids, truncated })
    }

    /// How many prompts lose turns to the template, where any does.
    pub fn remark<'a>(&self, prompts: impl Iterator<Item = &'a [Message]>) -> Option<String> {
        let (mut all, mut cut) = (0usize, 0usize);
        for messages in prompts {
            all += 1;
            cut += usize::from(self.template.leaves_out(messages));
        }
        (cut > 0).then(|| {
            format!(
                "{cut} of {all} prompts hold a system message or several turns, of which the plain template shows the last user message \
                 alone: a chat template shows all"
            )
        })
    }

    /// Ids of a response's text, as it would follow a prompt.
    pub fn encode_response(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer.encode(text)
    }

    /// A response's text, special tokens left out: what is judged.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer.decode(ids, true)
    }

    /// The text with its special tokens: what a person is shown.
    pub fn decode_whole(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer.decode(ids, false)
    }

    pub fn eos_ids(&self) -> &[u32] {
        self.tokenizer.eos_ids()
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_prompts_lose_their_left_end_and_say_so() {
        let plain = PromptTemplate::Plain { text: "{problem}".into() };
        let encoder = PromptEncoder::new(Tokenizer::byte_level().unwrap(), None, plain, 4).unwrap();
        let encode = |text: &str| encoder.encode(&[Message { role: "user".into(), content: text.into() }]).unwrap();
        let cut = encode("abcdef");
        assert_eq!((cut.truncated, encoder.decode(&cut.ids).unwrap().as_str()), (2, "cdef"));
        assert_eq!(encode("abc").truncated, 0);
    }

    #[test]
    fn turns_that_a_plain_template_leaves_out_are_counted() {
        let turn = |role: &str, text: &str| Message { role: role.into(), content: text.into() };
        let prompts = [
            vec![turn("user", "a")],
            vec![turn("system", "Be brief."), turn("user", "a")],
            vec![turn("user", "a"), turn("assistant", "b"), turn("user", "c")],
            vec![turn("system", " "), turn("user", "a")],
        ];
        let of = |template| {
            let encoder = PromptEncoder::new(Tokenizer::byte_level().unwrap(), None, template, 4).unwrap();
            encoder.remark(prompts.iter().map(Vec::as_slice))
        };
        let remark = of(PromptTemplate::Plain { text: "{problem}".into() }).unwrap();
        assert!(remark.starts_with("2 of 4 prompts"), "{remark}");
        assert!(of(PromptTemplate::OctoThinker {}).is_some());
        assert_eq!(of(PromptTemplate::default()), None);
    }
}
