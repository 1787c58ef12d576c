"""llama-cpp-python's high-level API with its LlamaDiskCache, as a program.

    python disk_cache.py CACHE MODEL N_THREADS N_CTX N_ANSWER < messages.json

It answers a chat greedily and prints the answer as it comes. What the cache holds of
the messages is not read again; what was read is put into the cache at the end.
"""

import contextlib
import io
import json
import sys


def main(cache, model, n_threads, n_ctx, n_answer):
    from llama_cpp import Llama, LlamaDiskCache

    llama = Llama(
        model,
        n_ctx=n_ctx,
        n_threads=n_threads,
        n_threads_batch=n_threads,
        flash_attn=True,
        verbose=False,
    )
    kept = LlamaDiskCache(cache, capacity_bytes=1 << 36)
    kept.cache.reset("size_limit", 1 << 36)  # else it throws away beyond 1 GB
    llama.set_cache(kept)
    messages = json.load(sys.stdin)
    with contextlib.redirect_stderr(io.StringIO()):  # the cache says what it does
        for chunk in llama.create_chat_completion(
            messages, stream=True, temperature=0, max_tokens=n_answer
        ):
            if text := chunk["choices"][0]["delta"].get("content"):
                sys.stdout.write(text)
                sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
