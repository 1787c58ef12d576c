"""The ``llm kvbranch`` commands: parse, call, print.

Owns the command line: names, options, help, and what is printed. It does not know how
anything is computed or stored, and nothing imports it but llm's hook.
"""

from __future__ import annotations

import click

from .groups import LazyGroup

__all__ = ["kvbranch"]


@click.group(
    "kvbranch",
    cls=LazyGroup,
    default="branch",
    sections={
        "Explore": {
            "branch": "ask:branch",
            "focus": "ask:focus",
            "continue": "ask:continue_",
            "retry": "ask:retry",
            "tree": "show:tree",
            "show": "show:show",
            "diff": "show:diff",
        },
        "Keep and share": {
            "star": "keep:star",
            "note": "keep:note",
            "prune": "keep:prune",
            "export": "share:export",
            "import": "share:import_",
        },
        "Run": {
            "serve": "serve:serve",
            "doctor": "doctor:doctor",
            "models": "models:models",
            "store": "store:store",
        },
    },
    aliases={
        "use": "models:use",
        "settings": "models:settings",
        "download": "models:download",
        "status": "store:status",
        "budget": "store:budget",
        "gc": "store:gc",
        "verify": "store:verify",
        "pin": "store:pin",
        "unpin": "store:unpin",
    },
)
@click.version_option(
    package_name="llm-kvbranch", message="%(package)s, version %(version)s"
)
def kvbranch() -> None:
    """
    Explore conversations as trees and the KV state they leave. RESPONSE_ID is a
    full id, the start of one, or "last". --version shows the version.
    """
