"""Chat templates of model families, and where an assistant's turn begins and ends in their texts.

`BUILT_IN` are tailor's own templates. `PUBLISHED` were written here after the published ones, without
`{% generation %}` markers; where `fixtures/published.json` has what the published one writes, they are held to it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.tokenizers import bpe_tokenizer


@dataclass(frozen=True)
class Family:
    """header: the texts that an assistant's turn follows. end: the token that ends it. call_end: the one that ends it after a
    tool call, if it is another one. tags: its special tokens.

    template: Jinja text; empty for a built-in template. adds_bos: whether the tokenizer adds its BOS to plain text.
    fixture: the entry of published.json that the template is compared with.
    """

    header: tuple[str, ...]
    end: str
    tags: tuple[str, ...] = ()
    template: str = ""
    bos: str = "<s>"
    eos: str = "</s>"
    adds_bos: bool = False
    fixture: str = ""
    call_end: str = ""

    def save(self, folder: Path) -> Path:
        """A byte-level tokenizer with the special tokens of the family, beside its template."""
        extra = tuple(tag for tag in (self.bos, self.eos) if tag not in ("<s>", "</s>"))
        bpe_tokenizer(
            folder, tags=(*self.tags, *extra), chat_template=self.template or None, bos=self.adds_bos
        )
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text()) | {"bos_token": self.bos, "eos_token": self.eos}
        path.write_text(json.dumps(config))
        return folder


_IM = ("<|im_start|>", "<|im_end|>")
_CHATML = ("<|im_start|>assistant\n",)
_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_LLAMA_3 = ("<|start_header_id|>assistant<|end_header_id|>\n\n",)
_INST = ("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")  # fmt: skip
_ZEPHYR = ("<|assistant|>\n",)
_PHI_3 = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
_HARMONY = ("<|start|>", "<|message|>", "<|end|>", "<|channel|>", "<|constrain|>", "<|call|>")
_TURN = ("<start_of_turn>", "<end_of_turn>")

BUILT_IN = {
    "alpaca": Family(("### Response:\n",), "</s>", adds_bos=True),
    "baichuan": Family(("<reserved_103>",), "</s>", ("<reserved_102>", "<reserved_103>")),
    "baichuan2": Family(("<reserved_107>",), "</s>", ("<reserved_106>", "<reserved_107>")),
    "chatglm2": Family(("答：",), "</s>", ("[gMASK]",)),
    "chatglm3": Family(("<|assistant|>",), "</s>", ("[gMASK]", "<|system|>", "<|user|>", "<|assistant|>")),
    "chatml": Family(_CHATML, "<|im_end|>", _IM),
    "deepseek-v2": Family(("Assistant:",), "</s>", adds_bos=True),
    "gemma": Family(("<start_of_turn>model\n",), "<end_of_turn>", _TURN, adds_bos=True),
    "gpt-oss": Family(("<|start|>assistant",), "<|return|>", _HARMONY, eos="<|return|>", call_end="<|call|>"),
    "gritlm": Family(_ZEPHYR, "</s>"),
    "internlm": Family(("<|Bot|>:",), "</s>"),
    "llama-2": Family(("[/INST]",), "</s>", adds_bos=True),
    "llama-3": Family(_LLAMA_3, "<|eot_id|>", _HEADERS, bos="<|begin_of_text|>", eos="<|end_of_text|>"),
    "llama-3.1": Family(_LLAMA_3, "<|eot_id|>", _HEADERS, bos="<|begin_of_text|>", eos="<|eot_id|>"),
    "minicpm": Family(("<AI>",), "</s>", ("<用户>", "<AI>")),
    "mistral": Family(("[/INST]", "[/TOOL_RESULTS]"), "</s>", _INST, adds_bos=True),
    "mistral-v3-tekken": Family(("[/INST]", "[/TOOL_RESULTS]"), "</s>", _INST, adds_bos=True),
    "mistral-v7": Family(("[/INST]",), "</s>", (*_INST, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")),
    "orion": Family(("Assistant: </s>",), "</s>"),
    "phi-3": Family(_ZEPHYR, "<|end|>", _PHI_3, eos="<|endoftext|>"),
    "phi-4": Family(
        ("<|im_start|>assistant<|im_sep|>",), "<|im_end|>", (*_IM, "<|im_sep|>"), eos="<|im_end|>"
    ),
    "qwen-2.5": Family(_CHATML, "<|im_end|>", _IM, eos="<|im_end|>"),
    "qwen-3": Family(_CHATML, "<|im_end|>", (*_IM, "<think>", "</think>"), eos="<|im_end|>"),
    "vicuna": Family(("ASSISTANT:",), "</s>", adds_bos=True),
    "xverse": Family(("Assistant:",), "</s>"),
    "zephyr": Family(_ZEPHYR, "</s>", adds_bos=True),
    "ziya2": Family(("<bot>:",), "</s>"),
}

_ALTERNATING = (
    "{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}"
    "{%- for message in messages -%}{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif -%}{%- endfor -%}"
)
_PROMPT = "{%- if add_generation_prompt -%}{{ 'HEADER' }}{%- endif -%}"
_EACH = "{%- for message in messages -%}BODY{%- endfor -%}"


def _turns(body: str, header: str, before: str = "") -> str:
    escaped = header.replace("\n", "\\n")
    return before + _EACH.replace("BODY", body) + _PROMPT.replace("HEADER", escaped)


_CHATML_TURN = "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
_QWEN_3 = (
    "{%- set ns = namespace(last=messages|length - 1) -%}"
    "{%- for message in messages -%}{%- if message.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- for message in messages -%}{%- if message.role == 'assistant' -%}"
    "{%- set content = message.content -%}{%- set thought = '' -%}"
    "{%- if '</think>' in content -%}"
    "{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}{%- endif -%}"
    "{{ '<|im_start|>assistant\\n' }}"
    "{%- if loop.index0 > ns.last and (loop.last or thought) -%}"
    "{{ '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}"
    "{%- else -%}{{ content }}{%- endif -%}{{ '<|im_end|>\\n' }}"
    "{%- else -%}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
_ROLE_TURN = (
    "{%- if message['role'] == 'assistant' -%}"
    "{{ '<|assistant|>\\n' + message['content'] + eos_token }}{%- if not loop.last -%}{{ '\\n' }}{%- endif -%}"
    "{%- else -%}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '\\n' }}{%- endif -%}"
)
_PHI_3_TURN = "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
_COMMAND_R = (
    "{{ '<|START_OF_TURN_TOKEN|><|' + {'user': 'USER', 'assistant': 'CHATBOT', 'system': 'SYSTEM'}[message['role']]"
    " + '_TOKEN|>' + message['content'].strip() + '<|END_OF_TURN_TOKEN|>' }}"
)
_CHATBOT = "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
_DEEPSEEK = (
    "{%- if message['role'] == 'user' -%}{{ '<｜User｜>' + message['content'] }}"
    "{%- elif message['role'] == 'assistant' -%}{{ '<｜Assistant｜>' + message['content'].split('</think>')[-1] + eos_token }}"
    "{%- endif -%}"
)
_SYSTEM_FIRST = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{{ messages[0]['content'] }}{%- endif -%}"
)

PUBLISHED = {
    "chatml-plain": Family(_CHATML, "<|im_end|>", _IM, _turns(_CHATML_TURN, _CHATML[0]), fixture="chatml"),
    "internlm2": Family(_CHATML, "<|im_end|>", _IM, "{{ bos_token }}" + _turns(_CHATML_TURN, _CHATML[0])),
    "smollm2": Family(
        _CHATML,
        "<|im_end|>",
        _IM,
        _turns(
            "{%- if loop.first and messages[0]['role'] != 'system' -%}"
            "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}"
            "{%- endif -%}" + _CHATML_TURN,
            _CHATML[0],
        ),
        bos="<|im_start|>",
        eos="<|im_end|>",
    ),
    "qwen-3-published": Family(
        _CHATML, "<|im_end|>", (*_IM, "<think>", "</think>"), _QWEN_3, eos="<|im_end|>", fixture="qwen-3"
    ),
    "llama-2-published": Family(
        ("[/INST]",),
        "</s>",
        template=(
            "{%- if messages[0]['role'] == 'system' -%}{%- set turns = messages[1:] -%}"
            "{%- set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' -%}"
            "{%- else -%}{%- set turns = messages -%}{%- set system = '' -%}{%- endif -%}"
            "{%- for message in turns -%}{%- if message['role'] == 'user' -%}"
            "{{ bos_token + '[INST] ' + ((system if loop.first else '') + message['content']).strip() + ' [/INST]' }}"
            "{%- else -%}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{%- endif -%}{%- endfor -%}"
        ),
        adds_bos=True,
        fixture="llama-2",
    ),
    "llama-3-published": Family(
        _LLAMA_3,
        "<|eot_id|>",
        _HEADERS,
        _turns(
            "{%- set text = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim"
            " + '<|eot_id|>' -%}{{ (bos_token if loop.first else '') + text }}",
            _LLAMA_3[0],
        ),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        fixture="llama-3",
    ),
    "mistral-v1": Family(
        ("[/INST]",),
        "</s>",
        template=_turns(
            "{%- if message['role'] == 'user' -%}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
            "{%- else -%}{{ message['content'] + eos_token }}{%- endif -%}",
            "",
            "{{ bos_token }}" + _ALTERNATING,
        ),
        adds_bos=True,
    ),
    "gemma-2": Family(
        ("<start_of_turn>model\n",),
        "<end_of_turn>",
        _TURN,
        _turns(
            "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
            "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}",
            "<start_of_turn>model\n",
            "{{ bos_token }}" + _ALTERNATING,
        ),
        adds_bos=True,
        fixture="gemma",
    ),
    "phi-3-published": Family(
        _ZEPHYR,
        "<|end|>",
        _PHI_3,
        _EACH.replace("BODY", _PHI_3_TURN)
        + "{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- else -%}{{ eos_token }}{%- endif -%}",
        eos="<|endoftext|>",
        fixture="phi-3",
    ),
    "zephyr-published": Family(
        _ZEPHYR,
        "</s>",
        template=_turns(
            "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}", _ZEPHYR[0]
        ),
        adds_bos=True,
        fixture="zephyr",
    ),
    "stablelm-2": Family(
        _ZEPHYR,
        "<|endoftext|>",
        ("<|endoftext|>",),
        _turns("{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}", _ZEPHYR[0]),
        bos="<|endoftext|>",
        eos="<|endoftext|>",
    ),
    "tulu-3": Family(_ZEPHYR, "</s>", template=_turns(_ROLE_TURN, _ZEPHYR[0])),
    "olmo-2": Family(
        _ZEPHYR,
        "<|endoftext|>",
        template="{{ bos_token }}" + _turns(_ROLE_TURN, _ZEPHYR[0]),
        bos="<|endoftext|>",
        eos="<|endoftext|>",
    ),
    "command-r": Family(
        (_CHATBOT,),
        "<|END_OF_TURN_TOKEN|>",
        ("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"),
        "{{ bos_token }}" + _turns(_COMMAND_R, _CHATBOT),
        bos="<BOS_TOKEN>",
        eos="<|END_OF_TURN_TOKEN|>",
    ),
    "deepseek-v3": Family(
        ("<｜Assistant｜>",),
        "<｜end▁of▁sentence｜>",
        ("<｜User｜>", "<｜Assistant｜>"),
        _turns(_DEEPSEEK, "<｜Assistant｜>", _SYSTEM_FIRST),
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
    ),
    "granite-3": Family(
        ("<|start_of_role|>assistant<|end_of_role|>",),
        "<|end_of_text|>",
        ("<|start_of_role|>", "<|end_of_role|>"),
        _turns(
            "{{ '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\\n' }}",
            "<|start_of_role|>assistant<|end_of_role|>",
        ),
        bos="<|end_of_text|>",
        eos="<|end_of_text|>",
    ),
    "exaone-3.5": Family(
        ("[|assistant|]",),
        "[|endofturn|]",
        ("[|system|]", "[|user|]", "[|assistant|]"),
        _turns(
            "{{ '[|' + message['role'] + '|]' + message['content'] }}"
            "{{- '\\n' if message['role'] == 'user' else '[|endofturn|]\\n' }}",
            "[|assistant|]",
        ),
        bos="[BOS]",
        eos="[|endofturn|]",
    ),
}

FAMILIES = {**BUILT_IN, **PUBLISHED}
