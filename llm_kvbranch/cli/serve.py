"""The command that keeps a model in memory: serve."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from .options import database_option

if TYPE_CHECKING:
    from ..web.serving.launch import Ready


@click.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Port to listen at, 0 for any (default: 8177, or any if that is taken)",
)
@click.option(
    "--host",
    default="127.0.0.1",
    help="Address to listen at (default: 127.0.0.1, from this machine alone)",
)
@click.option(
    "--allow-host",
    "allow_hosts",
    metavar="NAME",
    multiple=True,
    help="Name that the server may be reached by; needed with --host",
)
@click.option(
    "--token",
    envvar="LLM_KVBRANCH_TOKEN",
    help="API token (default: one made for you once and kept). Others on this machine "
    "can see options: better set LLM_KVBRANCH_TOKEN",
)
@click.option("--open/--no-open", "open_", default=False, help="Open the page")
@click.option("-m", "--model", help="Model to serve (default: the one kvllama is)")
@click.option(
    "--slots",
    type=click.IntRange(1, 64),
    default=8,
    help="Answers at once (default: 8)",
)
@click.option(
    "--ctx",
    "n_ctx",
    type=click.IntRange(256),
    help="Tokens that all slots may hold together (default: what memory allows)",
)
@click.option(
    "--queue",
    type=click.IntRange(0),
    default=64,
    help="Requests that may wait for a slot (default: 64)",
)
@click.option("--no-log", is_flag=True, help="Log no answers and keep no state of them")
@database_option
def serve(
    port: int | None,
    host: str,
    allow_hosts: tuple[str, ...],
    token: str | None,
    open_: bool,
    model: str | None,
    slots: int,
    n_ctx: int | None,
    queue: int,
    no_log: bool,
    database: str | None,
) -> None:
    """
    Keep a model in memory, for programs and for a page to explore the log

    Any OpenAI client can use it, with what is printed. The page is datasette on the
    log; the link to it logs in once. Ctrl-C ends it. Where just this is served
    already, that is said, with another link to log in.

        llm kvbranch serve --open
    """
    from ..models import catalog
    from ..web.serving import launch

    if model is not None:
        model = model.removeprefix(f"{catalog.MODEL_ID}/")
    wanted = launch.Wanted(
        host=host,
        port=port,
        allow_hosts=allow_hosts,
        token=token,
        database=database,
        model=None if model == catalog.MODEL_ID else model,
        slots=slots,
        n_ctx=n_ctx,
        queue=queue,
        log=not no_log,
    )
    launch.serve(wanted, lambda ready: _show(ready, slots, open_))


def _show(ready: Ready, slots: int, open_: bool) -> None:
    "What a person needs to use the server"
    answers = "one answer" if slots == 1 else f"{slots} answers"
    does = f"serves {answers} at once" if ready.is_new else "is served already"
    click.echo(f"{click.style(ready.model, fg='yellow')} {does}")
    click.echo(f"  Page  {ready.login}  (works once)")
    click.echo(
        f"  API   export OPENAI_BASE_URL={ready.url}/v1 "
        f"OPENAI_API_KEY={shlex.quote(ready.token)}"
    )
    if open_:
        import threading
        import webbrowser

        # Some browsers run in this terminal until they are left
        opening = threading.Thread(
            target=webbrowser.open, args=(ready.login,), daemon=ready.is_new
        )
        opening.start()
