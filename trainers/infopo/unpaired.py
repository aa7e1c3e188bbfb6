"""`KTOTrainer`'s data through a bound on mutual information: single responses, labelled good or bad."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

from datasets import Dataset
from torch import Tensor

from hf_ext._upstream.preference import KTOTrainerHooks, PreferenceForward
from hf_ext._upstream.rows import AnyDataset
from hf_ext.data.chat_columns import without_filled_nulls
from hf_ext.guards.preference_rows import check_unpaired_rows
from hf_ext.losses.infopo import infopo_unpaired_loss
from hf_ext.trainers.base.config import AnyModel
from hf_ext.trainers.infopo import UNPAIRED
from hf_ext.trainers.infopo.base import PreferenceMethod
from hf_ext.trainers.infopo.config import InfoPOUnpairedConfig
from hf_ext.trainers.infopo.diagnostics import unpaired_ratios

logger = logging.getLogger(__name__)


class InfoPOUnpairedTrainer(PreferenceMethod, KTOTrainerHooks):
    r"""
    InfoPO on single responses with a label: the bound is a sum of two expectations, so pairs were never needed.

    $$l_i = \frac{[y_i \text{ good}]}{2\rho} (-f_i) + \frac{[y_i \text{ bad}]}{2(1-\rho)} e^{f_i}$$

    for `estimator="nwj"`, with $\rho$ the share of good rows in the **data set**: the loss of micro-batches then
    averages to that of the whole, whatever classes they hold. No KL batch and no reference point are estimated, and a
    batch of one row is fine. Pairs are taken too, each as two rows.

    Args:
        model, ref_model:
            As in [`InfoPOTrainer`].
        args ([`InfoPOUnpairedConfig`], *optional*):
            A plain `KTOConfig` is taken too.
        train_dataset, eval_dataset, processing_class, peft_config, callbacks, ...:
            As in `KTOTrainer`, and an optional column `weight`, which multiplies a row's loss. With
            `precompute_ref_log_probs=True` a column `ref_logps` that is already there is used as it is.

    Requirements: both classes in the train dataset; an estimator other than `infonce`; no vision data.

    Raises:
        RowError: if a row is malformed; it names the row and its column (see `on_bad_row`).
        NonFiniteError: if a log-probability or weight is not finite, before the optimiser step it would spoil.
        ValueError: if a setting cannot be honoured, or all rows are of one class.

    Metrics: those of `KTOTrainer` (its `kl` is 0), and those of [`InfoPOTrainer`] under `infopo/` but `squeeze`.

    Reference: Xiao et al. 2025 (arXiv 2505.08507), in the NWJ reading; unpaired rows are an extension of it.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "kto", "hf-ext", "infopo"]
    _name = "InfoPOUnpaired"
    _paper: ClassVar[dict[str, str]] = UNPAIRED.paper_words
    method = "infopo_unpaired"
    config_class = InfoPOUnpairedConfig
    completion_columns = ("completion_ids",)
    args: InfoPOUnpairedConfig

    def __init__(self, model: AnyModel, *positional: Any, **kwargs: Any) -> None:
        super().__init__(model, *positional, **kwargs)
        self.positive_fraction = self._positive_fraction()

    def _positive_fraction(self) -> float:
        """The share of good rows that the loss uses."""
        fraction = self.args.positive_fraction
        if not isinstance(self.train_dataset, Dataset):
            if fraction is None:
                raise ValueError("A stream's share of good rows cannot be counted: set positive_fraction.")
            return fraction
        labels = self.train_dataset.with_format("numpy")["label"][:]
        counted_fraction = float(labels.mean())
        if fraction is not None:
            if abs(fraction - counted_fraction) > 0.05:
                logger.warning(
                    "positive_fraction=%s, and %.3f of the train dataset's rows are good: the classes' terms are out "
                    "of balance by that much. Leave it out to use the data set's own.",
                    fraction, counted_fraction,
                )  # fmt: skip
            return fraction
        if counted_fraction in (0.0, 1.0):
            raise ValueError(
                f"After truncation every row of the train dataset is labelled {bool(counted_fraction)}: with one "
                "class the bound has no maximum. Raise max_length, or add rows of the other class."
            )
        return counted_fraction

    def check_rows(self, dataset: AnyDataset, args: InfoPOUnpairedConfig, dataset_name: str) -> AnyDataset:
        """Preflight of raw rows: numbers them, raises or drops malformed ones, and leaves what the host may see."""
        rows = check_unpaired_rows(
            dataset, on_bad_row=args.on_bad_row, bad_rows_path=args.bad_rows_path, dataset_name=dataset_name
        )
        return without_filled_nulls(rows, dataset_name, args.dataset_num_proc)

    def needs_forward(self) -> bool:
        """Always: the host's own loss is not used."""
        return True

    def combine_loss(self, host_loss: Tensor, forward: PreferenceForward) -> Tensor:
        """InfoPO's loss in place of the host's, and what is logged of the batch."""
        args = self.args
        labels = forward.inputs["label"].bool()
        logratios = self.check_forward(forward)
        settings: dict[str, Any] = {
            "estimator": args.estimator,
            "beta": self.beta,
            "positive_fraction": self.positive_fraction,
            "lengths": forward.lengths if args.length_normalized else None,
            "max_exponent": args.max_exponent,
        }
        output = infopo_unpaired_loss(logratios, labels, **settings)
        self.add_ratios(
            unpaired_ratios(
                logratios.detach(), labels, forward.lengths, output, settings | {"reference_free": args.reference_free}
            )
        )
        loss = self.mean_loss(output.losses, forward)
        if forward.aux_loss is not None:
            loss = loss + self.router_aux_loss_coef * forward.aux_loss
        return loss
