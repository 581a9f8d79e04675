"""Relative links of the documents lead to files and headings that exist, in the repository and on the site."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from tests.docs.test_pages import DOCUMENTS, ROOT

_FENCE = re.compile(r"^(```|~~~).*?^\1$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The headings of a page, as far as GitHub and MkDocs derive the same anchor from them."""
    found: list[str] = []
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        name = re.sub(r"[^\w\- ]", "", heading.strip().lower())
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        github, mkdocs = name.replace(" ", "-"), re.sub(r"[-\s]+", "-", plain)
        if github == mkdocs:
            found.append(github)
    return {anchor for anchor in found if found.count(anchor) == 1}


def broken(path: Path) -> list[str]:
    """The relative links of a document that lead nowhere."""
    found = []
    for link in _LINK.findall(_CODE.sub("", _FENCE.sub("", path.read_text()))):
        if "://" in link or link.startswith("mailto:"):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            found.append(link)
    return found


@pytest.mark.parametrize(
    "path", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=lambda path: str(path.relative_to(ROOT))
)
def test_links_lead_somewhere(path: Path) -> None:
    assert broken(path) == []


def test_broken_links_are_seen(tmp_path: Path) -> None:
    """Control: files and headings that do not exist, and headings whose anchor would be ambiguous."""
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text(
        "# One\n## Two words\n## Twice\n## Twice\n## Q & A\n```\n# code\n```\n"
    )
    good = "[a](other.md) [b](other.md#two-words) [c](#top) [d](https://x.org/none) `[e](none.md)`"
    page.write_text(f"# Top\n{good}\n```\n[f](none.md)\n```\n")
    assert broken(page) == []
    bad = ["none.md", "other.md#three", "other.md#twice", "other.md#q--a", "other.md#code", "#bottom"]
    page.write_text("# Top\n" + " ".join(f"[x]({link})" for link in bad))
    assert broken(page) == bad


def build(config: Path, to: Path) -> subprocess.CompletedProcess[str]:
    """Not with `--quiet`, which hides warnings from strict mode too."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(to)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_site_builds(tmp_path: Path) -> None:
    done = build(ROOT / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 0, done.stderr
    for page in ("index.html", "data/index.html", "design/map/index.html", "cluster/index.html"):
        assert (tmp_path / "site" / page).is_file(), page
    shown = (tmp_path / "site" / "preference" / "index.html").read_text()
    assert 'href="../recipes/zephyr-7b-dpo-qlora.yaml"' in shown, "files outside docs/ are part of the site"
    assert (tmp_path / "site" / "recipes" / "zephyr-7b-dpo-qlora.yaml").is_file()
    assert "Sequence parallelism" in (tmp_path / "site" / "search" / "search_index.json").read_text()


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    """Control: strict mode sees files and headings that do not exist."""
    (tmp_path / "docs").mkdir()
    config = tmp_path / "mkdocs.yml"
    text = (ROOT / "mkdocs.yml").read_text()
    config.write_text(re.sub(r"^(nav:\n( .*\n)+|watch: .*\n)", "", text, flags=re.MULTILINE))
    shutil.copy(ROOT / "docs" / "hooks.py", tmp_path / "docs")
    page = tmp_path / "docs" / "index.md"
    page.write_text("# Top\n[x](#top)\n")
    assert build(config, tmp_path / "site").returncode == 0
    for link in ("none.md", "#bottom", "../none.yaml"):
        page.write_text(f"# Top\n[x]({link})\n")
        done = build(config, tmp_path / "site")
        assert done.returncode == 1, link
        assert "none" in done.stderr or "bottom" in done.stderr
