"""llm's log: which response is meant, and what it says of itself.

The idea: the log is the truth about conversations, and llm's ``LogStore`` is
how it is read. This module adds what llm has no call for: finding a response by
the start of its id, and the response that another one goes on from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llm
import sqlite_utils

from ..errors import HistoryError
from .tables import migrations


def open_log(
    database: str | None = None, create: bool = False
) -> sqlite_utils.Database:
    """The log database, llm's own by default.

    Raises HistoryError if there is none, unless it may be created.
    """
    path = Path(database) if database else Path(llm.user_dir()) / "logs.db"
    if not path.is_file() and not create:
        raise HistoryError(f"There is no log {path} yet: ask a model something first")
    db = sqlite_utils.Database(path)
    if create:
        from llm.migrations import migrate

        migrate(db)
    return db


HASH_PREFIX = "b2:"
"What llm's names for messages begin with"


@dataclass(frozen=True)
class Logged:
    """A response as the log has it: what the model was sent, what it answered.

    ``input_hash`` and ``tip_hash`` are llm's hashes of the two chains' ends.
    """

    id: str
    thread_id: str
    model: str
    sent: list[Any]
    answered: list[Any]
    input_hash: str | None
    tip_hash: str | None

    @property
    def text(self) -> str:
        "The text of the answer"
        return "".join(map(message_text, self.answered))


def new_thread_id() -> str:
    from llm.utils import monotonic_ulid

    return str(monotonic_ulid()).lower()


def message_text(message: Any) -> str:
    "The text of a message, other parts left out"
    parts = [part.to_dict() for part in message.parts]
    return "".join(part["text"] for part in parts if part["type"] == "text")


class History:
    "Responses in one log database"

    def __init__(self, db: sqlite_utils.Database, readable: bool = False):
        """``readable``: the log is read as it is, be it an older one.

        Otherwise it is brought up to date first, as llm's own store does.
        """
        from llm.logs import LogStore

        self.db = db
        if readable:
            self.store = LogStore.__new__(LogStore)
            self.store.db = db
        else:
            self.store = LogStore(db)

    def resolve(self, reference: str, threads: bool = False) -> str:
        """The id of a response from a full id, a unique prefix, or "last".

        ``threads``: the id of a thread stands for its last response. Raises
        HistoryError, listing the candidates where there are several.
        """
        if threads:
            for row in self.db.query(
                "select id from turns where thread_id = ? order by id desc limit 1",
                [reference],
            ):
                return str(row["id"])
        if reference == "last":
            for row in self.db.query("select id from turns order by id desc limit 1"):
                return str(row["id"])
            raise HistoryError("The log holds no response yet")
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
                f"{reference} begins several response ids, give more of it: "
                + ", ".join(ids[:5])
                + more
            )
        return ids[0]

    def _refuse_legacy(self, pattern: str) -> None:
        "Say so if a response is in the tables that llm wrote before 0.32"
        if not self.db["responses"].exists():
            return
        for row in self.db.query(
            "select id, conversation_id from responses where id like ? escape '\\'",
            [pattern],
        ):
            raise HistoryError(
                f"Response {row['id']} was logged by llm before 0.32. Go on with its "
                f"conversation once, which brings it over: "
                f"llm --cid {row['conversation_id']} 'next question'"
            )

    def response(self, reference: str) -> Logged:
        "The response that a reference means; raises HistoryError"
        turn = self.turn(self.resolve(reference))
        sent = self.store.load_chain(turn["parent_message_hash"])
        return Logged(
            id=turn["id"],
            thread_id=turn["thread_id"],
            model=turn["model"],
            sent=sent,
            answered=self.store.load_chain(turn["tip_message_hash"])[len(sent) :],
            input_hash=turn["parent_message_hash"],
            tip_hash=turn["tip_message_hash"],
        )

    def is_tip(self, response: Logged) -> bool:
        "Whether a response is the last of its thread"
        return bool(self.store.thread_tip(response.thread_id) == response.tip_hash)

    def log(
        self,
        response: Any,
        thread: dict[str, Any],
        branch: dict[str, Any],
        tip: str | None = None,
    ) -> str:
        """Log a response, with its thread where that is new, and where it came from.

        All in one transaction, which waits for other writers. Returns the thread's id:
        a fork's if the thread ends no more with ``tip``, having gone on meanwhile.
        """
        migrations.apply(self.db)
        with self.writing():
            if tip is not None and self.store.thread_tip(thread["id"]) != tip:
                thread = {**thread, "id": new_thread_id()}
            self._log(response, thread)
            self.db.table("kvbranch_branches").insert(
                {"response_id": response.id, "thread_id": thread["id"], **branch}
            )
        return str(thread["id"])

    def _log(self, response: Any, thread: dict[str, Any]) -> None:
        if not self.db["threads"].count_where("id = ?", [thread["id"]]):
            self.store.create_thread(**thread)
        self.store.log(response, thread["id"])

    def log_by_content(self, response: Any, thread: dict[str, Any]) -> str:
        """Log a response in the thread that its messages go on from; that one's id.

        A fork of that thread where it has gone on already, and ``thread`` where no
        response in the log answers as the last message of an assistant does.
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

    def _thread_of(self, messages: list[Any]) -> tuple[str, bool] | None:
        "The thread of the last response that ends like this, and if it ends there"
        from llm.logs import message_hash

        tip = None
        for message in messages:
            tip = message_hash(message, tip)
        for row in self.db.query(
            "select thread_id, threads.tip_message_hash = :tip is_tip from turns"
            " join threads on threads.id = thread_id"
            " where turns.tip_message_hash = :tip"
            " order by is_tip desc, turns.id desc limit 1",
            {"tip": tip},
        ):
            return str(row["thread_id"]), bool(row["is_tip"])
        return None

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        "One transaction, which waits for other writers; or a part of the present one"
        connection = self.db.conn
        if connection.in_transaction:
            yield
            return
        connection.execute("begin immediate")
        try:
            yield
            connection.commit()
        except BaseException:
            connection.rollback()
            raise

    def branch(self, response_id: str) -> dict[str, Any]:
        "How a response was reached by a command of ours; empty if it was not"
        if not self.db["kvbranch_branches"].exists():
            return {}
        rows = self.db["kvbranch_branches"].rows_where("response_id = ?", [response_id])
        return dict(next(iter(rows), {}))

    def thread_name(self, thread_id: str) -> str | None:
        "What a thread is called, None where the log does not know it"
        query = "select name from threads where id = ?"
        rows = self.db.query(query, [thread_id])
        return next(iter(rows), {}).get("name")

    def turn(self, response_id: str) -> dict[str, Any]:
        "The log's row of a response"
        rows = self.db.query("select * from turns where id = ?", [response_id])
        return dict(next(rows))

    def facts(self, response_id: str) -> dict[str, Any]:
        "What kvllama logged of a response's KV state; empty for other models"
        payload = self.store.turn_response_json(response_id)
        facts = payload.get("kvbranch") if isinstance(payload, dict) else None
        return facts if isinstance(facts, dict) else {}
