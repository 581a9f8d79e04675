"""Print every loss of the parity cases, the preference methods and the quickstart to the last bit, to compare two versions.

OMP_NUM_THREADS=1 python benchmarks/losses.py > after.txt
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"  # a sum's order, and so its last bit, depends on the number of threads


def parity(folder: Path) -> None:
    """A line per case of tests/train/test_parity.py."""
    import torch

    from tests.helpers.families import FAMILIES
    from tests.helpers.hosts import PlainHost
    from tests.helpers.models import tiny_llama
    from tests.helpers.stores import make_store
    from tests.train.test_parity import CASES, LENGTHS, curve, plan_of

    torch.set_num_threads(1)
    FAMILIES["mixtral"].make(folder / "mixtral", output_router_logits=True, router_aux_loss_coef=1.0)
    store = make_store(folder / "tokens", LENGTHS, evaluation=LENGTHS[:7])
    made = tiny_llama(folder / "model"), store, folder
    for case, sections in CASES.items():
        losses = curve(PlainHost(), plan_of(made, f"one/{case}", sections))
        print(f"{case}:", *(float(loss).hex() for loss in losses), flush=True)


def preference(folder: Path) -> None:
    """A line per case of tests/train/test_preference.py: the loss, accuracy and margin of each step and of the evaluation."""
    from tests.helpers.hosts import PlainHost
    from tests.helpers.models import tiny_llama
    from tests.helpers.preference_stores import pairs, rated, write_groups
    from tests.train.test_preference import CASES, PROMPT, curve, planned

    model = tiny_llama(folder / "preference")
    stores = {
        "dpo": write_groups(folder / "pairs", pairs(60, prompt=PROMPT), pairs(7, seed=1, prompt=PROMPT)),
        "kto": write_groups(folder / "rated", rated(90), rated(9, seed=1)),
    }
    for case, sections in CASES.items():
        found = curve(PlainHost(), planned(model, stores, folder / "preference runs" / case, **sections))
        print(f"{case}:", *(float(figure).hex() for figures in found for figure in figures), flush=True)


def quickstart(folder: Path) -> None:
    """The losses of every step and of the evaluations."""
    command = [sys.executable, "-m", "tailor", "run", "recipes/quickstart.yaml", f"save.to={folder / 'run'}"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    for text in (folder / "run" / "metrics.jsonl").read_text().splitlines():
        record = json.loads(text)
        if "loss" in record:
            print("quickstart:", record.get("kind", ""), record["step"], float(record["loss"]).hex())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        parity(Path(name))
        preference(Path(name))
        quickstart(Path(name))
