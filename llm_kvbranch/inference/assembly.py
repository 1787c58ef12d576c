"""The tokens of a prompt whose history has answers that are known as tokens.

The idea: the prompt of the deepest known answer was read before, and so were the tokens
of the answer itself: both are kept. Where the template drops thinking by now, the
deepest prompt without that thinking is kept instead, and each answer from there on
supplies its own tokens, without its thinking.

The invariants: generated tokens are never tokenised again where the template still has
what they spell. With ``keep_thinking`` nothing that was read or generated is dropped.

This module does not know where answers are stored, or rows.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..chat import Chat, Known, Own, Rendering, message_text
from ..errors import ChatError
from ..store import Entry, common_prefix, tokens_of
from .readback import Found, Start

DROPPED = "the template drops earlier thinking"
_ENDING = 256  # tokens of an answer in which its last call ends, for most calls


@dataclass
class Answer:
    """What is known of the assistant message at an index.

    ``tokens`` are all tokens of the answer, of which some are ``found`` to be the
    message. ``prompt`` gives what it was an answer to, None if that is not known.
    """

    index: int
    tokens: array[int]
    found: Found
    prompt: Callable[[], array[int] | None]
    entry: Entry | None = None


@dataclass
class Assembled:
    """A prompt's tokens, of which known answers supply some up to ``n_known``.

    ``n_read`` of them were read before, in this order, with ``base`` the last. After
    that, ``drops`` says, thinking is left out.
    """

    tokens: array[int]
    n_known: int
    n_read: int
    base: Answer | None
    drops: bool = False


@dataclass
class Assembler:
    """Assembles one prompt.

    ``known`` gives what is known of the assistant message at an index; ``written``
    gives all token sequences that may be that message.
    """

    chat: Chat
    messages: Sequence[Any]
    rendering: Rendering
    known: Callable[[int], Answer | None]
    written: Callable[[int], Sequence[array[int]]]
    keep_thinking: bool = False
    _dropped: frozenset[int] = field(default=frozenset(), init=False)

    def assemble(self, last: Answer) -> Assembled | None:
        "The prompt; ``last`` is its deepest known answer. None if that has no place"
        if not self.keep_thinking:
            self._dropped = self._find_dropped(last)
        base, read = self._base(last)
        known = [self._part(last, read if base is last else None)]
        if base is not last:
            first = base.index if base is not None else 0
            answers = map(self.known, self._answers(first, last.index))
            known = [
                *(self._part(a, read if a is base else None) for a in answers if a),
                *known,
            ]
        if known[-1] is None:
            return None
        return self._splice([each for each in known if each], base, read)

    def _splice(
        self, known: list[Known], base: Answer | None, read: array[int] | None
    ) -> Assembled | None:
        "With as many of the known parts as have a place, and the last in any case"
        before = None
        if base is not None and read is not None:
            before = base.index, read
        used, found = known, self._spliced(known, before)
        if found is None:
            used, found = known[-1:], self._spliced(known[-1:], before)
            for each in known[-2::-1] if found is not None else ():
                if again := self._spliced([each, *used], before):
                    used, found = [each, *used], again
        if found is None:
            return None
        tokens, n_known = found
        if used[0].own.begins == "prompt":
            n_read = len(used[0].tokens)
        else:
            n_read = common_prefix(tokens, read or tokens_of())
        drops = len(used) > 1 or used[0].own.begins != "prompt"
        return Assembled(tokens, n_known, n_read, base, drops)

    def _spliced(
        self, known: Sequence[Known], read: tuple[int, array[int]] | None
    ) -> tuple[array[int], int] | None:
        return self.chat.splice(self.messages, known, self.rendering, read)

    # -- what is kept --------------------------------------------------------

    def _find_dropped(self, last: Answer) -> frozenset[int]:
        "The answers up to the last known one whose thinking is not in this prompt"
        thought = [
            index
            for index in self._answers(0, last.index + 1)
            if "reasoning" in (kinds := _kinds(self.messages[index])) and len(kinds) > 1
        ]
        dropped = frozenset(thought) - self._keeping(len(self.messages), thought)
        found = last.found
        if (
            last.index not in thought
            and found.said is not None
            and (found.reasoning is not None or self._takes_back(last, found.said))
        ):
            dropped |= {last.index}
        return dropped

    def _keeping(self, n: int, indexes: Sequence[int]) -> frozenset[int]:
        "Those of some answers whose thinking is in the prompt of the first n messages"
        try:
            return self.chat.keeping(self.messages[:n], indexes, self.rendering)
        except ChatError:  # the template rejects what was changed
            return frozenset(indexes)

    def _takes_back(self, last: Answer, said: Start) -> bool:
        "Whether the template later leaves out the empty thinking before an answer"
        thinking = self.chat.dialect.thinking
        text = message_text(self.messages[last.index])
        if thinking is None or thinking.close.strip() in text:
            return False
        own = Own(last.index, "text", last.found.whole)
        written = self.chat.spell(last.tokens[: said.token])
        return self.chat.takes_back(self.messages, own, written, self.rendering)

    def _base(self, last: Answer) -> tuple[Answer | None, array[int] | None]:
        "The deepest known answer whose prompt has no thinking that is to be dropped"
        for index in reversed(self._answers(0, last.index + 1)):
            answer = last if index == last.index else self.known(index)
            if answer is None or (read := answer.prompt()) is None:
                continue
            if not self._has_dropped(index, read):
                return answer, read
        return None, None

    def _has_dropped(self, index: int, read: array[int]) -> bool:
        "Whether thinking that is to be dropped is in the prompt of an answer"
        dropped = [i for i in self._dropped if i < index]
        if not dropped:
            return False
        if self._keeping(index, dropped):
            return True
        data = read.tobytes()
        return any(
            tokens.tobytes() in data for i in dropped for tokens in self.written(i)
        )

    def _part(self, answer: Answer, read: array[int] | None) -> Known | None:
        """What a known answer supplies; with ``read``, its prompt as well if it can.

        None if that cannot be told from its thinking.
        """
        index, found, tokens = answer.index, answer.found, answer.tokens
        drops = index in self._dropped
        own = Own(index, "prompt", found.whole, self._ending(answer), found.unfinished)
        if read is not None and not drops:
            return Known(own, read + tokens[: found.n], rest=found.rest)
        thought = "reasoning" in _kinds(self.messages[index])
        start = found.reasoning if thought and not drops else found.said
        if start is None or found.unfinished:
            return None
        own = replace(own, begins="reasoning" if thought and not drops else "text")
        return Known(own, tokens[start.token : found.n], start.lead, found.rest)

    def _ending(self, answer: Answer) -> str:
        if "tool_call" not in _kinds(self.messages[answer.index]):
            return ""
        return self.chat.spell(answer.tokens[-_ENDING:])

    def _answers(self, begin: int, end: int) -> list[int]:
        "The indexes of assistant messages in a range"
        return [i for i in range(begin, end) if self.messages[i].role == "assistant"]


def _kinds(message: Any) -> set[str]:
    return {part.to_dict()["type"] for part in message.parts}
