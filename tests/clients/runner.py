"""Calls functions of a program: their names are read, a line of JSON is written.

It runs in a client's environment, which has nothing of ours.
"""

import asyncio
import importlib.util
import inspect
import json
import os
import sys
import traceback


def main():
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a client prints is not an answer
    sys.path.pop(0)
    spec = importlib.util.spec_from_file_location("program", sys.argv[1])
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    loop = asyncio.new_event_loop()  # one for all: a client keeps its connections
    for line in sys.stdin:
        error = None
        try:
            case = getattr(program, line.strip())
            result = case()
            if inspect.iscoroutine(result):
                loop.run_until_complete(result)
        except BaseException:
            error = traceback.format_exc()
        out.write(json.dumps({"error": error}) + "\n")
        out.flush()


main()
