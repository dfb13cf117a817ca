"""One line of text as ink: a mask for the whole and a tight box for every character."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw

from vl2.data.synthetic.fonts import advance, capital_height, line_height, load_font
from vl2.data.synthetic.scene import CharBox
from vl2.data.synthetic.shapes import tight_box


@dataclass(frozen=True, kw_only=True, slots=True)
class Lettering:
    """Ink of a text, cropped to its tight box; the characters' boxes are relative to it."""

    mask: Image.Image
    chars: tuple[CharBox, ...]


def font_size(font: Path | None, cap_height: float) -> int:
    """The font size in pixels at which a capital H is about `cap_height` pixels high."""
    return max(6, round(cap_height / capital_height(font)))


def largest_cap_height(text: str, font: Path | None, room: tuple[int, int]) -> float:
    """The capital height in pixels at which `text` just fits into `room` (width, height)."""
    width = sum(advance(font, char, after) for char, after in _with_following(text))
    return capital_height(font) * min(room[0] / width, room[1] / line_height(font))


def letter(
    text: str, *, font: Path | None, cap_height: float, angle: float = 0.0, spacing: float = 0.0
) -> Lettering:
    """Draw `text` on an empty layer.

    Args:
        text: one line; spaces leave room and get no box.
        font: font file, or None for the built-in font.
        cap_height: height of a capital H in pixels.
        angle: counter-clockwise rotation in degrees.
        spacing: extra pixels between characters.
    """
    layers = _character_layers(text, font_size(font, cap_height), font, spacing)
    if angle:
        layers = [
            (char, layer.rotate(angle, Image.Resampling.BICUBIC, expand=True))
            for char, layer in layers
        ]
    mask = layers[0][1]
    for _, layer in layers[1:]:
        mask = ImageChops.lighter(mask, layer)
    left, top, right, bottom = tight_box(mask)
    chars = []
    for char, layer in layers:
        x1, y1, x2, y2 = tight_box(layer)
        chars.append(CharBox(char=char, box=(x1 - left, y1 - top, x2 - left, y2 - top)))
    return Lettering(mask=mask.crop((left, top, right, bottom)), chars=tuple(chars))


def _character_layers(
    text: str, size: int, path: Path | None, spacing: float
) -> list[tuple[str, Image.Image]]:
    """Each visible character alone, on layers of one common size."""
    font = load_font(path, size)
    margin = size // 2
    starts, x = [], float(margin)
    for char, following in _with_following(text):
        starts.append(x)
        x += size * advance(path, char, following) + spacing
    canvas = (round(x) + margin, round(1.5 * size) + margin)
    layers = []
    for char, start in zip(text, starts, strict=True):
        if char != " ":
            layer = Image.new("L", canvas)
            ImageDraw.Draw(layer).text((start, margin // 2), char, fill=255, font=font)
            layers.append((char, layer))
    return layers


def _with_following(text: str) -> list[tuple[str, str]]:
    """Each character with the one after it, empty after the last."""
    return list(zip(text, [*text[1:], ""], strict=True))
