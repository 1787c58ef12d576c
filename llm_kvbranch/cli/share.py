"""The commands that share state: export, import."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..settings import format_size
from .options import database_option, json_option, response_argument
from .text import count


def _key() -> str | None:
    "The shared signing key, as set with llm keys set kvbranch"
    import llm

    return llm.get_key(alias="kvbranch", env="LLM_KVBRANCH_KEY")


@click.command()
@response_argument()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite an existing file")
@database_option
@json_option
def export(
    response_id: str, file: Path, force: bool, database: str | None, json_: bool
) -> None:
    """
    Write a response and its context to a file to share

    FILE contains the messages and the KV state up to the response. Whoever imports
    it can continue without reading anything again: a long document is read once
    for a whole team. Other branches are not included. The file is signed if you
    have set a key with llm keys set kvbranch.

    \b
        llm kvbranch export last manual.kvbranch
    """
    from ..errors import BundleError
    from ..log import History, open_log
    from ..store import bundle, existing_store
    from .report import describe_export

    if file.exists() and not force:
        raise BundleError(f"{file} exists: choose another name or pass --force")
    store, history, key = existing_store(), History(open_log(database)), _key()
    report = bundle.export(store, history, history.resolve(response_id), file, key)
    if json_:
        click.echo(json.dumps(describe_export(report, file, bool(key)), indent=2))
        return
    click.echo(
        f"Wrote {count(report.n_tokens, 'token')} "
        f"in {count(report.n_states, 'state')}, "
        f"{format_size(report.nbytes)}, {'signed' if key else 'not signed'}"
    )
    if not key:
        click.echo(
            "Importing it needs --trust, unless both sides set the same key: "
            "llm keys set kvbranch"
        )


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--trust", is_flag=True, help="Import even if not signed with your key")
@database_option
@json_option
def import_(file: Path, trust: bool, database: str | None, json_: bool) -> None:
    """
    Add an exported response to the log and the store

    The file must be signed with your key (llm keys set kvbranch) unless you pass
    --trust. Trust only people you know: KV state steers the model's answers, and
    nobody can tell from the file how.
    """
    from ..errors import BundleError, UntrustedBundleError
    from ..log import History, open_log
    from ..store import bundle, existing_store
    from .report import describe_import

    store = existing_store(create=True)
    history = History(open_log(database, create=True))
    try:
        report = bundle.load(store, history, file, _key(), trust)
    except UntrustedBundleError as error:
        raise BundleError(
            f"{error}. If you trust whoever made it, import it with --trust, or agree "
            "on a key: llm keys set kvbranch"
        ) from None
    if json_:
        click.echo(json.dumps(describe_import(report), indent=2))
        return
    click.echo(
        f"Imported {report.new_states:,} of {count(report.n_states, 'state')}, "
        f"{count(report.n_tokens, 'token')} of {report.model}; {report.origin}"
    )
    if not report.known_model:
        click.echo(
            "No model has made such states on this machine: they can only be used with "
            "the same model file, llama.cpp build and KV settings"
        )
    click.echo(f"Continue with: llm kvbranch {report.response_id} 'next question'")
