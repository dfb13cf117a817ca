"""Which picture a text names: "the second image", "picture no. 3", "the last photo", "图二".

Pictures are numbered from 0 over the whole conversation. What has one meaning is taken; whatever
else is chosen carries a note that says so.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_DIGITS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = ["thir", "four", "fif", "six", "seven", "eigh", "nine"]
_TENS = ["twen", "thir", "for", "fif", "six", "seven", "eigh", "nine"]
_CARDINALS = [*_DIGITS, "ten", "eleven", "twelve", *(f"{teen}teen" for teen in _TEENS)]
_CARDINALS += [f"{ten}ty{one}" for ten in _TENS for one in ["", *(f"-{d}" for d in _DIGITS)]]
_IRREGULAR = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth"}
_IRREGULAR |= {"nine": "ninth", "twelve": "twelfth"}
_HAN = "一二三四五六七八九"


def _ordinal(cardinal: str) -> str:
    before, hyphen, last = cardinal.rpartition("-")
    regular = f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th"
    return before + hyphen + _IRREGULAR.get(last, regular)


def _han(number: int) -> str:
    tens, ones = divmod(number, 10)
    return (_HAN[tens - 1] if tens > 1 else "") + "十" * (tens > 0) + (_HAN[ones - 1] * (ones > 0))


_ORDINALS = [_ordinal(word) for word in _CARDINALS]
_NUMBERS = {
    word: number
    for words in (_CARDINALS, _ORDINALS, [_han(number) for number in range(1, 100)])
    for number, word in enumerate(words, start=1)
} | {letter: number for number, letter in enumerate("abcdefgh", start=1)}


def _any(words: Sequence[str]) -> str:
    """One of the words, the longest that fits; a hyphen in them may be a space."""
    return "(?:" + "|".join(sorted(words, key=len, reverse=True)).replace("-", "[- ]") + ")"


_NTH, _COUNT = (
    rf"(?:\d{{1,3}}(?:st|nd|rd|th)|{_any(_ORDINALS)})",
    rf"(?:\d{{1,3}}|{_any(_CARDINALS)})",
)
_AND = r" ?(?:,|and|or|&|/|to|-|, and) ?(?:the )?#?"
_NOUN = r"(?:image|picture|pic|photo|photograph|img|screenshot)s?"
_OF = (
    r"[- ](?:(?:given|attached|uploaded|provided|input) |of (?:the|these|those|my|your) (?:\w+ )?)?"
)
_A_PICTURE = rf"{_OF}{_NOUN}\b(?! ?(?:frame|book)s?\b)"

_SHEET = "(?:图片|图像|照片|相片|截图|截屏|图)"
_N = rf"(?:\d{{1,3}}|[十{_HAN}]{{1,3}})"
# Things that can be a picture that was sent, or in one.
_SENT = (
    r"(?:one|page|slide|scan|frame|shot|snapshot|document|file|upload|attachment|chart|drawing"
    r"|graphic|figure|fig|message|turn|question|round)"
)
_EARLIER = "(?:最初|最早|一?开始|开头|原来|原先|刚刚|刚才|之前|先前|[上前第]一[轮次条回])"
_HAN_AND = "[、,和与及或跟~-]"
# The counter of pictures, 张, counts tables and paper, too; 图一 begins 图一共 and the like.
_END = r"(?=$|[^\w]|[里中内上的和与及或跟是有在所显找圈框标]|定位)"
_ONE_SHEET = rf"(?:[张幅] ?(?:{_SHEET}|{_END})|个? ?{_SHEET})"
_NO_COUNT = r"(?![\d个只张条位名人辆件头匹本种次点块份排行列年月日天分秒元倍度米维%]|\.\d)"

_FORMS = tuple(
    (kind, re.compile(pattern, re.ASCII if pattern.isascii() else 0))  # "image2里" is two words
    for kind, pattern in (
        (
            "from the end",
            rf"(?<![\w-])({_NTH})[- ](?:to[- ](?:the )?|from (?:the )?)?last{_A_PICTURE}",
        ),
        ("before the last", rf"\b(?:penultimate|last but one|next[- ]to[- ]last){_A_PICTURE}"),
        ("before the last", rf"\b{_NOUN} before (?:the )?last\b"),
        ("last", rf"(?<![\w-])(?:last|final|latest|newest|new|most recent){_A_PICTURE}"),
        ("previous", rf"\b(?:previous|preceding|prior|earlier){_A_PICTURE}"),
        ("other", rf"\b(?:other|another|remaining){_A_PICTURE}"),
        ("left", rf"\bformer{_A_PICTURE}"),
        ("right", rf"\blatter{_A_PICTURE}"),
        ("left", rf"\b(?:left|top|upper)(?:most|[- ]hand)?{_A_PICTURE}"),
        ("left", rf"\b{_NOUN} (?:on|to|at) the (?:left|top)\b"),
        ("right", rf"\b(?:right|bottom|lower)(?:most|[- ]hand)?{_A_PICTURE}"),
        ("right", rf"\b{_NOUN} (?:on|to|at) the (?:right|bottom)\b"),
        ("nth", rf"(?<![\w-])({_NTH}(?:{_AND}{_NTH}){{0,8}}){_A_PICTURE}"),
        (
            "number",
            rf"\b{_NOUN}(?: (?:number|num|no|nr))?[ _-]?[#(]?"
            rf"({_COUNT}(?:{_AND}{_COUNT}){{0,8}})(?![\w%]|\.\w)",
        ),
        ("number", rf"\b{_NOUN} ([a-h])(?=$|[^\w ]| and\b| or\b)"),
        ("number", rf"(?:#|\bno |\bnumber )({_COUNT}){_A_PICTURE}"),
        ("number", r"\b(?:in|of|from) #(\d{1,3})\b"),
        ("perhaps", rf"\b(?:in|from) the ({_NTH})(?: one)?(?=$|[^\w ]| and\b| or\b)"),
        ("several", rf"\b(?:first|last|other) (?:{_COUNT}|few) {_NOUN}\b"),
        ("several", rf"\b(?:both|all|each|every|any|either)(?: of)?(?: the)? (?:\w+ )?{_NOUN}\b"),
        ("several", rf"\b{_NOUN.removesuffix('?')}\b"),
        ("several", rf"\b(?:old|older|original|next|following){_A_PICTURE}"),
        ("several", rf"\b{_NOUN} (?:[\w']+ ){{0,3}}(?:before|earlier|previously|above|below)\b"),
        (
            "several",
            rf"\b(?:middle|initial|starting|beginning|oldest|earliest|opposite){_A_PICTURE}",
        ),
        ("several", rf"\b(?:earlier|previously|first)[- ]\w+{_A_PICTURE}"),
        (
            "several",
            rf"\b{_NOUN} (?:(?:from|at|in|of) the (?:very )?(?:beginning|start|step)\b|i\b(?! \w))",
        ),
        ("several", rf"\b{_NOUN} (?:preceding|prior to|following|after) (?:this|that|these)\b"),
        ("several", rf"\b{_NOUN} (?:[\w']+ ){{1,3}}(?:ago|back)\b"),
        ("several", rf"\b{_NOUN} (?:[\w']+ ){{0,3}}(?:index|id|label|step|letter)[a-z]* [\"'(]?\w"),
        ("several", rf"(?:(?<=\bin )|(?<=\bon )|(?<=\bfrom )){_NOUN} [a-h]\b"),
        (
            "several",
            r"\bone (?:that |which )?(?:i|you|we) \w+"
            r"|\b(?:first|last|former) of (?:these|those|them)\b",
        ),
        ("several", rf"\b{_NOUN} (?:[\w']+ ){{1,4}}(?:message|turn|question|round)\b"),
        ("several", rf"\b{_NOUN} (?:(?!the\b|an?\b)[\w']+ ){{1,3}}first\b"),
        ("several", rf"\b{_NOUN} ?[:=] ?{_COUNT}\b"),
        ("several", rf"\b(?:{_NTH}|last|previous|earlier|other|original) {_SENT}\b"),
        ("several", rf"\b{_SENT} ?#?\d{{1,3}}\b|\b(?:one before|(?:the|in) (?:former|latter))\b"),
        ("several", rf"\bthe (?:{_NTH}|last|previous|earlier|original)(?=$|[^\w -])"),
        (
            "several",
            r"(?<![\w#])(?:#|no )\d{1,2}(?![\w%]|\.\d)|\.(?:png|jpe?g|webp|gif|bmp)\b",
        ),
        ("from the end", rf"倒数第 ?({_N}){_ONE_SHEET}"),
        (
            "last",
            rf"最[后新近]的?(?:上传的|发的)?(?:[那这一]?{_ONE_SHEET}|{_SHEET})|末[张幅]{_END}",
        ),
        ("previous", rf"(?<![墙桌地床纸面图身手车当目眼以网])[上前]一?(?!图){_ONE_SHEET}"),
        # After a noun 上 is "on": 衣服上图案. After 当, 目 and 眼 前 is "present": 当前图片.
        (
            "previous",
            rf"(?<![^\W在从把将请和与对是看用按于由给让比])[上前]{_SHEET}(?![标案书表画形层])",
        ),
        ("several", rf"以[上前]的?{_ONE_SHEET}"),
        ("previous", rf"(?:之前|先前|前面|刚才)(?:发的|上传的|的)?[那一]?{_ONE_SHEET}"),
        ("other", rf"(?:另外?|别的|其他|其它|其余)的?[那一]?{_ONE_SHEET}"),
        ("left", rf"左[边侧面]?的?[那一]?{_ONE_SHEET}"),
        ("right", rf"右[边侧面]?的?[那一]?{_ONE_SHEET}"),
        ("nth", rf"第 ?({_N}(?:{_HAN_AND}?第?{_N}){{0,8}}) ?{_ONE_SHEET}"),
        ("nth", rf"(首|头一)(?:[张幅] ?(?:{_SHEET}|{_END})|图)"),
        ("number", rf"({_N})号{_SHEET}"),
        ("several", rf"(?:编号|序号|标号)[为是]? ?{_N}"),
        ("number", rf"{_SHEET} ?([a-h])(?![a-z])"),
        ("number", rf"{_SHEET}[ _-]?[#(]?(\d{{1,3}}(?:{_HAN_AND}\d{{1,3}}){{0,8}}){_NO_COUNT}"),
        ("number", rf"(?<![地意试企力版构草蓝拼]){_SHEET} ?\(?([十{_HAN}]{{1,3}}){_END}"),
        ("several", r"(?:原|[上下]面的?[那一]?张?|(?<!\w)[上下])图"),
        (
            "several",
            rf"第{_N}[个页轮次条份](?=$|[^\w]|[的里中内上发])|第{_N}[张幅][画海照相像]|[前后]者",
        ),
        (
            "several",
            rf"{_EARLIER}[^,。]{{0,6}}(?:[图照]|那张)|(?:[旧老甲乙]|中间)的?[那一]?{_ONE_SHEET}",
        ),
        (
            "several",
            rf"(?:(?<![当目眼])[前后下两每各几]|所有的?|全部|这些|那些)[{_HAN}两几\d]?[张幅个]?{_SHEET}",
        ),
    )
)
_NUMBER_IN = re.compile(
    rf"首|头一|\d+|{_any(_ORDINALS)}|{_any(_CARDINALS)}|[十{_HAN}]{{1,3}}|\b[a-h]\b"
)
_NOT = re.compile(
    r"(?:\b(?:not|except|except for|than|excluding|without|(?:all|any|every|none)\w* but) "
    r"(?:(?:in|for|from|on) )?(?:the )?|不是|不在|除了?|而非)$"
)
# "in the image 2 dogs play" names no picture; "in the image 2 the dogs play" does.
_DETERMINER = re.compile(r"\b(?:this|that|the|an?|each|every|your|my|our) $")
_GOES_ON = re.compile(
    r" ?(?:$|[^\w ]|(?:and|or|is|are|was|has|have|shows?|contains?|in|on|of|at|that|which|where"
    r"|with|there|to|from|for|as|please|but|not|then|only|the|an?|locate|find|detect|what)\b)",
    re.ASCII,
)
_LOCATES = re.compile(
    r"\b(?:locate|find|detect|where|highlight|segment|outline|spot|identify)\b"
    r"|找|定位|检测|框出|标出|圈出|哪"
)
_SENTENCE = re.compile(r"(?:[^.!?。;\n]|\.(?!\s|$))+[.!?。;\n]*")
_SIMPLIFIED = str.maketrans(
    "張圖後個裡裏這兩頭與餘幾數號別編當壹貳贰叁參【】\u3014\u3015",
    "张图后个里里这两头与余几数号别编当一二二三三()()",
)


@dataclass(frozen=True, slots=True)
class Named:
    """A picture, and what should be known about the choice; None if the text has one meaning."""

    index: int
    note: str | None = None


@dataclass(frozen=True, slots=True)
class _Mention:
    """Words for pictures in a sentence; `sure` if they mean these alone, `vague` if any."""

    sentence: int
    words: str
    pictures: tuple[int, ...]
    sure: bool
    vague: bool


def picture_asked(question: str, sent: Sequence[int]) -> Named:
    """The picture that a question is about.

    Without a name it is that of the turn that asks, or of the latest turn before it with pictures.
    A sentence that asks to find something counts before others: "The first image shows a mark.
    Find it in the second image."

    Args:
        question: text of the turn that asks.
        sent: how many pictures each user turn sent, at least one in all; the last turn asks.
    """
    current = _current(sent)
    sentences = _sentences(question) if sum(sent) > 1 else []
    found = _mentions(sentences, sent, current[0] if len(current) == 1 else None)
    if not found:
        doubt = "no picture is named" if len(current) > 1 else None
        return _noted(current[0], doubt, sent)
    naming = {mention.sentence for mention in found}
    seeking = {number for number in naming if _LOCATES.search(sentences[number])}
    last, chosen = max(naming), max(seeking or naming)
    index, doubt = _settle([m for m in found if m.sentence == chosen], current[0])
    led_up_to = seeking == {last} and not any("?" in before for before in sentences[:last])
    if doubt is None and not led_up_to:
        _, doubt = _settle(found, current[0])
    return _noted(index, doubt, sent)


def picture_told(answer: str, sent: Sequence[int], so_far: Named) -> Named:
    """The picture that an answer's text names last; `so_far` if it names none."""
    sentences = _sentences(answer) if sum(sent) > 1 else []
    found = [m for m in _mentions(sentences, sent, so_far.index) if not m.vague]
    if not found:
        return so_far
    last = [mention for mention in found if mention.sentence == found[-1].sentence]
    return _noted(*_settle(last, so_far.index), sent)


def _noted(index: int, doubt: str | None, sent: Sequence[int]) -> Named:
    note = f"{doubt}: picture {index + 1} of {sum(sent)} is assumed" if doubt else None
    return Named(index, note)


def _settle(mentions: Sequence[_Mention], default: int) -> tuple[int, str | None]:
    """What mentions mean together, and why something else could be meant."""
    told = [mention for mention in mentions if not mention.vague] or mentions
    pictures = list(dict.fromkeys(picture for mention in told for picture in mention.pictures))
    index = next((m.pictures[-1] for m in reversed(told) if m.pictures), default)
    unsure = next((mention for mention in told if not mention.sure), None)
    if len(pictures) > 1:
        return index, f"pictures {' and '.join(str(p + 1) for p in sorted(pictures))} are named"
    if unsure is None:
        return index, None
    fault = "can mean several pictures" if unsure.pictures or unsure.vague else "names no picture"
    return index, f'"{unsure.words}" {fault}'


def _sentences(text: str) -> list[str]:
    plain = unicodedata.normalize("NFKC", text).lower().translate(_SIMPLIFIED)
    return [
        " ".join(part.split())
        for part in _SENTENCE.findall(re.sub(r"\b(no|fig|pic|img)\. ?", r"\1 ", plain))
    ]


def _mentions(sentences: Sequence[str], sent: Sequence[int], base: int | None) -> list[_Mention]:
    """All mentions in order; "the other image" is another than the one before, at first `base`."""
    mentions = []
    for number, sentence in enumerate(sentences):
        for kind, found in _forms(sentence):
            pictures, sure = _pictures(kind, found, sent, base)
            if _before(_NOT, found):
                pictures, sure = _other_than(pictures[0] if pictures else None, sent)
            base = pictures[-1] if pictures else base
            vague = kind == "several"
            mentions.append(_Mention(number, found[0].strip(), pictures, sure, vague))
    return mentions


def _forms(sentence: str) -> Iterator[tuple[str, re.Match[str]]]:
    """Matches that do not overlap, the leftmost and longest first, with their kinds."""
    found = [(kind, match) for kind, form in _FORMS for match in form.finditer(sentence)]
    end = 0
    for kind, match in sorted(found, key=lambda pair: (pair[1].start(), -pair[1].end())):
        loose = kind == "number" and _before(_DETERMINER, match)
        if match.start() < end or (loose and not _GOES_ON.match(sentence, match.end())):
            continue
        end = match.end()
        yield kind, match


def _before(words: re.Pattern[str], found: re.Match[str]) -> bool:
    return words.search(found.string, max(0, found.start() - 24), found.start()) is not None


def _current(sent: Sequence[int]) -> range:
    """Pictures of the turn that asks, or of the latest turn before it that has any."""
    turn = max(number for number, count in enumerate(sent) if count)
    first = sum(sent[:turn])
    return range(first, first + sent[turn])


def _pictures(
    kind: str, found: re.Match[str], sent: Sequence[int], base: int | None
) -> tuple[tuple[int, ...], bool]:
    """What a mention means, and whether it can mean nothing else."""
    count, current = sum(sent), _current(sent)
    numbers = [_number(word) for word in _NUMBER_IN.findall(found[1])] if found.re.groups else []
    match kind:
        case "nth" | "number" | "perhaps":
            read = [_numbered(number, kind, sent) for number in numbers]
            sure = kind != "perhaps" and all(sure for _, sure in read)
            return tuple(i for i, _ in read if i is not None), sure
        case "other":
            return _other_than(base, sent)
        case "left" | "right":  # pictures are sent one after the other
            sides = {"left": current[0], "right": current[-1]}
            return ((sides[kind],) if len(current) == 2 else ()), False
        case "several":
            return (), False
        case "previous":
            index, sure = (current[0] - 1, True) if sent[-1] else (count - 1, False)
        case _:
            back = numbers[0] if numbers else 2 if kind == "before the last" else 1
            index, sure = count - back, True
    return ((index,), sure) if 0 <= index < count else ((), False)


def _number(word: str) -> int:
    digits = re.match(r"\d+", word)
    return (
        int(digits[0]) if digits else _NUMBERS.get(word.replace(" ", "-"), word in ("首", "头一"))
    )


def _numbered(number: int, kind: str, sent: Sequence[int]) -> tuple[int | None, bool]:
    """The picture with a number, which can count the turn's pictures or the conversation's."""
    current = _current(sent)
    overall = number - 1 if 1 <= number <= sum(sent) else None
    in_turn = current[number - 1] if 1 <= number <= len(current) else None
    if in_turn is None or in_turn == overall:
        return overall, overall is not None
    if sent[-1] > 1:
        return in_turn, False
    # Nobody says "the first image" of a turn with a single one; "image 1" may be said of each turn.
    return overall, len(current) == 1 and kind == "nth"


def _other_than(base: int | None, sent: Sequence[int]) -> tuple[tuple[int, ...], bool]:
    if base is None:
        return ((1,) if sum(sent) == 2 else ()), False
    current = _current(sent)
    among = current if base in current and len(current) > 1 else range(sum(sent))
    rest = tuple(picture for picture in among if picture != base)
    return (rest, True) if len(rest) == 1 else ((), False)
