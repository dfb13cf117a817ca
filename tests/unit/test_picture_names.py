"""Names of pictures in questions and answers: one meaning is taken, every other choice is told."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vl2.processing.picture_names import Named, picture_asked, picture_told

NTH = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth "
    "fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth twenty-first"
)
COUNT = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty twenty-one"
)
HAN = "一 二 三 四 五 六 七 八 九 十 十一 十二 十三 十四 十五 十六 十七 十八 十九 二十 二十一"
WIDE = str.maketrans("0123456789", "".join(chr(ord(digit) + 0xFEE0) for digit in "0123456789"))
ENDINGS = {1: "st", 2: "nd", 3: "rd", 21: "st"}


def ways(number: int) -> list[str]:
    """Names of a picture by its number, from 1."""
    nth, count, han = (words.split()[number - 1] for words in (NTH, COUNT, HAN))
    short = f"{number}{ENDINGS.get(number, 'th')}"
    english = [f"the {n} {noun}" for n in (nth, short) for noun in ("image", "picture", "photo")]
    english += [f"the {nth} of the images", f"the {nth.replace('-', ' ')} given photograph"]
    english += [f"image {n}" for n in (number, count, f"no. {number}", f"number {count}")]
    english += [f"picture #{number}", f"Photo {number:02}", f"image_{number}", f"IMG-{number}"]
    chinese = [f"第{n}{rest}" for n in (number, han) for rest in ("张图", "张图片", "幅图像", "张")]
    chinese += [f"第{n}{rest}" for n in (number, han) for rest in ("個圖", "張照片", "图")]
    chinese += [f"{noun}{n}" for noun in ("图", "图片", "圖", "照片") for n in (number, han)]
    return [*english, *chinese, f"图{str(number).translate(WIDE)}", f"图片 {number}", f"{han}号图"]


PHRASES = ["Locate the cat in {}.", "In {}, where is the dog?", "找到{}里的猫", "请在{}中找出狗"]


@settings(max_examples=150, deadline=None)
@given(data=st.data(), count=st.integers(2, 21), phrase=st.sampled_from(PHRASES))
def test_every_way_to_number_a_picture(data, count: int, phrase: str):
    number = data.draw(st.integers(1, count))
    name = data.draw(st.sampled_from(ways(number)))
    assert picture_asked(phrase.format(name), [count]) == Named(number - 1), name
    ordinal = re.match(r"the |第", name)
    if ordinal:  # of the conversation where each turn sends one
        assert picture_asked(phrase.format(name), [1] * count) == Named(number - 1), name
    assert picture_told(phrase.format(name), [count], Named(0)) == Named(number - 1), name


@settings(max_examples=60, deadline=None)
@given(sent=st.lists(st.integers(0, 4), min_size=1, max_size=5), more=st.integers(0, 3))
def test_without_a_name_it_is_the_turn_that_asks_or_the_latest_with_pictures(sent, more: int):
    if not sum(sent):
        return
    first = sum(sent[: max(i for i, n in enumerate(sent) if n)])
    latest = next(n for n in reversed(sent) if n)
    named = picture_asked("Locate the red circle.", [*sent, *[0] * more])
    assert named.index == first
    told = f"no picture is named: picture {first + 1} of {sum(sent)} is assumed"
    assert named.note == (told if latest > 1 else None)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), question=st.text(max_size=60))
def test_any_text_is_survived(data, question: str):
    words = data.draw(st.lists(st.sampled_from(["image", "第", "张", "图", "last", "2", "and"])))
    sent = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4).filter(sum))
    named = picture_asked(question + " ".join(words), sent)
    assert 0 <= named.index < sum(sent)
    assert "\n" not in (named.note or "")


@pytest.mark.parametrize(
    ("sent", "question", "index"),
    [
        ([1, 1], "in the last image", 1),
        ([2], "in the latest photo", 1),
        ([3], "the second-to-last picture", 1),
        ([3], "in the penultimate image", 1),
        ([3], "倒数第二张图", 1),
        ([3], "最后一张图片里的猫", 2),
        ([3], "最後一張", 2),
        ([1, 1], "in the previous picture", 0),
        ([2, 1], "上一张图里的猫", 1),
        ([1, 1], "in the other image", 0),
        ([1, 1], "另一张图", 0),
        ([1, 1], "另外那张照片里", 0),
        ([2], "The first image shows a mark. Find it in the other one: in the other image.", 1),
        ([2], "Locate it, but not in the first image.", 1),
        ([2], "除了第一张图", 1),
        ([2], "In the first image a mark is shown. Locate the same in the second image.", 1),
        ([2], "Two images are given. Locate the cat in image 2", 1),
        ([1, 1], "the first image", 0),
        ([1, 2], "the third image", 2),
        ([2], "in picture B", 1),
        ([2], "the one in #2", 1),
        ([1, 1], "Locate the 2 dogs in this image", 1),
        ([1, 1], "in this image one dog sleeps", 1),
        ([1, 1], "这张图一共有几只猫", 1),
        ([1, 1], "图里第一张桌子", 1),
        ([1, 1], "墙上一张图", 1),
        ([1, 1], "图一样的地方", 1),
        ([1, 1], "请框出当前图片里的狗", 1),
        ([1, 1], "目前图片中的狗", 1),
        ([1, 1], "找到衣服上图案", 1),
        ([1, 1], "请看上图中的狗", 0),
        ([2], "找狗,除第一张图外", 1),
        ([2], "图【2】里的狗", 1),
        ([2], "第贰张图片中的狗", 1),
        ([2], "Pic. 2: find the dog", 1),
        ([1, 1], "In the picture a dog runs. Find it.", 1),
        ([1, 1], "the first picture frame", 1),
        ([3], "in the picture before the last", 1),
        ([1, 1, 1], "the image before last", 1),
        ([1, 1], "the second row, the last word, the previous button", 1),
        ([1, 1], "What is in the middle? Describe this image first, then find the cat.", 1),
        ([1, 1], "找到第一个人", 1),
        ([12, 1], "the twenty-first century in image 2.5x", 12),
        ([1], "in the second image, or picture 7", 0),
    ],
)
def test_one_meaning_is_taken_without_a_word(sent, question: str, index: int):
    assert picture_asked(question, sent) == Named(index)


@pytest.mark.parametrize(
    ("sent", "question", "index", "reason"),
    [
        ([2], "Locate the red circle", 0, "no picture is named"),
        ([3], "in image 7", 0, '"image 7" names no picture'),
        ([2], "in the left image", 0, '"left image" can mean several pictures'),
        ([2], "右边的图", 1, '"右边的图" can mean several pictures'),
        ([1, 2], "in the second image", 2, '"second image" can mean several pictures'),
        ([1, 2, 0], "in the second image", 1, '"second image" can mean several pictures'),
        ([1, 1], "in image 1", 0, '"image 1" can mean several pictures'),
        ([1, 1], "in both images", 1, '"both images" can mean several pictures'),
        ([1, 1], "两张图里的猫", 1, '"两张图" can mean several pictures'),
        ([1, 1], "in the original image", 1, '"original image" can mean several pictures'),
        ([1, 1], "in the first one", 0, '"in the first one" can mean several pictures'),
        ([2], "in the other image", 1, '"other image" can mean several pictures'),
        ([3, 0], "in the other image", 0, '"other image" names no picture'),
        ([2], "in images 1 and 2", 1, "pictures 1 and 2 are named"),
        ([2], "the first and the second image", 1, "pictures 1 and 2 are named"),
        ([2], "Where is it in image 1? And in image 2?", 0, "pictures 1 and 2 are named"),
        ([2], "Find it in image 2. Image 1 shows it.", 1, "pictures 1 and 2 are named"),
        ([1, 1], "以上图片里的狗", 1, '"以上图片" can mean several pictures'),
        ([3], "in all but the last image", 0, '"last image" names no picture'),
        ([1, 1, 0], "in the previous image", 1, '"previous image" can mean several pictures'),
    ],
)
def test_what_could_be_another_is_told(sent, question: str, index: int, reason: str):
    note = f"{reason}: picture {index + 1} of {sum(sent)} is assumed"
    assert picture_asked(question, sent) == Named(index, note)


@pytest.mark.parametrize(
    "question",
    [
        *(
            "now the one before",
            "What about the first one?",
            "box it in the former",
            "the former image",
        ),
        *("Figure 1: the axis", "Fig. 1", "page 1: the title", "the first scan", "the last slide"),
        *("the image that I sent first", "the picture in my first message", "the image of turn 1"),
        *("go back to the first", "image: 1", "#1, the dog", "No. 1", "a.png", "the initial image"),
        *(
            "第一个",
            "第一次发的图",
            "一开始的图",
            "最早的图片",
            "刚刚那张",
            "原来的图",
            "前者",
            "旧图",
        ),
        *("in the first of these", "the image preceding this one", "the photo prior to this one"),
        *("the image two turns ago", "the earlier-sent image", "in the one you just described"),
        *("in the oldest picture", "in photo A find the dog", "the image with index 1", "Image I"),
        *("the image from step 1", "the picture at the very beginning", "Pic.1: the dog"),
        *(
            "第壹张图片中的狗",
            "第一回发的图",
            "编号为1的图片里的狗",
            "图\u30141\u3015里的狗",
            "图【1】",
        ),
        *("第1页的标题", "上一轮的图", "中间那张", "第一张截屏里", "第一张画", "下一张图"),
    ],
)
def test_words_that_may_mean_an_earlier_turn_are_told(question: str):
    named = picture_asked(question, [1, 1])
    assert (named.note is not None) or named.index == 0


def test_an_answer_that_names_a_picture_leaves_no_doubt():
    doubtful = picture_asked("Locate the cats", [2])
    assert picture_told("In the second image: ", [2], doubtful) == Named(1)
    assert picture_told("Here they are, in both images: ", [2], Named(1)) == Named(1)
    assert picture_told("A cat: ", [2], doubtful) is doubtful
    assert picture_told("and in the other image ", [2], Named(1)) == Named(0)


@pytest.mark.parametrize("text", ["first, " * 5_000, "image 1 and " * 5_000, "图" * 20_000])
def test_long_texts_take_no_time(text: str):
    assert picture_asked(text, [1, 1]).index in (0, 1)
