"""A worker that generates with llama-cpp-python's high-level ``Llama``, as a program.

    python decode_llama.py MODEL N_THREADS N_CTX

It runs in the peers' environment, so it imports nothing of ours but worker.py.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def main(model, n_threads, n_ctx):
    from llama_cpp import Llama
    from llama_cpp import llama_cpp as bindings
    from worker import serve

    spent = 0.0
    decode = bindings.llama_decode

    def timed(*arguments):
        nonlocal spent
        began = time.perf_counter()
        try:
            return decode(*arguments)
        finally:
            spent += time.perf_counter() - began

    for module in [bindings, sys.modules["llama_cpp"]]:
        module.llama_decode = timed
    llama = Llama(
        model,
        n_ctx=n_ctx,
        n_threads=n_threads,
        n_threads_batch=n_threads,
        flash_attn=True,
        verbose=False,
    )

    def generate(what):
        nonlocal spent
        stamps, text, before = [], "", 0.0
        for chunk in llama.create_chat_completion(
            what["messages"], stream=True, temperature=0, max_tokens=what["n_tokens"]
        ):
            if said := chunk["choices"][0]["delta"].get("content"):
                stamps.append(time.perf_counter())
                text += said
                if len(stamps) == 1:
                    spent = before = 0.0
        return {
            "tokens": len(stamps) - 1,
            "seconds": stamps[-1] - stamps[0],
            "in_llama": spent - before,
            "texts": [text],
        }

    serve(generate)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
