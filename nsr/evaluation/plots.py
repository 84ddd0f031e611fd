"""What all our plots share: colours, pictures without a display (matplotlib), pages that need no network (plotly)."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING

from nsr.utils.errors import ExtensionError
from nsr.utils.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure as Picture
    from plotly.graph_objects import Figure as Interactive

COLORS = ("#4269d0", "#efb118", "#ff725c", "#3ca951", "#a463f2", "#6cc5b0", "#ff8ab7", "#9c6b4e", "#97bbf5", "#9498a0")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 96rem; margin: 2rem auto; padding: 0 1rem; color: #202020; }
h1, h2, h3, h4 { font-weight: 600; } code { font-size: .9em; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
"""


def require(package: str) -> None:
    """Raises ExtensionError where matplotlib or plotly, whichever is asked for, is not installed."""
    try:
        __import__(package)
    except ImportError as error:
        raise ExtensionError(f"plots need {package}, which is not installed; run: pip install 'nsr[plot]'") from error


def new_picture(width: float, height: float) -> Picture:
    """An empty matplotlib figure of so many inches, which no display is asked for."""
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(picture)
    return picture


def plain_numbers(axis: Axis) -> None:
    """A logarithmic axis says 0.6 and not 6e-01, between the powers of ten as well, where there is room for it."""
    from matplotlib.ticker import LogFormatter

    class PlainNumbers(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(PlainNumbers(minor_thresholds=(1.2, 0.4)))


def save_picture(path: Path, picture: Picture) -> None:
    """Write a PNG. Atomic."""
    with atomic_write(path, "wb") as file:
        picture.savefig(file, format="png", dpi=110)


def interactive_html(plots: Interactive) -> str:
    """A plotly figure as part of a page of write_page, which holds plotly's script."""
    return plots.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True})


def write_page(path: Path, title: str, body: str, style: str = "") -> None:
    """Write an HTML page with plotly's script inside, so that it needs no network. Atomic.

    title: text; body: HTML; style: CSS beside that of all our pages.
    """
    require("plotly")
    from plotly.offline import get_plotlyjs

    page = (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}{style}</style><script>{get_plotlyjs()}</script>\n{body}\n</html>\n"
    )
    with atomic_write(path) as file:
        file.write(page)
