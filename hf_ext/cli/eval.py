"""`hf-ext eval forgetting|preference|core|retrieval|moe|select`: what models learned, forgot, know; which is best."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ext.cli import core, exemplars, moe, select
from hf_ext.cli.options import (
    add_precision_options,
    add_rows_options,
    autocast_dtype,
    model_and_tokenizer,
    option,
    rows_of,
    tuned_model_and_tokenizer,
)
from hf_ext.cli.outputs import print_report
from hf_ext.guards.exits import exit_status
from hf_ext.guards.extras import require_extra
from hf_ext.guards.numbers import COUNT, POSITIVE, SEED, SIZE

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the parser of `hf-ext eval`."""
    parser = subparsers.add_parser("eval", help="measure what a model learned, forgot, prefers, knows and finds")
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    _add_forgetting(actions)
    _add_preference(actions)
    core.add_eval_parser(actions)
    exemplars.add_eval_parser(actions)
    moe.add_eval_parser(actions)
    select.add_eval_parser(actions)


def _add_forgetting(actions: argparse._SubParsersAction) -> None:
    forgetting = actions.add_parser(
        "forgetting",
        help="target loss, KL(original || new) and loss on general text, before and after",
        description="Measure tuned models against the original one: loss on held-out target rows, KL(original || new) "
        "on fresh samples of the original model, loss on general text. Prints the table; writes JSON, Markdown, plot.",
    )
    option(forgetting, "--original", required=True, help="the model before tuning: a folder or a Hub name")
    option(
        forgetting,
        "--new",
        required=True,
        action="append",
        metavar="[NAME=]MODEL",
        help="a tuned model (or PEFT adapter); give it again for each run",
    )
    option(forgetting, "--output", required=True, help="folder for the report")
    option(forgetting, "--general-text", metavar="DATA", help="general text (column 'text'): file, folder or Hub name")
    option(forgetting, "--core", metavar="FOLDER", help="tasks of DCLM's CORE; slow: about a million tokens a model")
    option(forgetting, "--core-max-rows", type=SIZE, default=100, metavar="N", help="rows a task (default: 100)")
    option(forgetting, "--groups", metavar="COLUMN", help="give the target loss for each value of this column too")
    option(forgetting, "--batch-size", type=SIZE, default=8, help="rows a forward (default: 8)")
    option(forgetting, "--max-length", type=SIZE, default=1024, help="rows are cut to so many tokens (default: 1024)")
    option(forgetting, "--assistant-only-loss", action="store_true", help="score the assistant's turns only")
    option(
        forgetting,
        "--autocast",
        choices=["none", "bf16", "fp16"],
        default="none",
        help="faster, at the price of rounding noise in the KL (default: none)",
    )
    option(forgetting, "--json", action="store_true", help="print the report as JSON instead of the table")
    option(forgetting, "--device", help="such as cuda:0 or cpu (default: the accelerator if there is one)")
    samples = forgetting.add_argument_group("context-free samples of the original model (one of the two)")
    option(samples, "--context-free", metavar="STORE", help="a store that was NOT trained on")
    option(
        samples, "--num-tokens", type=COUNT, metavar="N", help="sample so many tokens afresh, into the output folder"
    )
    option(
        samples, "--seed", type=SEED, default=20_000, help="of fresh samples, not a training store's (default: 20000)"
    )
    add_rows_options(forgetting, "--target", "held-out target rows, of any TRL SFT data type")
    forgetting.set_defaults(run=lambda o: exit_status(lambda: run_forgetting(o), "hf-ext eval forgetting"))


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
    _require_folder(options.output)
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


def run_forgetting(options: argparse.Namespace) -> int:
    """
    Measure, print the table, write the report.

    Raises:
        ValueError: if an argument, a model or a row cannot be used.
    """
    from hf_ext.data.loading import check_model_name, load_rows
    from hf_ext.evaluation.core.task_files import load_tasks
    from hf_ext.evaluation.forgetting import forgetting_report
    from hf_ext.evaluation.rows import require_columns

    measures = (options.target, options.context_free, options.num_tokens, options.general_text, options.core)
    if not any(measures):
        raise ValueError(
            "nothing to measure: give one of --target, --context-free, --num-tokens, --general-text, --core"
        )
    if options.context_free is not None and options.num_tokens is not None:
        raise ValueError("give --context-free or --num-tokens, not both")
    _require_folder(options.output)
    runs = _runs(options.new)
    # an adapter names its base model; that is checked when it is loaded
    for name in runs.values():
        if not (Path(name) / "adapter_config.json").is_file():
            check_model_name(name)
    # All that can be refused is read before the first model runs.
    target = None if options.target is None else rows_of(options, options.target)
    general = None if options.general_text is None else load_rows(options.general_text)
    if general is not None:
        require_columns(general, ["text"], "general_text")
    if target is not None and options.groups is not None:
        require_columns(target, [options.groups], "target")
    if options.core is not None:
        load_tasks(options.core)
    store, dtype = _store(options.context_free)
    original, tokenizer = model_and_tokenizer(options.original, dtype, options.device)
    if options.num_tokens is not None:
        store = _fresh_samples(original, tokenizer, options)
    report = forgetting_report(
        original,
        runs,
        tokenizer,
        target=target,
        context_free=store,
        general_text=general,
        core=options.core,
        core_max_rows=options.core_max_rows,
        groups=options.groups,
        args=_sft_config(options),
        batch_size=options.batch_size,
        max_length=options.max_length,
        autocast_dtype=autocast_dtype(options),
    )
    print_report(report, report.save(options.output), as_json=options.json)
    return 0


def _require_folder(output: str | None) -> None:
    """Refuse a report's place now, and not after everything is measured."""
    if output is not None and Path(output).exists() and not Path(output).is_dir():
        raise ValueError(f"--output {output!r} is a file, and a folder is to be written; name another")


def _runs(words: list[str]) -> dict[str, str]:
    """`NAME=MODEL` as given; a bare model is named after the last part of its path."""
    runs: dict[str, str] = {}
    for word in words:
        name, equals, model = word.partition("=")
        if not equals:
            name = Path(word).name or word
            model = word
        if not name or not model:
            raise ValueError(f"--new {word!r}: expected NAME=MODEL or MODEL")
        if name in runs:
            raise ValueError(f"--new {word!r}: there is a run {name!r} already; give each a name, as in NAME=MODEL")
        runs[name] = model
    return runs


def _store(path: str | None) -> tuple[Any, str]:
    """The store and the dtype its model was in: in another one its rows would not be the model's own."""
    from hf_ext.data.context_free import ContextFreeStore

    if path is None:
        return None, "float32"  # a bfloat16 original would differ from its float32 copy by rounding
    store = ContextFreeStore(path)
    return store, store.manifest["dtype"]


def _fresh_samples(original: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: argparse.Namespace) -> Any:
    from hf_ext.data.context_free import generate_context_free

    return generate_context_free(
        original,
        tokenizer,
        options.num_tokens,
        output_dir=Path(options.output) / "fresh_samples",  # kept: the same report again samples nothing
        seed=options.seed,
    )


def _sft_config(options: argparse.Namespace) -> Any:
    from trl import SFTConfig

    return SFTConfig(
        report_to="none",
        bf16=False,
        max_length=options.max_length,
        assistant_only_loss=options.assistant_only_loss,
    )
