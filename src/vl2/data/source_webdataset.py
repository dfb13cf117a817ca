"""Tars of samples (WebDataset): members that share a key, found once by their headers.

A key is the name up to the first dot of its last part; members of a sample follow each other.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vl2.data.config import SourceConfig
from vl2.data.records import Record
from vl2.data.source_files import Rows, check_format, matching_files
from vl2.data.source_grounding import check_row_kind
from vl2.data.source_json import Fields, read_object
from vl2.data.source_llava import ANSWERS, llava_record
from vl2.data.source_record import MAX_ROW_BYTES, Origin, caption_record, origin_of
from vl2.logs import get_logger
from vl2.processing.image_gate import MAX_BYTES

log = get_logger(__name__)

_PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
_KINDS = {"json": 0, "txt": 1, **dict.fromkeys(_PICTURES, 2)}
"""Kinds of members by the last part of their extension."""

_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shard:
    """Where the members of one tar's samples are; members of a sample stand together."""

    path: Path
    keys: list[str]
    first: np.ndarray  # member of a sample at which it begins, and the end of the last
    members: np.ndarray  # [m, 3] kind, offset and size; kind is 0 json, 1 txt, 2 picture
    digest: str  # of the headers


class WebDatasetSource:
    """Samples of `key.json` or `key.txt` with pictures `key.jpg`, or `key.0.jpg`, `key.1.jpg`, ...

    Several pictures of a sample come in the order of their extensions, numbers by value. A JSON
    has the form of LLaVA (its picture fields do not count, the members do) or {"caption"}; a .txt
    is a caption, and stands in for a JSON that says neither. A caption becomes a document. Other
    members are passed over. A damaged tar gives the samples before the damage.
    """

    def __init__(self, config: SourceConfig) -> None:
        """Read the headers of all tars; no picture is kept.

        Raises:
            ValueError: no file matches, or one is compressed.
        """
        self.name = config.name or Path(config.path).stem
        self._shards = [_index(path, self.name) for path in matching_files(config.path)]
        self._rows = Rows(self.name, [len(shard.keys) for shard in self._shards], config.rows)

    def __len__(self) -> int:
        """Number of samples, bad ones included."""
        return len(self._rows)

    def __getitem__(self, row: int) -> Record:
        """The record of a sample.

        Raises:
            RecordError: it cannot be used.
        """
        part, local = self._rows.find(row)
        shard = self._shards[part]
        origin = origin_of(self.name, row, shard.keys[local])
        members = shard.members[shard.first[local] : shard.first[local + 1]]
        found: list[list[bytes]] = [[], [], []]
        try:
            with shard.path.open("rb") as file:
                for kind, offset, size in members.tolist():
                    if size > (MAX_BYTES if kind == 2 else MAX_ROW_BYTES):
                        raise origin.error(f"a member of {size} bytes is too large")
                    file.seek(offset)
                    found[kind].append(file.read(size))
        except OSError as error:
            raise origin.error(f"the tar cannot be read: {error.strerror}") from None
        return _record(found, origin)

    def place(self, row: int) -> str:
        """The tar and the key of a sample."""
        part, local = self._rows.find(row)
        return f"{self._shards[part].path} sample {self._shards[part].keys[local]}"

    def fingerprint(self) -> str:
        """sha256 of the headers of all tars (names, sizes and times of members)."""
        told = "".join(shard.digest for shard in self._shards)
        return hashlib.sha256(f"webdataset {told}".encode()).hexdigest()


def _record(found: list[list[bytes]], origin: Origin) -> Record:
    jsons, texts, pictures = found
    row: Fields = read_object(jsons[0], origin) if jsons else {}
    told = any(row.get(name) is not None for name in ANSWERS)
    if texts and not told:
        check_row_kind(row, origin)
        try:
            caption = texts[0].decode("utf-8-sig")
        except UnicodeDecodeError:
            raise origin.error("the caption is not UTF-8") from None
        return caption_record(caption, tuple(pictures), origin)
    if not jsons:
        raise origin.error("the sample has no text: expected a member .json or .txt")
    return llava_record(row, tuple(pictures), origin)


@dataclass(slots=True)
class _Sample:
    key: str
    members: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # by extension


def _index(path: Path, source: str) -> _Shard:
    """Look through the headers of a tar, up to its end or its first damage."""
    samples: list[_Sample] = []
    digest = hashlib.sha256()
    size = path.stat().st_size
    damage = ""
    check_format(path, "webdataset")
    with path.open("rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    whole = member.offset_data + member.size <= size
                    _add(samples, member, whole=whole)
                    if not whole:
                        damage = "it ends too early"
                        break
                    digest.update(repr((member.name, member.size, int(member.mtime))).encode())
                else:
                    file.seek(tar.offset)
                    damage = "a header is damaged" if file.read(512).strip(b"\0") else ""
        except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
            damage = str(error)
    if damage:
        log.warning(
            "%s: %s is damaged (%s): its first %d samples are used, the rest is lost",
            source, path.name, damage, len(samples),
        )  # fmt: skip
    return _packed(path, samples, digest.hexdigest())


def _add(samples: list[_Sample], member: tarfile.TarInfo, *, whole: bool) -> None:
    """Put a member to its sample; a sample that lacks the end of a member is taken away."""
    found = _NAME.fullmatch(member.name)
    if found is None or not member.isfile() or member.issparse():
        return
    key, extension = found[1], found[2].lower()
    kind = _KINDS.get(extension.rpartition(".")[2])
    if kind is None:
        return
    same = bool(samples) and samples[-1].key == key and extension not in samples[-1].members
    if not whole:
        if same:
            samples.pop()
        return
    if not same:
        samples.append(_Sample(key))
    samples[-1].members[extension] = (kind, member.offset_data, member.size)


def _packed(path: Path, samples: list[_Sample], digest: str) -> _Shard:
    members = [
        sample.members[extension]
        for sample in samples
        for extension in sorted(sample.members, key=_natural)
    ]
    return _Shard(
        path=path,
        keys=[sample.key for sample in samples],
        first=np.cumsum([0, *(len(sample.members) for sample in samples)]),
        members=np.array(members, dtype=np.int64).reshape(-1, 3),
        digest=digest,
    )


def _natural(extension: str) -> list[tuple[int, str]]:
    """Sorts "2.jpg" before "10.jpg"."""
    return [(int(part) if part.isdecimal() else -1, part) for part in _DIGITS.split(extension)]
