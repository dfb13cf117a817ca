"""The files of the page: complete, without addresses of others, their copies unchanged."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from vl2.serve.app import TYPES

WEB = Path(__file__).parents[2] / "src" / "vl2" / "serve" / "web"
OURS = sorted(file for file in WEB.rglob("*.*") if file.parent.name != "vendor")
SCRIPTS = sorted((WEB / "js").glob("*.js"))
NAMESPACE = "http://www.w3.org/2000/svg"  # a name, not an address that is asked


def test_the_copies_are_the_published_files():
    listed = (WEB / "vendor" / "VERSIONS").read_text(encoding="utf-8").splitlines()[1:]
    names = {file.name for file in (WEB / "vendor").iterdir()}
    for line in listed:
        name, package, _, digest, _ = line.split()
        assert hashlib.sha256((WEB / "vendor" / name).read_bytes()).hexdigest() == digest, name
        names -= {name, f"LICENSE-{package.partition('@')[0]}"}
    assert names == {"VERSIONS"}


@pytest.mark.parametrize("file", OURS, ids=lambda file: str(file.relative_to(WEB)))
def test_every_file_is_served_and_names_only_what_is_there(file: Path):
    assert file.suffix.removeprefix(".") in TYPES
    if file.suffix == ".png":
        return
    text = file.read_text(encoding="utf-8")
    assert "//" not in re.sub(r"(?m)(?:^|(?<=\s))//.*$", "", text.replace(NAMESPACE, ""))
    for name in re.findall(r'"/web/([\w./-]+)"', text):
        assert (WEB / name).is_file(), name
    for name in re.findall(r'from "(\.[\w./-]+)"', text):
        assert (file.parent / name).is_file(), name
    assert len(text.splitlines()) <= 400


def test_every_text_is_used_and_every_used_text_is_there():
    words = (WEB / "js" / "i18n.js").read_text(encoding="utf-8")
    english = re.search(r"const en = \{(.*?)\n\};", words, re.DOTALL)
    assert english is not None
    there = set(re.findall(r'(?:^|[\s,])(\w+): "', english[1]))
    texts = [file.read_text(encoding="utf-8") for file in SCRIPTS if file.name != "i18n.js"]
    html = (WEB / "index.html").read_text(encoding="utf-8")
    page = "\n".join([*texts, *re.findall(r'data-i18n[\w-]*="\w+"', html)])
    asked = set(re.findall(r'\bt\("(\w+)"', page)) | set(
        re.findall(r'data-i18n[\w-]*="(\w+)"', page)
    )
    assert asked <= there
    assert {key for key in there if f'"{key}"' not in page} == set()


def test_examples_have_their_pictures():
    examples = json.loads((WEB / "examples" / "examples.json").read_text(encoding="utf-8"))
    assert {e["file"] for e in examples} == {f.name for f in (WEB / "examples").glob("*.png")}
    for example in examples:
        assert set(example["name"]) == {"en", "zh"}
        assert {question["mode"] for question in example["questions"]} <= {"text", "boxes", "find"}
