"""The least that a follow-up in a new process can cost, as a program.

    python floor.py STATE MODEL N_THREADS llm.cli < new turn

It does nothing but import llm, load the model, restore a state file of ours without
looking at it twice, prefill the new turn, and answer greedily. It knows no log and no
store, checks nothing, and imports nothing but llama.cpp's bindings. ``llm.cli`` is what
any command of llm's imports before a plugin comes to its turn; ``llm`` is half of that.
"""

import ctypes
import importlib
import importlib.util
import json
import mmap
import struct
import sys
import types


def bindings():
    "llama_cpp.llama_cpp without the rest of its package, which takes long to import"
    spec = importlib.util.find_spec("llama_cpp")
    package = sys.modules["llama_cpp"] = types.ModuleType("llama_cpp")
    package.__path__ = list(spec.submodule_search_locations)
    return __import__("llama_cpp.llama_cpp").llama_cpp


def payload_of(path):
    "Where the rows of a state file are, and how many tokens they are of"
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    (length,) = struct.unpack("<Q", mapped[:8])
    header = json.loads(mapped[8 : 8 + length])
    begin, end = header["state"]["data_offsets"]
    at = 8 + length + begin
    rows = (ctypes.c_uint8 * (end - begin)).from_buffer(mapped, at)
    return rows, int(header["__metadata__"]["end"])


def main(path, model_path, n_threads, module, n_answer=16):
    importlib.import_module(module)
    lib = bindings()
    quiet = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(quiet, None)
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(
        model_path.encode(), lib.llama_model_default_params()
    )
    vocab = lib.llama_model_get_vocab(model)
    rows, n = payload_of(path)
    text = sys.stdin.buffer.read()
    new = (ctypes.c_int32 * 256)()
    n_new = lib.llama_tokenize(vocab, text, len(text), new, 256, False, True)
    parameters = lib.llama_context_default_params()
    parameters.n_ctx = -(-(n + n_new + n_answer) // 256) * 256
    parameters.n_threads = parameters.n_threads_batch = n_threads
    context = lib.llama_init_from_model(model, parameters)
    lib.llama_state_seq_set_data_ext(context, rows, len(rows), 0, 0)
    lib.llama_decode(context, lib.llama_batch_get_one(new, n_new))
    sampler = lib.llama_sampler_init_greedy()
    piece, one = ctypes.create_string_buffer(64), (ctypes.c_int32 * 1)()
    for _ in range(n_answer):
        one[0] = lib.llama_sampler_sample(sampler, context, -1)
        if lib.llama_vocab_is_eog(vocab, one[0]):
            break
        size = lib.llama_token_to_piece(vocab, one[0], piece, 64, 0, True)
        sys.stdout.buffer.write(piece.raw[:size])
        sys.stdout.buffer.flush()
        lib.llama_decode(context, lib.llama_batch_get_one(one, 1))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
