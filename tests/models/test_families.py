"""Families on tiny random models: what works, what is refused and why. docs/models.md has a row for each.

By default only the families of `families.SAMPLE` are trained, and their rows are compared. All rows, in about four minutes:

    SOAK=1 pytest tests/models/test_families.py                      compare
    SOAK=1 pytest tests/models/test_families.py --update-fixtures    write the table
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from tailor.artifacts.load import load_run
from tailor.artifacts.merge import merge
from tailor.data.token_store import TokenStore
from tailor.errors import ModelError
from tailor.evaluate.generation import generate
from tailor.models import linear
from tailor.models.collator import Collator
from tailor.models.experts.stacks import stacks
from tailor.plan.facts import unpackable
from tailor.spec.model import Model
from tailor.store import Store
from tailor.train import loop
from tailor.train.session import Session
from tests.helpers.families import FAMILIES, SAMPLE
from tests.helpers.hosts import PlainHost
from tests.helpers.models import load_model
from tests.helpers.plans import make_plan
from tests.helpers.stores import make_store

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- families -->\n", "<!-- /families -->"
LENGTHS = [23, 17, 31, 9]
ADAPTER = {"rank": 4, "alpha": 8}
MODES: dict[str, dict[str, Any]] = {
    "full": {},
    "LoRA": {"adapter": ADAPTER},
    "QLoRA": {"adapter": ADAPTER, "quantize": {"type": "nf4"}},
}
EXPERTS: dict[str, dict[str, Any]] = {"experts": {"adapter": {**ADAPTER, "experts": True}}}
"""A mode of families with routed experts alone."""
PROMPT = [1, 40, 41, 42, 43]
COMMAND = "update it: SOAK=1 pytest tests/models/test_families.py --update-fixtures"


@dataclass
class Outcome:
    """What a family did. modes: mode -> why it is refused, or nothing. packs: why not, or nothing."""

    modes: dict[str, str] = field(default_factory=dict)
    packs: str = ""
    adapters: tuple[str, ...] = ()


class Watch:
    """A probe that keeps the trained model's logits, what it generates, and which modules have adapters."""

    def __init__(self) -> None:
        self.logits: dict[str, torch.Tensor] = {}
        self.answer: list[int] = []
        self.loss = 0.0
        self.adapters: set[str] = set()

    @torch.no_grad()
    def __call__(self, session: Session, when: str, step: int) -> None:
        model, split = session.model, session.tokens.split("train")
        was_training = model.training
        model.eval()
        self.logits[when] = model.logits(Collator(split, model.layout)([(0,)]))[:, : split.lengths[0]]
        self.answer = answer(model.network)
        model.train(was_training)
        names = (name for name, _ in model.base.named_modules() if name.endswith("lora_A"))
        self.adapters = {name.split(".")[-2] for name in names}


def answer(network: Any) -> list[int]:
    (ids,) = generate(network, [PROMPT], max_new_tokens=6, stop_ids=[], batch_size=1, pad_id=0)
    return ids


@functools.cache
def outcome(key: str) -> Outcome:
    """Load, one step, save, reload without tailor, merge, generate: in every mode. Raises for all but a refusal."""
    family, found = FAMILIES[key], Outcome()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base = family.make(folder / "base")
        found.packs = refusal(load_one, base, pack=True)
        store = make_store(folder / "tokens", LENGTHS)
        for mode, options in {**MODES, **(EXPERTS if has_experts(base) else {})}.items():
            watch = Watch()
            run = folder / mode
            found.modes[mode] = refusal(train, base, store, run, options, watch, pack=not found.packs)
            if not found.modes[mode]:
                check_reloaded(base, run, watch, mode)
            if mode == "full":
                rounded = one_step(base, store, folder / "bf16", {}, pack=not found.packs, precision="bf16")
                assert abs(watch.loss - rounded) < 0.05, "bf16 arithmetic gives nearly the same loss"
            if mode == "LoRA":
                found.adapters = tuple(sorted(watch.adapters))
        join(base, store, folder / "joined")
    return found


def has_experts(base: Path) -> bool:
    """Whether a model has routed experts that transformers stores in one tensor."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return bool(stacks(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))))


def load_one(path: Path, *, pack: bool, **options: Any) -> Any:
    return load_model(
        Model(path=str(path), **options),
        pack=pack,
    )


def refusal(call: Any, *arguments: Any, **options: Any) -> str:
    """Why tailor refuses, or nothing."""
    try:
        call(*arguments, **options)
    except ModelError as error:
        return error.message
    return ""


def train(base: Path, store: Any, run: Path, options: dict[str, Any], watch: Watch, *, pack: bool) -> None:
    """One step and the artifact. The step changes the model."""
    watch.loss = one_step(base, store, run, options, pack=pack, probes=[watch])
    assert 4 < watch.loss < 8
    assert distance(watch.logits["start"], watch.logits["end"]) > 1e-4, "the step changed nothing"


def one_step(
    base: Path,
    store: Any,
    run: Path,
    options: dict[str, Any],
    *,
    pack: bool,
    precision: str = "fp32",
    probes: Sequence[Watch] = (),
) -> float:
    """The loss of a run's only step."""
    sections = {
        "model": options,
        "data": {"pack": pack},
        "optim": {"learning_rate": 1e-2},
        "train": {"steps": 1, "micro_batch_size": 2, "batch_size": 4, "precision": precision},
    }
    host = PlainHost()
    plan = make_plan(base, store, run, **sections)
    Store(str(run)).write_json("plan.json", plan.as_dict())
    loop.run(plan, host, probes)
    return host.losses()[0]


def check_reloaded(base: Path, run: Path, watch: Watch, mode: str) -> None:
    """Plain transformers and peft give the trained model's logits, also merged; tailor's own loading gives its answer."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = torch.tensor(store_ids(run))[None]
    ours = load_run(str(run)).model
    assert answer(ours) == watch.answer
    plain: Any = ours
    if mode == "full":
        plain = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    elif mode in ("LoRA", "experts"):
        plain = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(run / "adapter")
        )
    networks = [plain]
    if mode != "full":
        merge(str(run / "adapter"), str(run / "merged"))
        networks.append(AutoModelForCausalLM.from_pretrained(run / "merged", dtype=torch.float32))
    for network in networks:
        with torch.no_grad():
            assert distance(watch.logits["end"], network.eval()(ids).logits) < 1e-4


def store_ids(run: Path) -> list[int]:
    return [
        int(token)
        for token in TokenStore.open(str(run.parent / "tokens")).split("train").example(0).input_ids
    ]


def join(base: Path, store: Any, run: Path) -> None:
    """Joined documents are one document, so every family can be pretrained on them."""
    host = PlainHost()
    plan = make_plan(
        base,
        store,
        run,
        method={"name": "pretrain"},
        data={"max_length": 16},
        train={"steps": 1, "batch_size": 4, "micro_batch_size": 2},
    )
    loop.run(plan, host)
    assert host.of("train")[0]["supervised_tokens"] in (64, 63), "four rows, of which one may be the last"


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).norm() / right.norm())


@pytest.mark.parametrize("key", SAMPLE)
def test_family(key: str) -> None:
    check(key)


@pytest.mark.soak
@pytest.mark.parametrize("key", [key for key in FAMILIES if key not in SAMPLE])
def test_further_family(key: str) -> None:
    check(key)


def check(key: str) -> None:
    """The family's outcome, and that the plan says the same."""
    found, family = outcome(key), FAMILIES[key]
    assert not found.modes["full"]
    routers = {*linear.ROUTERS, "lm_head", "embed_out", "experts"}
    assert not routers & set(found.adapters)
    why = unpackable({"model_type": family.model_type, **family.sizes})
    assert (why is not None) == ("attend to each other" in found.packs), "the plan says what the proof finds"
    assert why is None or why in found.packs
    for why in found.modes.values():
        assert not why or any(part in why for part in REASONS), why


def test_control_an_adapter_on_a_router_is_noticed() -> None:
    with TemporaryDirectory() as temporary:
        base = FAMILIES["qwen2_moe"].make(Path(temporary))
        named = {"rank": 4, "target_modules": ["q_proj", "shared_expert_gate"]}
        model = load_one(base, pack=False, adapter=named)
        adapted = {name.split(".")[-2] for name, _ in model.base.named_modules() if name.endswith("lora_A")}
    assert adapted == {"q_proj", "shared_expert_gate"}
    assert set(linear.ROUTERS) & adapted


@pytest.mark.parametrize("name", ["x_proj", "dt_proj", "out_proj"])
def test_a_projection_that_the_kernel_reads_itself_takes_no_adapter(tmp_path: Path, name: str) -> None:
    base = FAMILIES["mamba"].make(tmp_path)
    with pytest.raises(
        ModelError, match=f"names {name}, but the training kernel of MambaForCausalLM reads"
    ) as error:
        load_one(base, pack=False, adapter={"rank": 4, "target_modules": ["in_proj", name]})
    assert error.value.hint == "choose from in_proj"


def test_a_weight_that_layers_share_takes_no_adapter(tmp_path: Path) -> None:
    """Its layers would each have one. `all-linear` leaves it out."""
    base = FAMILIES["zamba2"].make(tmp_path)
    with pytest.raises(
        ModelError, match=r"several layers of Zamba2ForCausalLM share the weight of model\.layers\.0\.shared"
    ) as error:
        load_one(base, pack=False, adapter={"rank": 4, "target_modules": ["in_proj", "q_proj"]})
    assert error.value.hint == "choose from in_proj, linear"
    load_one(base, pack=False, adapter=ADAPTER)


@pytest.mark.parametrize("past", [False, True], ids=["called", "read past"])
def test_an_adapter_that_the_forward_pass_does_not_use_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, past: bool
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    def forward(self: Any, states: torch.Tensor) -> torch.Tensor:
        states = self.act_fn(self.gate_proj(states)) * self.up_proj(states)
        return torch.nn.functional.linear(states, self.down_proj.weight) if past else self.down_proj(states)

    base = FAMILIES["llama"].make(tmp_path)
    monkeypatch.setattr(LlamaMLP, "forward", forward)
    why = refusal(load_one, base, pack=True, adapter=ADAPTER)
    assert ("does not use the adapter on model.layers.0.mlp.down_proj" in why) is past


def test_joined_documents_train_an_adapter_on_a_4_bit_base(tmp_path: Path) -> None:
    base = FAMILIES["llama"].make(tmp_path / "base")
    host = PlainHost()
    plan = make_plan(
        base,
        make_store(tmp_path / "tokens", [400, 300]),
        tmp_path / "run",
        model=MODES["QLoRA"],
        method={"name": "pretrain"},
        optim={"learning_rate": 2e-2},
        train={"steps": 30},
    )
    loop.run(plan, host)
    assert host.losses()[-1] < host.losses()[0] - 0.3


def test_a_mambas_other_projections_are_not_quantized(tmp_path: Path) -> None:
    from bitsandbytes.nn import Linear4bit

    model = load_one(FAMILIES["mamba"].make(tmp_path), pack=False, **MODES["QLoRA"])
    quantized = (name for name, m in model.base.named_modules() if isinstance(m, Linear4bit))
    kinds = {name.removesuffix(".base_layer").rsplit(".", 1)[-1] for name in quantized}
    assert kinds == {"in_proj"}


HEAD = """\
| family | type in `config.json` | full | LoRA | QLoRA | LoRA on experts | packed documents | `all-linear` |
|---|---|---|---|---|---|---|---|
"""


def row(key: str) -> str:
    """A family's line of the table. What is refused has the number of its reason."""
    family, found = FAMILIES[key], outcome(key)
    modes = " | ".join(cell(found.modes.get(mode)) for mode in (*MODES, *EXPERTS))
    adapters = ", ".join(f"`{name}`" for name in found.adapters) or "none"
    return f"| {family.name} | `{family.model_type}` | {modes} | {cell(found.packs)} | {adapters} |"


def cell(why: str | None) -> str:
    if why is None:
        return ""
    number = next((number for number, part in enumerate(REASONS, 1) if part in why), 0)
    return f"no ({number})" if why else "yes"


def table() -> str:
    """The families as Markdown, with the reasons of what is refused as notes."""
    notes = [f"{number}. {note}" for number, note in enumerate(REASONS.values(), 1)]
    return HEAD + "\n".join([*map(row, FAMILIES), "", *notes]) + "\n"


PACK_OFF = "Set `data.pack: false`, or join documents with method `pretrain`."
REASONS = {
    "ALiBi": f"Its position biases (ALiBi) are counted from the start of the row. {PACK_OFF}",
    "does not separate the documents": f"Its attention does not take the borders of documents. {PACK_OFF}",
    "bitsandbytes quantizes linear modules": "`model.quantize` does not quantize its experts.",
    "in a way that cannot be checked": "Its experts are computed in a way that tailor cannot check.",
    "carry their state over": f"Its recurrent layers carry their state over from one document to the next. {PACK_OFF}",
}
"""A part of an error message -> the note in the table."""


def written() -> tuple[str, int, int]:
    """The page, and where the table begins and ends in it."""
    text = TABLE.read_text()
    return text, text.index(BEGIN) + len(BEGIN), text.index(END)


def test_the_rows_of_the_sample_are_current() -> None:
    text, start, end = written()
    lines = text[start:end].splitlines()
    assert len(FAMILIES) >= 45
    assert [line.split(" | ")[0] for line in lines[2 : 2 + len(FAMILIES)]] == [
        f"| {family.name}" for family in FAMILIES.values()
    ]
    for key in SAMPLE:
        assert row(key) in lines, COMMAND


@pytest.mark.soak
def test_the_table_is_current(request: pytest.FixtureRequest) -> None:
    text, start, end = written()
    if request.config.getoption("--update-fixtures"):
        TABLE.write_text(text[:start] + table() + text[end:])
    else:
        assert text[start:end] == table(), COMMAND
