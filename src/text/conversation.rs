//! Conversations to imitate, in tokens: which tokens the assistant wrote, and which it only read.

use super::chat::{Message, PromptTemplate};
use super::prompt::PromptEncoder;
use anyhow::{Context, Result, ensure};
use std::ops::Range;

/// A sequence, and the tokens in it that the assistant wrote, its end tokens included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    pub ids: Vec<u32>,
    /// Ascending, not empty, none from 0.
    pub written: Vec<Range<usize>>,
}

impl Conversation {
    fn read(&mut self, ids: Vec<u32>) {
        self.ids.extend(ids);
    }

    /// Tokens of the assistant's: up to the last that ends a turn; what the template puts after it is only read.
    fn write(&mut self, ids: Vec<u32>, eos_ids: &[u32]) {
        let ended = ids.iter().rposition(|id| eos_ids.contains(id)).map_or(ids.len(), |at| at + 1);
        let start = self.ids.len();
        self.written.push(start..start + ended);
        self.ids.extend(ids);
    }

    /// Ends the last turn where the template did not.
    fn end(mut self, eos_ids: &[u32]) -> Conversation {
        if let (Some(last), Some(eos)) = (self.written.last_mut(), eos_ids.first())
            && self.ids[last.clone()].last().is_none_or(|id| !eos_ids.contains(id))
        {
            self.ids.truncate(last.end);
            self.ids.push(*eos);
            last.end += 1;
        }
        self
    }
}

impl PromptEncoder {
    /// What is imitated of a conversation: every turn of the assistant's from message `from` on. One sequence, if the
    /// template shows a turn as it showed it when it was written; else (templates that drop an earlier turn's thoughts)
    /// one for every turn, each as the model would have been asked for it. None without such a turn.
    ///
    /// Errors: a conversation that the assistant begins, several turns under a plain template, a template that fails.
    pub fn conversations(&self, messages: &[Message], from: usize) -> Result<Vec<Conversation>> {
        let is_turn = |i: &usize| messages[*i].role == "assistant" && !messages[*i].content.trim().is_empty();
        let turns: Vec<usize> = (from..messages.len()).filter(is_turn).collect();
        let (Some(first), Some(last)) = (turns.first(), turns.last()) else { return Ok(Vec::new()) };
        ensure!(*first > 0, "the conversation begins with the assistant: expected a message that it answers");
        if matches!(self.template().spelled_out(), PromptTemplate::Plain { .. }) {
            let asked = messages[..*last].iter().filter(|m| m.role == "user").count();
            ensure!(
                turns.len() == 1 && asked <= 1,
                "{asked} questions and {} answers to imitate, but a plain template has room for one: use a chat template",
                turns.len()
            );
            let mut whole = Conversation::default();
            whole.read(self.encode_text(&self.rendered(&messages[..*last], true)?)?);
            whole.write(self.encode_response(&messages[*last].content)?, self.eos_ids());
            return Ok(vec![whole.end(self.eos_ids())]);
        }
        let whole = self.rendered(&messages[..=*last], false)?;
        let (mut one, mut each, mut at) = (Some(Conversation::default()), Vec::new(), 0);
        for turn in turns {
            let asked = self.rendered(&messages[..turn], true)?;
            let answered = self.rendered(&messages[..=turn], false)?;
            let own = answered.strip_prefix(asked.as_str());
            one = match (one, own) {
                (Some(mut one), Some(own)) if whole.starts_with(&answered) && at <= asked.len() => {
                    one.read(self.encode_text(&whole[at..asked.len()])?);
                    one.write(self.encode_text(own)?, self.eos_ids());
                    at = answered.len();
                    Some(one)
                }
                _ => None,
            };
            let mut single = Conversation::default();
            single.read(self.encode_text(&asked)?);
            single.write(self.encode_text(own.unwrap_or(&messages[turn].content))?, self.eos_ids());
            each.push(single.end(self.eos_ids()));
        }
        Ok(one.map_or(each, |one| vec![one.end(self.eos_ids())]))
    }

    /// A text to imitate as a whole, its first token only read, with an end.
    pub fn whole_text(&self, text: &str) -> Result<Conversation> {
        let mut ids = self.encode_text(text)?;
        ids.extend(self.eos_ids().first());
        let written = if ids.len() > 1 { std::iter::once(1..ids.len()).collect() } else { Vec::new() };
        Ok(Conversation { ids, written })
    }

    fn rendered(&self, messages: &[Message], open: bool) -> Result<String> {
        self.template().render_turns(self.chat(), messages, open).context("a conversation could not be rendered")
    }

    fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        if text.is_empty() { Ok(Vec::new()) } else { self.tokenizer().encode(text) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{ChatTemplate, Tokenizer};

    const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                          {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    fn encoder(template: &str) -> PromptEncoder {
        let dir = tempfile::tempdir().unwrap();
        Tokenizer::byte_level().unwrap().save(dir.path()).unwrap();
        let end = Tokenizer::byte_level().unwrap().encode("<|im_end|><|endoftext|>").unwrap();
        let eos = serde_json::json!({ "eos_token_id": end });
        std::fs::write(dir.path().join("generation_config.json"), eos.to_string()).unwrap();
        let chat = ChatTemplate::new(template, "test", Default::default());
        PromptEncoder::new(Tokenizer::from_dir(dir.path()).unwrap(), Some(chat), PromptTemplate::default(), 1000)
            .unwrap()
    }

    fn messages(turns: &[(&str, &str)]) -> Vec<Message> {
        turns.iter().map(|(role, content)| Message { role: role.to_string(), content: content.to_string() }).collect()
    }

    fn written(prompts: &PromptEncoder, c: &Conversation) -> Vec<String> {
        c.written.iter().map(|span| prompts.decode_whole(&c.ids[span.clone()]).unwrap()).collect()
    }

    #[test]
    fn every_turn_of_the_assistants_is_written_up_to_its_end_and_nothing_else() {
        let prompts = encoder(CHATML);
        let talk = messages(&[("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]);
        let found = prompts.conversations(&talk, 0).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(written(&prompts, &found[0]), ["b<|im_end|>", "d<|im_end|>"]);
        let whole = prompts.template().render_turns(prompts.chat(), &talk, false).unwrap();
        assert_eq!(prompts.decode_whole(&found[0].ids).unwrap(), whole);
        // Only what comes after the prompt is imitated where a row says so.
        assert_eq!(written(&prompts, &prompts.conversations(&talk, 3).unwrap()[0]), ["d<|im_end|>"]);
        assert!(prompts.conversations(&talk[..2], 0).unwrap().is_empty());
        assert!(prompts.conversations(&messages(&[("user", "a"), ("assistant", " ")]), 0).unwrap().is_empty());
        let error = prompts.conversations(&messages(&[("assistant", "a")]), 0).unwrap_err().to_string();
        assert!(error.contains("begins with the assistant"), "{error}");
    }

    #[test]
    fn a_template_that_forgets_thoughts_is_asked_turn_by_turn() {
        // As Qwen3's: the thoughts of a turn are there only while it is the last.
        let thinking = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.last and m.role == 'assistant' %}T{% endif %}\
                        {{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\nT{% endif %}";
        let prompts = encoder(thinking);
        let talk = messages(&[("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]);
        let found = prompts.conversations(&talk, 0).unwrap();
        let all: Vec<_> = found.iter().flat_map(|c| written(&prompts, c)).collect();
        assert_eq!((found.len(), all), (2, vec!["b<|im_end|>".to_string(), "d<|im_end|>".to_string()]));
        for (i, c) in found.iter().enumerate() {
            let asked = prompts.encode(&talk[..2 * i + 1]).unwrap().ids;
            assert_eq!(c.ids[..c.written[0].start], asked);
        }
    }

    #[test]
    fn a_turn_that_the_template_leaves_open_is_ended_and_a_plain_one_too() {
        let prompts = encoder("{% for m in messages %}{{ m.content }}|{% endfor %}");
        let found = prompts.conversations(&messages(&[("user", "a"), ("assistant", "b")]), 0).unwrap();
        assert_eq!(written(&prompts, &found[0]), ["b|<|im_end|>"]);
        let plain = prompts.with_template(PromptTemplate::Plain { text: "Q {problem} A".into() }).unwrap();
        let found = plain.conversations(&messages(&[("user", "a"), ("assistant", "b")]), 0).unwrap();
        assert_eq!(plain.decode_whole(&found[0].ids).unwrap(), "Q a Ab<|im_end|>");
        let talk = messages(&[("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]);
        assert!(plain.conversations(&talk, 0).unwrap_err().to_string().contains("room for one"));
        let text = plain.whole_text("xyz").unwrap();
        assert_eq!((text.ids.len(), text.written), (4, vec![Range { start: 1, end: 4 }]));
        assert!(plain.whole_text("").unwrap().written.is_empty());
    }
}
