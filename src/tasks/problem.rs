//! One problem with a verifiable answer.

use super::seed::stable_hash;
use crate::text::chat::Message;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A prompt as messages, and the answer that a response is judged against.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Hash of the source and the messages: the same problem has the same id in every run, and its own seeds.
    pub id: u64,
    pub messages: Vec<Message>,
    pub gold: String,
    pub source: String,
    /// A worked solution, where there is one to imitate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worked: Option<String>,
    /// What else its row held, for rewards of the user's own (unit tests, say).
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub extra: Value,
}

impl Problem {
    pub fn new(source: &str, messages: Vec<Message>, gold: String, worked: Option<String>) -> Problem {
        let mut key = source.as_bytes().to_vec();
        for message in &messages {
            for part in [&message.role, &message.content] {
                key.push(0);
                key.extend_from_slice(part.as_bytes());
            }
        }
        Problem { id: stable_hash(&key), messages, gold, source: source.to_string(), worked, extra: Value::Null }
    }

    /// The same problem with more beside it; its id stays.
    pub fn with_extra(self, extra: Value) -> Problem {
        Problem { extra, ..self }
    }

    /// What the user asks: the last user message, else the last.
    pub fn question(&self) -> &str {
        let last = self.messages.iter().rev().find(|m| m.role == "user").or(self.messages.last());
        last.map_or("", |m| &m.content)
    }
}
