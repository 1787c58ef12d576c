"""The commands that share state: export, import."""

from __future__ import annotations

from pathlib import Path

import click

from ..settings import format_size
from .options import database_option


def _key() -> str | None:
    "What people who share bundles agreed on: llm keys set kvbranch"
    import llm

    return llm.get_key(alias="kvbranch", env="LLM_KVBRANCH_KEY")


@click.command()
@click.argument("response_id")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Write over a file that is there")
@database_option
def export(response_id: str, file: Path, force: bool, database: str | None) -> None:
    """
    Write a response with its whole context to a file, for someone else

    FILE gets the messages and the KV state that lead up to the response, so who
    imports it goes on from there without reading anything: a long document read
    once serves a team. What is in other branches is not in it. It is signed if
    there is a key: llm keys set kvbranch

        llm kvbranch export last manual.kvbranch
    """
    from ..errors import BundleError
    from ..log import History, open_log
    from ..store import bundle, existing_store

    if file.exists() and not force:
        raise BundleError(f"{file} is there already: give another name, or --force")
    store, history, key = existing_store(), History(open_log(database)), _key()
    report = bundle.export(store, history, history.resolve(response_id), file, key)
    click.echo(
        f"Wrote {report.n_tokens:,} tokens in {report.n_states:,} states, "
        f"{format_size(report.nbytes)}, {'signed' if key else 'not signed'}"
    )
    if not key:
        click.echo(
            "Who imports it must say --trust, unless you agree on a key: "
            "llm keys set kvbranch"
        )


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--trust", is_flag=True, help="Take it though it is not signed by you")
@database_option
def import_(file: Path, trust: bool, database: str | None) -> None:
    """
    Take a response that someone exported into the log and the store

    It must be signed with your key (llm keys set kvbranch), or you say that you
    trust who made it: state steers a model's answers, and nobody can read in it
    what it will make the model say.
    """
    from ..log import History, open_log
    from ..store import bundle, existing_store

    store = existing_store(create=True)
    history = History(open_log(database, create=True))
    report = bundle.load(store, history, file, _key(), trust)
    click.echo(
        f"Took in {report.new_states:,} of {report.n_states:,} states, "
        f"{report.n_tokens:,} tokens of {report.model}; {report.origin}"
    )
    if not report.known_model:
        click.echo(
            "No model that ran here made states like these: they are used by the same "
            "model file, llama.cpp build and KV settings only"
        )
    click.echo(f"Go on with: llm kvbranch {report.response_id} 'next question'")
