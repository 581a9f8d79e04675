"""`model.add_tokens`: initial rows, one step of training, and resume, against plain transformers and own code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from tailor.data.token_store import TokenStore
from tailor.errors import ModelError
from tailor.models.load import load_network
from tailor.models.new_tokens import new_tokens
from tailor.plan import Plan
from tailor.spec.model import Model
from tailor.train import loop
from tests.helpers.hosts import PlainHost, run_distributed
from tests.helpers.models import load_model, tiny_llama
from tests.helpers.plans import LORA, make_plan
from tests.helpers.tokens import write_tokens

TOKENS = ["<tool>", "naïve", "<t>"]
IDS = [261, 262, 263]
WIDE = {"vocab_size": 268}
"""A table with seven unused rows, more than the new tokens need."""
RATE = 0.5


def make_base(folder: Path, *, tied: bool = False, **config: Any) -> Path:
    return tiny_llama(folder, tie_word_embeddings=tied, num_hidden_layers=1, **config)


def network_of(base: Path, **model: Any) -> Any:
    spec = Model(path=str(base), add_tokens=TOKENS, **model)
    return load_network(spec, dtype=torch.float32, device=torch.device("cpu"))


def reference(base: Path, tokens: Sequence[str] = TOKENS) -> Any:
    """Plain transformers with rows that this function makes."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    first, tied = 261, network.config.tie_word_embeddings
    if network.get_input_embeddings().weight.shape[0] < first + len(tokens):
        network.resize_token_embeddings(first + len(tokens), mean_resizing=False)
    tables = [network.model.embed_tokens.weight, *([] if tied else [network.lm_head.weight])]
    with torch.no_grad():
        for table in tables:
            for number, token in enumerate(tokens):
                pieces = tokenizer(token, add_special_tokens=False).input_ids
                assert len(pieces) > 1
                table[first + number] = sum(table[piece] for piece in pieces) / len(pieces)
    return network


@pytest.mark.parametrize(
    ("tied", "config"),
    [(False, {}), (True, {}), (False, WIDE), (True, WIDE)],
    ids=["head", "tied", "unused rows", "unused rows, tied"],
)
def test_rows_start_as_the_mean_of_their_pieces(tied: bool, config: dict[str, Any], tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tied=tied, **config)
    network, expected = network_of(base), reference(base)
    size = config.get("vocab_size", 264)
    assert network.config.vocab_size == network.model.embed_tokens.num_embeddings == size
    assert (network.lm_head.weight is network.model.embed_tokens.weight) == tied
    for own, other in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-7)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.testing.assert_close(network.model.embed_tokens.weight[:261], plain.model.embed_tokens.weight[:261])
    apart = (network.lm_head.weight[261:264] - network.model.embed_tokens.weight[261:264]).norm()
    assert (float(apart) == 0) == tied, "control: the head's rows are means of the head's rows"


def test_a_bias_of_the_head_gets_rows_too(tmp_path: Path) -> None:
    from transformers import PhiConfig, PhiForCausalLM

    from tests.helpers.models import byte_tokenizer

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    plain = PhiForCausalLM(PhiConfig(vocab_size=261, **sizes))
    torch.nn.init.normal_(plain.lm_head.bias)
    plain.save_pretrained(tmp_path / "base")
    byte_tokenizer(tmp_path / "base")
    network = network_of(tmp_path / "base")
    pieces = AutoTokenizer.from_pretrained(tmp_path / "base")("<tool>").input_ids
    torch.testing.assert_close(network.lm_head.bias[261], plain.lm_head.bias[pieces].mean())
    plan = make_plan(
        tmp_path / "base", store(tmp_path), tmp_path / "run", model={"add_tokens": TOKENS, "adapter": LORA}
    )
    with pytest.raises(ModelError, match="has a bias"):
        loop.run(plan, PlainHost())


def store(folder: Path, count: int = 12) -> TokenStore:
    """Rows that use the new tokens, in prompts and as targets."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for number in range(count):
        ids = torch.randint(5, 261, (14,), generator=generator).tolist()
        ids[2], ids[9] = IDS[number % 3], IDS[(number + 1) % 3]
        rows.append((ids, [(6, 14)]))
    return write_tokens(str(folder / "tokens"), {"train": rows, "evaluation": rows[:2]})


def plan_of(base: Path, tokens: TokenStore, run: Path, *, steps: int = 1, **model: Any) -> Plan:
    return make_plan(
        base,
        tokens,
        run,
        model={"add_tokens": TOKENS, **model},
        data={"pack": False},
        optim={"optimizer": "sgd", "momentum": 0, "learning_rate": RATE, "max_grad_norm": 1000.0},
        train={"steps": steps, "batch_size": 12},
        save={"every": 2, "keep": 5},
    )


def one_step(network: Any, tokens: TokenStore) -> float:
    """The mean loss of all rows, and its gradients, by own code."""
    total, count = torch.zeros(()), 0
    split = tokens.split("train")
    for number in range(len(split)):
        example = split.example(number)
        ids = torch.tensor(example.input_ids).long()
        logits = network(input_ids=ids[None]).logits[0]
        total = total + functional.cross_entropy(logits[5:13], ids[6:14], reduction="sum")
        count += 8
    (total / count).backward()
    return float(total / count)


@pytest.mark.parametrize(
    ("adapter", "tied"),
    [
        (None, False),
        (LORA, True),
        pytest.param(None, True, marks=pytest.mark.soak),
        pytest.param(LORA, False, marks=pytest.mark.soak),
    ],
    ids=["full", "adapter, tied", "full, tied", "adapter"],
)
def test_one_step_equals_own_code(adapter: dict[str, Any] | None, tied: bool, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    base, tokens = make_base(tmp_path / "base", tied=tied), store(tmp_path)
    model = {} if adapter is None else {"adapter": adapter}
    host = PlainHost()
    url = loop.run(plan_of(base, tokens, tmp_path / "run", **model), host)
    assert url == "finished"
    expected = reference(base)
    loss = one_step(expected, tokens)
    assert host.losses()[0] == pytest.approx(loss, rel=1e-6)
    tables = {"model.embed_tokens.weight": expected.model.embed_tokens.weight}
    tables |= {} if tied else {"lm_head.weight": expected.lm_head.weight}
    if adapter is None:
        trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model", dtype=torch.float32)
        rows = slice(0, 264)
    else:
        peft = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run/adapter", dtype=torch.float32)
        trained, rows = peft.merge_and_unload(), slice(261, 264)
    for name, table in tables.items():
        own = trained.get_parameter(name)
        assert table.grad is not None
        wanted = (table - RATE * table.grad)[rows]
        assert (wanted - table[rows]).norm() > 1e-3, "control: the step changes the rows"
        torch.testing.assert_close(own[rows], wanted, rtol=1e-5, atol=1e-6)
        if adapter is not None:
            torch.testing.assert_close(own[:261], table[:261], rtol=0, atol=0)


@pytest.mark.parametrize(
    "adapter", [pytest.param(None, marks=pytest.mark.soak), LORA], ids=["full", "adapter"]
)
def test_a_resumed_run_is_equal_to_the_last_bit(adapter: dict[str, Any] | None, tmp_path: Path) -> None:
    base, tokens = make_base(tmp_path / "base"), store(tmp_path)
    model = {} if adapter is None else {"adapter": adapter}
    whole, first, second = PlainHost(), PlainHost(stop_after=2), PlainHost(resume_from=str(tmp_path / "cut"))
    loop.run(plan_of(base, tokens, tmp_path / "whole", steps=4, **model), whole)
    loop.run(plan_of(base, tokens, tmp_path / "cut", steps=4, **model), first)
    loop.run(plan_of(base, tokens, tmp_path / "cut", steps=4, **model), second)
    assert first.losses() + second.losses() == whole.losses()
    name = "model/model.safetensors" if adapter is None else "adapter/adapter_model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_the_reference_model_is_the_one_before_training(tmp_path: Path) -> None:
    """Without its adapter, the network computes with the initial rows."""

    base = make_base(tmp_path / "base", tied=True)
    spec = Model(path=str(base), add_tokens=TOKENS, adapter=LORA)
    model = load_model(
        spec,
    )
    model.base.set_attn_implementation("eager")
    ids = torch.tensor([[7, 261, 9, 263]])
    rows = [p for name, p in model.named_parameters() if p.requires_grad and "trainable_tokens" in name]
    (table,) = rows
    assert table.shape == (3, 64)
    with torch.no_grad():
        before = model.base(ids).logits
        table.add_(1.0)
        after = model.base(ids).logits
        with model.without_adapter():
            off = model.base(ids).logits
    assert (after - before).norm() > 1
    torch.testing.assert_close(off, before)


def test_a_quantized_base_keeps_its_tables(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", hidden_size=64, intermediate_size=1024)
    network, expected = network_of(base, quantize={"type": "nf4"}, adapter=LORA), reference(base)
    rows, wanted = network.model.embed_tokens.weight[261:], expected.model.embed_tokens.weight[261:]
    torch.testing.assert_close(rows, wanted, rtol=1e-6, atol=1e-7)


def test_tokens_that_cannot_be_added(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    for tokens in (["<|im_end|>"], ["a"], ["<new>", "<s>"]):
        with pytest.raises(ModelError, match="is already a token"):
            new_tokens(Model(path=str(base), add_tokens=tokens))
    assert list(new_tokens(Model(path=str(base), add_tokens=["ab", "abc", " x"]))) == IDS


def test_further_tables_are_refused(tmp_path: Path) -> None:
    from tailor.models.new_tokens import add_rows

    base = make_base(tmp_path / "base")
    network = AutoModelForCausalLM.from_pretrained(base)
    network.model.per_layer = torch.nn.Embedding(261, 4)
    with pytest.raises(ModelError, match=r"another table of tokens, model\.per_layer"):
        add_rows(network, Model(path=str(base), add_tokens=TOKENS))
    network = AutoModelForCausalLM.from_pretrained(base)
    network.lm_head = torch.nn.Linear(64, 300, bias=False)
    with pytest.raises(ModelError, match="output head 300"):
        add_rows(network, Model(path=str(base), add_tokens=TOKENS))


def curve(host: PlainHost, plan: Plan) -> list[float]:
    loop.run(plan, host)
    return host.losses()


@pytest.mark.soak
@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied"])
def test_workers_and_accumulation_do_not_change_the_curve(tied: bool, tmp_path: Path) -> None:
    base, tokens = make_base(tmp_path / "base", tied=tied), store(tmp_path)
    model = {"add_tokens": TOKENS, "adapter": LORA}
    common: dict[str, Any] = {"model": model, "data": {"pack": False}, "optim": {"learning_rate": 0.02}}
    losses = []
    for name, workers, rows in (("one", 1, 1), ("large", 1, 4), ("two", 2, 1)):
        train = {"steps": 3, "batch_size": 4, "micro_batch_size": rows}
        plan = make_plan(
            base,
            tokens,
            tmp_path / name,
            **common,
            train=train,
            scale={"workers": workers, "strategy": "ddp"},
        )
        losses.append(run_distributed(curve, plan, world=2)[0] if workers == 2 else curve(PlainHost(), plan))
    assert abs(losses[0][1] - losses[0][2]) > 0.01, "control: the steps differ"
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


def test_an_8_bit_optimizer_keeps_the_state_of_the_rows_in_32_bits(tmp_path: Path) -> None:
    from tailor.models.load import adapt
    from tailor.spec.optim import Optim
    from tailor.train.optimizer import build_optimizer

    spec = Model(
        path=str(make_base(tmp_path / "base")),
        add_tokens=[
            f"<{number}>" for number in range(80)
        ],  # above the size from which bitsandbytes uses 8 bits
        adapter={"rank": 64},
    )
    network = load_network(spec, dtype=torch.float32, device=torch.device("cpu"))
    network = adapt(network, spec, precision="fp32", activation_checkpointing=0, seed=0)
    optimizer = build_optimizer(Optim(optimizer="adamw_8bit", learning_rate=1e-3), network)
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    types = {"trainable_tokens" in name: optimizer.state[p]["state1"].dtype for name, p in trained.items()}
    assert types == {True: torch.float32, False: torch.uint8}


@pytest.mark.parametrize(("tied", "kinds"), [(False, ["embeddings", "head"]), (True, ["embeddings"])])
def test_rows_have_the_learning_rate_of_their_table(tied: bool, kinds: list[str], tmp_path: Path) -> None:
    from tailor.models.causal import CausalModel
    from tailor.models.load import adapt
    from tailor.train.optimizer import _kinds, _muon_matrices

    spec = Model(path=str(make_base(tmp_path / "base", tied=tied)), add_tokens=TOKENS, adapter=LORA)
    network = load_network(spec, dtype=torch.float32, device=torch.device("cpu"))
    network = adapt(network, spec, precision="fp32", activation_checkpointing=0, seed=0)
    model = CausalModel(network, layout="rows")
    kind, rows = _kinds(model), {n: p for n, p in model.named_parameters() if "trainable_tokens" in n}
    assert [kind(name, parameter) for name, parameter in rows.items()] == kinds
    assert not _muon_matrices(model) & {id(parameter) for parameter in rows.values()}
