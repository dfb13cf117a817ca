"""Tokens to text deltas: whole characters only, and no part of a stop string ever leaves."""

from __future__ import annotations

from collections.abc import Sequence

from vl2.processing.tokenizer import TextDecoder, Tokenizer


class TextStream:
    """The text of one answer while it grows.

    Text that could be the beginning of a stop string waits until the next token decides. The joined
    deltas are exactly `text`; `ends` says for each token where its text ends. A stop string that is
    complete within the first `min_tokens` tokens is text like any other.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), min_tokens: int = 0) -> None:
        self.text = ""
        self.ends: list[int] = []
        self.stopped = False
        self._decoder = TextDecoder(tokenizer)
        self._stop = tuple(stop)
        self._min_tokens = min_tokens
        self._sent = 0

    def push(self, token: int) -> str:
        """Take one token; returns the text that became safe to show, often none."""
        self._extend(self._decoder.push(token), may_stop=len(self.ends) >= self._min_tokens)
        self.ends.append(len(self.text))
        return self._send(len(self.text) - (0 if self.stopped else self._held()))

    def finish(self) -> str:
        """The answer has ended: returns all that was held back, a broken character as U+FFFD."""
        self._extend(self._decoder.finish(), may_stop=len(self.ends) > self._min_tokens)
        return self._send(len(self.text))

    def piece(self, token: int) -> str:
        """The text that the token with this number added."""
        return self.text[self.ends[token - 1] if token else 0 : self.ends[token]]

    def _extend(self, piece: str, *, may_stop: bool) -> None:
        """Add to the text; the first stop string that ends in the new piece ends it there."""
        before = len(self.text)
        self.text += piece
        if not may_stop:
            return
        starts = [self.text.find(s, max(0, before - len(s) + 1)) for s in self._stop]
        found = [start for start in starts if start >= 0]
        if found:
            self.stopped = True
            self.text = self.text[: min(found)]

    def _held(self) -> int:
        """Length of the longest tail of the text that begins a stop string."""
        longest = max((len(s) for s in self._stop), default=1) - 1
        for length in range(min(longest, len(self.text)), 0, -1):
            if any(s.startswith(self.text[-length:]) for s in self._stop):
                return length
        return 0

    def _send(self, end: int) -> str:
        start, self._sent = self._sent, end
        return self.text[start:end]
