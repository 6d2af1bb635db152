"""The documentation site: ``make docs`` builds it into ``docs/_build/html``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import sb3_pmpo  # noqa: E402  # of this checkout

project = "sb3_pmpo"
author = "The sb3_pmpo authors"
copyright = "the sb3_pmpo authors, MIT licence"
version = release = sb3_pmpo.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"sb3_pmpo {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False


#: Where the links of pages that are included from outside docs/ lead on the site.
MOVED = {
    "](README.md": "](results.md",
    "](../README.md": "](index.md",
    "](../docs/": "](",
    "](../../docs/": "](",
}


def setup(app: Any) -> None:
    """Let included pages link to the site's, signatures show functions by their names.

    Fields of named tuples are in the class's list of parameters already.
    """

    def moved(app: object, path: object, page: str, content: list[str]) -> None:
        for here, there in MOVED.items():
            content[0] = content[0].replace(here, there)

    def named(app: object, what: str, name: str, it: object, options: object, *parts: str) -> Any:
        signature, returned = parts
        return signature and re.sub(r"<function (\w+)[^>]*>", r"\1", signature), returned

    def skipped(app: object, what: str, name: str, it: Any, *rest: object) -> bool | None:
        return True if str(it.__doc__).startswith("Alias for field number") else None

    app.connect("include-read", moved)
    app.connect("autodoc-skip-member", skipped)
    app.connect("autodoc-process-signature", named)
