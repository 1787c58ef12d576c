"""The pages on which people read and branch: their HTML, JSON, scripts and styles.

Owns what a browser shows and what a person changes there. The templates are in
``web/templates``, since datasette looks for them only beside a plugin's module. It
does not know how answers are generated.
"""

from . import login, page_api, page_changes, pages, static_files
from .login import ENTRANCE

__all__ = [
    "ENTRANCE",
    "login",
    "page_api",
    "page_changes",
    "pages",
    "static_files",
]
