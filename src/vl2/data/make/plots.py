"""Axes of matplotlib in the styles of a split, and text set around them with its places.

Matplotlib draws everything but the letters; these are set on its picture, so that the place of each
is known, in the fonts of the split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from vl2.data.make.chance import between, chance, integer, pick
from vl2.data.make.fonts import Face
from vl2.data.make.paper import MIN_CONTRAST, ink, luminance
from vl2.data.make.sheet import Colour, Sheet, Style, fitting
from vl2.data.make.world import World
from vl2.geometry import PixelBox

try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.style import context
except ImportError:
    raise ValueError('made pictures need a package: pip install "vl2[data]"') from None

STYLES = {
    "train": (
        *("default", "default", "default", "ggplot", "bmh", "classic", "seaborn-v0_8"),
        *("seaborn-v0_8-whitegrid", "seaborn-v0_8-ticks"),
    ),
    "heldout": ("fivethirtyeight", "Solarize_Light2", "dark_background", "seaborn-v0_8-darkgrid"),
}
PALETTES = {"train": ("tab10", "tab10", "Set2", "Paired"), "heldout": ("Dark2", "Set1", "Accent")}
HATCHES = {"train": ("", "", "", "//"), "heldout": ("", "", "xx")}
OWN_FONT = "fonts/ttf/DejaVuSans.ttf"
DPI = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """Axes in the making, and how text is set around them."""

    axes: Axes
    style: Style
    box: PixelBox  # of the axes, in pixels
    size: tuple[int, int]
    paper: Colour
    hatch: str

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a place in the axes' units."""
        across, up = self.axes.transData.transform((x, y))
        return float(across), self.size[1] - float(up)

    def sheet(self, title: str) -> Sheet:
        """What was drawn so far as a sheet, with the title above the axes."""
        figure = self.axes.figure
        canvas = figure.canvas
        assert isinstance(canvas, FigureCanvasAgg)
        canvas.draw()
        sheet = Sheet(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy(), "RGB"))
        large = replace(self.style, size=round(self.style.size * 1.3))
        big = fitting(title, large, 0.92 * self.size[0])
        middle = (self.box[0] + self.box[2]) / 2
        x = min(max(4, middle - big.width(title) / 2), self.size[0] - big.width(title) - 4)
        sheet.text(x, self.box[1] - 1.9 * self.style.size, title, big)
        return sheet


@contextmanager
def plotted(
    rng: np.random.Generator,
    world: World,
    *,
    widest: str = "",
    legend: Sequence[str] = (),
    below: float = 2.2,
) -> Iterator[Plot]:
    """Axes in a style of the split, with room for the labels around them."""
    size = (integer(rng, 320, 860), integer(rng, 280, 620))
    font = Style(face=_face(rng, world), size=max(12, round(min(size) * between(rng, 0.03, 0.045))))
    with context(pick(rng, world.style(STYLES))):
        figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI)
        FigureCanvasAgg(figure)
        paper = rgb(mpl.rcParams["figure.facecolor"])
        colour = rgb(mpl.rcParams["text.color"])
        if abs(luminance(paper) - luminance(colour)) < MIN_CONTRAST:
            colour = ink(rng, paper, plain=True)
        font = replace(font, colour=colour)
        left = font.width(widest) + 1.6 * font.size if widest else font.size
        wide = max((font.width(name) for name in legend), default=0) + 3 * font.size
        right = size[0] - (wide if legend else font.size)
        box = (
            round(left),
            round(2.6 * font.size),
            round(right),
            round(size[1] - below * font.size),
        )
        axes = figure.add_axes(
            (
                box[0] / size[0],
                1 - box[3] / size[1],
                (box[2] - box[0]) / size[0],
                (box[3] - box[1]) / size[1],
            )
        )
        axes.tick_params(labelleft=False, labelbottom=False, labelright=False, labeltop=False)
        axes.set_axisbelow(True)
        if chance(rng, 0.4):
            axes.spines[["top", "right"]].set_visible(False)
        if chance(rng, 0.35):
            axes.grid(chance(rng, 0.7), axis="y")
        hatch = pick(rng, world.style(HATCHES))
        yield Plot(axes=axes, style=font, box=box, size=size, paper=paper, hatch=hatch)


def _face(rng: np.random.Generator, world: World) -> Face:
    """Matplotlib's own font half of the time in training, else any of the split."""
    if world.split == "train" and chance(rng, 0.5):
        path = Path(mpl.get_data_path()) / OWN_FONT
        return Face(path=str(path), family="dejavu", cap_height=0.73)
    return world.plain_face(rng)


def set_limits(plot: Plot, count: int, end: int, step: int) -> None:
    """Ticks and ends of both axes."""
    plot.axes.set_xlim(-0.6, count - 0.4)
    plot.axes.set_xticks(range(count))
    plot.axes.set_ylim(0, end * 1.06)
    plot.axes.set_yticks(range(0, end + 1, step))


def set_ticks(
    sheet: Sheet,
    plot: Plot,
    names: Sequence[str],
    end: int,
    step: int,
    unit: str = "",
    *,
    apart: int = 1,
) -> None:
    """Values at the left, names below."""
    style = plot.style
    for value in range(0, end + 1, step):
        text, y = f"{value}{unit}", plot.at(0, value)[1]
        x = plot.box[0] - style.width(text) - 0.6 * style.size
        sheet.text(x, y - style.size * 0.6, text, style)
    fit = fit_all(names, style, (plot.box[2] - plot.box[0]) / len(names) * 0.95)
    for n, name in enumerate(names):
        centred(sheet, fit, name, (plot.at(n * apart, 0)[0], plot.box[3]), 0.5)


def set_legend(sheet: Sheet, plot: Plot, names: Sequence[str], colours: Sequence[Colour]) -> None:
    """A square of each colour with its name, at the right of the axes."""
    x, size = plot.box[2] + plot.style.size * 0.7, plot.style.size
    fit = fit_all(names, plot.style, plot.size[0] - x - 1.7 * size)
    for n, (name, colour) in enumerate(zip(names, colours, strict=True)):
        y = plot.box[1] + round(n * size * 1.6)
        sheet.draw.rectangle((x, y, x + size, y + size), fill=colour)
        sheet.text(x + 1.5 * size, y - size // 8, name, fit)


def pixels(plot: Plot, box: tuple[float, float, float, float], reach: float = 0.0) -> PixelBox:
    """A box in the axes' units, from its lower left to its upper right, as pixels."""
    (x1, y2), (x2, y1) = plot.at(box[0], box[1]), plot.at(box[2], box[3])
    return round(x1 - reach), round(y1 - reach), round(x2 + reach), round(y2 + reach)


def fit_all(texts: Sequence[str], style: Style, room: float) -> Style:
    """The largest style at which all texts fit."""
    return min((fitting(text, style, room) for text in texts), key=lambda fit: fit.size)


def centred(sheet: Sheet, style: Style, text: str, at: tuple[float, float], drop: float) -> None:
    """Text around x, its top `drop` font sizes below y."""
    sheet.text(at[0] - style.width(text) / 2, at[1] + drop * style.size, text, style)


def palette(rng: np.random.Generator, world: World, plot: Plot, count: int) -> list[Colour]:
    """Different colours of a palette that stand out from the axes' ground."""
    ground, found = rgb(plot.axes.get_facecolor()), []
    palettes = [*rng.permutation(np.array(world.style(PALETTES))), *world.style(PALETTES)]
    for name in palettes:
        table = mpl.colormaps[str(name)]
        start = integer(rng, 0, 3)
        for k in range(table.N):
            colour = rgb(table((start + k) % table.N))
            others = [ground, *found]
            if all(sum(abs(a - b) for a, b in zip(colour, o, strict=True)) > 110 for o in others):
                found.append(colour)
    assert len(found) >= count
    return found[:count]


def rgb(colour: object) -> Colour:
    """Any of matplotlib's colours as 0..255."""
    red, green, blue = to_rgb(colour)  # pyright: ignore[reportArgumentType]
    return round(255 * red), round(255 * green), round(255 * blue)


def fraction(colour: Colour) -> tuple[float, float, float]:
    """As matplotlib counts."""
    return colour[0] / 255, colour[1] / 255, colour[2] / 255
