"""Token ids that a model has no embedding for: an index error from inside of a layer, or on a GPU a dead process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset

from hf_ext._columns import ROW_INDEX
from hf_ext.guards.row_errors import RowError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ID_COLUMNS = ("input_ids", "prompt_ids", "chosen_ids", "rejected_ids", "completion_ids")
BATCH_SIZE = 10_000


def require_embedded(
    dataset: Dataset | IterableDataset,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dataset_name: str = "train",
) -> None:
    """
    Refuse tokenised rows with a token that the model has no embedding for.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Tokenised rows; rows without token ids and streams pass.
        model (`PreTrainedModel` or `PeftModel`):
            The model that is to read them.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            Gives the token's text for the message.
        dataset_name (`str`, *optional*, defaults to `"train"`):
            Named in the message.

    Raises:
        [`RowError`]: if a row has such a token; it names the first.
    """
    columns = [name for name in ID_COLUMNS if isinstance(dataset, Dataset) and name in dataset.column_names]
    size = _num_embeddings(model) if columns else None
    if size is None:
        return
    for column in columns:
        position = 0
        for table in dataset.select_columns(column).with_format("arrow").iter(batch_size=BATCH_SIZE):
            # one comparison a batch; rows are looked at only where it fails
            largest = pc.max(pc.list_flatten(table.column(column))).as_py()
            if largest is not None and largest >= size:
                _refuse(dataset, column, position, size, tokenizer, dataset_name)
            position += table.num_rows


def _num_embeddings(model: PreTrainedModel | PeftModel) -> int | None:
    """Rows of the input embeddings; `None` where the model does not say."""
    try:
        embeddings = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # a model of pictures, or no model of the host
        embeddings = None
    sizes = (getattr(embeddings, "num_embeddings", None), getattr(getattr(model, "config", None), "vocab_size", None))
    return max((size for size in sizes if isinstance(size, int)), default=None)


def _refuse(
    dataset: Dataset, column: str, start: int, size: int, tokenizer: PreTrainedTokenizerBase | None, dataset_name: str
) -> None:
    rows = dataset.with_format(None).select(range(start, min(start + BATCH_SIZE, len(dataset))))
    number, row = next((i, row) for i, row in enumerate(rows) if max(row[column], default=0) >= size)
    token = max(row[column])
    ends = np.cumsum(row.get("seq_lengths") or [len(row[column])])  # a packed row holds several of the user's
    document = int(np.searchsorted(ends, row[column].index(token), side="right"))
    index = int(np.ravel(row.get(ROW_INDEX, start + number))[document])
    name = "" if tokenizer is None else f" ({tokenizer.convert_ids_to_tokens(token)!r})"
    location = "" if dataset_name == "train" else f"{dataset_name} dataset, "
    raise RowError(
        f"{location}row {index:,}, column {column!r}: the model has no embedding for the token {token:,}{name}: "
        f"it has {size:,}. A token that was added to the tokenizer needs one, which "
        "model.resize_token_embeddings(len(tokenizer)) makes; ids of another tokenizer mean nothing to this model.",
        row_index=index,
        column=column,
    )
