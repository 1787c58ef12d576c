"""The command that runs the server: serve."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..settings import LONGEST_PAUSE, SHORTEST_PAUSE
from .options import completing, database_option

if TYPE_CHECKING:
    from ..web.serving.launch import ServerInfo


@click.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Port to listen on, 0 for any (default: 8177, or any if that is taken)",
)
@click.option(
    "--host",
    default="127.0.0.1",
    help="Address to listen on (default: 127.0.0.1, this machine only)",
)
@click.option(
    "--allow-host",
    "allow_hosts",
    metavar="NAME",
    multiple=True,
    help="Host name that clients may use; needed with --host",
)
@click.option(
    "--token",
    envvar="LLM_KVBRANCH_TOKEN",
    help="API token (default: generated once and kept). Other users of this machine "
    "can see options, so rather set LLM_KVBRANCH_TOKEN",
)
@click.option(
    "--new-token",
    is_flag=True,
    help="Replace the kept token; this ends all sessions",
)
@click.option("--open/--no-open", "open_", default=False, help="Open a browser")
@click.option(
    "-m",
    "--model",
    help="Model to serve (default: that of kvllama)",
    shell_complete=completing("models"),
)
@click.option(
    "--slots",
    type=click.IntRange(1, 64),
    default=8,
    help="Answers to generate at once (default: 8)",
)
@click.option(
    "--ctx",
    "n_ctx",
    type=click.IntRange(256),
    help="Context shared by all slots, in tokens (default: what fits in memory)",
)
@click.option(
    "--queue",
    type=click.IntRange(0),
    default=64,
    help="Requests that may wait for a slot (default: 64)",
)
@click.option(
    "--max-pause",
    metavar="SECONDS",
    type=click.FloatRange(SHORTEST_PAUSE, LONGEST_PAUSE),
    help="How long running answers may pause while a prompt is read (default: 0.3). "
    "Less is smoother, more reads prompts sooner",
)
@click.option("--no-log", is_flag=True, help="Do not log answers or store their state")
@database_option
def serve(
    port: int | None,
    host: str,
    allow_hosts: tuple[str, ...],
    token: str | None,
    new_token: bool,
    open_: bool,
    model: str | None,
    slots: int,
    n_ctx: int | None,
    queue: int,
    max_pause: float | None,
    no_log: bool,
    database: str | None,
) -> None:
    """
    Serve a model to OpenAI clients and to a page on the log

    Prints the settings for OpenAI clients and a link to the page, which is
    Datasette on the log. The link works once. Press Ctrl-C to stop. If a server
    with the same options is running, its address and a new link are printed.

    \b
        llm kvbranch serve --open
    """
    from ..models import catalog
    from ..web.serving import launch

    if model is not None:
        model = model.removeprefix(f"{catalog.MODEL_ID}/")
    wanted = launch.ServeOptions(
        host=host,
        port=port,
        allow_hosts=allow_hosts,
        token=token,
        new_token=new_token,
        database=database,
        model=None if model == catalog.MODEL_ID else model,
        slots=slots,
        n_ctx=n_ctx,
        queue=queue,
        max_pause=max_pause,
        log=not no_log,
    )
    try:
        launch.serve(wanted, lambda ready: _show(ready, slots, open_))
    finally:
        for file in _opened:
            file.unlink(missing_ok=True)


def _show(ready: ServerInfo, slots: int, open_: bool) -> None:
    "Print what is needed to use the server"
    answers = "one answer" if slots == 1 else f"{slots} answers"
    does = f"serves {answers} at once" if ready.is_new else "is already being served"
    click.echo(f"{click.style(ready.model, fg='yellow')} {does}")
    click.echo(f"  Page  {ready.login}  (works once)")
    click.echo(
        f"  API   export OPENAI_BASE_URL={ready.url}/v1 "
        f"OPENAI_API_KEY={shlex.quote(ready.token)}"
    )
    if ready.warning:
        click.echo(f"Warning: {ready.warning}", err=True)
    if open_:
        import threading
        import webbrowser

        file = _redirection(ready.login)
        if ready.is_new:
            _opened.append(file)
        # Some browsers run in this terminal until they are closed
        opening = threading.Thread(
            target=webbrowser.open, args=(file.as_uri(),), daemon=ready.is_new
        )
        opening.start()


_opened: list[Path] = []  # removed when the server ends


def _redirection(link: str) -> Path:
    """A page that leads to a link; raises SettingError.

    The browser is given this private file, as other users can see the arguments of a
    process, and log in before it does.
    """
    import html

    from ..errors import SettingError
    from ..settings import data_directory, write_private

    path = data_directory().absolute() / "open.html"
    address = html.escape(link)
    page = (
        '<!doctype html><meta charset="utf-8"><title>llm kvbranch</title>'
        f'<meta http-equiv="refresh" content="0; url={address}">'
        f'<p><a href="{address}">Open the page</a>\n'
    )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(path, page)
    except OSError as error:
        raise SettingError(f"Cannot write {path}: {error.strerror}") from None
    return path
