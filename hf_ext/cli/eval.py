"""`hf-ext eval VERB`: what models learned, forgot, prefer, know and find; which is best."""

from __future__ import annotations

import argparse

from hf_ext.cli import core, exemplars, forgetting, moe, select
from hf_ext.cli.options import (
    add_precision_options,
    add_rows_options,
    autocast_dtype,
    model_and_tokenizer,
    option,
    rows_of,
    telling_rows_by,
    tuned_model_and_tokenizer,
)
from hf_ext.cli.outputs import print_report, require_folder
from hf_ext.guards.exits import exit_status
from hf_ext.guards.extras import require_extra
from hf_ext.guards.numbers import POSITIVE, SEED, SIZE


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the parser of `hf-ext eval`."""
    parser = subparsers.add_parser("eval", help="measure what a model learned, forgot, prefers, knows and finds")
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    forgetting.add_eval_parsers(actions)
    _add_preference(actions)
    core.add_eval_parser(actions)
    exemplars.add_eval_parser(actions)
    moe.add_eval_parser(actions)
    select.add_eval_parser(actions)


def _add_preference(actions: argparse._SubParsersAction) -> None:
    preference = actions.add_parser(
        "preference",
        help="how tuning changed the likelihood of chosen and rejected responses",
        description="Measure on held-out preference pairs how the log-likelihood of chosen and rejected responses "
        "changed against a reference model, how often the chosen one fell, pair accuracy, and divergence bounds in "
        "nats; all with bootstrap intervals. Works for a checkpoint of any method.",
    )
    option(preference, "--model", required=True, help="the tuned model (or PEFT adapter): a folder or a Hub name")
    option(
        preference,
        "--reference",
        help="the model tuning started from (default: the columns ref_chosen_logps and ref_rejected_logps, or a PEFT "
        "model with its adapters off)",
    )
    option(preference, "--groups", metavar="COLUMN", help="pairs with one value of it are drawn together (a question)")
    option(preference, "--beta", type=POSITIVE, default=0.1, help="of the bounds, best the training's (default: 0.1)")
    option(preference, "--length-normalized", action="store_true", help="bounds of log-ratios per token")
    option(preference, "--max-length", type=SIZE, default=1024, help="pairs are cut to so many tokens (default: 1024)")
    option(preference, "--batch-size", type=SIZE, default=8, help="pairs a forward (default: 8)")
    option(preference, "--seed", type=SEED, default=0, help="of the bootstrap (default: 0)")
    option(preference, "--output", metavar="FOLDER", help="write the report there (JSON, Markdown, a row a pair)")
    option(preference, "--plot", action="store_true", help="draw the pairs too, SVG and PNG, into --output")
    option(preference, "--json", action="store_true", help="print the report as JSON instead of the table")
    add_rows_options(preference, "--dataset", "held-out preference pairs", required=True)
    add_precision_options(preference)
    preference.set_defaults(run=lambda o: exit_status(lambda: run_preference(o), "hf-ext eval preference"))


@telling_rows_by("--dataset", title="evaluation dataset, ")
def run_preference(options: argparse.Namespace) -> int:
    """
    Score the pairs, print the table, write the report where wanted.

    Raises:
        ValueError: if an argument, a model or a row cannot be used.
    """
    from hf_ext.evaluation.preference import likelihood_report

    if options.plot and options.output is None:
        raise ValueError("--plot needs --output, the folder to draw into")
    if options.plot:
        require_extra("matplotlib")  # now, and not after two models have scored every pair
    require_folder(options.output)
    pairs = rows_of(options, options.dataset)
    model, tokenizer = tuned_model_and_tokenizer(options.model, options.dtype, options.device)
    reference = None
    if options.reference is not None:
        reference, _ = model_and_tokenizer(options.reference, options.dtype, options.device)
    report = likelihood_report(
        model,
        reference,
        pairs,
        tokenizer,
        beta=options.beta,
        length_normalized=options.length_normalized,
        groups=options.groups,
        max_length=options.max_length,
        batch_size=options.batch_size,
        autocast_dtype=autocast_dtype(options),
        seed=options.seed,
    )
    folder = None if options.output is None else report.save(options.output, plot=options.plot)
    print_report(report, folder, as_json=options.json)
    return 0
