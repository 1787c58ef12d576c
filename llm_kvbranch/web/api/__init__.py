"""The JSON that programs speak: OpenAI's chat API, branching, status, and internals.

Owns the forms of requests and answers and what their errors look like. It does not
know how answers are computed or how pages are drawn.
"""
