"""Losses of tailor and TRL step by step, on the real weights of SmolLM2-135M: the same rows, batches, start and settings.

    make real MODEL=models/SmolLM2-135M-Instruct
    python benchmarks/parity/run.py models/SmolLM2-135M-Instruct [--case "kto lora"]

MODEL is the folder of the model, from `hf download HuggingFaceTB/SmolLM2-135M-Instruct --local-dir MODEL`; any model of
transformers whose tokenizer has <|im_start|> and <|im_end|> does. TRL 1.x is in the extra `bench`: `pip install
-c constraints.txt -e '.[bench]'`, on Python 3.11 or newer.

Each case (benchmarks/parity/cases.py) is a recipe, which tailor runs as `tailor run` does. TRL gets the same text rows
in the order of tailor's batches, prepares them itself and trains with its own trainer: float32, on the CPU, from the
weights of the model and PEFT's initial adapter of the same seed. Every loss must agree to 1e-5 of its value. As a
control, TRL also trains with a mistake, such as another beta: then a loss must differ by more than 1e-3. One JSON line
per case; the exit status is 1 if a case or a control fails.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("OMP_NUM_THREADS", "1")

from cases import CASES, Case
from common import in_a_process

TOLERANCE, DETECTED = 1e-5, 1e-3
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes")
BESIDE = {
    "grad_norm": "grad_norm",
    "reward_chosen": "rewards/chosen",
    "reward_rejected": "rewards/rejected",
    "reward_desirable": "rewards/chosen",
    "reward_undesirable": "rewards/rejected",
    "divergence": "kl",
}
"""Other figures of a step: tailor's names and TRL's."""


def by_tailor(folder: Path) -> list[dict[str, Any]]:
    import tailor

    run = tailor.load(folder / "recipe.yaml").run()
    return [record for record in run.metrics if record["kind"] == "train"]


def one(work: Path, side: str, name: str) -> None:
    """One side of a case in this process; prints its figures of every step. side: tailor, trl or a mistake of TRL."""
    folder = work / name.replace(" ", "-")
    if side == "tailor":
        steps = by_tailor(folder)
    else:
        from by_trl import train

        steps = train(folder, CASES[name], None if side == "trl" else side)
    print(json.dumps({"steps": steps}))


def largest(ours: list[Any], theirs: list[Any], name: str, their_name: str) -> float:
    """The largest difference over the steps, relative to the largest value of TRL; for a loss, to the step's own."""
    pairs = [(mine[name], its[their_name]) for mine, its in zip(ours, theirs, strict=True)]
    if name == "loss":
        return max(abs(mine - its) / abs(its) for mine, its in pairs)
    return max(abs(mine - its) for mine, its in pairs) / max(abs(its) for _, its in pairs)


def compare(model: str, work: Path, name: str, case: Case) -> bool:
    """Run both sides of a case and its controls, and print the figures. Whether it passes."""
    folder = work / name.replace(" ", "-")
    folder.mkdir()
    case.write_rows(folder / "rows.jsonl")
    (folder / "recipe.yaml").write_text(json.dumps(case.recipe(model, folder)))

    def steps(side: str) -> list[Any]:
        found: list[Any] = in_a_process(__file__, [model], [str(work), side, name])["steps"]
        return found

    ours, theirs = steps("tailor"), steps("trl")
    both = list(zip(ours, theirs, strict=True))
    others = {mine: its for mine, its in BESIDE.items() if all(mine in a and its in b for a, b in both)}
    loss = largest(ours, theirs, "loss", "loss")
    controls = {mistake: largest(ours, steps(mistake), "loss", "loss") for mistake in case.mistakes}
    passes = loss <= TOLERANCE and all(difference > DETECTED for difference in controls.values())
    if "divergence" in others:
        passes = passes and max(step["divergence"] for step in ours) > 0
    line = {
        "case": name,
        "losses": [round(step["loss"], 6) for step in theirs],
        "loss": f"{loss:.1e}",
        **{mine: f"{largest(ours, theirs, mine, its):.1e}" for mine, its in others.items()},
        "controls": {mistake: f"{difference:.1e}" for mistake, difference in controls.items()},
        "passes": passes,
    }
    if "divergence" in others:
        line["kl"] = [round(step["kl"], 3) for step in theirs]
    print(json.dumps(line), flush=True)
    return passes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of the model")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this case; repeatable")
    parser.add_argument("--one", nargs=3, metavar=("WORK", "SIDE", "CASE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        work, side, name = options.one
        return one(Path(work), side, name)
    if not (Path(options.model) / "config.json").is_file():
        sys.exit(
            f"{options.model} is no model folder: it has no config.json\nhint: see python {__file__} --help"
        )
    try:
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    except importlib.metadata.PackageNotFoundError as error:
        sys.exit(f"the package {error.name} is missing\nhint: pip install -c constraints.txt -e '.[bench]'")
    print(json.dumps(versions), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        model, work = str(Path(options.model).resolve()), Path(temporary)
        passed = [compare(model, work, name, CASES[name]) for name in options.case or CASES]
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
