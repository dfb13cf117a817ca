"""What a synthetic picture is: the picture, the objects on it with exact boxes, and its recipe."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vl2.data.synthetic.chance import Weighted
from vl2.data.synthetic.words import COMMON_WORDS
from vl2.geometry import PixelBox

Size = tuple[int, int]
"""Width and height in pixels."""

SCENE_KINDS = ("text", "shapes", "count", "mixed", "crowd")


@dataclass(frozen=True, kw_only=True, slots=True)
class CharBox:
    """One drawn character and the tight box of its ink."""

    char: str
    box: PixelBox


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneObject:
    """One thing on the picture."""

    kind: str
    """"shape" or "text"."""
    name: str
    """What one calls it: "red circle", or the text itself."""
    box: PixelBox
    """Tight around the drawn ink."""
    colour: str = ""
    """A name from `COLOURS`; empty for text in a colour without a plain name."""
    shape: str = ""
    text: str = ""
    size: str = ""
    """"small", "medium" or "big"."""
    chars: tuple[CharBox, ...] = ()
    """Of a text: its characters other than spaces, in reading order."""

    @property
    def centre(self) -> tuple[float, float]:
        """The middle of the box in pixels."""
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A picture (RGB) and everything that a question about it may need."""

    image: Image.Image
    objects: tuple[SceneObject, ...]
    kind: str
    """One of `SCENE_KINDS`."""
    font: str
    """File stem of the font, "built-in", or empty when there is no text."""
    background: str
    """Family of the background."""

    @property
    def shapes(self) -> tuple[SceneObject, ...]:
        """The objects that are shapes."""
        return tuple(item for item in self.objects if item.kind == "shape")

    @property
    def texts(self) -> tuple[SceneObject, ...]:
        """The objects that are texts."""
        return tuple(item for item in self.objects if item.kind == "text")


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneRecipe:
    """What scenes look like and how often. Weights need not sum to one."""

    kinds: Weighted[str] = (("text", 0.45), ("shapes", 0.3), ("count", 0.15), ("mixed", 0.1))
    sizes: Weighted[Size | None] = (
        ((112, 112), 0.6),
        ((224, 112), 0.12),
        ((112, 224), 0.06),
        ((224, 224), 0.1),
        (None, 0.12),
    )
    """Width and height; None draws both freely from 80 to 230."""
    text_styles: Weighted[str] = (("code", 1.0),)
    """Names from `strings.TEXT_STYLES`: code, long code, lower code, mixed code, word, line."""
    words: tuple[str, ...] = COMMON_WORDS
    fonts: tuple[Path | None, ...] = (None,)
    """Font files, families equally likely; None is Pillow's built-in font."""
    split: str = "train"
    """Which background families: "train" or "heldout"."""
    min_cap_height: float = 16.0
    """Of a text in pixels; the height of a capital H."""
    min_shape: float = 18.0
    """Side of the smallest shape in pixels."""
    min_shapes: int = 1
    max_shapes: int = 5
    max_count: int = 4
    augment: float | int = 0.4
    """Share of scenes that are blurred, made noisy, compressed or dimmed."""
