"""Read from llm's log what each response cost.

    python examples/read_log.py [logs.db]

llm keeps what a model reports in turns.response_json; kvllama's facts are JSON there,
under "kvbranch".
"""

import sys

import llm
import sqlite_utils

path = sys.argv[1] if len(sys.argv) > 1 else llm.user_dir() / "logs.db"
db = sqlite_utils.Database(path)

SQL = """
select turns.id, turn_search.prompt,
  json_extract(response_json, '$.kvbranch.restored_tokens') as reused,
  json_extract(response_json, '$.kvbranch.prefilled_tokens') as read,
  json_extract(response_json, '$.kvbranch.ttft_ms') as ttft_ms,
  json_extract(response_json, '$.kvbranch.miss_reason') as miss_reason
from turns left join turn_search on turn_search.turn_id = turns.id
where json_extract(response_json, '$.kvbranch') is not null
order by turns.id
"""
for row in db.query(SQL):
    print(
        f"{row['id']}  {row['reused'] or 0:>6} reused  {row['read'] or 0:>6} read  "
        f"{row['ttft_ms'] or 0:>8.0f} ms  {(row['prompt'] or '')[:40]}"
    )
    if row["miss_reason"]:
        print(f"  {row['miss_reason']}")
