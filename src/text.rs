//! Text to tokens and back: the tokenizer, chat templates, a run's way of asking, and tokens to look at one by one.

pub mod chat;
pub mod conversation;
pub mod pieces;
pub mod prompt;
pub mod tokenizer;

pub use chat::{ChatTemplate, Message, PromptTemplate};
pub use prompt::PromptEncoder;
pub use tokenizer::Tokenizer;
