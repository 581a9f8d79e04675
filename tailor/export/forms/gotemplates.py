"""The built-in chat templates as Go templates over `.Messages`, the language of Ollama's Modelfile.

Only the built-in templates are translated; a test compares each translation with its Jinja source. Go templates cannot strip
white space: if the Jinja template strips messages, both agree only on messages without surrounding white space.
Ollama's tokenizer adds the BOS itself, so no translation begins with it.
"""

from __future__ import annotations

from dataclasses import dataclass

from tailor.encode.template import builtin_templates, load_template
from tailor.errors import ModelError

_SYSTEM_FIRST = "{{ if and $.System (eq $i 1) }}"


@dataclass(frozen=True)
class GoTemplate:
    """A Go template. text: with the placeholders EOS and BOS. bos: whether the prompt begins with the BOS."""

    text: str
    bos: bool
    strips: bool
    """Whether the Jinja template strips white space around messages."""


TEMPLATES = {
    "chatml": GoTemplate(
        '{{ range .Messages }}{{ if or .Content (ne .Role "system") }}<|im_start|>{{ .Role }}\n'
        "{{ .Content }}<|im_end|>\n{{ end }}{{ end }}<|im_start|>assistant\n",
        bos=False,
        strips=False,
    ),
    "phi-3": GoTemplate(
        "{{ range .Messages }}<|{{ .Role }}|>\n{{ .Content }}<|end|>\n{{ end }}<|assistant|>\n",
        bos=False,
        strips=False,
    ),
    "zephyr": GoTemplate(
        "{{ range .Messages }}<|{{ .Role }}|>\n{{ .Content }}EOS\n{{ end }}<|assistant|>\n",
        bos=False,
        strips=False,
    ),
    "gritlm": GoTemplate(
        "{{ range $i, $m := .Messages }}{{ if $i }}\n{{ end }}<|{{ $m.Role }}|>\n{{ $m.Content }}"
        '{{ if eq $m.Role "assistant" }}EOS{{ end }}{{ end }}\n<|assistant|>\n',
        bos=True,
        strips=True,
    ),
    "llama-3": GoTemplate(
        "{{ range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n{{ .Content }}<|eot_id|>{{ end }}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        bos=True,
        strips=True,
    ),
    "gemma": GoTemplate(
        '{{ range $i, $m := .Messages }}{{ if eq $m.Role "user" }}<start_of_turn>user\n'
        f"{_SYSTEM_FIRST}{{{{ $.System }}}}\n\n{{{{ end }}}}{{{{ $m.Content }}}}<end_of_turn>\n"
        '{{ else if eq $m.Role "assistant" }}<start_of_turn>model\n{{ $m.Content }}<end_of_turn>\n{{ end }}{{ end }}'
        "<start_of_turn>model\n",
        bos=True,
        strips=True,
    ),
    "mistral": GoTemplate(
        '{{ range $i, $m := .Messages }}{{ if eq $m.Role "user" }}[INST] '
        f"{_SYSTEM_FIRST}{{{{ $.System }}}}\n\n{{{{ end }}}}{{{{ $m.Content }}}}[/INST]"
        '{{ else if eq $m.Role "assistant" }} {{ $m.Content }}EOS{{ end }}{{ end }}',
        bos=True,
        strips=True,
    ),
    "llama-2": GoTemplate(
        '{{ range $i, $m := .Messages }}{{ if eq $m.Role "user" }}{{ if gt $i 1 }}BOS{{ end }}[INST] '
        f"{_SYSTEM_FIRST}<<SYS>>\n{{{{ $.System }}}}\n<</SYS>>\n\n{{{{ end }}}}{{{{ $m.Content }}}} [/INST]"
        '{{ else if eq $m.Role "assistant" }} {{ $m.Content }} EOS{{ end }}{{ end }}',
        bos=True,
        strips=True,
    ),
    "vicuna": GoTemplate(
        "{{ if .System }}{{ .System }}{{ else }}A chat between a curious user and an artificial intelligence "
        "assistant. The assistant gives helpful, detailed, and polite answers to the user's questions.{{ end }} "
        '{{ range .Messages }}{{ if eq .Role "user" }}USER: {{ .Content }} '
        '{{ else if eq .Role "assistant" }}ASSISTANT: {{ .Content }}EOS{{ end }}{{ end }}ASSISTANT:',
        bos=True,
        strips=False,
    ),
    "alpaca": GoTemplate(
        "{{ if .System }}{{ .System }}{{ else }}Below is an instruction that describes a task. Write a response that "
        "appropriately completes the request.{{ end }}\n\n"
        '{{ range .Messages }}{{ if eq .Role "user" }}### Instruction:\n{{ .Content }}\n\n'
        '{{ else if eq .Role "assistant" }}### Response:\n{{ .Content }}EOS\n\n{{ end }}{{ end }}### Response:\n',
        bos=True,
        strips=True,
    ),
}


def translated(text: str, specials: dict[str, str]) -> tuple[str, GoTemplate]:
    """The Go template for a Jinja template. ModelError when it has no exact translation.

    specials: the tokenizer's `bos_token` and `eos_token`.
    """
    known = {load_template(name).text.strip(): name for name in builtin_templates()}
    name = known.get(text.strip())
    if name is None:
        raise ModelError(
            "the run's chat template is not a built-in one, and only built-in ones have a translation for Ollama",
            hint=f"use {', '.join(TEMPLATES)}, or export with --as huggingface and write the Modelfile yourself",
        )
    if name not in TEMPLATES:
        raise ModelError(
            f"the chat template {name} has no exact translation for Ollama: it depends on more than roles and texts",
            hint=f"use {', '.join(TEMPLATES)}, or export with --as huggingface and write the Modelfile yourself",
        )
    template = TEMPLATES[name]
    eos, bos = specials.get("eos_token", ""), specials.get("bos_token", "")
    return template.text.replace("EOS", eos).replace("BOS", bos), template
