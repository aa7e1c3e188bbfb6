"""Curation inside a datatrove pipeline, which Slurm runs on many machines: our row steps as one of its filters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_ext.data.curation.running import Reading, run_chunk, step_names
from hf_ext.data.curation.steps import DROP_THRESHOLD, DROP_VALUE, RowStep

try:
    from datatrove.data import Document
    from datatrove.pipeline.filters.base_filter import BaseFilter
    from datatrove.pipeline.writers.disk_base import DiskWriter
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "datatrove":
        raise
    raise ImportError("datatrove is not installed. Run: pip install datatrove") from error

_NOTHING_COUNTED = Reading(text_column="")  # datatrove keeps its own statistics


class CurationFilter(BaseFilter):
    """
    Steps of curation as a filter of datatrove's: `pipeline=[reader, CurationFilter(steps), writer]`.

    Steps see `id` and the document's metadata as columns, its text as `text`; what they rewrite or add goes back
    there. A document that goes has its reason, `"step:rule"`, in datatrove's statistics and, with an exclusion
    writer, its metadata, where `drop_value` and `drop_threshold` stand, too.

    Args:
        steps (`Sequence[RowStep]`):
            In their order. Steps that need every document do not fit a filter: run `curate` on its output.
        exclusion_writer (`DiskWriter`, *optional*):
            Where documents that go are written to.
        batch_size (`int`, *optional*, defaults to 100):
            Documents that the steps get at a time.

    Raises:
        TypeError: if a step is none that looks at each document by itself.
    """

    name = "hf-ext curation"

    def __init__(
        self, steps: Sequence[RowStep], exclusion_writer: DiskWriter | None = None, batch_size: int = 100
    ) -> None:
        super().__init__(exclusion_writer, batch_size)
        for step in steps:
            if not isinstance(step, RowStep):
                raise TypeError(
                    f"{type(step).__name__} needs every document, and a datatrove filter sees some at a time. Run "
                    "hf_ext.data.curation.curate with it on what the pipeline writes."
                )
        self.steps = list(steps)
        self.step_names = step_names(steps)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether a document stays, and its reason where it goes."""
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Document]) -> list[bool | tuple[bool, str]]:
        """Whether each document stays."""
        names = {name: None for document in batch for name in document.metadata}
        rows: dict[str, list[Any]] = {name: [document.metadata.get(name) for document in batch] for name in names}
        rows |= {"id": [document.id for document in batch], "text": [document.text for document in batch]}
        result = run_chunk(rows, self.steps, names=self.step_names, reading=_NOTHING_COUNTED)
        for place, position in enumerate(result.positions):
            values = {name: column[place] for name, column in result.columns.items()}
            batch[position].text = values.pop("text", batch[position].text)
            batch[position].metadata |= values
        verdicts: list[bool | tuple[bool, str]] = [True] * len(batch)
        for record in result.drops:
            verdicts[record.row] = (False, f"{record.step}:{record.rule}")
            batch[record.row].metadata |= {DROP_VALUE: record.value, DROP_THRESHOLD: record.threshold}
        return verdicts
