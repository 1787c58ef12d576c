"""llm's log: finding a response, reading it, and logging new ones.

The idea: the log is the truth about conversations, and llm's ``LogStore`` reads and
writes it. This module adds what llm has no call for: finding a response by the start
of its id, and logging a response together with where it branched from.

The invariant: each change is one transaction that waits for other writers.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llm
import sqlite_utils

from ..errors import HistoryError
from .ancestry import chain
from .tables import migrations
from .text import as_text, message_text, parse_object, parts_text

_AT_ONCE = 10_000  # messages: SQLite limits the variables of one statement


def open_log(
    database: str | None = None, create: bool = False
) -> sqlite_utils.Database:
    """The log database, by default llm's own.

    Raises HistoryError if the file does not exist, unless ``create`` is set.
    """
    path = Path(database) if database else Path(llm.user_dir()) / "logs.db"
    if not path.is_file() and not create:
        raise HistoryError(
            f"There is no log at {path} yet: ask a model something first"
        )
    db = sqlite_utils.Database(path)
    # As datasette reads: one text that is not UTF-8 must not hide the whole log
    db.conn.text_factory = lambda text: text.decode("utf-8", "replace")
    if create:
        _migrate(db)
    return db


def _migrate(db: sqlite_utils.Database) -> None:
    """Create or update llm's tables, in one transaction that waits for other writers.

    llm's own migrate is a series of transactions: where two processes begin with a new
    log at once, one finds it locked, or finds a table that it was about to create.
    """
    from llm.migrations import MIGRATIONS, migrate

    table = db.table("_llm_migrations")
    applied = {row["name"] for row in table.rows} if table.exists() else set()
    if applied.issuperset(function.__name__ for function in MIGRATIONS):
        return
    with writing(db):
        migrate(db)  # does nothing if another process has done so by now


@contextlib.contextmanager
def writing(db: sqlite_utils.Database) -> Iterator[None]:
    """One transaction that waits for other writers.

    In a transaction that is open already it is a part of that one, which is undone
    alone if it fails and committed by whoever opened it.
    """
    connection = db.conn
    if connection.in_transaction:
        with db.atomic():
            yield
        return
    try:
        # Ctrl-C while this waits arrives after SQLite has begun
        connection.execute("begin immediate")
        yield
        connection.commit()
    except BaseException:
        connection.rollback()
        raise


@dataclass(frozen=True)
class Logged:
    """A logged response: the messages sent to the model, and its answer.

    ``input_hash`` and ``tip_hash`` are llm's hashes of the last message of each,
    ``hashes`` those of all messages.
    """

    id: str
    thread_id: str
    model: str
    sent: list[Any]
    answered: list[Any]
    input_hash: str | None
    tip_hash: str | None
    hashes: list[str]

    @property
    def messages(self) -> list[Any]:
        "All messages up to the end of the answer"
        return [*self.sent, *self.answered]

    @property
    def text(self) -> str:
        "The text of the answer"
        return "".join(map(message_text, self.answered))

    @property
    def thinking(self) -> str:
        "What the model thought before or between the text of the answer"
        parts = (part for message in self.answered for part in message.parts)
        return parts_text((part.to_dict() for part in parts), "reasoning")


def new_thread_id() -> str:
    from llm.utils import monotonic_ulid

    return str(monotonic_ulid()).lower()


class History:
    "The responses in one log database"

    def __init__(self, db: sqlite_utils.Database, readable: bool = False):
        """Bring the log up to date first, as llm's own store does.

        With ``readable`` the log is read as it is, even if llm's schema is older.
        """
        from llm.logs import LogStore

        self.db = db
        if readable:
            self.store = LogStore.__new__(LogStore)
            self.store.db = db
        else:
            _migrate(db)
            self.store = LogStore(db)

    # -- find -----------------------------------------------------------

    def resolve(self, reference: str, threads: bool = False) -> str:
        """The id of a response from a full id, a unique prefix of one, or "last".

        With ``threads`` a thread's id means its last response. Raises HistoryError,
        which lists the candidates of an ambiguous prefix.
        """
        if threads:
            for row in self.db.query(
                "select id from turns where thread_id = ? order by rowid desc limit 1",
                [reference],
            ):
                return str(row["id"])
        if reference == "last":
            # Logged last: imported ids may be of a clock that is ahead
            query = "select id from turns order by rowid desc limit 1"
            for row in self.db.query(query):
                return str(row["id"])
            raise HistoryError("The log has no responses yet")
        pattern = "".join("\\" + c if c in "%_\\" else c for c in reference) + "%"
        rows = list(
            self.db.query(
                "select id from turns where id like ? escape '\\' order by id limit 6",
                [pattern],
            )
        )
        ids = [str(row["id"]) for row in rows]
        if reference in ids:
            return reference
        if reference and not ids:
            self._refuse_legacy(pattern)
        if not reference or not ids:
            raise HistoryError(
                f"No response with id {reference!r} in the log: see llm logs --short"
            )
        if len(ids) > 1:
            more = " ..." if len(ids) > 5 else ""
            raise HistoryError(
                f"Several response ids start with {reference}, give a longer prefix: "
                + ", ".join(ids[:5])
                + more
            )
        return ids[0]

    def _refuse_legacy(self, pattern: str) -> None:
        "Raise HistoryError if the response is in the tables of llm before 0.32"
        if not self.db["responses"].exists():
            return
        for row in self.db.query(
            "select id, conversation_id from responses where id like ? escape '\\'",
            [pattern],
        ):
            raise HistoryError(
                f"Response {row['id']} was logged by llm before 0.32 and cannot be "
                "branched from. New answers in its conversation can: "
                f"llm --cid {row['conversation_id']} 'next question'"
            )

    def short_id(self, response_id: str) -> str:
        "A prefix of an id, unique in the log, of at least 8 characters"
        row = next(
            self.db.query(
                "select (select max(id) from turns where id < :id) before,"
                " (select min(id) from turns where id > :id) after",
                {"id": response_id},
            )
        )
        n = 8
        for other in (row["before"] or "", row["after"] or ""):
            while len(response_id) > n and other[:n] == response_id[:n]:
                n += 1
        return response_id[:n]

    def current(self) -> str | None:
        "The response that llm -c continues"
        for row in self.db.query(
            "select id from turns where thread_id = (select max(id) from threads)"
            " order by rowid desc limit 1"
        ):
            return str(row["id"])
        return None

    # -- read -----------------------------------------------------------

    def response(self, reference: str) -> Logged:
        "The response that a reference means; raises HistoryError"
        turn = self.turn(self.resolve(reference))
        asked, tip = turn["parent_message_hash"], turn["tip_message_hash"]
        rows = chain(self.db, asked if tip is None else tip)
        hashes = [row["hash"] for row in rows]
        n_sent = hashes.index(asked) + 1 if asked in hashes else 0
        messages = self._messages(rows)
        return Logged(
            id=turn["id"],
            thread_id=turn["thread_id"],
            model=turn["model"],
            sent=messages[:n_sent],
            answered=messages[n_sent:],
            input_hash=asked,
            tip_hash=tip,
            hashes=hashes,
        )

    def _messages(self, rows: list[dict[str, Any]]) -> list[Any]:
        "llm's messages from their rows; HistoryError if their parts make no sense"
        messages = []
        try:
            for start in range(0, len(rows), _AT_ONCE):
                some = rows[start : start + _AT_ONCE]
                parts = self.store._load_parts([row["hash"] for row in some])
                messages += [
                    llm.Message(
                        role=row["role"],
                        parts=parts.get(row["hash"], []),
                        provider_metadata=json.loads(
                            row["provider_metadata"] or "null"
                        ),
                    )
                    for row in some
                ]
            texts = (getattr(p, "text", "") for m in messages for p in m.parts)
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("a text is not text")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HistoryError(
                f"The log is damaged: a message cannot be read ({error!r:.100})"
            ) from None
        return messages

    def is_tip(self, response: Logged) -> bool:
        "Whether a response is the last one of its thread"
        return self._thread_tip(response.thread_id) == response.tip_hash

    def _thread_tip(self, thread_id: str) -> str | None:
        "The last message of a thread, None for an unknown one"
        query = "select tip_message_hash tip from threads where id = ?"
        for row in self.db.query(query, [thread_id]):
            return None if row["tip"] is None else str(row["tip"])
        return None

    def turn(self, response_id: str) -> dict[str, Any]:
        "The row of a response in llm's table of turns"
        for row in self.db.query("select * from turns where id = ?", [response_id]):
            return dict(row)
        raise HistoryError(f"Response {response_id} is no longer in the log")

    def branch(self, response_id: str) -> dict[str, Any]:
        "How one of our commands reached a response; empty if none did"
        if not self.db["kvbranch_branches"].exists():
            return {}
        rows = self.db["kvbranch_branches"].rows_where("response_id = ?", [response_id])
        return dict(next(iter(rows), {}))

    def facts(self, response_id: str) -> dict[str, Any]:
        "What kvllama logged about the KV state of a response; empty for other models"
        query = "select response_json from turns where id = ?"
        row = next(iter(self.db.query(query, [response_id])), {})
        facts = parse_object(row.get("response_json")).get("kvbranch")
        if '"$"' in json.dumps(facts):
            # llm stores texts that are in the messages as references to those
            try:
                payload = self.store.turn_response_json(response_id)
            except (ValueError, KeyError, TypeError, AttributeError):
                return {}
            facts = payload.get("kvbranch") if isinstance(payload, dict) else None
        return facts if isinstance(facts, dict) else {}

    def thread_name(self, thread_id: str) -> str | None:
        "The name of a thread, None if it has none or is unknown"
        query = "select name from threads where id = ?"
        rows = self.db.query(query, [thread_id])
        return as_text(next(iter(rows), {}).get("name")) or None

    def models(self) -> list[str]:
        "The models of all responses"
        rows = self.db.query("select distinct model from turns order by model")
        return [as_text(row["model"]) for row in rows if row["model"]]

    def n_legacy(self) -> int:
        "The number of conversations that are still in the tables of llm before 0.32"
        if not self.db["conversations"].exists():
            return 0
        query = (
            "select count(*) n from conversations"
            " where id not in (select id from threads)"
        )
        return int(next(self.db.query(query))["n"])

    # -- log ------------------------------------------------------------

    def writing(self) -> contextlib.AbstractContextManager[None]:
        "A transaction on the log: see the function of this name"
        return writing(self.db)

    def prepare(self) -> None:
        "Create our tables in the log, unless they exist"
        if migrations.pending(self.db):
            with self.writing():  # another process may have created them by now
                migrations.apply(self.db)

    def log(
        self,
        response: Any,
        thread: dict[str, Any],
        branch: dict[str, Any],
        tip: str | None = None,
    ) -> str:
        """Log a response, its thread if that is new, and where it branched from.

        Returns the thread's id. If ``tip`` is given and the thread no longer ends
        with it, because others have continued it, the response goes to a fork.
        """
        self.prepare()
        with self.writing():
            if tip is not None and self._thread_tip(thread["id"]) != tip:
                thread = {**thread, "id": new_thread_id()}
            self._log(response, thread)
            self.db.table("kvbranch_branches").insert(
                {"response_id": response.id, "thread_id": thread["id"], **branch}
            )
        return str(thread["id"])

    def log_by_content(self, response: Any, thread: dict[str, Any]) -> str:
        """Log a response in the thread that its messages continue; the thread's id.

        If that thread has other responses after them, it goes to a fork; if the log
        has no response with the last answer in its prompt, to ``thread``.
        """
        messages = response.prompt.messages
        answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
        with self.writing():
            known = self._thread_of(messages[: answers[-1] + 1]) if answers else None
            if known is not None:
                thread_id, is_tip = known
                if is_tip:
                    thread = {"id": thread_id}
                else:
                    thread = {**thread, "forked_from": thread_id}
            self._log(response, thread)
        return str(thread["id"])

    def _log(self, response: Any, thread: dict[str, Any]) -> None:
        if not self.db["threads"].count_where("id = ?", [thread["id"]]):
            self.store.create_thread(**thread)
        self.store.log(response, thread["id"])

    def _thread_of(self, messages: list[Any]) -> tuple[str, bool] | None:
        "The thread of the last response that ends with messages; whether it ends there"
        from llm.logs import message_hash

        tip = None
        for message in messages:
            tip = message_hash(message, tip)
        for row in self.db.query(
            "select thread_id, threads.tip_message_hash = :tip is_tip from turns"
            " join threads on threads.id = thread_id"
            " where turns.tip_message_hash = :tip"
            " order by is_tip desc, turns.rowid desc limit 1",
            {"tip": tip},
        ):
            return str(row["thread_id"]), bool(row["is_tip"])
        return None
