"""Memory and time of the data doctor and of deduplication, as JSON lines.

    python benchmarks/doctor.py [--rows 1000000] [--skip NAME …]

Short generated conversations, of which 1 % are near duplicates, with a tokenizer that is trained here. Every way runs
in a process of its own. `peak_mib` is the largest resident memory of that process, `start_mib` its memory after the
imports. Signatures are in temporary files; their pages count only while they are mapped.

  doctor        all checks, in this process
  exact, near   `prepare` with data.deduplicate
  none          `prepare` without it
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import train_tokenizer

WAYS = ("none", "exact", "near", "doctor")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows (1 000 000)")
    parser.add_argument("--skip", nargs="*", default=[], choices=WAYS, help="ways to leave out")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.way, args.folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), args.rows)
        for way in WAYS:
            if way in args.skip:
                continue
            command = [sys.executable, __file__, "--way", way, "--folder", folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            result = json.loads(done.stdout.splitlines()[-1])
            print(json.dumps({"benchmark": "doctor", "way": way, "rows": args.rows, **result}), flush=True)


def make(folder: Path, count: int) -> None:
    """Conversations of about 40 words, and their tokenizer."""
    draw = random.Random(0)
    syllables = [a + b + c for a in "bdfglmnprstvwk" for b in "aeiou" for c in ("", "n", "r", "s", "l")]
    words = ["".join(draw.choices(syllables, k=draw.choice((1, 2, 2, 3)))) for _ in range(20_000)]
    sample: list[str] = []
    before: tuple[list[str], list[str]] = ([], [])
    with (folder / "rows.jsonl").open("w") as stream:
        for number in range(count):
            question, answer = draw.choices(words, k=12), draw.choices(words, k=28)
            if number % 100 == 99:
                question, answer = before[0], [*before[1]]
                answer[draw.randrange(len(answer))] = "changed"
            before = question, answer
            texts = [" ".join(question) + "?", " ".join(answer) + "."]
            roles = ("user", "assistant")
            messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
            stream.write(json.dumps({"messages": messages}) + "\n")
            if len(sample) < 3000:
                sample += texts
    train_tokenizer(folder, sample, "<|im_start|>", "<|im_end|>")


def measure(way: str, folder: Path) -> dict[str, float]:
    """Run one way and return its peak memory, seconds and what it found."""
    import transformers.utils.chat_template_utils  # noqa: F401  part of the start

    from tailor.encode.doctor.examine import examine
    from tailor.encode.prepare import prepare
    from tailor.spec.data import Data
    from tailor.spec.methods.sft import Sft
    from tailor.spec.model import Model

    keys = {"deduplicate": way} if way in ("exact", "near") else {}
    data = Data(train=[{"path": str(folder / "rows.jsonl")}], template="chatml", **keys)
    model, method = Model(path=str(folder / "model")), Sft(name="sft")
    start, begun, cpu = peak(), time.perf_counter(), time.process_time()
    if way == "doctor":
        counts = {finding.check: finding.count for finding in examine(data, model, method).findings}
        found = counts.get("near_duplicates", 0)
    else:
        prepared = prepare(data, model, method, str(folder / "tokens"))
        removed = prepared.tokens.manifest["report"]["sources"][0]["removed"]
        found = sum(rows["count"] for rows in removed.values())
    return {
        "found": found,
        "start_mib": round(start),
        "peak_mib": round(peak()),
        "seconds": round(time.perf_counter() - begun, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


def peak() -> float:
    """The largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
