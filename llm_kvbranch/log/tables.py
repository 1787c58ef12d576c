"""The tables and views that this project adds to llm's log.

The idea: what llm has no place for (where a branch came from, what a person marked)
is in tables of our own, beside llm's and named for us. The views put both together,
for people who look at the log with datasette or SQL.

The invariant: llm's own tables stay as llm made them, and a log without ours is a
log like any other.
"""

from __future__ import annotations

import sqlite_utils
from sqlite_utils.migrations import Migrations

migrations = Migrations("llm-kvbranch")

# Who may see all of these may see the conversations of a log
READ = ("turns", "threads", "messages", "parts")
"The tables of llm's that a conversation is read from"


@migrations()
def m001_branches(db: sqlite_utils.Database) -> None:
    "Where a response came from that a command of ours asked for"
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
    "Stars and notes of a person"
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


@migrations()
def m003_views(db: sqlite_utils.Database) -> None:
    "Responses, and where branches leave them, with all that belongs to each"
    for name, query in VIEWS.items():
        db.create_view(name, query.strip(), replace=True)
