"""A module of another package can be the first one that imports tailor, without a circular import.

tailor imports the modules that other packages register while it builds the type of a recipe. A test or notebook may
import such a module first; then tailor must not find it half imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.extensions import documented

ROOT = Path(__file__).parents[2]
SECTIONS = {
    "A method": ("focal_spec", "focal_loss"),
    "A data format": ("faq_format",),
    "An export form": ("vllm_export",),
    "A tracker": ("csv_tracker.section", "csv_tracker.tracker"),
    "A strategy": ("bf16_reduce_spec", "bf16_reduce_training"),
    "An evaluation task": ("matches_task", "matches_evaluator"),
}
"""Section of docs/extending.md -> modules of its package."""
LOADS_EVERY_METHOD = "from tailor.spec.methods.union import Method\n"


def import_first(folder: Path, module: str) -> subprocess.CompletedProcess[str]:
    """Import the module in a new interpreter, then `tailor.spec.load`. The package in `folder` is installed."""
    return subprocess.run(
        [sys.executable, "-c", f"import {module}; import tailor.spec.load"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("section", "module"), [(section, module) for section, modules in SECTIONS.items() for module in modules]
)
def test_a_package_of_the_extensions_page(section: str, module: str, tmp_path: Path) -> None:
    done = import_first(documented(tmp_path, section), module)
    assert done.returncode == 0, done.stderr


def test_control_a_section_that_imports_all_sections_is_found(tmp_path: Path) -> None:
    folder = documented(tmp_path, "A method")
    file = folder / "focal_spec.py"
    file.write_text(LOADS_EVERY_METHOD + file.read_text())
    done = import_first(folder, "focal_spec")
    assert done.returncode != 0
    assert "tailor.methods: focal of the package focal-method cannot be loaded" in done.stderr
