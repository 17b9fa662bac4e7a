"""Chat templates rendered by transformers, for the text tests.

    python tools/golden/make_renderings.py [tests/golden/chat]

The folder holds templates as the families write them (`*.jinja`); this writes `renderings.json` beside them: for each
case the template's file, its special tokens, extra variables, the messages, and the text that
`apply_chat_template(add_generation_prompt=True)` gives.
"""
import json
import pathlib
import sys

import transformers
from transformers.utils.chat_template_utils import render_jinja_template

SYSTEM = {"role": "system", "content": " You are terse. "}
USER = {"role": "user", "content": "What is 1 < 2 & 'x'? \u00e9\u4e2d\n"}
SECOND = {"role": "user", "content": "  And 3?"}
PLAIN = {"role": "assistant", "content": "Yes. "}
THOUGHT = {"role": "assistant", "content": "<think>\nOne is less.\n</think>\n\nYes."}
QWEN = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
LLAMA = {"bos_token": "<s>", "eos_token": "</s>"}
LLAMA3 = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
DATED = {"date_string": "01 Feb 2025"}
CASES = [
    ("qwen3", QWEN, {}, [USER]),
    ("qwen3", QWEN, {"enable_thinking": False}, [SYSTEM, USER]),
    ("qwen3", QWEN, {"enable_thinking": True}, [USER, THOUGHT, SECOND]),
    ("qwen3", QWEN, {}, [SYSTEM, USER, THOUGHT, SECOND, THOUGHT]),
    ("qwen2.5", QWEN, {}, [USER]),
    ("qwen2.5", QWEN, {}, [SYSTEM, USER, PLAIN, SECOND]),
    ("chatml", QWEN, {}, [USER]),
    ("chatml", QWEN, {}, [SYSTEM, USER, PLAIN, SECOND]),
    ("llama2", LLAMA, {}, [USER, PLAIN, SECOND]),
    ("llama2", LLAMA, {}, [SYSTEM, USER]),
    ("llama3", LLAMA3, {}, [USER, PLAIN, SECOND]),
    ("llama3.2", LLAMA3, DATED, [SYSTEM, USER]),
    ("llama3.2", LLAMA3, DATED, [USER, PLAIN, SECOND]),
]
# The paper's Qwen templates (its section 6): what `template = NAME` of a prompt must render.
BOXED = {"role": "system", "content": "Please reason step by step, and put your final answer within \\boxed{}."}
PAPER = [
    ("qwen2.5", QWEN, {}, "qwen-math"),
    ("qwen3", QWEN, {"enable_thinking": False}, "qwen3"),
    ("qwen2.5", QWEN, {}, "qwen3"),
]


def main():
    out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/golden/chat")
    cases = []
    for name, special, variables, messages in CASES:
        template = (out / f"{name}.jinja").read_text()
        rendered, _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=True,
                                            **special, **variables)
        cases.append(dict(template=f"{name}.jinja", special=special, variables=variables, messages=messages,
                          expected=rendered[0]))
    paper = []
    for name, special, variables, prompt in PAPER:
        template = (out / f"{name}.jinja").read_text()
        rendered, _ = render_jinja_template([[BOXED, USER]], chat_template=template, add_generation_prompt=True,
                                            **special, **variables)
        paper.append(dict(template=f"{name}.jinja", special=special, prompt=dict(template=prompt),
                          problem=USER["content"], expected=rendered[0]))
    golden = dict(made_with=f"transformers {transformers.__version__}", cases=cases, paper=paper)
    (out / "renderings.json").write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
