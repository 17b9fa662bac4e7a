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
