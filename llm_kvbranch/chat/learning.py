"""The form in which a template writes calls, found by comparing what it writes.

The idea: two calls with known names, arguments and ids are rendered. The text before
the first, between the two and after the second shows what is around all calls, around
each, and between them.

This module does not know how calls are read.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any

from .formats import KEY, NAME, Bare, Form, Json, Object, Python, Tagged
from .probes import (
    ANSWER,
    IDS,
    KEYS,
    NAMES,
    UNIT,
    VALUES,
    Probe,
    call,
    common_prefix,
    common_suffix,
)
from .scanning import ANY

_ARGUMENTS = dict(zip(KEYS, VALUES, strict=True))
_NUMBER = 731
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class _Written:
    "A call at [begin, end) of a text; for an object, the range of the object"

    begin: int
    end: int
    middle: str
    arguments: Json | Python | Bare | Tagged | Object


def form_of(probe: Probe, others: tuple[str, ...] = ()) -> Form | None:
    """How a template writes calls; None if it does not, or in an unknown way.

    ``others`` are tags that come before calls but are not part of them.
    """
    lead, _, tail = probe.plain.partition(ANSWER)
    calls = [call(0, _ARGUMENTS), call(1, _ARGUMENTS)]
    text = _shown(probe, calls) or _shown(probe, calls[:1])
    if text is None:
        return None
    text = _without_tail(text, common_suffix(text, tail))
    start = _begin(text, len(common_prefix(text, lead)), others)
    first = _find(text, start, NAMES[0])
    if first is None:
        return None
    second = _find(text, first.end, NAMES[1])
    before, behind = text[start : first.begin], text[first.end :]
    if second is None:
        form = Form(
            first.arguments,
            before=before,
            middle=first.middle,
            after=_without_more_tags(behind, before),
        )
    else:
        inner, behind = text[first.end : second.begin], text[second.end :]
        after = common_prefix(inner, behind)
        inner, end = inner.removeprefix(after), behind.removeprefix(after)
        each = common_suffix(before, inner)
        begin = before.removesuffix(each)
        form = Form(
            first.arguments,
            begin=begin,
            before=each,
            middle=_numbered(first.middle, second.middle),
            after=after,
            between=inner.removesuffix(each),
            end=_without_more_tags(end, begin),
        )
    form = replace(form, id=_id(form), whole=not form.trigger)
    if isinstance(form.arguments, Tagged):
        if not form.after.split() or form.whole:
            return None
        form = replace(form, arguments=_typed(probe, form.arguments))
    return form


def shortened(form: Form) -> Form | None:
    "The form without each call's first and last tag, which models may leave out"
    before, after = form.before.split(), form.after.split()
    if not isinstance(form.arguments, Tagged) or min(len(before), len(after)) < 2:
        return None
    return replace(form, before=" ".join(before[1:]), after=" ".join(after[:-1]))


def _without_tail(text: str, tail: str) -> str:
    "What comes before a tail; a tag right after a word belongs to that word"
    before = text.removesuffix(tail)
    closing = UNIT.match(tail)
    if closing and re.search(r"[|>]\w+$", before):
        return before + closing[0]
    return before


def _begin(text: str, start: int, others: tuple[str, ...]) -> int:
    "Where calls begin in a text: after other tags"
    while True:
        rest = text[start:].lstrip()
        tag = next((tag for tag in others if tag and rest.startswith(tag)), None)
        if tag is None:
            return start
        start = len(text) - len(rest) + len(tag)


def _shown(probe: Probe, calls: list[dict[str, Any]]) -> str | None:
    "An answer of calls only, with ANY in place of their ids"
    text = probe.answer("", calls=calls)
    if text is None or NAMES[0] not in text or VALUES[0] not in text:
        return None
    for id in IDS:
        text = text.replace(id, ANY)
    return text if all(each["function"]["name"] in text for each in calls) else None


def _without_more_tags(text: str, other: str) -> str:
    "A text cut after as many tags as another has; more tags end the model's turn"
    count = len(UNIT.findall(other))
    units = list(UNIT.finditer(text))
    return text[: units[count].start()] if len(units) > count else text


def _numbered(one: str, other: str) -> str:
    "The text with ANY for the number by which two calls differ"
    if one == other:
        return one
    return re.sub(r"\d+", ANY, one)


def _id(form: Form) -> str:
    "The form of a call's id, found from where ANY is in the texts around a call"
    if isinstance(form.arguments, Object):
        return ANY if ANY in "".join(form.arguments.texts or ()) else ""
    if ANY in form.before:
        return ANY
    suffix = re.match(rf"[\w.:{ANY}-]+", form.middle)
    if suffix and ANY in suffix[0]:
        prefix = re.search(r"[\w.]*$", form.before)
        return f"{prefix[0] if prefix else ''}{NAME}{suffix[0]}"
    return ANY if re.search(rf"\w\]{ANY}", form.middle) else ""


def _find(text: str, start: int, name: str) -> _Written | None:
    "The first call of a tool in a text"
    at = text.find(name, start)
    if at < 0:
        return None
    return _as_object(text, start, at, name) or _as_named(text, at, at + len(name))


def _as_object(text: str, start: int, at: int, name: str) -> _Written | None:
    begin = at
    while (begin := text.rfind("{", start, begin)) >= 0:
        try:
            value, end = _DECODER.raw_decode(text, begin)
        except ValueError:
            continue
        if end < at or not (how := _keys(value, name)):
            continue
        if "function" in value and isinstance(value["function"], dict):
            return _Written(begin, end, "", how)
        inner = text.find("{", at)
        if how.name and inner >= 0:
            _, close = _DECODER.raw_decode(text, inner)
            texts = text[begin:at], text[at + len(name) : inner], text[close:end]
            how = replace(how, texts=texts)
        return _Written(begin, end, "", how)
    return None


def _keys(value: dict[str, Any], name: str) -> Object | None:
    "The keys of an object that is a call"
    if value.get(name) == _ARGUMENTS and len(value) == 1:
        return Object(name="")
    if isinstance(value.get("function"), dict):
        value = value["function"]
    by_value = {str(each): key for key, each in value.items()}
    spelled = str(_ARGUMENTS), json.dumps(_ARGUMENTS)
    found = [by_value[each] for each in spelled if each in by_value]
    if name not in by_value or not found:
        return None
    return Object(by_value[name], found[0], by_value.get(ANY, "id"))


def _as_named(text: str, at: int, behind: int) -> _Written | None:
    "A call whose arguments follow its name, as JSON or in another way"
    key, value = text.find(KEYS[0], behind), text.find(VALUES[0], behind)
    if not behind <= key < value:
        return None
    begin = text.rfind("{", behind, key)
    if begin >= 0:
        try:
            arguments, end = _DECODER.raw_decode(text, begin)
        except ValueError:
            arguments = None
        if arguments == _ARGUMENTS:
            return _Written(at, end, text[behind:begin], Json())
    last = text.find(VALUES[1], value)
    if last < 0:
        return None
    last += len(VALUES[1])
    gap = text[key + len(KEYS[0]) : value]
    if text[behind:key] == "(" and gap.startswith("="):
        end = text.find(")", last)
        return _Written(at, end + 1, "", Python()) if end >= 0 else None
    if begin >= 0 and text[begin:key] == "{" and gap.startswith(":"):
        quote = gap[1:].strip()
        if text.startswith(quote + "}", last):
            end = last + len(quote) + 1
            return _Written(at, end, text[behind:begin], Bare(quote))
    return _as_tagged(text, at, behind, last)


def _as_tagged(text: str, at: int, behind: int, last: int) -> _Written | None:
    "A call whose arguments are between tags; the last value ends at ``last``"
    spans: list[tuple[int, int]] = []
    for word in (KEYS[0], VALUES[0], KEYS[1], VALUES[1]):
        place = text.find(word, spans[-1][1] if spans else behind)
        if place < 0:
            return None
        spans.append((place, place + len(word)))
    (key, key_end), (value, value_end), (other, _), _ = spans
    lead = text[behind:key]
    inner = text[value_end:other].replace(KEYS[0], KEY)
    tag = common_suffix(lead, inner)
    end = inner.removesuffix(tag)
    closing = end.replace(KEY, KEYS[1])
    if not tag.strip() or not end.strip() or not text.startswith(closing, last):
        return None
    if not (between := text[key_end:value]).strip():
        return None
    how = Tagged(tag, between, end)
    return _Written(at, last + len(closing), lead.removesuffix(tag), how)


def _typed(probe: Probe, how: Tagged) -> Tagged:
    "The same, with how values other than strings are marked"
    others: list[str] = []
    last = how.value[-1:]
    for value in (_NUMBER, True, None, {"kvinner": _NUMBER}, [_NUMBER]):
        between = _between(probe, value, (json.dumps(value), str(value)), last)
        if between is not None and between not in (how.value, *others):
            others.append(between)
    nested = _between(probe, {"kvinner": _NUMBER}, ("kvinner",))
    item = _between(probe, [VALUES[0]], (VALUES[0],)) or ""
    if nested == how.value + how.key:
        lead = how.value + how.key
        name = item.removeprefix(lead).removesuffix(how.value)
        return replace(how, item=name if item.startswith(lead) and name else "item")
    special = _between(probe, f"<{VALUES[0]}>", (f"<{VALUES[0]}>",)) or ""
    return replace(how, others=tuple(others), cdata="<![CDATA[" in special)


def _between(
    probe: Probe, value: Any, spellings: tuple[str, ...], last: str = ""
) -> str | None:
    "The text between a key and its value that ends with ``last``"
    text = probe.answer("", calls=[call(0, {KEYS[0]: value})])
    _, key, behind = (text or "").partition(KEYS[0])
    found = [behind.find(last + each) for each in spellings]
    places = [at + len(last) for at in found if at >= 0]
    return behind[: min(places)] if key and places else None
