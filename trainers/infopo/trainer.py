"""`DPOTrainer` with a loss that is a lower bound on mutual information."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from hf_ext._upstream.preference import DPOTrainerHooks, PreferenceForward
from hf_ext._upstream.rows import AnyDataset
from hf_ext.data.chat_columns import without_filled_nulls
from hf_ext.data.sft_rows import column_names
from hf_ext.guards.preference_rows import check_preference_rows
from hf_ext.losses.infopo import infopo_loss
from hf_ext.trainers.base.config import AnyModel
from hf_ext.trainers.infopo import PAIRED
from hf_ext.trainers.infopo.base import PreferenceMethod
from hf_ext.trainers.infopo.config import INFOPO, InfoPOConfig
from hf_ext.trainers.infopo.diagnostics import host_bound_ratios, pair_ratios, paired_bound_ratios


class InfoPOTrainer(PreferenceMethod, DPOTrainerHooks):
    r"""
    [`~trl.DPOTrainer`] whose loss is the negative of a bound on the information that the label carries.

    $$\mathcal{L} = \frac{1}{B} \sum_i -f_w^{(i)} + e^{f_l^{(i)}},\qquad
      f = \beta \log\frac{\pi_\theta(y|x)}{\pi_{ref}(y|x)}$$

    for `estimator="nwj"`: the chosen response's pull is constant, and the push on the rejected one retires as it
    becomes unlikely. At the reference the gradient is twice DPO's, so the first steps are the same; nothing promises
    that the chosen likelihood never falls. There is no Bradley-Terry model and no difference of rewards. Everything
    else is the host's: data types, reference by `ref_model`, disabled adapter or precomputed columns, metrics, mixed
    losses.

    Args:
        model (`str` or `PreTrainedModel` or `PeftModel`):
            As in `DPOTrainer`.
        ref_model (`PreTrainedModel`, *optional*):
            As in `DPOTrainer`. A model built in memory needs one, unless references are precomputed, an adapter is
            trained or `reference_free=True`.
        args ([`InfoPOConfig`], *optional*):
            A plain `DPOConfig` is taken too: its default loss becomes `infopo`.
        train_dataset, eval_dataset, processing_class, peft_config, callbacks, ...:
            As in `DPOTrainer`, and an optional column `weight`, which multiplies a pair's loss. With
            `precompute_ref_log_probs=True`, columns `ref_chosen_logps` and `ref_rejected_logps` that are already there
            (nats per sequence) are used as they are.

    Requirements: none of `ld_alpha`, `use_weighting`, another `f_divergence_type`, and no `weight` beside host losses;
    each is refused by name.

    Raises:
        RowError: if a row is malformed; it names the row and its column (see `on_bad_row`).
        NonFiniteError: if a log-probability or weight is not finite, before the optimiser step it would spoil.
        ValueError: if a setting cannot be honoured.

    Metrics: those of `DPOTrainer`, and under `infopo/` `mi`, `mi_ceiling` and `mi_js` (nats), `chosen_delta` and
    `rejected_delta` (nats per token against the reference), `chosen_dropped`, `push_pull`, `squeeze`, `clipped`.

    Relations: `estimator="infonce"` is `DPOTrainer`, `"jsd"` its `bco_pair`; without `"infopo"` in `loss_type` the run
    equals `DPOTrainer`'s bit for bit. [`InfoPOUnpairedTrainer`] takes single labelled responses.

    Reference: Xiao et al. 2025, *InfoPO: On Mutual Information Maximization for Large Language Model Alignment* (arXiv
    2505.08507), in the NWJ reading.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "dpo", "hf-ext", "infopo"]
    _name = "InfoPO"
    _paper: ClassVar[dict[str, str]] = PAIRED.paper_words
    config_class = InfoPOConfig
    completion_columns = ("chosen_ids", "rejected_ids")
    args: InfoPOConfig

    def __init__(self, model: AnyModel, *positional: Any, **kwargs: Any) -> None:
        super().__init__(model, *positional, **kwargs)
        # The host knows no such loss; with an empty list its own loss is 0, and everything else is as always.
        losses = list(zip(self.loss_types, self.loss_weights, strict=True))
        self.infopo_weight = next((weight for name, weight in losses if name == INFOPO), None)
        self.loss_types = [name for name, _ in losses if name != INFOPO]
        self.loss_weights = [weight for name, weight in losses if name != INFOPO]

    def check_rows(self, dataset: AnyDataset, args: InfoPOConfig, dataset_name: str) -> AnyDataset:
        """Preflight of raw rows: numbers them, raises or drops malformed ones, and leaves what the host may see."""
        if "weight" in column_names(dataset) and args.loss_type != [INFOPO]:
            raise ValueError(
                f"The {dataset_name} dataset has a 'weight' column, and loss_type={args.loss_type!r} holds losses of "
                "the host, which take no weights. Set loss_type='infopo', or remove the column."
            )
        rows = check_preference_rows(
            dataset, on_bad_row=args.on_bad_row, bad_rows_path=args.bad_rows_path, dataset_name=dataset_name
        )
        return without_filled_nulls(rows, dataset_name, args.dataset_num_proc)

    def needs_forward(self) -> bool:
        """Whether the loss or the guard reads the policy's forward; `ld_alpha` would distort what the guard reads."""
        return self.infopo_weight is not None or (self.likelihood_guard is not None and self.ld_alpha is None)

    def combine_loss(self, host_loss: Tensor, forward: PreferenceForward) -> Tensor:
        """The host's losses plus InfoPO's, times its weight; and what is logged of the batch."""
        args = self.args
        chosen, rejected = self.check_forward(forward).chunk(2)
        chosen_lengths, rejected_lengths = forward.lengths.chunk(2)
        if not args.reference_free:
            self.add_ratios(pair_ratios(chosen.detach(), rejected.detach(), chosen_lengths, rejected_lengths))
        if self.infopo_weight is None:
            self.add_ratios(host_bound_ratios(chosen, rejected, self.beta))
            return host_loss
        output = infopo_loss(
            chosen,
            rejected,
            estimator=args.estimator,
            beta=self.beta,
            chosen_lengths=chosen_lengths if args.length_normalized else None,
            rejected_lengths=rejected_lengths if args.length_normalized else None,
            max_exponent=args.max_exponent,
        )
        self.add_ratios(paired_bound_ratios(output, args.estimator, args.max_exponent, args.reference_free))
        return host_loss + self.infopo_weight * self.mean_loss(output.losses, forward)
