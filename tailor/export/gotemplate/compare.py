"""Compares what a chat template and a Go template render, and chooses a Go template for Ollama."""

from __future__ import annotations

from pathlib import Path

from tailor.encode.tokenizer import Tokenizer
from tailor.errors import ModelError, TemplateError
from tailor.export import probes
from tailor.export.gotemplate.derive import SYSTEM_CONDITIONS, derive
from tailor.export.gotemplate.ollama import OllamaTemplate
from tailor.export.probes import Probe

_HINT = "write the chat template in Go's syntax, and give the file with --template; or export as gguf, and use llama.cpp"


def choose(tokenizer: Tokenizer, bos: str, own: str | None) -> tuple[OllamaTemplate, list[str]]:
    """The Go template for a chat template, and notes for the user on conversations that it renders differently.

    bos: what Ollama's tokenizer adds before a prompt. own: a file with the user's Go template, which is only compared.
    ModelError when the two differ in a conversation of user and assistant, with a system message or without.
    """
    (question, *_) = probes.TURNS
    try:
        tokenizer.render(list(question.messages), add_generation_prompt=True)
    except TemplateError as error:
        raise ModelError(
            f"Ollama renders conversations without tools, and the run's template renders none: {error}",
            hint="set data.template to one that renders a question, or export as gguf, and use llama.cpp",
        ) from None
    if own is not None:
        found = _read(own)
    else:
        try:
            found, *others = (OllamaTemplate(derive(tokenizer, bos, one)) for one in SYSTEM_CONDITIONS)
        except TemplateError as error:
            raise ModelError(
                f"no Go template can be made of the run's chat template: {error}", hint=_HINT
            ) from None
        if any(difference(tokenizer, bos, found, probe) for probe in probes.EMPTY_SYSTEM):
            found = next(
                (
                    other
                    for other in others
                    if not any(difference(tokenizer, bos, other, probe) for probe in probes.EMPTY_SYSTEM)
                ),
                found,
            )
    for probe in (*probes.TURNS, *probes.SYSTEM):
        if (reason := difference(tokenizer, bos, found, probe)) is not None:
            whose = (
                f"--template {own}" if own is not None else "the Go template made of the run's chat template"
            )
            raise ModelError(f"{whose} renders {probe.name} differently: {reason}", hint=_HINT)
    return found, _notes(tokenizer, bos, found)


def _read(file: str) -> OllamaTemplate:
    path = Path(file)
    if path.exists() and not path.is_file():
        raise ModelError(f"--template {file}: not a file", hint="give a file with a Go template")
    try:
        # A file's last line ends with a line break, which is no part of the template.
        return OllamaTemplate(path.read_text(encoding="utf-8").removesuffix("\n"))
    except OSError as error:
        raise ModelError(
            f"--template {file}: {error.strerror}", hint="give a file with a Go template"
        ) from None
    except UnicodeDecodeError:
        raise ModelError(f"--template {file}: the file is not UTF-8 text", hint="save it as UTF-8") from None
    except TemplateError as error:
        raise ModelError(f"--template {file}: {error}", hint="correct the template") from None


def difference(tokenizer: Tokenizer, bos: str, go: OllamaTemplate, probe: Probe) -> str | None:
    """Where the two texts of a probe differ; None if they are equal, or if the chat template rejects the conversation."""
    expected = probes.rendered(tokenizer, probe)
    if expected is None:
        return None
    try:
        found = bos + go.render(probe.messages, probe.tools)
    except TemplateError as error:
        return str(error)
    if found == expected:
        return None
    at = next((at for at, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), None)
    at = min(len(found), len(expected)) if at is None else at
    return f"{_excerpt(found, at)} instead of {_excerpt(expected, at)} at character {at}"


def _excerpt(text: str, at: int) -> str:
    return repr(text[max(at - 10, 0) : at + 30])


def _notes(tokenizer: Tokenizer, bos: str, go: OllamaTemplate) -> list[str]:
    notes = []
    if tokenizer.template is not None and tokenizer.template.asks_date and not go.has_date:
        notes.append("the chat template writes the date, and Ollama's always that of the export")
    if all(probes.rendered(tokenizer, probe) is None for probe in probes.SYSTEM):
        notes.append("the chat template rejects system messages, and Ollama ignores them")
    if any(difference(tokenizer, bos, go, probe) for probe in probes.EMPTY_SYSTEM):
        notes.append("an empty system message is rendered differently: leave it out")
    if any(difference(tokenizer, bos, go, probe) for probe in probes.LATE_SYSTEM):
        notes.append("a system message after the first message is rendered differently: send it first")
    if any(difference(tokenizer, bos, go, probe) for probe in probes.SPACES):
        notes.append(
            "the chat template strips white space around messages, which Ollama's cannot do: send messages without it"
        )
    if _uses_tools(tokenizer):
        if not go.has_tools:
            notes.append("Ollama gets no tools: the Go template renders conversations without them")
        elif any(difference(tokenizer, bos, go, probe) for probe in probes.TOOLS):
            notes.append("conversations with tools are rendered differently than in training")
    return notes


def _uses_tools(tokenizer: Tokenizer) -> bool:
    (probe, *_) = probes.TOOLS
    plain = probes.rendered(tokenizer, Probe(probe.name, probe.messages))
    return probes.rendered(tokenizer, probe) not in (None, plain)
