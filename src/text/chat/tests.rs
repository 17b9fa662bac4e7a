//! Renderings as transformers 5 gives them for the same templates and messages.

use super::*;

const CHATML: &str = "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}";

fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into() }
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, "tokenizer_config.json", [("bos_token".to_string(), "<s>".to_string())].into())
}

#[test]
fn thinking_is_switched_off_by_a_variable() {
    let t = template(CHATML);
    let messages = [message("system", "S"), message("user", "1 < 2?")];
    let plain = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n1 < 2?<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(t.render(&messages, &BTreeMap::new()).unwrap(), plain);
    let off = [("enable_thinking".to_string(), serde_json::json!(false))].into();
    assert_eq!(t.render(&messages, &off).unwrap(), format!("{plain}<think>\n\n</think>\n\n"));
}

#[test]
fn python_methods_blocks_and_json_work_as_in_transformers() {
    let t = template(
        "{{ bos_token }}\n{% for m in messages %}\n  {% if m.content.startswith('x') %}\n{{ m.content.strip().split('|')[-1] | tojson }}\n  \
         {% endif %}\n{% endfor %}\n{{ {'a': [1, '<b>']} | tojson }}",
    );
    // trim_blocks drops the newline after a block, lstrip_blocks the space before it.
    let rendered = t.render(&[message("user", "x|y "), message("user", "z")], &BTreeMap::new()).unwrap();
    assert_eq!(rendered, "<s>\n\"y\"\n{\"a\": [1, \"<b>\"]}");
}

#[test]
fn a_failing_template_names_its_file_line_and_reason() {
    let raising = template("line one\n{{ raise_exception('roles must alternate') }}");
    let error = raising.render(&[], &BTreeMap::new()).unwrap_err().to_string();
    assert!(
        error.contains("tokenizer_config.json") && error.contains("line 2") && error.contains("alternate"),
        "{error}"
    );
    assert!(template("{% if %}").render(&[], &BTreeMap::new()).is_err());
}

#[test]
fn system_messages_and_plain_prompts() {
    let chat = template(CHATML);
    let own = [message("system", "old"), message("user", "q")];
    let replaced = PromptTemplate::Chat { system: Some("new".into()), variables: BTreeMap::new() };
    let text = replaced.render(Some(&chat), &own).unwrap();
    assert!(text.starts_with("<|im_start|>system\nnew<|im_end|>\n<|im_start|>user\nq") && !text.contains("old"));
    assert!(PromptTemplate::default().render(Some(&chat), &own).unwrap().contains("old"));
    let plain = PromptTemplate::Plain { text: "Q: {problem}\nA:".into() };
    assert_eq!(plain.render(None, &own).unwrap(), "Q: q\nA:");
    assert!(PromptTemplate::Plain { text: "no place".into() }.check().is_err());
    assert!(PromptTemplate::default().render(None, &own).unwrap_err().to_string().contains("plain"));
}

/// A fixture's template by its file name.
fn fixture(name: &str) -> &'static str {
    match name {
        "qwen3.jinja" => include_str!("../../../tests/golden/chat/qwen3.jinja"),
        "qwen2.5.jinja" => include_str!("../../../tests/golden/chat/qwen2.5.jinja"),
        "chatml.jinja" => include_str!("../../../tests/golden/chat/chatml.jinja"),
        "llama2.jinja" => include_str!("../../../tests/golden/chat/llama2.jinja"),
        "llama3.jinja" => include_str!("../../../tests/golden/chat/llama3.jinja"),
        "llama3.2.jinja" => include_str!("../../../tests/golden/chat/llama3.2.jinja"),
        other => panic!("no fixture {other}"),
    }
}

#[derive(Deserialize)]
struct Rendering {
    template: String,
    special: BTreeMap<String, String>,
    variables: BTreeMap<String, serde_json::Value>,
    messages: Vec<Message>,
    expected: String,
}

#[test]
fn templates_of_the_families_render_as_transformers_renders_them() {
    #[derive(Deserialize)]
    struct Golden {
        made_with: String,
        cases: Vec<Rendering>,
    }
    let golden: Golden = serde_json::from_str(include_str!("../../../tests/golden/chat/renderings.json")).unwrap();
    assert!(golden.made_with.starts_with("transformers") && golden.cases.len() >= 10);
    for case in golden.cases {
        let template = ChatTemplate::new(fixture(&case.template), &case.template, case.special);
        assert_eq!(template.render(&case.messages, &case.variables).unwrap(), case.expected, "{}", case.template);
    }
}

#[derive(Deserialize)]
struct PaperRendering {
    template: String,
    special: BTreeMap<String, String>,
    prompt: PromptTemplate,
    problem: String,
    expected: String,
}

#[test]
fn the_papers_templates_render_as_transformers_renders_them() {
    #[derive(Deserialize)]
    struct Golden {
        paper: Vec<PaperRendering>,
    }
    let golden: Golden = serde_json::from_str(include_str!("../../../tests/golden/chat/renderings.json")).unwrap();
    assert_eq!(golden.paper.len(), 3);
    for case in golden.paper {
        let template = ChatTemplate::new(fixture(&case.template), &case.template, case.special);
        let asked = [message("system", "another"), message("user", &case.problem)];
        assert_eq!(case.prompt.render(Some(&template), &asked).unwrap(), case.expected, "{:?}", case.prompt);
        case.prompt.check().unwrap();
        case.prompt.spelled_out().check().unwrap();
    }
    let plain = PromptTemplate::OctoThinker {}.render(None, &[message("user", "1+1?")]).unwrap();
    assert!(plain.ends_with("\\boxed{}.\nUser: 1+1?\nAssistant:"), "{plain}");
    assert!(serde_json::from_str::<PromptTemplate>(r#"{"template": "qwen3", "system": "x"}"#).is_err());
}

#[test]
fn the_date_is_the_recipes_and_never_todays() {
    let llama = template(fixture("llama3.2.jinja"));
    let dated = |variables: BTreeMap<String, serde_json::Value>| llama.render(&[message("user", "q")], &variables);
    // Without one, the template's own.
    assert!(dated(BTreeMap::new()).unwrap().contains("Today Date: 26 Jul 2024\n"));
    let date = |text: &str| [("strftime_now".to_string(), serde_json::json!(text))].into();
    assert!(dated(date("2025-01-31")).unwrap().contains("Today Date: 31 Jan 2025\n"));
    assert!(dated(date("2025-02-31")).is_err());
    let asking = template("{{ strftime_now('%Y') }}");
    let error = asking.render(&[], &BTreeMap::new()).unwrap_err().to_string();
    assert!(error.contains("variables.strftime_now"), "{error}");
}

#[test]
fn generation_tags_keep_their_body_and_their_white_space() {
    let t = template("a {%- generation %}\nb\n {%- endgeneration -%}\n c{% generation -%} d{% endgeneration %}\ne");
    assert_eq!(t.render(&[], &BTreeMap::new()).unwrap(), "abcde");
    // Not a tag: text and names that hold the word.
    let t = template(
        "generation {{ add_generation_prompt is defined }}{% if add_generation_prompt %} endgeneration{% endif %}",
    );
    assert!(t.render(&[], &BTreeMap::new()).unwrap().ends_with(" endgeneration"));
}

#[test]
fn tools_are_none_and_what_is_not_defined_is_no_json() {
    let t = template("{{ 'none' if tools is none and documents is none }}");
    assert_eq!(t.render(&[], &BTreeMap::new()).unwrap(), "none");
    assert!(template("{{ nowhere | tojson }}").render(&[], &BTreeMap::new()).is_err());
}

#[test]
fn templates_are_found_where_transformers_looks() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::byte_level().unwrap();
    tokenizer.save(dir.path()).unwrap();
    let found = || ChatTemplate::from_dir(dir.path(), &tokenizer);
    let config = |template: serde_json::Value| {
        let config = serde_json::json!({ "chat_template": template });
        fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    };
    let rendered = || found().unwrap().unwrap().render(&[], &BTreeMap::new()).unwrap();
    assert!(found().unwrap().is_none());
    config(serde_json::json!("from the config, {{ eos_token }}"));
    assert_eq!(rendered(), "from the config, <|endoftext|>");
    config(serde_json::json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "named"}]));
    assert_eq!(rendered(), "named");
    config(serde_json::json!([{"name": "tool_use", "template": "t"}]));
    assert!(found().unwrap_err().to_string().contains("default"));
    config(serde_json::json!(5));
    assert!(found().unwrap_err().to_string().contains("tokenizer_config.json"));
    fs::write(dir.path().join("chat_template.jinja"), "from the file").unwrap();
    assert_eq!(rendered(), "from the file");
}
