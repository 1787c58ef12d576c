"""Regular expressions of JSON schemas, as llguidance reads them.

The idea: a schema's ``pattern`` is ECMAScript, llguidance's is Rust's ``regex``. Most
are written the same; what means something else is rewritten, and what has no equal is
refused. A ``format`` becomes a pattern that every validator accepts: real days, no leap
seconds, capital letters.

This module does not know schemas.
"""

from __future__ import annotations

import re

MAX_PATTERN = 4000  # characters

_YEAR = r"(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_BY_4 = r"0[48]|[2468][048]|[13579][26]"
_LEAP = rf"(?:[0-9]{{2}}(?:{_BY_4})|(?:{_BY_4})00)"
_DAY = (
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    r"|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_DATE = rf"(?:{_YEAR}-{_DAY}|{_LEAP}-02-29)"
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_CLOCK}:[0-5][0-9](?:\.[0-9]{{1,6}})?(?:Z|[+-]{_CLOCK})"
_HOURS = (
    r"T(?:[0-9]{1,4}H(?:[0-9]{1,4}M(?:[0-9]{1,4}S)?)?"
    r"|[0-9]{1,4}M(?:[0-9]{1,4}S)?|[0-9]{1,4}S)"
)
_DAYS = (
    r"(?:[0-9]{1,4}Y(?:[0-9]{1,4}M(?:[0-9]{1,4}D)?)?"
    r"|[0-9]{1,4}M(?:[0-9]{1,4}D)?|[0-9]{1,4}D)"
)
_DURATION = rf"P(?:[0-9]{{1,4}}W|{_DAYS}(?:{_HOURS})?|{_HOURS})"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,30}[A-Za-z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,6}}"
_ATOM = r"[A-Za-z0-9_+-]{1,20}"
_EMAIL = rf"{_ATOM}(?:\.{_ATOM}){{0,2}}@(?:{_LABEL}\.){{1,5}}[A-Za-z]{{2,10}}"
_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"(?:{_BYTE}\.){{3}}{_BYTE}"
_H = r"[0-9a-fA-F]{1,4}"
_IPV6 = "|".join(
    [
        rf"(?:{_H}:){{7}}{_H}",
        rf"(?:{_H}:){{1,6}}:",
        *(rf"(?:{_H}:){{1,{7 - n}}}(?::{_H}){{1,{n - 1}}}" for n in range(2, 7)),
        rf":(?:(?::{_H}){{1,6}}|:)",
    ]
)
_CHARACTER = r"(?:[A-Za-z0-9._~!$&'()*+,;=@-]|%[0-9A-F]{2})"
_PATH = rf"(?:/(?:{_CHARACTER}|:)*)*"
_QUERY = rf"(?:\?(?:{_CHARACTER}|[:/?])*)?(?:#(?:{_CHARACTER}|[:/?])*)?"
_AUTHORITY = rf"(?:{_HOST}|\[(?:{_IPV6})\])(?::[1-9][0-9]{{0,3}})?"
_URI = (
    rf"[A-Za-z][A-Za-z0-9+.-]{{1,20}}:"
    rf"(?://{_AUTHORITY}{_PATH}|{_CHARACTER}+{_PATH}){_QUERY}"
)
_POINTER = r"(?:/(?:[^~/]|~[01])*)*"
_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-%s[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
_BASE64 = r"(?:[%s]{4})*(?:[%s]{2}==|[%s]{3}=)?"
_STANDARD = (r"A-Za-z0-9+/",) * 3
_FOR_URLS = (r"A-Za-z0-9_-",) * 3

FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": _DURATION,
    "email": _EMAIL,
    "idn-email": _EMAIL,
    "hostname": _HOST,
    "idn-hostname": _HOST,
    "ipv4": _IPV4,
    "ipvanyaddress": _IPV4,
    "ipv6": _IPV6,
    "uri": _URI,
    "url": _URI,
    "iri": _URI,
    "uri-reference": rf"{_URI}|(?:/?{_CHARACTER}+{_PATH})?{_QUERY}",
    "iri-reference": rf"{_URI}|(?:/?{_CHARACTER}+{_PATH})?{_QUERY}",
    "json-pointer": _POINTER,
    "relative-json-pointer": rf"(?:0|[1-9][0-9]{{0,8}})(?:#|{_POINTER})",
    "uuid": _UUID % "[1-5]",
    "uuid1": _UUID % "1",
    "uuid3": _UUID % "3",
    "uuid4": _UUID % "4",
    "uuid5": _UUID % "5",
    "byte": _BASE64 % _STANDARD,
    "base64": _BASE64 % _STANDARD,
    "base64url": _BASE64 % _FOR_URLS,
    "color": r"#[0-9a-f]{6}",
}
# Formats that ask nothing of the text itself
FREE_FORMATS = frozenset(
    ("password", "binary", "path", "file-path", "directory-path", "textarea", "text")
)
# What \d, \w and \s match for everybody, and what they match for somebody
_NARROW = {"d": "0-9", "w": "A-Za-z0-9_", "s": r" \t\n\r\f\x0B"}
_WIDE = {
    "d": r"\p{Nd}",
    "w": r"\p{L}\p{N}\p{M}\p{Pc}",
    "s": r"\p{White_Space}\x{1C}-\x{1F}\x{FEFF}",
}
_CODES = {"0": 0, "t": 9, "n": 10, "v": 11, "f": 12, "r": 13}
_ESCAPES = {
    **dict.fromkeys("bB", "a word boundary"),
    **dict.fromkeys("123456789k", "a reference to a group"),
    **dict.fromkeys("pP", "a class of Unicode"),
}
_ANY = r"[^\n\r\x{2028}\x{2029}]"


class PatternError(Exception):
    "A pattern has something that cannot be enforced"


def format_pattern(name: str) -> str | None:
    "A pattern for the texts of a format, None for an unknown one"
    found = FORMATS.get(name)
    return None if found is None else f"^(?:{found})$"


def rust(pattern: str) -> str:
    "A pattern of JSON schema in Rust's syntax; raises PatternError"
    if len(pattern) > MAX_PATTERN:
        raise PatternError(f"it is longer than {MAX_PATTERN:,} characters")
    return _Reader(pattern).read()


class _Reader:
    "Goes through a pattern once"

    def __init__(self, pattern: str):
        self._pattern = pattern
        self._at = 0

    def read(self) -> str:
        pattern, out, n_open = self._pattern, list[str](), 0
        while self._at < len(pattern):
            character = pattern[self._at]
            if character == "\\":
                out.append(self._escape())
            elif character == ".":
                out.append(_ANY)
                self._at += 1
            elif character == "[":
                out.append(self._class())
            elif character == "(":
                out.append(self._group())
                n_open += 1
            elif character == ")":
                out.append(character)
                self._at += 1
                n_open -= 1
                if n_open < 0:
                    raise PatternError("it closes a group that is not open")
            elif character in "*+?" or self._repeat():
                out.append(self._quantifier())
            elif character in "{}]":
                out.append("\\" + character)
                self._at += 1
            elif character == "/" or not character.isprintable():
                out.append(r"\/" if character == "/" else _code(ord(character)))
                self._at += 1
            else:
                out.append(character)
                self._at += 1
        if n_open:
            raise PatternError("it has a group that is not closed")
        return "".join(out)

    def _repeat(self) -> re.Match[str] | None:
        return re.compile(r"\{\d+(?:,\d*)?\}").match(self._pattern, self._at)

    def _quantifier(self) -> str:
        found = self._repeat()
        text = found[0] if found else self._pattern[self._at]
        self._at += len(text)
        if self._pattern[self._at : self._at + 1] == "?":  # lazy: the same texts
            self._at += 1
        elif self._pattern[self._at : self._at + 1] == "+":
            raise PatternError("it has a possessive quantifier")
        return text

    def _group(self) -> str:
        found = re.compile(r"\(\?(?:P?<[A-Za-z_]\w*>|:)").match(self._pattern, self._at)
        if found:
            self._at = found.end()
            return "(?:"
        if self._pattern.startswith("(?", self._at):
            looks = re.compile(r"\(\?<?[=!]").match(self._pattern, self._at)
            what = "looks around" if looks else "has flags or a kind of group"
            raise PatternError(f"it {what}, which is not supported")
        self._at += 1
        return "(?:"

    def _class(self) -> str:
        pattern = self._pattern
        self._at += 1
        out, negated = "[", pattern.startswith("^", self._at)
        if negated:
            out, self._at = "[^", self._at + 1
        if pattern.startswith("]", self._at):
            raise PatternError("it has an empty character class")
        while self._at < len(pattern) and pattern[self._at] != "]":
            character = pattern[self._at]
            if character == "\\":
                out += self._escape(True, negated)
                continue
            # These are operators in Rust when they come twice, or nest
            out += "\\" + character if character in "[&~/" else character
            self._at += 1
            if character == "-" and pattern.startswith("-", self._at):
                out = out[:-1] + r"\-"
        if self._at == len(pattern):
            raise PatternError("it has an unfinished character class")
        self._at += 1
        return out + "]"

    def _escape(self, in_class: bool = False, negated: bool = False) -> str:
        pattern, at = self._pattern, self._at
        found = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|c[A-Za-z]|.)", re.S)
        match = found.match(pattern, at)
        if match is None:
            raise PatternError("it ends with a backslash")
        self._at = match.end()
        text = match[0]
        kind = text[1]
        if kind in _NARROW:
            characters = (_WIDE if negated else _NARROW)[kind]
            return characters if in_class else f"[{characters}]"
        if kind in "DWS":
            return f"[^{(_NARROW if negated else _WIDE)[kind.lower()]}]"
        number = _CODES.get(kind, 8 if kind == "b" and in_class else None)
        if len(text) > 2:
            is_control = kind == "c"
            number = ord(text[2].upper()) - 64 if is_control else int(text[2:], 16)
        if number is not None:
            return _code(number)
        if reason := _ESCAPES.get(kind) or (kind.isalnum() and "an unknown escape"):
            raise PatternError(f"it has {reason}, \\{kind}")
        return "\\" + kind if kind.isascii() and kind.isprintable() else kind


def _code(number: int) -> str:
    if 0xD800 <= number <= 0xDFFF:
        raise PatternError("it has half a surrogate pair")
    return rf"\x{{{number:X}}}"
