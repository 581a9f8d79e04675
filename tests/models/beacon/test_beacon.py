"""Activation beacons against full context, the plain model and a reimplementation that keeps keys before rotation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tailor.errors import ModelError
from tailor.models.beacon.model import BeaconModel
from tailor.models.beacon.modules import BeaconLinear, add_beacons
from tailor.models.beacon.windows import Memory, Window, WindowCache
from tailor.models.collator import Document, collate
from tailor.plan import beacon
from tailor.spec.model import Beacon
from tests.helpers import reference_beacon
from tests.helpers.beacons import FAMILIES, YARN, ids, network, with_beacons


def plain(made: Any, tokens: torch.Tensor) -> torch.Tensor:
    return made.get_decoder()(tokens, use_cache=False).last_hidden_state


def apart(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).abs().max())


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_ratio_0_is_full_context(attention: str) -> None:
    made = network()
    made.set_attn_implementation(attention)
    tokens = ids(2, 70)
    full = plain(made, tokens)
    model = with_beacons(made)
    assert apart(model.read(tokens, (0, 0, 0, 0)), full) == 0.0
    assert apart(model.read(tokens, (0, 0, 0, 2)), full) > 1  # control: one compressed window shows


@torch.no_grad()
def test_a_document_of_one_window_is_the_plain_models() -> None:
    made = network()
    tokens = ids(2, 17)
    short, longer = plain(made, tokens[:, :16]), plain(made, tokens)
    model = with_beacons(made)
    assert apart(model.read(tokens[:, :16], ()), short) == 0.0
    assert apart(model.read(tokens, (2,)), longer) > 0.1  # control: one token more, and it is not


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rope", [None, YARN], ids=["plain", "yarn"])
def test_it_agrees_with_a_literal_reimplementation(family: str, rope: dict[str, Any] | None) -> None:
    made = network(family, **({"rope_parameters": rope} if rope else {}))
    model = with_beacons(made)
    tokens = ids(1, 5 * 16 - 3)
    for ratios in ((2,) * 4, (4,) * 4, (8,) * 4, (8, 2, 0, 4)):
        for sinks in (0, 1, 5):
            made.beacons.spec = made.beacons.spec.model_copy(update={"sink": sinks})
            expected = reference_beacon.read(made, tokens[0], 16, list(ratios), sinks)
            assert apart(model.read(tokens, ratios)[0], expected) <= 1e-5, (ratios, sinks)


@torch.no_grad()
def test_the_reimplementation_would_see_a_key_that_is_not_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    made = network(rope_parameters=YARN)
    model, tokens = with_beacons(made), ids(1, 40)
    expected = reference_beacon.read(made, tokens[0], 16, [4, 4], 0)
    monkeypatch.setattr("tailor.models.beacon.modules.key_rotation", lambda decoder: lambda keys, by: keys)
    assert apart(model.read(tokens, (4, 4))[0], expected) > 0.1


@torch.no_grad()
def test_low_rank_and_single_projections_agree_with_the_reimplementation() -> None:
    for spec in ({"rank": 3}, {"projections": ["k"]}, {"projections": ["q", "v"], "rank": 2}):
        made = network("qwen2")
        model = with_beacons(made, **spec)
        wrapped = {
            name.rsplit(".", 1)[-1] for name, part in made.named_modules() if isinstance(part, BeaconLinear)
        }
        assert wrapped == {f"{letter}_proj" for letter in model.beacons.spec.projections}
        tokens = ids(1, 45)
        expected = reference_beacon.read(made, tokens[0], 16, [2, 8], 0)
        assert apart(model.read(tokens, (2, 8))[0], expected) <= 1e-5


def test_new_beacons_are_the_bases_projections_of_the_eos_embedding() -> None:
    for rank in (None, 4):
        made = network("qwen2")
        before = {name: weight.clone() for name, weight in made.state_dict().items()}
        eos = made.get_input_embeddings().weight[2].clone()
        add_beacons(made, Beacon(window=16, ratios=[4], rank=rank))
        assert torch.equal(made.beacons.embedding, eos)
        with torch.no_grad():
            wrapped = made.get_decoder().layers[1].self_attn.k_proj
            hidden = torch.randn(1, 5, 64)
            wrapped.rows = torch.tensor([1, 4])
            assert apart(wrapped(hidden), wrapped.base(hidden)) < 1e-6
        after = {name.replace(".base.", "."): weight for name, weight in made.state_dict().items()}
        assert all(
            torch.equal(after[name], weight) for name, weight in before.items()
        )  # nothing of the base changed
        trained = [name for name, weight in made.named_parameters() if weight.requires_grad]
        assert all(".own." in name or name == "beacons.embedding" for name in trained)
        assert len(trained) == 1 + 5 * 2  # the last layer has no q


def gradients(model: Any, tokens: torch.Tensor, ratios: tuple[int, ...]) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad()
    hidden = model.read(tokens, ratios)
    (hidden * torch.sin(torch.arange(hidden.numel())).view_as(hidden)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_activation_checkpointing_changes_no_gradient(family: str) -> None:
    made = network(family)
    model, tokens, ratios = with_beacons(made, sink=1), ids(2, 75), (4, 2, 0, 8)
    kept = gradients(model, tokens, ratios)
    made.activation_checkpointing_enable()
    again = gradients(model, tokens, ratios)
    assert kept.keys() == again.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    assert max(apart(kept[name], again[name]) for name in kept) == 0.0
    assert min(float(gradient.abs().max()) for gradient in kept.values()) > 0


def test_rows_that_a_module_remembers_would_be_the_last_windows() -> None:
    """The control: a layer that is computed again, whose module already has the beacon positions of a later window."""
    made = network()
    model, tokens, ratios = with_beacons(made), ids(2, 75), (4, 2, 2, 8)
    kept = gradients(model, tokens, ratios)
    for layer in made.get_decoder().layers:
        layer.self_attn._forward_pre_hooks.clear()
        layer.self_attn._forward_pre_hooks_with_kwargs.clear()
    read = model.beacons.read

    def remembering(piece: torch.Tensor, memory: Memory, window: Window) -> Any:
        for part in model.modules():
            if isinstance(part, BeaconLinear):
                part.rows = window.beacons
        return read(piece, memory, window)

    model.beacons.read = remembering  # type: ignore[method-assign]
    assert max(apart(kept[name], again) for name, again in gradients(model, tokens, ratios).items()) == 0.0
    made.activation_checkpointing_enable()
    with pytest.raises(
        RuntimeError, match=r"number of tensors|different"
    ):  # torch sees that other tensors were saved
        gradients(model, tokens, ratios)


def test_the_loss_flows_through_all_windows() -> None:
    """The embedding's gradient from the last window's loss alone, with and without the first window's beacons cut off."""
    made = network()
    model, tokens = with_beacons(made, ratios=[4]), ids(1, 60)

    def gradient(cut: int) -> torch.Tensor:
        memory = Memory()
        for at in range(3):
            _, memory = model.beacons.read_window(tokens[:, at * 16 : at * 16 + 16], memory, 4)
            if at < cut:
                layers = tuple(tuple((k.detach(), v.detach()) for k, v in pieces) for pieces in memory.layers)
                memory = Memory(layers, memory.length)
        model.zero_grad()
        hidden = model.beacons.read_last_window(tokens[:, 48:], memory)
        (hidden * torch.sin(torch.arange(hidden.numel())).view_as(hidden)).sum().backward()
        return made.beacons.embedding.grad

    whole = gradient(0)
    assert apart(whole, gradient(1)) > 1e-3
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient(3)  # nothing but beacons is trained


@torch.no_grad()
def test_documents_of_different_lengths_go_through_together_as_alone() -> None:
    model = with_beacons(network())
    lengths = (40, 16, 33, 70, 5, 48)
    documents = [
        Document(row[:n].numpy(), row[:n].numpy()) for row, n in zip(ids(6, 70), lengths, strict=True)
    ]
    together = model.hidden(collate([[one] for one in documents], "rows"))
    for row, (one, n) in enumerate(zip(documents, lengths, strict=True)):
        alone = model.hidden(collate([[one]], "rows"))
        assert apart(together[row, :n], alone[0, :n]) <= 1e-5
    assert apart(together[0, :40], together[2, :40]) > 0.1  # control


def test_a_micro_batch_without_beacons_still_has_a_gradient_for_every_weight() -> None:
    model = with_beacons(network())
    row = ids(1, 12)[0].numpy()
    summed = model.next_token_loss(collate([[Document(row, row)]], "rows"))
    summed.backward()
    assert all(float(p.grad.abs().max()) == 0.0 for p in model.parameters() if p.requires_grad)


@torch.no_grad()
def test_a_second_call_changes_nothing_of_a_window() -> None:
    window = Window.compressed(8, 4, 0, torch.device("cpu"))
    assert window.tokens.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert window.beacons.tolist() == window.kept.tolist() == [4, 9]
    cache = WindowCache(Memory(), window, lambda keys, by: keys)
    first, second = torch.ones(1, 2, 10, 4), torch.zeros(1, 2, 10, 4)
    cache.update(first, first, 0)
    cache.update(second, second, 0)
    assert float(cache.after().layers[0][0][0].min()) == 1.0


def test_draws_are_the_steps_and_adapting_goes_by_length() -> None:
    spec = Beacon(window=64, ratios=[2, 4, 8], draw="step-random")
    draws = [beacon.ratios(spec, 6, seed=42, step=step) for step in range(200)]
    assert {ratio for draw in draws for ratio in draw} == {2, 4, 8}
    assert max(len(set(draw)) for draw in draws) > 1  # windows differ, and so do steps
    assert len(set(draws)) > 50
    assert beacon.ratios(spec, 6, seed=42, step=7) == draws[7] != beacon.ratios(spec, 6, seed=43, step=7)
    assert beacon.ratios(spec, 4, seed=42, step=7) == draws[7][:3]  # documents of a step begin alike
    # 64 keys hold 2 windows of 32 beacons, 4 of 16, 8 of 8; after that the coarsest stays
    for memory in (64, "window"):
        limited = Beacon(window=64, ratios=[8, 2, 4], memory=memory)
        assert [beacon.adapted(limited, n) for n in (1, 3, 4, 5, 6, 9, 50)] == [2, 2, 4, 4, 8, 8, 8]
    assert beacon.adapted(spec, 50) == 2, "without a limit the finest"
    mixed = Beacon(window=64, ratios=[2, 4, 8], draw="mixed")
    same = [len(set(beacon.ratios(mixed, 6, seed=42, step=step))) == 1 for step in range(200)]
    assert 90 < sum(same) < 130


def test_no_draw_passes_the_models_positions() -> None:
    spec = Beacon(window=64, ratios=[2, 4, 8, 0])
    draws = [beacon.ratios(spec, 12, 300, seed=1, step=step) for step in range(300)]
    assert max(beacon.positions(spec, given) for given in draws) <= 300
    assert (
        max(beacon.positions(spec, beacon.ratios(spec, 12, seed=1, step=step)) for step in range(300)) > 400
    )
    assert {given[0] for given in draws} == {2, 4, 8, 0}  # it is not the coarsest everywhere
    assert [beacon.adapted(spec, 3, 256, at_most=windows) for windows in (3, 8, 14)] == [0, 4, 8]
    limited = Beacon(window=64, ratios=[2, 4, 8, 0], memory="window")
    assert [beacon.adapted(limited, 3, 256, at_most=windows) for windows in (3, 8, 14)] == [2, 4, 8]
    assert beacon.adapted(limited, 3, 120) == 4  # by the memory alone it would be 2


def published(tokens: int, ratios: list[int], window: int, positions: int, future: int = 0) -> int:
    """`set_compression_ratio` with `adapt-N` of FlagEmbedding's activation_beacon/src/modeling_beacon.py, N = future."""
    reach = {ratio: (positions - window) * ratio + window if ratio else positions for ratio in ratios}
    fitting = [ratio for ratio in ratios if reach[ratio] >= tokens + future]
    return min(fitting, key=reach.__getitem__) if fitting else max(ratios)


@pytest.mark.parametrize("ratios", [[2, 4, 8, 16, 32], [8, 2, 4], [0, 2, 8]])
@pytest.mark.parametrize("positions", [4096, 8192, 32768])
def test_evaluation_takes_the_published_ratio(ratios: list[int], positions: int) -> None:
    spec = Beacon(window=1024, ratios=ratios)
    ours = Beacon(window=1024, ratios=ratios, memory="window")
    chosen = []
    for windows in range(1, 80):
        found = beacon.adapted(spec, windows, positions)
        assert found == published(windows * 1024, ratios, 1024, positions)
        later = beacon.adapted(spec, windows, positions, at_most=windows + 1)
        assert later == published(windows * 1024, ratios, 1024, positions, future=1024)
        chosen.append((found, beacon.adapted(ours, windows, positions)))
    assert any(one != other for one, other in chosen), "control: the memory of one window takes other ratios"
    assert beacon.adapted(Beacon(window=1024, ratios=[2, 4, 8, 16, 32]), 16, 8192) == 4


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "dynamic": (
        lambda: network(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        "changes its frequencies with the sequence length",
    ),
    "sliding": (lambda: network("mistral", sliding_window=64), "attend only to the last 64 tokens"),
    "no eos": (lambda: network(eos_token_id=None), "config.json has no eos_token_id"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsupported_bases_are_rejected(case: str) -> None:
    make, why = REFUSED[case]
    with pytest.raises(ModelError, match=why):
        add_beacons(make(), Beacon(window=16, ratios=[4]))


def test_other_families_are_rejected() -> None:
    assert "and this model has type gemma2" in str(beacon.refusal({"model_type": "gemma2"}))
    assert (
        beacon.refusal({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}) is None
    )


def test_positions_are_those_that_a_document_reaches() -> None:
    spec = Beacon(window=16, ratios=[2, 8], sink=3)
    made = network()
    with_beacons(made, ratios=[2, 8], sink=3)
    reached: list[int] = []
    made.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: reached.append(int(kwargs["position_ids"].max()) + 1), with_kwargs=True
    )
    for given in ((2, 2, 2), (8, 2, 8), (2, 8), ()):
        tokens = len(given) * 16 + 5
        reached.clear()
        BeaconModel(made).read(ids(1, tokens), given)
        assert max(reached) == beacon.positions(spec, given, tokens) <= beacon.positions(spec, given)
    longest = beacon.context(spec, 200)
    assert (
        beacon.positions(spec, (8,) * (longest // 16 - 1))
        <= 200
        < beacon.positions(spec, (8,) * (longest // 16))
    )
