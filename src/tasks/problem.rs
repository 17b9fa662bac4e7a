//! One problem with a verifiable answer.

use super::seed::stable_hash;
use crate::text::chat::Message;

/// A prompt as messages, and the answer that a response is judged against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Hash of the source and the messages: the same problem has the same id in every run, and its own seeds.
    pub id: u64,
    pub messages: Vec<Message>,
    pub gold: String,
    pub source: String,
    /// A worked solution, where there is one to imitate.
    pub worked: Option<String>,
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
        Problem { id: stable_hash(&key), messages, gold, source: source.to_string(), worked }
    }
}
