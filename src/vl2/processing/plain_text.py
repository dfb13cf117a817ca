"""An answer as text for people: labels without their marks, no coordinates."""

from __future__ import annotations

import re
from bisect import bisect_right

_MARK = re.compile(r"<\|(?:/?(?:ref|det)|grounding)\|>")
_BEGUN = re.compile(r"<(?:\|(?:/?[a-z]*\|?)?)?\Z")
"""What may become a mark when more text comes."""


class PlainText:
    """The text of one answer while it grows, without grounding marks and what `<|det|>` holds.

    Two labels in a row are parted by a comma. The joined pieces that `push` and `finish` return are
    exactly `text`.
    """

    def __init__(self) -> None:
        self.text = ""
        self.read = 0  # characters of the answer that were decided about
        self._held = ""  # the ones after them: they may be the beginning of a mark
        self._in_boxes = False
        self._boxes_end = -1  # where the latest `<|/det|>` ends
        self._runs: list[tuple[int, int, int]] = []  # places in the answer and here, length

    def push(self, delta: str) -> str:
        """Take more of the answer; returns what is new to people, often nothing."""
        return self._take(self._held + delta, last=False)

    def finish(self) -> str:
        """The answer has ended: returns what was held back."""
        return self._take(self._held, last=True)

    def span(self, first: int, end: int) -> tuple[int, int]:
        """Where the characters [first, end) of the answer stand in `text`; empty if nowhere."""
        begin = self._place(first)
        return begin, max(begin, self._place(end - 1, after=True))

    def _take(self, raw: str, *, last: bool) -> str:
        before, position = len(self.text), 0
        for mark in _MARK.finditer(raw):
            self._keep(raw[position : mark.start()], self.read + position)
            self._obey(mark[0], self.read + mark.start(), self.read + mark.end())
            position = mark.end()
        begun = None if last else _BEGUN.search(raw, position)
        end = begun.start() if begun else len(raw)
        self._keep(raw[position:end], self.read + position)
        self.read += end
        self._held = raw[end:]
        return self.text[before:]

    def _keep(self, text: str, place: int) -> None:
        if text and not self._in_boxes:
            self._runs.append((place, len(self.text), len(text)))
            self.text += text

    def _obey(self, mark: str, start: int, end: int) -> None:
        if mark == "<|/det|>":
            self._in_boxes, self._boxes_end = False, end
        elif mark == "<|det|>":
            self._in_boxes = True
        elif mark == "<|ref|>" and start == self._boxes_end and not self._in_boxes:
            self.text += ", "

    def _place(self, index: int, *, after: bool = False) -> int:
        """Where a character stands here, or what follows it; the latest before it if nowhere."""
        run = bisect_right(self._runs, index, key=lambda run: run[0]) - 1
        if run < 0:
            return 0
        start, place, length = self._runs[run]
        return place + min(index - start + after, length)


def plain_text(answer: str) -> str:
    """The whole of an answer for people."""
    plain = PlainText()
    return plain.push(answer) + plain.finish()
