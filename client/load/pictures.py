"""Pictures for a page (SVG whose colours are the page's variables) and as files (PNG).

matplotlib is imported when the first one is drawn.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIZE_IN = (5.0, 3.6)
_PNG_DPI = 200


@dataclass(frozen=True)
class Palette:
    """Colours of a picture; ``series`` are those of lines."""

    ink: str
    muted: str
    grid: str
    paper: str
    series: tuple[str, ...]


PRINT = Palette(
    "#2c3846", "#7b8794", "#e5e9ee", "#ffffff", ("#0072b2", "#d55e00", "#00855f", "#a8437f", "#9a6b00", "#5a5fc7")
)
# Colours that no drawing has by chance; each becomes a variable of the page.
_MARKERS = Palette("#010101", "#010102", "#010103", "#010104", tuple(f"#0102{index:02x}" for index in range(6)))
_VARIABLES = {
    _MARKERS.ink: "--plot-ink", _MARKERS.muted: "--plot-muted", _MARKERS.grid: "--plot-grid",
    _MARKERS.paper: "--plot-paper", **{colour: f"--plot-{index}" for index, colour in enumerate(_MARKERS.series)},
}  # fmt: skip

Draw = Callable[["Figure", Palette], None]


@dataclass(frozen=True)
class Picture:
    """A plot that can be drawn.

    Attributes:
        name: Of its file, without a suffix.
        keys: Legend: style of the mark (``line``, ``dash``, ``dot``), number of the series, words.
        is_valid: Whether the figures may be published; if not, the plot says so.
    """

    name: str
    title: str
    caption: str
    keys: tuple[tuple[str, int, str], ...]
    draw: Draw
    is_valid: bool = True

    def png(self) -> bytes:
        """Return the plot as a PNG of about 1000 × 720 pixels, its title and its legend in it."""
        figure = _drawn(self.draw, PRINT)
        title = self.title if self.is_valid else f"{self.title} – not valid"
        figure.suptitle(title, fontsize=11, fontweight="bold", color=PRINT.ink, x=0.02, ha="left")
        _add_legend(figure, self.keys)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_PNG_DPI, facecolor=PRINT.paper, metadata={"Software": None})
        return buffer.getvalue()

    def svg(self) -> str:
        """Return the plot as an ``<svg>`` element for a page."""
        figure = _drawn(self.draw, _MARKERS)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        text = buffer.getvalue()
        body = text[text.index("<svg") :]
        body = body[body.index(">") + 1 :]
        # matplotlib's style element would hold for the whole page; the page has the rule instead.
        body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)
        body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
        body = re.sub(r'(\sid="|url\(#|href="#)', rf"\1{self.name}-", body).replace("xlink:href", "href")
        for colour, variable in _VARIABLES.items():
            body = body.replace(colour, f"var({variable})")
        width, height = (round(72 * inches, 1) for inches in figure.get_size_inches())
        label = html.escape(f"{self.title}. {self.caption}")
        return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{label}">{body}'


def _drawn(draw: Draw, palette: Palette) -> Figure:
    """Return the picture in ``palette``, whatever the user's own matplotlibrc says."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_look(palette))  # type: ignore[arg-type]
        figure = Figure(figsize=_SIZE_IN, layout="constrained")
        draw(figure, palette)
        return figure


def _add_legend(figure: Figure, keys: Sequence[tuple[str, int, str]]) -> None:
    from matplotlib.lines import Line2D

    if not keys:
        return
    marks: dict[str, dict[str, Any]] = {
        "line": {"linewidth": 2}, "dash": {"linewidth": 2, "linestyle": (0, (5, 1.6))},
        "dot": {"linestyle": "none", "marker": "."},
    }  # fmt: skip
    lines = [Line2D([], [], color=PRINT.series[place], **marks[kind]) for kind, place, _ in keys]
    figure.legend(
        lines, [words for _, _, words in keys], loc="outside lower left", ncols=3, frameon=False, fontsize=8.5,
        labelcolor=PRINT.ink,
    )  # fmt: skip


def _look(palette: Palette) -> dict[str, Any]:
    return {
        "svg.fonttype": "none", "svg.hashsalt": "orch", "font.family": "DejaVu Sans", "font.size": 10,
        "axes.edgecolor": palette.muted, "axes.labelcolor": palette.ink, "axes.linewidth": 0.8,
        "axes.facecolor": "none", "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False,
        "axes.spines.right": False, "figure.facecolor": "none", "grid.color": palette.grid, "grid.linewidth": 0.8,
        "text.parse_math": False, "xtick.color": palette.muted, "xtick.labelcolor": palette.ink,
        "ytick.color": palette.muted, "ytick.labelcolor": palette.ink,
    }  # fmt: skip
