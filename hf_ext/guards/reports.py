"""What the reports share: written whole as JSON and Markdown, with a plot where one can be drawn, and read back."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from hf_ext.guards.disk import replacing, writing
from hf_ext.guards.extras import require_extra
from hf_ext.guards.inside import read_as
from hf_ext.guards.markdown import escape, one_line, well_formed

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

__all__ = ["SavedReport", "markdown_table", "name_legend"]

logger = logging.getLogger(__name__)


def markdown_table(titles: Sequence[str], rows: Iterable[Iterable[object]], *, numbers: Sequence[int] = ()) -> str:
    """
    A Markdown table whose cells show their text and no markup of their own.

    Args:
        titles (`Sequence[str]`):
            Of the columns.
        rows (`Iterable[Iterable[object]]`):
            A cell for each column.
        numbers (`Sequence[int]`, *optional*):
            Positions of the columns that are set flush right.

    Returns:
        `str`: the table, without a last line end.
    """
    rules = ["---:" if position in numbers else "---" for position in range(len(titles))]
    lines = [titles, *rows]
    text = ["| " + " | ".join(map(escape, line)) + " |" for line in lines]
    return "\n".join([text[0], "|" + "|".join(rules) + "|", *text[1:]])


def name_legend(legend: Legend, names: Iterable[str]) -> None:
    """
    Write names into a legend as they are: matplotlib leaves out those that begin with an underscore, reads `$` as
    mathematics, and stops at half a surrogate pair.

    Args:
        legend (`Legend`):
            With an entry for each name, under a label of ours.
        names (`Iterable[str]`):
            In that order.
    """
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(one_line(well_formed(name)))


class SavedReport(ABC):
    """
    The base of a report that is saved and read back; a subclass says what is in it and how it is drawn.

    Attributes:
        file_name (`str`):
            Of its files, without a suffix.
        plot_size (`tuple[float, float]`):
            Width and height of the plot in inches.
    """

    file_name: ClassVar[str]
    plot_size: ClassVar[tuple[float, float]]

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The report as plain values that `json` takes; `from_dict` reads it back."""

    @classmethod
    @abstractmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The report that `to_dict` gave."""

    @abstractmethod
    def to_markdown(self) -> str:
        """The report as Markdown."""

    @abstractmethod
    def missing_for_plot(self) -> str | None:
        """What a plot needs and the report lacks, to stand behind "it needs"; `None` where it can be drawn."""

    @abstractmethod
    def draw(self, figure: Figure) -> None:
        """Draw the plot into an empty figure."""

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The report that `save` wrote into `folder`."""
        return read_as(Path(folder) / f"{cls.file_name}.json", cls.from_dict, "a report that hf-ext wrote")

    def files(self) -> dict[str, str]:
        """What `save` writes beside the plot: names and texts."""
        values = well_formed(json.dumps(self.to_dict(), indent=2, ensure_ascii=False))
        return {f"{self.file_name}.json": values + "\n", f"{self.file_name}.md": self.to_markdown()}

    def save(self, folder: str | Path, plot: bool = True) -> Path:
        """
        Write the report as `.json` and `.md` and, if wanted, its plot as `.svg` and `.png`.

        Args:
            folder (`str` or `Path`):
                Made if absent.
            plot (`bool`, *optional*, defaults to `True`):
                Whether to draw. Left out with a warning where matplotlib is not installed or the report lacks what the
                plot shows.

        Returns:
            `Path`: the folder.

        Raises:
            DiskFullError: if there is no room; what was in the folder is intact.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # all are written before the first gets its name: a full disk leaves the former report, not half of each
        with writing("the report", folder), ExitStack() as names:
            for name, text in self.files().items():
                names.enter_context(replacing(folder / name)).write_bytes(text.encode())
            if plot and find_spec("matplotlib") is None:
                logger.warning('No plot of the report: matplotlib is missing. Run: pip install "hf-ext[plots]"')
            elif plot and (missing := self.missing_for_plot()) is not None:
                logger.warning("No plot of the report: it needs %s.", missing)
            elif plot:
                figure = self.plot()
                # Without a date, so that the same report gives the same file.
                for suffix, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 160})):
                    file = names.enter_context(replacing(folder / f"{self.file_name}.{suffix}"))
                    figure.savefig(file, format=suffix, **options)
        return folder

    def plot(self) -> Figure:
        """
        Draw the report.

        Raises:
            MissingExtraError: if matplotlib is not installed.
            ValueError: if the report lacks what the plot shows.
        """
        require_extra("matplotlib")
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        missing = self.missing_for_plot()
        if missing is not None:
            raise ValueError(f"The plot needs {missing}.")
        figure = Figure(figsize=self.plot_size, layout="constrained")
        FigureCanvasAgg(figure)  # a canvas of its own: pyplot would keep every figure, and choose a window for it
        self.draw(figure)
        for axes in figure.axes:
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25)
        return figure
