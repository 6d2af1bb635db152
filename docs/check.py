"""Check a built site and the pages of the repository, offline: ``python docs/check.py SITE``.

Every link to a file or an anchor of the site leads there, every relative link of a Markdown file of
the repository names a file that exists, and the reference has every public name and every name that
a page's code imports.
"""

from __future__ import annotations

import ast
import re
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parent.parent
#: Modules whose ``__all__`` the reference documents.
PUBLIC = ("", "distributions", "feedback", "lm", "offline", "pretrained", "replay", "tools.zoo")


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect what an element points to, and what points to it."""
        for name, value in attrs:
            if value and name == "id":
                self.anchors.add(value)
            if value and name in ("href", "src"):
                self.links.append(value)


def broken_in_site(site: Path) -> list[str]:
    """List the links of the site that lead nowhere."""
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html")}
    checked = {path: page for path, page in pages.items() if "_modules" not in path.parts}
    broken = []
    for path, page in checked.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc or "_modules/" in url.path:  # written by viewcode
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            missing = not target.exists()
            if not missing and url.fragment and target in pages:
                missing = unquote(url.fragment) not in pages[target].anchors
            if missing:
                broken.append(f"{path.relative_to(site)}: {link}")
    return broken


def broken_in_repository() -> list[str]:
    """List the relative links of Markdown files to files that do not exist."""
    folders = (ROOT, ROOT / "benchmarks", ROOT / "benchmarks" / "labelled", ROOT / "docs")
    broken = []
    for path in (path for folder in folders for path in folder.glob("*.md")):
        text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            url = urlsplit(link)
            if url.path and not url.scheme and not (path.parent / unquote(url.path)).exists():
                broken.append(f"{path.relative_to(ROOT)}: {link}")
    return broken


def undocumented(site: Path) -> list[str]:
    """List the public names that the reference lacks."""
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(inventory).decode().splitlines()
    known = {line.split(" py:")[0] for line in lines if " py:" in line}
    public = {name for module in PUBLIC for name in public_names(module)}
    return sorted((public | imported_by_pages()) - known)


def imported_by_pages() -> set[str]:
    """Collect the names that the Python code of the pages imports from the package."""
    pages = (path.read_text() for path in (ROOT / "docs").glob("*.md"))
    blocks = (
        code for page in pages for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    )
    nodes = (node for code in blocks for node in ast.walk(ast.parse(code)))
    imports = (node for node in nodes if isinstance(node, ast.ImportFrom) and node.module)
    return {
        f"{node.module}.{alias.name}"
        for node in imports
        for alias in node.names
        if (node.module or "").startswith("sb3_pmpo") and alias.name != "pretrained"  # a module
    }


def public_names(module: str) -> list[str]:
    """Read a module's ``__all__`` without importing it."""
    package = ".".join(("sb3_pmpo", module)).rstrip(".")
    source = ROOT.joinpath(*package.split("."), "__init__.py").read_text()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return [f"{package}.{x}" for x in ast.literal_eval(node.value) if x != "__version__"]
    raise ValueError(f"{package} has no __all__")


def main() -> int:
    """Print what is wrong; return the exit status."""
    site = Path(sys.argv[1]).resolve()
    faults = [f"leads nowhere: {link}" for link in broken_in_site(site) + broken_in_repository()]
    faults += [f"not in the reference: {name}" for name in undocumented(site)]
    print("\n".join(faults) or f"{site}: all links and public names are there")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
