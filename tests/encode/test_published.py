"""The built-in chat templates write what the published ones write. `--update-fixtures` writes the table in docs/models.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tailor.encode.template import Template, builtin_templates, load_template, render
from tests.encode.published import CONVERSATIONS, FIXTURE, SPECIALS, SYSTEM, TURNS, written

PUBLISHED: dict[str, dict[str, Any]] = json.loads(FIXTURE.read_text())
TABLE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- templates -->\n", "<!-- /templates -->"

NO_TOOLS = "It rejects tool calls, which the published template drops or writes as plain turns."
DEPARTURES: dict[str, tuple[tuple[str, ...], str]] = {
    "alpaca": (
        ("turns", "prompt", "reasoning"),
        (
            "Without a system message it begins with the default sentence of Stanford Alpaca. (Stanford's prompts have no line break after "
            "`### Response:`.)"
        ),
    ),
    "gemma": (
        ("system, prompt", "system, one exchange", "system", "spaces"),
        "It accepts a system message, like Gemma 3's; the templates of Gemma 1 and 2 reject it.",
    ),
    "mistral": (
        ("system, one exchange", "system", "spaces", "system and tools"),
        (
            "System message and tools are written in the first user turn; Mistral's template moves them to the last one, "
            "and drops the system message once that turn is answered."
        ),
    ),
    "phi-3": (
        ("turns", "system, one exchange", "system", "spaces", "reasoning"),
        "It omits the end-of-text token after a complete conversation.",
    ),
}
DEPARTURES["gritlm"] = (
    ("system, prompt", "system, one exchange", "system", "spaces"),
    "It accepts a system message; the published format has none.",
)
DEPARTURES["gpt-oss"] = (
    (
        "system, prompt",
        "system, one exchange",
        "system",
        "spaces",
        "tools",
        "system and tools",
        "thinking",
        "thinking before a call, prompt",
        "several tools",
    ),
    (
        "It writes what the renderer openai-harmony writes, which vLLM serves with (`tests/encode/test_harmony.py`). The "
        "published template quotes results of tools, adds line breaks behind the system text, has commas in comments of "
        "defaults, writes text beside a tool call as reasoning, and drops later system messages and further tool calls of a turn."
    ),
)
FIREFLY = ("baichuan", "baichuan2", "chatglm2", "minicpm", "orion", "ziya2")
DEPARTURES |= dict.fromkeys(
    FIREFLY,
    (
        ("system, prompt", "system, one exchange", "system", "spaces"),
        "It writes a system message in the first user turn; Firefly's drops it.",
    ),
)
DEPARTURES["xverse"] = (
    ("prompt", *DEPARTURES["orion"][0]),
    f"{DEPARTURES['orion'][1]} The space before an answer belongs to the answer, not to the prompt.",
)
DEPARTURES["phi-3.5"] = DEPARTURES["phi-3"]
DEPARTURES["mistral-v3-tekken"] = DEPARTURES["mistral"]
WITHOUT_TOOLS = ("deepseek-v2", "llama-2", "llama-3", "phi-3", "phi-3.5", "phi-4", "vicuna", "zephyr")


def departs(name: str, case: str) -> bool:
    return case in DEPARTURES.get(name, ((), ""))[0] or (name in WITHOUT_TOOLS and "tools" in case)


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name, entry in PUBLISHED.items() for case in entry["written"]]
)
def test_it_writes_what_the_published_one_writes(name: str, case: str) -> None:
    ours = written(load_template(PUBLISHED[name]["builtin"]), case)
    if departs(name, case):
        assert ours != PUBLISHED[name]["written"][case], "the departure is none any more"
    else:
        assert ours == PUBLISHED[name]["written"][case]


@pytest.mark.parametrize("name", ["phi-3", "phi-3.5"])
def test_phi_3_departs_by_the_end_of_text_alone(name: str) -> None:
    for case in DEPARTURES[name][0]:
        ours = written(load_template("phi-3"), case)
        assert PUBLISHED[name]["written"][case] == f"{ours}</s>"


@pytest.mark.parametrize("change", ["trim", "newline", "role"])
def test_control_a_small_change_of_a_template_is_seen(change: str) -> None:
    text = load_template("zephyr").text
    changed = {
        "trim": text.replace("message.content", "message.content | trim"),
        "newline": text.replace("|>\\n", "|>"),
        "role": text.replace("'<|' + message.role", "'<|' + message.role | upper"),
    }[change]
    assert changed != text
    template = Template("zephyr", changed)
    texts = PUBLISHED["zephyr"]["written"]
    assert any(written(template, case) != texts[case] for case in CONVERSATIONS if "tools" not in case)


@pytest.mark.parametrize("name", [*FIREFLY, "xverse"])
def test_an_empty_system_message_writes_nothing(name: str) -> None:
    """Firefly drops system messages of these templates, so an empty one must not leave the line breaks behind one."""
    template, empty = load_template(name), {"role": "system", "content": " "}
    texts = [render(template, [*first, *TURNS], None, SPECIALS) for first in ([], [empty], [SYSTEM])]
    assert texts[0] == texts[1] == PUBLISHED[name]["written"]["turns"]
    assert f"{SYSTEM['content']}\n\n{TURNS[0]['content']}" in texts[2]


def test_every_built_in_template_is_held_to_a_published_one() -> None:
    assert {entry["builtin"] for entry in PUBLISHED.values()} == set(builtin_templates())


def table() -> str:
    lines = ["| `data.template` | compared with | differences |", "|---|---|---|"]
    for builtin in builtin_templates():
        names = [name for name, entry in PUBLISHED.items() if entry["builtin"] == builtin]
        sources = "; ".join(PUBLISHED[name]["source"] for name in names)
        notes = dict.fromkeys(DEPARTURES[name][1] for name in names if name in DEPARTURES)
        notes |= {NO_TOOLS: None} if set(names) & set(WITHOUT_TOOLS) else {}
        lines.append(f"| `{builtin}` | {sources} | {' '.join(notes) or 'none'} |")
    return "\n".join(lines) + "\n"


def test_the_table_is_current(request: pytest.FixtureRequest) -> None:
    text = TABLE.read_text()
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    if request.config.getoption("--update-fixtures"):
        TABLE.write_text(text[:start] + table() + text[end:])
    else:
        assert text[start:end] == table(), (
            "update it: pytest tests/encode/test_published.py --update-fixtures"
        )
