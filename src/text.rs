//! Text to tokens and back: the tokenizer, chat templates, and a run's way of asking.

pub mod chat;
pub mod prompt;
pub mod tokenizer;

pub use chat::{ChatTemplate, Message, PromptTemplate};
pub use prompt::PromptEncoder;
pub use tokenizer::Tokenizer;
