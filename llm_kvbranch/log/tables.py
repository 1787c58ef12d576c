"""The tables and views that this project adds to llm's log.

The idea: what llm's own tables cannot hold (where a branch came from, stars and
notes) is stored in tables of our own beside them. The views join both, for people
who read the log with datasette or SQL.

The invariant: llm's tables are never altered, and a log without our tables works
like any other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import sqlite_utils
from sqlite_utils.migrations import Migrations

migrations = Migrations("llm-kvbranch")

LLM_TABLES = ("turns", "threads", "messages", "parts")
"llm's tables that make a database a log"

READ_TABLES = (
    *LLM_TABLES,
    "fragments",
    "attachments",
    "turn_search",
    "turn_search_fts",
    "conversations",
    "responses",
    "kvbranch_branches",
    "kvbranch_marks",
)
"The tables that this package reads, of those that a log has; seeing all is seeing it"

IN = "in (select value from json_each(?))"
"A condition on any number of values, passed as one parameter by ``json_list``"


def json_list(values: Iterable[Any]) -> str:
    "Values as the one parameter of IN"
    return json.dumps(list(values), default=repr)  # no blob is an id


@migrations()
def m001_branches(db: sqlite_utils.Database) -> None:
    "How each response that one of our commands logged was reached"
    db.table("kvbranch_branches").create(
        {
            "response_id": str,
            "thread_id": str,
            "from_response": str,
            "verb": str,
            "mode": str,
            "excerpt": str,
            "start": int,
            "end": int,
            "created": str,
        },
        pk="response_id",
    )
    db.table("kvbranch_branches").create_index(["from_response"])
    db.table("kvbranch_branches").create_index(["thread_id"])


@migrations()
def m002_marks(db: sqlite_utils.Database) -> None:
    "Stars and notes"
    db.table("kvbranch_marks").create(
        {"response_id": str, "starred": int, "note": str, "updated": str},
        pk="response_id",
        not_null={"starred"},
        defaults={"starred": 0},
    )


_RESPONSES = """
select turns.id as response_id, turns.thread_id, threads.name as thread,
  turns.datetime_utc, turns.model, turn_search.prompt, turn_search.response,
  b.verb, b.mode, b.excerpt, b.from_response,
  turns.input_tokens, turns.output_tokens, turns.duration_ms,
  json_extract(turns.response_json, '$.kvbranch.restored_tokens') as restored_tokens,
  json_extract(turns.response_json, '$.kvbranch.prefilled_tokens') as prefilled_tokens,
  json_extract(turns.response_json, '$.kvbranch.ttft_ms') as ttft_ms,
  json_extract(turns.response_json, '$.kvbranch.decode_tps') as decode_tps,
  json_extract(turns.response_json, '$.kvbranch.miss_reason') as miss_reason,
  coalesce(m.starred, 0) as starred, m.note
from turns
  left join threads on threads.id = turns.thread_id
  left join turn_search on turn_search.turn_id = turns.id
  left join kvbranch_branches b on b.response_id = turns.id
  left join kvbranch_marks m on m.response_id = turns.id
"""
_POINTS = """
select b.response_id, b.from_response, b.verb, b.mode, b.excerpt, b.start, b.end,
  asked.prompt, asked.response, origin.prompt as from_prompt,
  origin.response as from_answer, turns.model, above.model as from_model,
  b.thread_id, b.created
from kvbranch_branches b
  join turns on turns.id = b.response_id
  left join turns above on above.id = b.from_response
  left join turn_search asked on asked.turn_id = b.response_id
  left join turn_search origin on origin.turn_id = b.from_response
"""
VIEWS = {"kvbranch_responses": _RESPONSES, "kvbranch_branch_points": _POINTS}


def tables_of(query: str) -> set[str]:
    "The tables and views that a query of ours reads, and the tables of those views"
    named = set(re.findall(r"\b(?:from|join) (\w+)", query))
    return named.union(*(tables_of(VIEWS[each]) for each in named & set(VIEWS)))


@migrations()
def m003_views(db: sqlite_utils.Database) -> None:
    "Views of responses and of branch points"
    for name, query in VIEWS.items():
        db.create_view(name, query.strip(), replace=True)
