"""What a chat template may use while it renders: steps, text and time.

The idea: a template comes with a model file, from anybody. jinja2's sandbox keeps it
away from Python, and this keeps it from running or growing without end. Loops and
macros count their steps; what may be longer than the texts that it is made of is
measured, and what multiplies is checked before it does so.

The invariant: a template within its limits renders as it does without them.

This module does not know messages.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

from jinja2 import nodes, pass_context, pass_eval_context
from jinja2.filters import do_join, make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS = 5_000_000  # of loops and macros
MAX_LENGTH = 1 << 24  # characters or items of one value
MAX_MADE = 1 << 28  # characters and items of all values together
SECONDS = 10.0
_MAX_BITS = 1 << 16  # of a number
_SHORT = 200  # characters that are not worth counting
_OFTEN = 256  # steps between two looks at the clock
_DEEP = 8  # additions in one expression before their sum is measured

# Filters and methods of strings whose result may be longer than what they are given
_GROWING_FILTERS = (
    *("batch", "capitalize", "center", "e", "escape", "forceescape", "format"),
    *("indent", "pprint", "replace", "slice", "string", "title", "upper"),
    *("urlencode", "urlize", "wordwrap", "xmlattr"),
)
_GROWING_METHODS = frozenset(
    (
        *("center", "expandtabs", "format", "format_map", "join", "ljust", "replace"),
        *("rjust", "translate", "zfill"),
    )
)
_LONG = (str, bytes, list, tuple)
# A large width in a format, and a width that is taken from the values
_WIDE = re.compile(
    r"%(?:\([^)]*\))?[-+ #.\d]*(?:\d{6}|\*)|\{[^{}]*\d{6}|\{[^{}]*\{[^{]"
)


class LimitError(Exception):
    "A template exceeds a limit"


class Budget:
    "What one rendering may still use"

    def __init__(self) -> None:
        self.steps = 0
        self._made = 0
        self._end = time.monotonic() + SECONDS

    def look(self) -> None:
        if self.steps > MAX_STEPS:
            raise LimitError(f"its loops take more than {MAX_STEPS:,} steps")
        if time.monotonic() > self._end:
            raise LimitError(f"it takes longer than {SECONDS:.0f} seconds")

    def make(self, n: int) -> None:
        "Count n characters or items of a new value"
        check_length(n)
        self._made += n
        if self._made > MAX_MADE:
            raise LimitError(f"it makes texts of more than {MAX_MADE:,} characters")
        if n > 10_000:  # small ones are made in loops, which look as well
            self.look()


def check_length(n: float) -> None:
    if n > MAX_LENGTH:
        raise LimitError(f"it makes a text of more than {MAX_LENGTH:,} characters")


_budget: ContextVar[Budget | None] = ContextVar("budget", default=None)


def limited(render: Callable[[], str]) -> str:
    "The result of rendering within the limits; raises LimitError"
    token = _budget.set(Budget())
    try:
        return render()
    finally:
        _budget.reset(token)


def _measure(value: Any) -> Any:
    "A value, counted if it has a length"
    if type(value) is str and len(value) < _SHORT:
        return value
    if isinstance(value, _LONG):
        budget = _budget.get()
        if budget is not None:
            budget.make(len(value))
    return value


@pass_context  # so that jinja2 does not compute it when it compiles
def _measured(context: Any, value: Any) -> Any:
    if type(value) is str and len(value) < _SHORT:
        return value
    return _measure(value)


@pass_context
def _step(context: Any, value: Any) -> Any:
    budget = _budget.get()
    if budget is not None:
        budget.steps += 1
        if not budget.steps % _OFTEN:
            budget.look()
    return value


def _concat(pieces: Iterable[str]) -> str:
    "The output of a template, macro or block"
    found = list(pieces)  # which are measured already, each by itself
    check_length(sum(map(len, found)))
    return str(_measure("".join(found)))


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    "jinja2's sandbox, within the limits"

    intercepted_binops = frozenset({"*", "**", "%"})
    concat = staticmethod(_concat)

    def __init__(self, **more: Any):
        super().__init__(**more)
        del self.globals["lipsum"]
        for name in _GROWING_FILTERS:
            self.filters[name] = guarded(name, self.filters[name])
        self.filters["join"] = _join
        self.filters["_step"], self.filters["_measured"] = _step, _measured

    def _parse(self, *source: Any) -> nodes.Template:
        tree = super()._parse(*source)
        blocks: Any = tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))
        for block in blocks:
            block.body.insert(0, nodes.ExprStmt(_filtered(nodes.Const(None), "_step")))
        _measure_sums(tree, 0)
        tree.set_environment(self)
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        "Lists may change: templates write to their own, and to copies of messages"
        if attr in ("append", "pop") and type(obj) is list:
            return True
        return super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_product(operator, left, right)
        return _measure(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., Any] | None:
        "Called for each attribute of a value: the methods that make a text grow"
        name, text = getattr(value, "__name__", ""), getattr(value, "__self__", None)
        if name not in _GROWING_METHODS or not isinstance(text, str | bytes):
            return None
        method = super().wrap_str_format(value) or value

        def within(*args: Any, **kwargs: Any) -> Any:
            if name == "join" and args:
                args = (list(args[0]),)
            _check_growth(name, text, [*args, *kwargs.values()])
            return _measure(method(*args, **kwargs))

        return within


def _filtered(node: Any, name: str) -> nodes.Expr:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno or 1)


def _measure_sums(node: nodes.Node, depth: int) -> None:
    "Have the sums and concatenations below a node measured"
    for field, value in node.iter_fields():
        children = value if isinstance(value, list) else [value]
        for i, child in enumerate(children):
            if not isinstance(child, nodes.Node):
                continue
            is_sum = isinstance(child, nodes.Add | nodes.Concat)
            _measure_sums(child, depth + 1 if is_sum else 0)
            if is_sum and depth % _DEEP == 0:
                wrapped = _filtered(child, "_measured")
                if isinstance(value, list):
                    value[i] = wrapped
                else:
                    setattr(node, field, wrapped)


def _check_product(operator: str, left: Any, right: Any) -> None:
    "Raises LimitError if a product, power or format would be too long"
    if operator == "%":
        if isinstance(left, str):
            _check_format(left)
        return
    if isinstance(left, int) and isinstance(right, int):
        n = left.bit_length() + right.bit_length()
        if operator == "**":
            n = left.bit_length() * max(right, 1)
        if n > _MAX_BITS:
            raise LimitError("it computes with numbers that are too large")
        return
    for value, times in ((left, right), (right, left)):
        if isinstance(value, _LONG) and isinstance(times, int):
            check_length(_size(value) * times)


def _check_format(text: str) -> None:
    if _WIDE.search(text):
        raise LimitError("it formats a text to a width that is too large")


def _check_growth(name: str, text: Any, values: list[Any]) -> None:
    "Raises LimitError if a method or filter of a text would make it too long"
    long = 0 if isinstance(text, int) else _size(text)
    most = max(map(_size, values), default=0)
    if name in ("format", "format_map"):
        _check_format(str(text))
        most = max((_size(v) for v in values if not isinstance(v, int)), default=0)
        check_length(long + most * (str(text).count("{") + str(text).count("%")))
    elif name == "tojson":
        check_length(long * (1 + most))
    elif name in ("replace", "translate", "wordwrap", "indent", "expandtabs"):
        check_length(long + _places(name, text, values) * most)
    elif name == "join":
        check_length(most + long * max(map(_length, values), default=0))
    elif name in ("batch", "slice"):  # each item is a list
        check_length(long + 64 * most)
    else:
        check_length(long + most)


def _places(name: str, text: Any, values: list[Any]) -> int:
    "How many times a value may be put into a text"
    plain, old = str(text), values[0] if values else None
    if name == "replace" and isinstance(old, str) and old:
        return plain.count(old)
    if name == "indent":
        return plain.count("\n") + 1
    if name == "expandtabs":
        return plain.count("\t")
    return len(plain) + 1


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (*_LONG, dict)) else 0


def _size(value: Any, left: int = MAX_LENGTH + 1) -> int:
    "The characters and items in a value, or how many an integer asks for"
    if isinstance(value, int):
        return max(value, 0)
    if isinstance(value, dict):
        value = [*value, *value.values()]
    n = _length(value)
    if isinstance(value, list | tuple):
        for item in value:
            if n > left:
                break
            n += 0 if isinstance(item, int) else _size(item, left - n)
    return n


@pass_eval_context
def _join(context: Any, value: Any, d: str = "", attribute: Any = None) -> Any:
    "jinja2's join, within the limits"
    if attribute is not None:
        value = map(make_attrgetter(context.environment, attribute), value)
    items = list(value)
    _check_growth("join", str(d), [items])
    return _measure(do_join(context, items, d))


def guarded(name: str, filter: Callable[..., Any]) -> Callable[..., Any]:
    "A filter that may make its text longer, within the limits"
    skipped = 1 if hasattr(filter, "jinja_pass_arg") else 0  # a context comes first

    @functools.wraps(filter)
    def within(*args: Any, **kwargs: Any) -> Any:
        text, *values = args[skipped:]
        _check_growth(name, text, [*values, *kwargs.values()])
        return _measure(filter(*args, **kwargs))

    return within
