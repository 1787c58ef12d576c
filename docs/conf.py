"""How Sphinx builds the documentation: ``sphinx-build -W docs docs/_build``."""

from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent

project = "llm-kvbranch"
author = "The llm-kvbranch team"
copyright = f"2026, {author}"
release = version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
    "version"
]

extensions = ["myst_parser", "sphinx_copybutton"]
exclude_patterns = ["_build"]
# Links between pages name headings as GitHub does, so that they work there too
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "deflist"]

html_theme = "furo"
html_title = "llm-kvbranch"
copybutton_exclude = ".linenos, .gp, .go"
