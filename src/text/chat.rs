//! Chat templates, rendered as transformers renders them.

use super::tokenizer::Tokenizer;
use anyhow::{Context, Result, anyhow, bail, ensure};
use chrono::format::{Item, StrftimeItems};
use chrono::{NaiveDate, NaiveTime};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, Value};
use regex::{Captures, Regex};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub role: String,
    pub content: String,
}

/// A model's chat template, and the special tokens that it may name.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    /// Where it was read, for errors.
    origin: String,
    special: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// From text; `origin` names it in errors.
    pub fn new(source: &str, origin: &str, special: BTreeMap<String, String>) -> ChatTemplate {
        ChatTemplate { source: without_generation_tags(source), origin: origin.to_string(), special }
    }

    /// `chat_template.jinja` of a checkpoint folder, else `chat_template` of its `tokenizer_config.json` (text, or a list of
    /// named templates of which `default` is taken); none if it has neither.
    pub fn from_dir(dir: &Path, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
        let special = tokenizer.special_tokens().clone();
        let path = dir.join("chat_template.jinja");
        if path.is_file() {
            let source = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            return Ok(Some(ChatTemplate::new(&source, &path.display().to_string(), special)));
        }
        let path = dir.join("tokenizer_config.json");
        if !path.is_file() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let config: serde_json::Value =
            serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))?;
        let source = match config.get("chat_template") {
            None | Some(serde_json::Value::Null) => return Ok(None),
            Some(serde_json::Value::String(source)) => source.clone(),
            Some(serde_json::Value::Array(named)) => {
                let default = named.iter().find(|t| t.get("name").is_some_and(|n| n == "default"));
                let source = default.and_then(|t| t.get("template")?.as_str());
                source
                    .ok_or_else(|| anyhow!("{}: chat_template has no template named default", path.display()))?
                    .to_string()
            }
            Some(other) => bail!("{}: chat_template: expected text or a list, got {other}", path.display()),
        };
        Ok(Some(ChatTemplate::new(&source, &path.display().to_string(), special)))
    }

    /// The conversation as the model expects it, with the assistant's turn opened. `variables` are the template's
    /// own, such as `enable_thinking`.
    ///
    /// One differs from transformers: `strftime_now` shows the date given as the variable `strftime_now`
    /// (`"2025-01-31"`) and is not defined without it. A run's prompts must not change with the day it is resumed on;
    /// most templates that ask for the date have one of their own for this case.
    pub fn render(&self, messages: &[Message], variables: &BTreeMap<String, serde_json::Value>) -> Result<String> {
        self.render_turns(messages, variables, true)
    }

    /// [`ChatTemplate::render`], or (`open` false) the conversation as it stands, without another turn.
    pub fn render_turns(
        &self,
        messages: &[Message],
        variables: &BTreeMap<String, serde_json::Value>,
        open: bool,
    ) -> Result<String> {
        let mut env = Environment::new();
        // transformers' settings, and the Python methods that templates call on strings and lists.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(|e| self.failed(&e))?);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_function("raise_exception", |text: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, text))
        });
        env.add_filter("tojson", tojson);
        let mut context: BTreeMap<String, Value> =
            self.special.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect();
        // Present and none in transformers when a conversation has neither.
        context.extend(["tools", "documents"].map(|name| (name.to_string(), Value::from(()))));
        for (name, value) in variables {
            if name == CLOCK {
                let date = parse_date(value)?;
                env.add_function(CLOCK, move |format: String| -> Result<String, Error> {
                    let items: Vec<Item<'_>> = StrftimeItems::new(&format).collect();
                    let known = !items.contains(&Item::Error);
                    let refused = || Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?})"));
                    known.then(|| date.and_time(NaiveTime::MIN).format(&format).to_string()).ok_or_else(refused)
                });
            } else {
                context.insert(name.clone(), Value::from(Serde(value)));
            }
        }
        context.insert("messages".into(), Value::from(Serde(messages)));
        context.insert("add_generation_prompt".into(), Value::from(open));
        env.template_from_str(&self.source).and_then(|t| t.render(context)).map_err(|e| self.failed(&e))
    }

    /// The error with the template's file, its line and what it raised.
    fn failed(&self, e: &Error) -> anyhow::Error {
        let line = e.line().map_or_else(String::new, |l| format!(" line {l}"));
        let reason = e.detail().map_or_else(|| e.to_string(), str::to_string);
        let advice = if e.kind() == ErrorKind::UnknownFunction && reason.contains(CLOCK) {
            ": it asks for today's date; give it a fixed one, variables.strftime_now = \"2025-01-31\""
        } else {
            ""
        };
        anyhow!("the chat template of {}{line} failed: {reason}{advice}", self.origin)
    }
}

/// The template function that shows the date, and the variable that sets it.
const CLOCK: &str = "strftime_now";

fn parse_date(value: &serde_json::Value) -> Result<NaiveDate> {
    let date = value.as_str().and_then(|text| NaiveDate::parse_from_str(text, "%Y-%m-%d").ok());
    date.ok_or_else(|| anyhow!("strftime_now = {value}: expected a date like \"2025-01-31\""))
}

/// `{% generation %}` marks what an assistant wrote, for training masks that are not taken from templates here: its
/// body is rendered as it is. The tag keeps its line and its white-space control.
static GENERATION: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").ok());

fn without_generation_tags(source: &str) -> String {
    let Some(tag) = GENERATION.as_ref() else { return source.to_string() };
    let block = |found: &Captures<'_>| {
        let word = if found.get(2).is_some() { "endif" } else { "if true" };
        format!("{{%{} {word} {}%}}", &found[1], &found[3])
    };
    tag.replace_all(source, block).into_owned()
}

/// Python's `json.dumps`: a space after commas and colons, nothing escaped for HTML.
fn tojson(value: Value, options: Kwargs) -> Result<Value, Error> {
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, "tojson of a variable that is not defined"));
    }
    let failed = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    let indent: Option<usize> = options.get("indent")?;
    options.get::<Option<bool>>("ensure_ascii")?;
    let mut out = Vec::new();
    match indent {
        Some(n) => {
            let spaces = " ".repeat(n.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter)).map_err(failed)?;
        }
        None => {
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonSpacing)).map_err(failed)?;
        }
    }
    Ok(Value::from_safe_string(String::from_utf8_lossy(&out).into_owned()))
}

struct PythonSpacing;

impl serde_json::ser::Formatter for PythonSpacing {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(b": ")
    }
}

/// How a run asks: through the model's chat template, or as plain text for base models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "template", rename_all = "lowercase", deny_unknown_fields)]
pub enum PromptTemplate {
    Chat {
        /// Replaces the problem's own system message, or is put before it where there is none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        system: Option<String>,
        /// Passed to the template, e.g. `enable_thinking = false`.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        variables: BTreeMap<String, serde_json::Value>,
    },
    Plain {
        /// Text with `{problem}` where the last user message goes.
        text: String,
    },
    /// The paper's for Qwen2.5-Math and other Qwen models: the chat template with its system message.
    #[serde(rename = "qwen-math")]
    QwenMath {},
    /// The paper's for Qwen3: the same, with thinking switched off (an empty think block opens the answer).
    Qwen3 {},
    /// The paper's way with OctoThinker's base models: a conversation in plain text.
    OctoThinker {},
}

/// The system message of the paper's Qwen templates.
const BOXED: &str = "Please reason step by step, and put your final answer within \\boxed{}.";
const OCTOTHINKER: &str = "A conversation between User and Assistant. The user asks a question, and the assistant solves it \
     step by step and puts the final answer within \\boxed{}.\nUser: {problem}\nAssistant:";

impl Default for PromptTemplate {
    fn default() -> Self {
        PromptTemplate::Chat { system: None, variables: BTreeMap::new() }
    }
}

impl PromptTemplate {
    const PROBLEM: &'static str = "{problem}";

    /// A named template spelled out; the others as they are.
    pub fn spelled_out(&self) -> PromptTemplate {
        let chat = |variables| PromptTemplate::Chat { system: Some(BOXED.into()), variables };
        match self {
            PromptTemplate::QwenMath {} => chat(BTreeMap::new()),
            PromptTemplate::Qwen3 {} => chat([("enable_thinking".to_string(), false.into())].into()),
            PromptTemplate::OctoThinker {} => PromptTemplate::Plain { text: OCTOTHINKER.into() },
            PromptTemplate::Chat { .. } | PromptTemplate::Plain { .. } => self.clone(),
        }
    }

    pub fn check(&self) -> Result<()> {
        if let PromptTemplate::Plain { text } = self {
            let n = text.matches(Self::PROBLEM).count();
            ensure!(n == 1, "a plain prompt holds {} exactly once, got {n} times in {text:?}", Self::PROBLEM);
        }
        Ok(())
    }

    /// Whether it leaves out turns that say something: a plain prompt shows the last user message alone.
    pub fn leaves_out(&self, messages: &[Message]) -> bool {
        let plain = matches!(self.spelled_out(), PromptTemplate::Plain { .. });
        plain && messages.iter().filter(|m| !m.content.trim().is_empty()).count() > 1
    }

    /// The text that is tokenized. `chat` is the model's template, needed for `template = "chat"`.
    pub fn render(&self, chat: Option<&ChatTemplate>, messages: &[Message]) -> Result<String> {
        self.render_turns(chat, messages, true)
    }

    /// The text with the assistant's next turn opened, or (`open` false) of the conversation as it stands, which only a
    /// chat template can show.
    pub(super) fn render_turns(&self, chat: Option<&ChatTemplate>, messages: &[Message], open: bool) -> Result<String> {
        match self {
            PromptTemplate::Plain { text } => {
                let last = messages.iter().rev().find(|m| m.role == "user").or(messages.last());
                let problem = last.context("a prompt without messages")?;
                Ok(text.replacen(Self::PROBLEM, &problem.content, 1))
            }
            PromptTemplate::Chat { system, variables } => {
                let chat = chat.context(
                    "the model has no chat template (neither chat_template.jinja nor chat_template in tokenizer_config.json): \
                     use a plain one, --plain \"...{problem}...\" or, in a recipe's [prompt], template = \"plain\" with text",
                )?;
                let Some(system) = system else { return chat.render_turns(messages, variables, open) };
                let system = Message { role: "system".into(), content: system.clone() };
                let rest = messages.iter().filter(|m| m.role != "system").cloned();
                chat.render_turns(&std::iter::once(system).chain(rest).collect::<Vec<_>>(), variables, open)
            }
            PromptTemplate::QwenMath {} | PromptTemplate::Qwen3 {} | PromptTemplate::OctoThinker {} => {
                self.spelled_out().render_turns(chat, messages, open)
            }
        }
    }
}

#[cfg(test)]
mod tests;
