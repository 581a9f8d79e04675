"""Rows as `tailor data preview` shows them: what is learned stands between « and »."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tailor.encode.prepare import Prepared, prepare_all
from tailor.encode.preview import preview
from tailor.spec.data import Data
from tailor.spec.methods.sft import Sft
from tailor.spec.methods.union import Method
from tailor.spec.model import Model
from tests.helpers.models import byte_tokenizer

OPENS_THINK = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""As DeepSeek-R1's: the generation prompt opens the reasoning, and the text of a turn leaves it out."""

LAST_THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen 3's: only the last answer has its reasoning."""

MARKS_ALL = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n{% generation %}"
    "{% if m.thinking %}<think>{{ m.thinking }}</think>{% endif %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Marked, with the reasoning of all answers, under gpt-oss's key."""


class Rows:
    """Rows of a file with a tiny tokenizer, its ChatML template or another one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = Model(path=str(byte_tokenizer(folder / "model")))

    def data(self, rows: list[Any], *, template: str | None = None, **data: Any) -> Data:
        path = self.folder / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if template is not None and "{" in template:
            (self.folder / "t.jinja").write_text(template)
            template = str(self.folder / "t.jinja")
        source = {"path": str(path), **data.pop("source", {})}
        return Data(train=[source], template=template, **{"max_length": 512, **data})

    def marked(self, rows: list[Any], *, method: Method | None = None, **data: Any) -> list[list[str]]:
        """Per row its examples; for a row that is left out, the reason and its detail, after a !."""
        made = self.data(rows, **data)
        method = method or Sft(name="sft", train_on="assistant")
        shown = preview(made, self.model, method, split="train", rows=len(rows))
        return [
            [*map(_marked, one.examples)] or [re.sub(r"^left out \((\w+)\)", r"! \1", one.note)]
            for one in shown
        ]

    def prepared(self, rows: list[Any], *, method: Method | None = None, **data: Any) -> Prepared:
        method = method or Sft(name="sft", train_on="assistant")
        return prepare_all(self.data(rows, **data), self.model, method, str(self.folder / "tokens"))

    def source(self, rows: list[Any], *, method: Method | None = None, **data: Any) -> dict[str, Any]:
        """The report of the file."""
        (source,) = self.prepared(rows, method=method, **data).tokens.manifest["report"]["sources"]
        return dict(source)


def _marked(pieces: list[Any]) -> str:
    text = "".join(f"«{piece.text}»" if piece.supervised else piece.text for piece in pieces)
    return text.replace("»«", "")


def chat(*texts: Any, **columns: Any) -> dict[str, Any]:
    """A row of messages, the user's and the assistant's in turn. An object is a message as it is, or its other keys."""
    messages = []
    for at, text in enumerate(texts):
        own = text if isinstance(text, dict) else {"content": text}
        messages.append({"role": ("user", "assistant")[at % 2], **own})
    return {"messages": messages, **columns}
