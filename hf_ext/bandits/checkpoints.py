"""The best of several candidates, such as the checkpoints of a run, measured on paired items until that is certain."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from hf_ext.bandits.race import VALUES, ItemValues, Race, content_digest
from hf_ext.bandits.selection import CandidateResult, Selection
from hf_ext.guards.checkpoints import checkpoints_in, find_damage
from hf_ext.guards.inside import read_json
from hf_ext.guards.models import loading_model
from hf_ext.guards.numbers import CONFIDENCE, COUNT, SEED, SIZE
from hf_ext.guards.runs import RunFolder, claimed_folder

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase
    from trl import SFTConfig

__all__ = ["is_whole", "select_best", "select_checkpoint", "whole_checkpoints_in"]

logger = logging.getLogger(__name__)


def select_best(
    candidates: Sequence[Any] | Mapping[str, Any],
    evaluate: Callable[[Any, Any], ArrayLike],
    *,
    items: Sequence[Any],
    confidence: float = 0.95,
    greater_is_better: bool = True,
    budget: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    output_dir: str | Path | None = None,
    show_progress: bool = True,
) -> Selection:
    r"""
    Find the candidate with the best mean over a pool of items, and measure no more than that takes.

    All candidates are measured on the same items, in an order drawn by `seed`, so that what an item does to all of
    them cancels. After 32 items, and each time a quarter more, those that are behind another by more than chance
    explains are dropped ([`~hf_ext.bandits.race`] has the test). It ends when one is left, when the pool is exhausted,
    or with the budget. **The certificate is about these items**: where all were measured on all of them it is exact,
    and tells nothing of others.

    Args:
        candidates (`Sequence` or `Mapping`):
            What is compared: checkpoints, adapters, prompts, settings, merge weights. Of a mapping the keys are the
            names; otherwise those are the texts of the candidates.
        evaluate (`Callable`):
            From a candidate and at most `batch_size` items, a `Dataset` where `items` is one and a list otherwise, to
            a number for each: all of one candidate's in a round, then the next one's. Values of several trials of one
            item are to be averaged. A candidate with a value that is not finite, or beyond 1e100, is dropped.
        items (`Sequence` or `Dataset`):
            The pool. With fewer than 64 items all are measured.
        confidence (`float`, *optional*, defaults to 0.95):
            Probability, at least, with which the best candidate of the pool is not dropped.
        greater_is_better (`bool`, *optional*, defaults to `True`):
            `False` for losses.
        budget (`int`, *optional*):
            Evaluations, at most: a candidate on an item is one.
        batch_size (`int`, *optional*, defaults to 32):
            Items a call.
        seed (`int`, *optional*, defaults to 0):
            Of the order of the items.
        output_dir (`str` or `Path`, *optional*):
            Values are written there after each call. Called again with the same candidates and items, nothing is
            measured twice, whatever the other arguments are: killed, it goes on; with more budget, too. A candidate is
            known by its name, so do not give the folder of another run. The report is written by `.save(folder)`.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar, of evaluations; it ends early where candidates are dropped.

    Returns:
        [`~hf_ext.bandits.selection.Selection`]: `.name`, `.certified`, `.level`, `.items_spent`, `.undecided`,
        `.plot()`, `.save(folder)`.

    Raises:
        ValueError: if there is no candidate or no item, if two have one name or one has none, if a number is out of
            bounds, if `evaluate` gives another number of values than it got items, if no candidate gives finite values
            alone, or if `output_dir` holds the values of something else.

    Example:

    ```python
    >>> best = select_best({"short": short, "long": long}, score_answers, items=questions, budget=2000)
    >>> best.name, best.certified, best.level, best.items_spent
    ```
    """
    for name, number, bounds in (
        ("confidence", confidence, CONFIDENCE),
        ("batch_size", batch_size, SIZE),
        ("seed", seed, SEED),
        ("budget", COUNT.least if budget is None else budget, COUNT),
    ):
        problem = bounds.problem_of(number)
        if problem is not None:
            raise ValueError(f"{name} {problem}.")
    if not isinstance(greater_is_better, bool):
        raise ValueError(f"greater_is_better must be True or False, got {greater_is_better!r}.")
    candidate_by_name = _named(candidates)
    if not hasattr(items, "__len__"):
        raise ValueError(
            f"items has no length ({type(items).__name__}): of a stream, take some and make a list of them."
        )
    if isinstance(items, Mapping | Set) or hasattr(items, "iloc"):
        raise ValueError(f"items is a {type(items).__name__}, which has no first item: make a list of its items.")
    if len(items) == 0:
        raise ValueError("items is empty: there is nothing to measure the candidates on.")
    if budget is not None and len(candidate_by_name) > 1 and budget < len(candidate_by_name):
        raise ValueError(f"budget={budget} does not pay one item for each of {len(candidate_by_name)} candidates.")
    settings = {
        "num_items": len(items),
        "confidence": confidence,
        "greater_is_better": greater_is_better,
        "budget": budget,
        "seed": seed,
    }
    if len(candidate_by_name) == 1:
        (name,) = candidate_by_name
        return Selection(name, True, 1.0, [CandidateResult(name, 0, None, None, None, "best")], 0, {}, settings)
    with _held(output_dir):
        store = ItemValues(list(candidate_by_name), len(items), None if output_dir is None else Path(output_dir))
        store.begin(items)
        race = Race(candidate_by_name, evaluate, items, store, settings, batch_size, show_progress)
        race.run()
    return race.selection()


def _held(output_dir: str | Path | None) -> AbstractContextManager[None]:
    return nullcontext() if output_dir is None else claimed_folder(output_dir, remedy="choose another output_dir")


def _named(candidates: Sequence[Any] | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(candidates, str):
        raise ValueError(f"candidates={candidates!r} is one text: give a list, or a mapping from names.")
    if not isinstance(candidates, Iterable):
        raise ValueError(f"candidates is of type {type(candidates).__name__}: give a list, or a mapping from names.")
    pairs = list(candidates.items()) if isinstance(candidates, Mapping) else [(str(c), c) for c in candidates]
    candidate_by_name = {str(name): candidate for name, candidate in pairs}
    if not candidate_by_name:
        raise ValueError("candidates is empty: there is nothing to choose from.")
    if not all(name.strip() for name in candidate_by_name):
        raise ValueError("A candidate has an empty name: give a mapping with a name for each.")
    if len(candidate_by_name) < len(pairs):
        names = [str(name) for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"Two candidates have the name {twice!r}: give a mapping with a name for each.")
    return candidate_by_name


# --- the checkpoints of a run ----------------------------------------------------------------------------------------


def select_checkpoint(
    run_dir: str | Path | Sequence[str | Path],
    items: Dataset,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    args: SFTConfig | None = None,
    confidence: float = 0.95,
    budget: int | None = None,
    batch_size: int = 8,
    max_length: int = 1024,
    autocast_dtype: torch.dtype | None = None,
    device: str | None = None,
    seed: int = 0,
    output_dir: str | Path | None = None,
    show_progress: bool = True,
) -> Selection:
    """
    Find the checkpoint of a run with the least loss on held-out rows, by [`select_best`].

    A row's value is the negative log-likelihood of its supervised tokens in nats, over the mean number of them, so
    that the mean over all rows is the loss a token. One model is in memory at a time; a round loads each one once.

    Args:
        run_dir (`str`, `Path`, or a sequence of them):
            The folder of a run, whose whole checkpoints are the candidates, damaged ones are left out with a warning;
            or the candidates themselves: causal language models or PEFT adapters, folders or Hub names.
        items (`Dataset`):
            **Held-out** rows of any TRL SFT data type, or prepared ones (`input_ids`, `labels`).
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            Of all candidates; by default that of the first one.
        args (`SFTConfig`, *optional*):
            How raw rows are prepared (`assistant_only_loss`, ...).
        confidence, budget, seed, output_dir, show_progress:
            As in [`select_best`]. In `output_dir` a candidate is known by its weights too.
        batch_size (`int`, *optional*, defaults to 8):
            Rows a forward.
        max_length (`int`, *optional*, defaults to 1024):
            Rows are cut to this many tokens.
        autocast_dtype (`torch.dtype`, *optional*):
            Autocast of every forward.
        device (`str`, *optional*):
            Where models run; by default the accelerator, if there is one.

    Returns:
        [`~hf_ext.bandits.selection.Selection`]: its `.name` is that of the checkpoint's folder.

    Raises:
        ValueError: if the folder has no whole checkpoint, if a model or a row cannot be used, or as [`select_best`].

    Example:

    ```python
    >>> best = select_checkpoint("out/sft", held_out, confidence=0.95)
    >>> model = AutoModelForCausalLM.from_pretrained(f"out/sft/{best.name}")
    ```
    """
    from hf_ext.bandits.likelihood import CheckpointLosses, ModelLosses, load_candidate
    from hf_ext.evaluation.rows import rows_to_score

    candidates = _checkpoints(run_dir)
    first = next(iter(candidates.values()))
    if tokenizer is None:
        tokenizer = _tokenizer_of(first)
    model = load_candidate(first, device)
    rows = rows_to_score(model, tokenizer, items, None, None, args, max_length)["target"]
    losses = CheckpointLosses(ModelLosses(rows, tokenizer, batch_size, autocast_dtype), model, first, device)
    with _held(output_dir):
        if output_dir is not None:
            facts = {
                "weights": {name: _weights_digest(Path(candidate)) for name, candidate in candidates.items()},
                "rows": content_digest([rows.ids, rows.labels]),
                "autocast_dtype": None if autocast_dtype is None else str(autocast_dtype),
            }
            RunFolder(output_dir, "checkpoints.json").begin(facts, parts=VALUES)
        return select_best(
            candidates,
            losses,
            items=range(len(rows.ids)),
            confidence=confidence,
            greater_is_better=False,
            budget=budget,
            batch_size=8 * batch_size,  # rows of like length share a forward
            seed=seed,
            output_dir=output_dir,
            show_progress=show_progress,
        )


def _checkpoints(run_dir: str | Path | Sequence[str | Path]) -> dict[str, str]:
    """Names and places of the candidates, the oldest checkpoint of a run first."""
    if not isinstance(run_dir, str | Path):
        paths = [str(path) for path in run_dir]
        names = [Path(path).name or path for path in paths]
        return dict(zip(paths if len(set(names)) < len(names) else names, paths, strict=True))
    whole_checkpoints = whole_checkpoints_in(run_dir)
    if not whole_checkpoints:
        raise ValueError(f"{run_dir} holds no whole checkpoint (checkpoint-N, with weights): name a run's folder.")
    return {checkpoint.name: str(checkpoint) for checkpoint in whole_checkpoints}


def whole_checkpoints_in(run_dir: str | Path) -> list[Path]:
    """Checkpoints of a run that have weights and no damage, the oldest first; a warning names the others."""
    return [checkpoint for checkpoint in reversed(checkpoints_in(run_dir)) if is_whole(checkpoint)]


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint has weights and no damage; a warning says what is wrong with one."""
    damage: object = find_damage(checkpoint)
    if damage is None and not any(checkpoint.glob("*.safetensors")):
        damage = f"{checkpoint} holds no weights (*.safetensors)"
    if damage is not None:
        logger.warning("Not among the candidates: %s.", damage)
    return damage is None


def _tokenizer_of(candidate: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    folder = Path(candidate)
    name = candidate
    if (folder / "adapter_config.json").is_file() and not (folder / "tokenizer_config.json").is_file():
        name = read_json(folder / "adapter_config.json")["base_model_name_or_path"]
    with loading_model(name, "tokenizer"):
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def _weights_digest(candidate: Path) -> str | None:
    """Of the weights in a folder; `None` for a name on the Hub."""
    files = sorted(candidate.glob("*.safetensors")) if candidate.is_dir() else []
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest() if files else None
