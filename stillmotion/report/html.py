"""Pieces of a page: tables, bars, pictures and charts as HTML that needs no other file."""

import base64
import io
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from stillmotion.data.sampling import spread_evenly
from stillmotion.report.plots import COLOURS

MOST_STRIP = 6
"""Frames of a film strip."""
STRIP_HEIGHT = 96


@cache
def _environment() -> Environment:
    loader = PackageLoader("stillmotion.report", "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def page(**values: Any) -> str:
    """A whole page, `templates/page.html`."""
    return _environment().get_template("page.html").render(**values)


def piece(name: str, **values: Any) -> Markup:
    """A macro of `templates/pieces.html` with its arguments."""
    macro = getattr(_environment().get_template("pieces.html").module, name)
    return Markup(macro(**values))


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Args:
        text: What is read.
        sort: What it is sorted by, where that is not the text.
        share: In 0..1, shown as the depth of the cell's colour; None: no colour.
    """

    text: str
    sort: float | None = None
    share: float | None = None


def table(head: Sequence[str], rows: Sequence[Sequence[Cell | str]], *, sortable: bool = False) -> Markup:
    """A table whose first column is text and whose others are numbers."""
    cells = [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in rows]
    return piece("table", head=head, rows=cells, sortable=sortable)


def facts(pairs: Sequence[tuple[str, Any]]) -> Markup:
    """Names and values, one below the other."""
    return piece("facts", pairs=pairs)


def picture(pixels: NDArray[np.uint8], alt: str) -> Markup:
    """Pixels (H, W, 3) as an image in the page."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "webp", quality=82)
    data = base64.b64encode(out.getvalue()).decode()
    return piece("picture", data=data, alt=alt, width=pixels.shape[1], height=pixels.shape[0])


def strip(frames: NDArray[np.uint8], alt: str, *, most: int = MOST_STRIP) -> Markup:
    """Frames (T, H, W, 3) side by side as one image; of many, some that are spread evenly."""
    places = spread_evenly(len(frames), most)
    height, width = frames.shape[1:3]
    size = (max(1, round(width * STRIP_HEIGHT / height)), STRIP_HEIGHT)
    small = [np.asarray(Image.fromarray(frames[i]).resize(size, Image.Resampling.BILINEAR)) for i in places]
    return picture(np.concatenate(small, axis=1), alt)


def chart(draw: Callable[[Path], object], caption: str = "") -> Markup:
    """What a function of `plots` draws into the file it is given, as inline SVG in the colours of the page.

    Returns nothing if it draws nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "chart.svg"
        draw(file)
        if not file.exists():
            return Markup()
        svg = file.read_text(encoding="utf-8")
    return piece("chart", svg=Markup(_in_page_colours(svg)), caption=caption)


def _in_page_colours(svg: str) -> str:
    """matplotlib's SVG without its head, with the page's variables in the place of its colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="(?!m|p|C|DejaVu)[^"]*"', "", svg)  # of groups, which would stand twice in a page
    for number, colour in enumerate(COLOURS):
        svg = svg.replace(colour.lower(), f"var(--c{number})")
    for colour, name in {"#000000": "text", "#333333": "text", "#888888": "muted", "#e4e4e4": "line"}.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg
