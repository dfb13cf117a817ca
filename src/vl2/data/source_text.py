"""JSON lines of text alone, and of documents in which text and pictures alternate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vl2.data.config import SourceConfig
from vl2.data.records import PLACEHOLDER, Record
from vl2.data.source_grounding import check_row_kind
from vl2.data.source_json import Fields, JsonSource
from vl2.data.source_llava import llava_record
from vl2.data.source_pictures import read_pictures
from vl2.data.source_record import Origin, document_record


def open_text(config: SourceConfig) -> JsonSource:
    """Rows {"text": str}, of which everything is learnt, or conversations without pictures.

    Raises:
        ValueError: the file cannot be read.
    """
    return JsonSource(config, _text_record)


def open_interleaved(config: SourceConfig) -> JsonSource:
    """Documents in the form of OBELICS or of MMC4.

    OBELICS: {"images": [path or null], "texts": [str or null]}, exactly one of each pair set. Texts
    and pictures stand on lines of their own.
    MMC4: {"text_list": [str], "image_info": [{"image_name", "matched_text_index"}]}. A picture
    stands on a line of its own before the sentence that it matches.

    Raises:
        ValueError: the file cannot be read.
    """
    return JsonSource(config, _interleaved_record)


def _text_record(row: Fields, origin: Origin, root: Path) -> Record:
    if row.get("image") or row.get("images"):
        raise origin.error("a picture in a source of text: give it the format 'llava'")
    if row.get("text") is None:
        return llava_record(row, (), origin)
    check_row_kind(row, origin)
    return document_record(_string(row["text"], origin), (), origin)


def _interleaved_record(row: Fields, origin: Origin, root: Path) -> Record:
    check_row_kind(row, origin)
    pieces = _mmc4(row, origin) if "text_list" in row else _obelics(row, origin)
    names = [piece for is_picture, piece in pieces if is_picture]
    text = "\n".join(PLACEHOLDER if is_picture else piece for is_picture, piece in pieces)
    return document_record(text, read_pictures(names, root, origin), origin)


Pieces = list[tuple[bool, str]]
"""(whether it is a picture, its path or the text)."""


def _obelics(row: Fields, origin: Origin) -> Pieces:
    images, texts = row.get("images"), row.get("texts")
    if not isinstance(images, list) or not isinstance(texts, list) or len(images) != len(texts):
        raise origin.error("'images' and 'texts' are not two lists of one length")
    pairs = list(zip(images, texts, strict=True))
    if any((image is None) == (text is None) for image, text in pairs):
        raise origin.error("at one place of 'images' and 'texts' not exactly one is set")
    return [
        (text is None, _string(image if text is None else text, origin)) for image, text in pairs
    ]


def _mmc4(row: Fields, origin: Origin) -> Pieces:
    sentences, infos = row["text_list"], row.get("image_info")
    if not isinstance(sentences, list) or not isinstance(infos, list):
        raise origin.error("'text_list' and 'image_info' are not two lists")
    before: dict[int, list[str]] = {}
    for info in infos:
        at = info.get("matched_text_index") if isinstance(info, dict) else None
        if type(at) is not int or not 0 <= at < len(sentences):
            raise origin.error("a picture's 'matched_text_index' names no sentence")
        before.setdefault(at, []).append(_string(info.get("image_name"), origin))
    pieces: Pieces = []
    for number, sentence in enumerate(sentences):
        text = _string(sentence, origin)
        if number not in before and pieces:
            pieces[-1] = (False, f"{pieces[-1][1]} {text}")
        else:
            pieces += [*((True, name) for name in before.get(number, ())), (False, text)]
    return pieces


def _string(value: Any, origin: Origin) -> str:
    if not isinstance(value, str):
        raise origin.error(f"a text or path is of type {type(value).__name__}: expected a string")
    return value
