//! Rows to imitate, in the spellings that TRL's trainers read: conversations, a prompt with its completion, plain text.

use super::dataset::{empty, kind, place, values};
use crate::text::chat::Message;
use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use std::path::Path;

/// Keys of what is imitated, and of what comes before it.
const RESPONSE: [&str; 3] = ["completion", "response", "worked"];
const PROMPT: [&str; 4] = ["prompt", "problem", "question", "input"];

/// One row to imitate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImitationRow {
    /// `{"messages": [...]}`: every turn of the assistant's from message `from` on; or `{"prompt", "completion"}`, where what
    /// comes before `from` is the prompt.
    Conversation { messages: Vec<Message>, from: usize },
    /// `{"text": "..."}`: all of it.
    Text(String),
}

/// Rows of a `.parquet` or JSONL file. The first bad row is an error that names it.
pub fn read_imitation(path: &Path) -> Result<Vec<ImitationRow>> {
    let row = |numbered: Result<(usize, Result<Value>)>| {
        let (line, value) = numbered?;
        value.and_then(|value| parse(&value)).with_context(|| place(path, line))
    };
    let rows = values(path)?.map(row).collect::<Result<Vec<ImitationRow>>>()?;
    if rows.is_empty() { Err(empty(path)) } else { Ok(rows) }
}

fn parse(value: &Value) -> Result<ImitationRow> {
    if !value.is_object() {
        bail!("expected a JSON object, got {}", kind(value));
    }
    // Columns of a table that this row leaves empty are null.
    let field = |key: &str| value.get(key).filter(|v| !v.is_null());
    if let Some(messages) = field("messages") {
        return Ok(ImitationRow::Conversation { messages: turns("messages", messages, "user")?, from: 0 });
    }
    let first = |keys: &[&'static str]| keys.iter().find_map(|key| Some((*key, field(key)?)));
    match (first(&PROMPT), first(&RESPONSE), field("text")) {
        (Some((prompt, asked)), Some((response, answered)), _) => {
            let mut messages = turns(prompt, asked, "user")?;
            let from = messages.len();
            messages.extend(turns(response, answered, "assistant")?);
            Ok(ImitationRow::Conversation { messages, from })
        }
        (_, None, Some(Value::String(text))) => Ok(ImitationRow::Text(text.clone())),
        (_, None, Some(other)) => bail!("text: expected text, got {}", kind(other)),
        // Counted as a row without a response, which is what it is.
        (Some((prompt, asked)), None, None) => {
            let messages = turns(prompt, asked, "user")?;
            Ok(ImitationRow::Conversation { from: messages.len(), messages })
        }
        (None, ..) => bail!("nothing to imitate: expected messages, or a prompt with a completion, or text"),
    }
}

/// Text is one message of `role`.
fn turns(key: &str, value: &Value, role: &str) -> Result<Vec<Message>> {
    match value {
        Value::String(text) => Ok(vec![Message { role: role.into(), content: text.clone() }]),
        Value::Array(_) => serde_json::from_value(value.clone())
            .map_err(|e| anyhow!("{key}: expected a list of {{role, content}} with text in both: {e}")),
        other => bail!("{key}: expected text or a list of {{role, content}}, got {}", kind(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<ImitationRow>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        std::fs::write(&path, text).unwrap();
        read_imitation(&path)
    }

    #[test]
    fn spellings_of_rows() {
        let rows = read(concat!(
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#,
            "\n",
            r#"{"prompt": "a", "completion": "b", "text": null}"#,
            "\n",
            r#"{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}"#,
            "\n",
            r#"{"text": "ab"}"#,
            "\n",
            r#"{"question": "a"}"#,
            "\n",
        ))
        .unwrap();
        let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
        let both = vec![message("user", "a"), message("assistant", "b")];
        let conversation = |from| ImitationRow::Conversation { messages: both.clone(), from };
        assert_eq!(rows[..3], [conversation(0), conversation(1), conversation(1)]);
        assert_eq!(rows[3], ImitationRow::Text("ab".into()));
        assert_eq!(rows[4], ImitationRow::Conversation { messages: both[..1].to_vec(), from: 1 });
    }

    #[test]
    fn bad_rows_are_named() {
        for (text, expected) in [
            ("", "empty"),
            ("{\"text\": \"a\"}\n[]", "line 2"),
            ("{\"text\": \"a\"}\n{\"text\": 1}", "line 2: text: expected text, got a number"),
            ("{\"messages\": [1]}", "line 1: messages: expected a list of {role, content}"),
            ("{\"messages\": [{\"role\": \"user\", \"content\": [1]}]}", "with text in both"),
            ("{\"completion\": \"b\"}", "nothing to imitate"),
            ("{\"prompt\": 3, \"completion\": \"b\"}", "prompt: expected text"),
            ("{\"text\"", "one JSON object a line"),
        ] {
            let error = format!("{:#}", read(text).unwrap_err());
            assert!(error.contains(expected) && error.contains("rows.jsonl"), "{text}: {error}");
        }
    }
}
