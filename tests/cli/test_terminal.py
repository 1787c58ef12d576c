"""What a log says must not be obeyed by the terminal that shows it."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from llm_kvbranch.cli import kvbranch
from llm_kvbranch.log import marks, printable

from ..support.logged import Log

EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\x08\u202eevil\x7f"


@pytest.fixture
def log(user_path):
    "A log with escape sequences in every column that a command prints"
    log = Log(user_path / "logs.db")
    first = log.begin(f"Why{EVIL}?", f"Because {EVIL} it is so.")
    log.branch(first, 0, 12, f"And{EVIL}?", f"So{EVIL}.")
    log.retry(first, f"Never{EVIL}.")
    for row in list(log.db["turns"].rows):
        marks.mark(log.history, row["id"], note=f"Note{EVIL}\nmore")
    log.db.execute(f"update threads set name = '{EVIL}'")
    log.db.execute(f"update turns set model = '{EVIL}', resolved_model = '{EVIL}'")
    log.db.execute(f"update kvbranch_branches set mode = '{EVIL}'")
    log.db.conn.commit()
    yield log
    log.close()


class TestControls:
    "Fails if escape sequences of a log or a bundle reach the terminal"

    def test_no_command_prints_them(self, log):
        one, two, three = sorted(row["id"] for row in log.db["turns"].rows)
        for command in (
            ["tree"],
            ["show", two],
            ["note", one],
            ["diff", one, three],
            ["status"],
            ["branch", one, "--excerpt", "its", "Why?"],
            ["continue", one, "Why?"],
            ["prune", one],
            ["show", f"nothing{EVIL}"],
        ):
            result = CliRunner().invoke(kvbranch, command)
            shown = result.stdout + result.stderr
            assert shown
            assert not set(shown) & set(EVIL) - set("[2J]0;owned31mevil"), command

    def test_lines_stay(self):
        assert printable("a\n\tb\x1b", lines=True) == "a\n\tb␛"
        assert printable("a\nb\x9b\udce9é👩‍👧") == "a␊b\ufffd\ufffdé👩‍👧"
