"""`hf-ext eval forgetting|wise-ft`: what models learned and forgot, or a grid of them; the model between two."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ext.cli.options import add_rows_options, autocast_dtype, model_and_tokenizer, option, rows_of, telling_rows_by
from hf_ext.cli.outputs import print_report, require_folder, resumed_output, store_output
from hf_ext.guards.exits import exit_status
from hf_ext.guards.numbers import COUNT, NON_NEGATIVE, PROBABILITY, SEED, SIZE

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def add_eval_parsers(actions: argparse._SubParsersAction) -> None:
    """Add the parsers of `hf-ext eval forgetting` and `wise-ft`."""
    _add_forgetting(actions)
    _add_wise_ft(actions)


def _add_forgetting(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        "forgetting",
        help="target loss, KL(original || new) and loss on general text, before and after",
        description="Measure tuned models against the original one: loss on held-out target rows, KL(original || new) "
        "on fresh samples of the original model, loss on general text. Prints the table; writes JSON, Markdown, plot.",
    )
    option(parser, "--original", required=True, help="the model before tuning: a folder or a Hub name")
    option(
        parser,
        "--new",
        action="append",
        metavar="[NAME=]MODEL",
        help="a tuned model (or PEFT adapter); give it again for each run",
    )
    option(
        parser,
        "--compare",
        metavar="GRID",
        help="in place of --new: a YAML file of runs (methods, settings, seeds), which are trained here and measured; "
        "killed, the same command goes on",
    )
    option(parser, "--output", required=True, help="folder for the report")
    _add_measures(parser)
    parser.set_defaults(run=lambda o: exit_status(lambda: run_forgetting(o), "hf-ext eval forgetting"))


def _add_wise_ft(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        "wise-ft",
        help="the model between a tuned one and its original (WiSE-FT): measure several, pick one, save it",
        description="Average the weights of a tuned model and its original, (1 - alpha) * original + alpha * tuned; "
        "of a LoRA adapter, scale it. With several --alpha each is measured as 'hf-ext eval forgetting' does, and "
        "--max-kl picks one. With one and --save it is only written. Costs no training.",
    )
    option(parser, "--original", required=True, help="the model before tuning: a folder or a Hub name")
    option(parser, "--new", required=True, metavar="MODEL", help="the tuned model, or a LoRA adapter")
    option(
        parser,
        "--alpha",
        type=PROBABILITY,
        nargs="+",
        action="extend",
        help="share of the tuned model, 0 to 1 (default: 0.2 0.4 0.6 0.8 1)",
    )
    option(
        parser,
        "--max-kl",
        type=NON_NEGATIVE,
        metavar="NATS",
        help="pick the best alpha whose KL(original || new) is at most this, in nats per token",
    )
    option(parser, "--save", metavar="FOLDER", help="write the picked model there, or that of the only --alpha")
    option(parser, "--overwrite", action="store_true", help="replace a model that lies in --save")
    option(parser, "--output", metavar="FOLDER", help="folder for the report")
    _add_measures(parser)
    parser.set_defaults(run=lambda o: exit_status(lambda: run_wise_ft(o), "hf-ext eval wise-ft"))


def _add_measures(parser: argparse.ArgumentParser) -> None:
    """Add the options of what is measured, and how."""
    option(parser, "--general-text", metavar="DATA", help="general text (column 'text'): file, folder or Hub name")
    option(parser, "--core", metavar="FOLDER", help="tasks of DCLM's CORE; slow: about a million tokens a model")
    option(parser, "--core-max-rows", type=SIZE, default=100, metavar="N", help="rows a task (default: 100)")
    option(parser, "--groups", metavar="COLUMN", help="give the target loss for each value of this column too")
    option(parser, "--batch-size", type=SIZE, default=8, help="rows a forward (default: 8)")
    option(parser, "--max-length", type=SIZE, default=1024, help="rows are cut to so many tokens (default: 1024)")
    option(parser, "--assistant-only-loss", action="store_true", help="score the assistant's turns only")
    option(
        parser,
        "--autocast",
        choices=["none", "bf16", "fp16"],
        default="none",
        help="faster, at the price of rounding noise in the KL (default: none)",
    )
    option(parser, "--json", action="store_true", help="print the report as JSON instead of the table")
    option(parser, "--device", help="such as cuda:0 or cpu (default: the accelerator if there is one)")
    samples = parser.add_argument_group("context-free samples of the original model (one of the two)")
    option(samples, "--context-free", metavar="STORE", help="a store that was NOT trained on")
    option(
        samples, "--num-tokens", type=COUNT, metavar="N", help="sample so many tokens afresh, into the output folder"
    )
    option(
        samples, "--seed", type=SEED, default=20_000, help="of fresh samples, not a training store's (default: 20000)"
    )
    option(
        samples,
        "--start",
        action="append",
        help="what fresh samples begin with, as of 'hf-ext data context-free'; of several, each as START=SHARE, the "
        "KL is given apart (default: bos)",
    )
    add_rows_options(parser, "--target", "held-out target rows, of any TRL SFT data type")


@telling_rows_by("--target")
def run_forgetting(options: argparse.Namespace) -> int:
    """
    Measure, print the table, write the report.

    Raises:
        ValueError: if an argument, a model or a row cannot be used.
    """
    from hf_ext.evaluation.forgetting import forgetting_report

    if (options.new is None) == (options.compare is None):
        raise ValueError("give --new MODEL, once for each tuned model, or --compare GRID, which trains them; not both")
    _require_measures(options)
    if options.compare is not None:
        return _run_comparison(options)
    require_folder(options.output)
    runs = _runs(options.new)
    for name in runs.values():
        _check_model(name)
    measures, dtype = _measures(options)
    original, tokenizer = model_and_tokenizer(options.original, dtype, options.device)
    measures |= _samples(original, tokenizer, options)
    report = forgetting_report(original, runs, tokenizer, **measures)
    print_report(report, report.save(options.output), as_json=options.json)
    return 0


def _run_comparison(options: argparse.Namespace) -> int:
    """Train what the grid says, measure it, print the table, write the report."""
    from hf_ext.comparison.compare import compare_forgetting
    from hf_ext.comparison.grid import Grid

    with resumed_output(options):
        grid = Grid.from_yaml(options.compare)
        measures, dtype = _measures(options)
        original, tokenizer = model_and_tokenizer(options.original, dtype, options.device)
        measures |= _samples(original, tokenizer, options)
        report = compare_forgetting(original, tokenizer, grid, output_dir=options.output, **measures)
        folder = report.save(options.output)
    print_report(report, folder, as_json=options.json)
    return 0


@telling_rows_by("--target")
def run_wise_ft(options: argparse.Namespace) -> int:
    """
    Measure the models between, print the table, write the report, and the model where wanted.

    Raises:
        ValueError: if an argument, a model or a row cannot be used.
    """
    from hf_ext.evaluation.wise_ft import wise_ft
    from hf_ext.evaluation.wise_ft_sweep import ALPHAS, sweep_wise_ft

    alphas = options.alpha or ALPHAS
    is_measured = _wants_measures(options)
    if options.save is None and not is_measured:
        _require_measures(options)
    if options.save is not None and options.max_kl is None and len(alphas) != 1:
        raise ValueError("--save writes one model: give one --alpha, or --max-kl, which picks one")
    if options.num_tokens is not None and options.output is None:
        raise ValueError("--num-tokens needs --output, the folder that the samples are kept in")
    if options.max_kl is not None and options.context_free is None and options.num_tokens is None:
        raise ValueError("--max-kl is a bound on the KL, which is measured on --context-free or --num-tokens")
    require_folder(options.output)
    _check_model(options.new)
    with ExitStack() as stack:
        if options.save is not None:
            save_options = argparse.Namespace(**{**vars(options), "output": options.save})
            stack.enter_context(store_output(save_options, ("config.json",), "a model"))
        alpha: float | None = alphas[0]
        if is_measured:
            measures, dtype = _measures(options)
            original, tokenizer = model_and_tokenizer(options.original, dtype, options.device)
            measures |= _samples(original, tokenizer, options)
            sweep = sweep_wise_ft(options.new, original, tokenizer, alphas=alphas, max_kl=options.max_kl, **measures)
            folder = None if options.output is None else sweep.save(options.output)
            print_report(sweep, folder, as_json=options.json)
            alpha = alphas[0] if options.max_kl is None else sweep.alpha
        if options.save is not None and alpha is None:
            raise ValueError(f"no alpha keeps the KL within --max-kl {options.max_kl:g}, so no model was saved")
        if options.save is not None and alpha is not None:
            wise_ft(options.new, options.original, alpha, output_dir=options.save)
            if not options.json:
                print(f"model: {options.save}")
    return 0


def _wants_measures(options: argparse.Namespace) -> bool:
    return any((options.target, options.context_free, options.num_tokens, options.general_text, options.core))


def _require_measures(options: argparse.Namespace) -> None:
    if not _wants_measures(options):
        raise ValueError(
            "nothing to measure: give one of --target, --context-free, --num-tokens, --general-text, --core"
        )
    if options.context_free is not None and options.num_tokens is not None:
        raise ValueError("give --context-free or --num-tokens, not both")


def _check_model(name: str) -> None:
    from hf_ext.data.loading import check_model_name

    # an adapter names its base model; that is checked when it is loaded
    if not (Path(name) / "adapter_config.json").is_file():
        check_model_name(name)


def _measures(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Arguments of the report, all that can be refused read before the first model runs; and the original's dtype."""
    from hf_ext.data.loading import load_rows
    from hf_ext.evaluation.core.task_files import load_tasks
    from hf_ext.evaluation.rows import require_columns

    _require_measures(options)
    target = None if options.target is None else rows_of(options, options.target)
    general = None if options.general_text is None else load_rows(options.general_text)
    if general is not None:
        require_columns(general, ["text"], "general_text")
    if target is not None and options.groups is not None:
        require_columns(target, [options.groups], "target")
    if options.core is not None:
        load_tasks(options.core)
    store, dtype = _store(options.context_free)
    measures = {
        "target": target,
        "context_free": store,
        "general_text": general,
        "core": options.core,
        "core_max_rows": options.core_max_rows,
        "groups": options.groups,
        "args": _sft_config(options),
        "batch_size": options.batch_size,
        "max_length": options.max_length,
        "autocast_dtype": autocast_dtype(options),
    }
    return measures, dtype


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


def _samples(
    original: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: argparse.Namespace
) -> dict[str, Any]:
    """Fresh samples where they are asked for, as an argument of the report."""
    from hf_ext.data.context_free import generate_context_free
    from hf_ext.data.starts import starts_of_words

    if options.num_tokens is None:
        return {}
    store = generate_context_free(
        original,
        tokenizer,
        options.num_tokens,
        output_dir=Path(options.output) / "fresh_samples",  # kept: the same report again samples nothing
        seed=options.seed,
        start=starts_of_words(options.start or "bos"),
    )
    return {"context_free": store}


def _sft_config(options: argparse.Namespace) -> Any:
    from trl import SFTConfig

    return SFTConfig(
        report_to="none",
        bf16=False,
        max_length=options.max_length,
        assistant_only_loss=options.assistant_only_loss,
    )
