"""Notes when a process calls llama.cpp, whatever the process is.

Python imports this by itself where its folder is in PYTHONPATH. It does nothing
without KVBRANCH_TRACE, the file that gets a line for each call of interest: its
name, when it began and when it ended (``time.perf_counter``, which is the same clock
in all processes). With KVBRANCH_GREEDY chat completions that ask for no temperature
are greedy and short: so can be seen what a plugin without options asks its model.
"""

import os

KINDS = {
    "load": ("llama_model_load_from_file", "llama_load_model_from_file"),
    "context": ("llama_init_from_model", "llama_new_context_with_model"),
    "restore": (
        "llama_state_seq_set_data_ext",
        "llama_state_seq_set_data",
        "llama_state_set_data",
    ),
    "decode": ("llama_decode",),
}
MOST = 64  # calls of a kind: more are an answer's tokens


def install(path, greedy):
    import sys

    after = {"llama_cpp.llama_cpp": bindings_patch(path)}
    if greedy:
        after["llama_cpp.llama"] = chat_patch(int(greedy))
    sys.meta_path.insert(0, finder(after))


def bindings_patch(path):
    "Has calls of interest noted in a file"
    import time

    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def noted(kind, function):
        left = MOST

        def call(*arguments):
            nonlocal left
            began = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                if left:
                    left -= 1
                    line = f"{kind} {began!r} {time.perf_counter()!r}\n"
                    os.write(descriptor, line.encode())

        return call

    def patch(module):
        for kind, names in KINDS.items():
            for name in names:
                if hasattr(module, name):
                    setattr(module, name, noted(kind, getattr(module, name)))

    return patch


def chat_patch(n_tokens):
    "Has completions be greedy and short that ask for nothing else"

    def patch(module):
        complete = module.Llama.create_chat_completion

        def greedy_completion(self, *arguments, **named):
            named = {"temperature": 0.0, "max_tokens": n_tokens, **named}
            return complete(self, *arguments, **named)

        module.Llama.create_chat_completion = greedy_completion

    return patch


def finder(after):
    "Finds modules as always, and has them patched once they have run"
    import importlib.machinery

    class Finder:
        @staticmethod
        def find_spec(name, where=None, target=None):
            if name not in after:
                return None
            spec = importlib.machinery.PathFinder.find_spec(name, where, target)
            if spec is None:
                return None
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                after[name](module)

            spec.loader.exec_module = exec_module
            return spec

    return Finder


if os.environ.get("KVBRANCH_TRACE"):
    install(os.environ["KVBRANCH_TRACE"], os.environ.get("KVBRANCH_GREEDY"))
