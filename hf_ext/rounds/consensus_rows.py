"""What the recipe reads off its rows before it trains: the label column, the channel, the classes."""

from __future__ import annotations

import logging

import numpy as np
from datasets import ClassLabel, Dataset

from hf_ext.data.relabeling import RRChannel
from hf_ext.data.relabeling.choice import Choice, Strategy, candidates
from hf_ext.data.relabeling.columns import ClassColumn, class_column
from hf_ext.data.relabeling.ledger import CHANNEL, EPSILON, has_ledger, has_spent
from hf_ext.data.run_settings import RowSets
from hf_ext.trainers.consensus.config import ConsensusConfig
from hf_ext.trainers.consensus.labels import sets_of

logger = logging.getLogger(__name__)


def label_column_of(rows: Dataset, name: str) -> str:
    """
    The label column: `name`, or `labels` where the rows have that and no `label`.

    Raises:
        ValueError: if the rows have neither column.
    """
    if name in rows.column_names:
        return name
    if name == "label" and "labels" in rows.column_names:
        return "labels"
    raise ValueError(f"the rows have no column {name!r}; they have {rows.column_names}. See label_column.")


def labels_of(rows: Dataset, label: str, num_classes: int | None = None) -> ClassColumn:
    """
    The labels as one array.

    Raises:
        RowError: if the label of a row is no class.
    """
    plain = rows.with_format(None)
    excerpts = [name for name in ("id", "text") if name in rows.column_names]
    return class_column({name: plain[name][:] for name in (*excerpts, label)}, label, num_classes)


def class_names_of(rows: Dataset, label: str) -> list[str] | None:
    """Names of the classes, where the column is a `ClassLabel` or a list of them."""
    feature = rows.features[label]
    feature = getattr(feature, "feature", feature)
    return list(feature.names) if isinstance(feature, ClassLabel) else None


def channel_of(rows: Dataset, label: str, channel: RRChannel | None, args: ConsensusConfig) -> RRChannel | None:
    """
    What the labels came through: the channel given, that of the arguments, or the ledger's.

    Raises:
        ValueError: if they contradict each other, the ledger has unequal rows, or its labels were replaced since.
        TypeError: if `channel` is no [`RRChannel`].
    """
    if channel is not None and not isinstance(channel, RRChannel):
        raise TypeError(
            f"channel must be an RRChannel, got {type(channel).__name__}. For rows of unequal channels use "
            "ForwardCorrectedTrainer and relabel, which take a mapping."
        )
    classes = args.num_classes or (len(class_names_of(rows, label) or []) or None)
    if channel is None and args.channel_epsilon is not None:
        if classes is None:
            raise ValueError("channel_epsilon needs num_classes: the labels are no ClassLabel, which would tell it.")
        channel = RRChannel(args.channel_epsilon, classes)
    ledger = _ledger(rows)
    if channel is None and ledger is not None:
        if classes is None:
            raise ValueError("the ledger has an epsilon but not the number of classes: set num_classes.")
        channel = RRChannel(ledger, classes)
    if channel is None:
        return None
    if args.num_classes is not None and args.num_classes != channel.num_classes:
        raise ValueError(f"num_classes={args.num_classes}, but the channel has {channel.num_classes} classes.")
    if ledger is not None and channel.epsilon > ledger * (1 + 1e-5):
        raise ValueError(
            f"the ledger says that a label has cost {ledger:g} nats, but epsilon={channel.epsilon:g} is given: labels "
            "cannot tell more than they cost. Leave channel_epsilon out, and the ledger's is taken."
        )
    return channel


def _ledger(rows: Dataset) -> float | None:
    """Epsilon of the ledger, or `None` without one."""
    if not has_spent(rows):
        return None
    plain = rows.with_format(None)
    names = sorted({str(name) for name in plain[CHANNEL]}) if CHANNEL in rows.column_names else []
    replaced = [name for name in names if "+" in name]
    if replaced:
        raise ValueError(
            f"{CHANNEL} says {replaced[0]!r}: these labels were replaced by a model's since they were released. Train "
            "on the rows as released; the recipe relabels by itself."
        )
    epsilons = np.array(plain[EPSILON][:], dtype=np.float64) if EPSILON in rows.column_names else np.empty(0)
    if len(names) > 1 or len(epsilons) == 0 or np.isnan(epsilons).any():
        raise ValueError(
            f"the rows came through {len(names)} channels ({', '.join(names)[:80]}): the recipe knows one. Train with "
            "ForwardCorrectedTrainer(channel={name: RRChannel(...)}) and use relabel with the same mapping."
        )
    if epsilons.min() != epsilons.max():  # a row of tokens costs epsilon times its labels
        return None
    return float(f"{epsilons[0]:.7g}")  # float32, rounded up, back to the number that was meant


def strategies_of(args: ConsensusConfig, channel: RRChannel | None, is_tokens: bool) -> tuple[Strategy, ...]:
    """
    The strategies to choose from, simplest first.

    Args:
        args ([`ConsensusConfig`]):
            Their `mode`, `budget`, `round_loss` and `select_on_noisy_eval` count.
        channel ([`RRChannel`], *optional*):
            What the labels came through.
        is_tokens (`bool`):
            Whether a row has a label a token.

    Raises:
        ValueError: if none is for token classification, or if one needs a channel and there is none.
    """
    strategies = tuple(candidates(args.mode, args.budget, args.select_on_noisy_eval))
    if is_tokens:  # masked tokens leave all rows: equal epochs are equal steps; and soft tokens have no column
        strategies = tuple(
            strategy for strategy in strategies if strategy.mode != "bayes_soft" and strategy.budget == "steps"
        )
        if not strategies or (len(strategies) == 1 and args.select_on_noisy_eval):
            raise ValueError(f"mode={args.mode!r}, budget={args.budget!r} is not for token classification.")
    needs_channel = (
        len(strategies) > 1 or args.round_loss == "forward" or (strategies[0].mode or "").startswith("bayes")
    )
    if channel is None and needs_channel:
        raise ValueError(
            "no channel is known: pass channel=RRChannel(epsilon, num_classes) or args.channel_epsilon, or rows with "
            "a ledger. For labels whose noise is not known use round_loss='ce', mode='consensus' (or 'full'), "
            "budget='steps' and select_on_noisy_eval=False."
        )
    return strategies


def card_facts(
    strategy: Strategy, choice: Choice | None, channel: RRChannel | None, is_tokens: bool
) -> dict[str, str]:
    """For the card: what the labels went through, what was done, and how right it is."""
    facts = {"strategy": strategy.name}
    if channel is not None:
        unit = "one token's label" if is_tokens else "one label"
        facts["label privacy"] = f"epsilon {channel.epsilon:g} nats, of {unit}"
        facts["mechanism"] = f"randomised response over {channel.num_classes} classes"
    if choice is not None:
        facts["accuracy, from noisy labels, out of fold"] = str(choice.accuracy[strategy.name])
    return facts


def check_eval_rows(train: Dataset, held_out: RowSets, args: ConsensusConfig) -> None:
    """
    Warn of evaluation rows whose labels look clean beside private ones; refuse to choose a checkpoint by them.

    Raises:
        ValueError: if `load_best_model_at_end` would go by rows without a ledger, beside training rows with one.
    """
    clean = [
        part
        for _, part in sets_of(held_out, "evaluation")
        if not (has_spent(part) if isinstance(part, Dataset) else has_ledger(part.column_names or ()))
    ]
    if not clean or not has_spent(train):
        return
    if args.load_best_model_at_end:
        raise ValueError(
            "load_best_model_at_end would choose a checkpoint by evaluation rows without a ledger. If their labels "
            "are true ones, that spends privacy which no ledger counts. Privatise them too, or turn it off."
        )
    logger.warning(
        "The training rows have a privacy ledger and the evaluation rows have none. If their labels are true ones, "
        "every look at the evaluation spends privacy that no ledger counts: privatise them too. The recipe itself "
        "chooses by the noisy training labels."
    )
