"""Chat templates: the model's own, a built-in one, or a Jinja file. Rendered with the code of transformers."""

from __future__ import annotations

import difflib
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from tailor.errors import TemplateError

_FOLDER = Path(__file__).parent / "templates"
_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")

# transformers caches the compiled template, and its state for {% generation %} markers is not thread-safe.
_RENDER_LOCK = threading.Lock()

Message = dict[str, Any]


@dataclass(frozen=True)
class Template:
    """A Jinja chat template. tool_use: replaces `text` for conversations with tools, if the model has two templates."""

    name: str
    text: str
    tool_use: str | None = None
    date: str | None = None
    """What `strftime_now` writes, as an ISO date. None for the day of the rendering."""

    @property
    def asks_date(self) -> bool:
        """Whether it writes the date of the rendering."""
        return any("strftime_now" in text for text in (self.text, self.tool_use) if text is not None)

    def choose(self, tools: Sequence[Any] | None) -> str:
        """The template text for a conversation with or without tools."""
        return self.tool_use if tools and self.tool_use is not None else self.text

    @property
    def has_markers(self) -> bool:
        """Whether `{% generation %}` markers in the template enclose what the assistant writes."""
        return all(_MARKER.search(text) for text in (self.text, self.tool_use) if text is not None)


def builtin_templates() -> dict[str, str]:
    """Name -> one-line description of the built-in templates: the first line of the comment at the top of the file."""
    found = {}
    for path in sorted(_FOLDER.glob("*.jinja"), key=lambda path: path.stem):
        first = path.read_text(encoding="utf-8").split("#}", 1)[0]
        found[path.stem] = first.removeprefix("{#").strip().splitlines()[0].strip("- ")
    return found


def load_template(chosen: str) -> Template:
    """Load a built-in template by name or a Jinja file by path. TemplateError when there is neither."""
    names = list(builtin_templates())
    if chosen in names:
        return Template(chosen, (_FOLDER / f"{chosen}.jinja").read_text(encoding="utf-8"))
    path = Path(chosen)
    if path.is_file():
        return Template(path.name, path.read_text(encoding="utf-8"))
    close = difflib.get_close_matches(chosen, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"built-in templates: {', '.join(names)}"
    raise TemplateError(f"data.template: {chosen} is neither a built-in template nor a file", hint=hint)


def model_template(value: Any) -> Template | None:
    """The model's own template from `chat_template` of its tokenizer: a string, or a list of named strings.

    TemplateError for anything else.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return Template("model", value)
    try:
        named = (
            {entry["name"]: entry["template"] for entry in value} if isinstance(value, list) else dict(value)
        )
        valid = bool(named) and all(isinstance(text, str) for pair in named.items() for text in pair)
    except (TypeError, KeyError, ValueError):
        valid = False
    if not valid:
        raise TemplateError(
            "the model's chat_template is neither a text nor a list of named texts",
            hint="correct it in its tokenizer_config.json, or set data.template",
        )
    if "default" not in named and len(named) > 1:
        raise TemplateError(
            f"the model has several chat templates ({', '.join(sorted(named))}), but none is named default",
            hint="save one of them as a file and set data.template to its path",
        )
    return Template("model", named.get("default") or next(iter(named.values())), named.get("tool_use"))


def render(
    template: Template,
    messages: Sequence[Message],
    tools: Sequence[Any] | None,
    specials: Mapping[str, str],
    *,
    add_generation_prompt: bool = False,
    probe: bool = False,
) -> str:
    """Render a conversation. Raises jinja2.TemplateError when the template refuses it, fails or exceeds a limit.

    probe: a short conversation, with a lower limit.
    """
    options = {"add_generation_prompt": add_generation_prompt}
    text, _ = _rendered(template, messages, tools, specials, probe=probe, **options)
    return text


def render_marked(
    template: Template,
    messages: Sequence[Message],
    tools: Sequence[Any] | None,
    specials: Mapping[str, str],
    *,
    probe: bool = False,
) -> tuple[str, list[tuple[int, int]]]:
    """Render a conversation. Returns the text and the character ranges inside `{% generation %}` markers."""
    text, ranges = _rendered(
        template, messages, tools, specials, probe=probe, return_assistant_tokens_mask=True
    )
    return text, [(int(start), int(end)) for start, end in ranges[0]]


def _rendered(
    template: Template,
    messages: Sequence[Message],
    tools: Sequence[Any] | None,
    specials: Mapping[str, str],
    *,
    probe: bool,
    **options: Any,
) -> tuple[str, Any]:
    from tailor.encode.rendering import described, rendering
    from tailor.encode.template_costs import MAX_PROBE_STEPS, MAX_STEPS, RenderingError

    try:
        with _RENDER_LOCK:
            texts, ranges = rendering(template.choose(tools), template.date)(
                max_steps=MAX_PROBE_STEPS if probe else MAX_STEPS,
                conversations=[list(messages)],
                tools=list(tools) if tools else None,
                **{**options, **specials},
            )
    except jinja2.TemplateError:
        raise
    except Exception as error:
        # A template is a program, which fails in its own ways on messages that it does not expect.
        raise RenderingError(described(error)) from error
    return texts[0], ranges
