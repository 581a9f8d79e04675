"""MkDocs hook: pages may link to any file of the repository, and each file that they link to is part of the site.

The same relative link then works in the repository's view and on the site: `../recipes/quickstart.yaml` in a page of
`docs/` is `recipes/quickstart.yaml` on the site, `../cluster/README.md` is a page. A link to a file that does not
exist stays as it is, so that `mkdocs build --strict` reports it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
DOCS = "docs"

_CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the files outside docs/ that pages link to, and those that added pages link to."""
    waiting = [file for file in files if file.is_documentation_page()]
    while waiting:
        page = waiting.pop()
        for _, link, _ in _LINK.findall(_CODE.sub("", (ROOT / source(page.src_uri)).read_text())):
            target = resolve(page.src_uri, link)
            path = ROOT / target
            if target.startswith(f"{DOCS}/") or not path.is_file() or files.get_file_from_path(target):
                continue
            file = File.generated(config, target, abs_src_path=str(path))
            files.append(file)
            if file.is_documentation_page():
                waiting.append(file)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links at where the hook put their targets."""

    def moved(match: re.Match[str]) -> str:
        target = resolve(page.file.src_uri, match[2])
        if "://" in match[2] or not (ROOT / target).exists():
            return match[0]
        site = posixpath.relpath(target.removeprefix(f"{DOCS}/"), posixpath.dirname(page.file.src_uri) or ".")
        return match[1] + site + match[3]

    pieces, end = [], 0
    for code in _CODE.finditer(markdown):
        pieces += [_LINK.sub(moved, markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*pieces, _LINK.sub(moved, markdown[end:])])


def source(src_uri: str) -> str:
    """The path in the repository of a page or file of the site."""
    inside = f"{DOCS}/{src_uri}"
    return inside if (ROOT / inside).is_file() else src_uri


def resolve(src_uri: str, link: str) -> str:
    """The path in the repository that a link of a page leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source(src_uri)), link))
