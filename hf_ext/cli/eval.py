"""`hf-ext eval forgetting`: what a tuned model learned, and what it forgot."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hf_ext.cli.errors import exit_status
from hf_ext.cli.options import add_rows_options, autocast_dtype, model_and_tokenizer, option, rows_of


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the parser of `hf-ext eval`."""
    parser = subparsers.add_parser("eval", help="measure what a tuned model learned and forgot")
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
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
        help="a tuned model (or PEFT adapter); give it again for each arm",
    )
    option(forgetting, "--output", required=True, help="folder for the report")
    option(forgetting, "--general-text", metavar="DATA", help="general text (column 'text'): file, folder or Hub name")
    option(forgetting, "--groups", metavar="COLUMN", help="give the target loss for each value of this column too")
    option(forgetting, "--batch-size", type=int, default=8, help="rows a forward (default: 8)")
    option(forgetting, "--max-length", type=int, default=1024, help="rows are cut to so many tokens (default: 1024)")
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
    option(samples, "--num-tokens", type=int, metavar="N", help="sample so many tokens afresh, into the output folder")
    option(
        samples, "--seed", type=int, default=20_000, help="of fresh samples, not a training store's (default: 20000)"
    )
    add_rows_options(forgetting, "--target", "held-out target rows, of any TRL SFT data type")
    forgetting.set_defaults(run=lambda o: exit_status(lambda: run_forgetting(o), "hf-ext eval forgetting"))


def run_forgetting(options: argparse.Namespace) -> int:
    """
    Measure, print the table, write the report.

    Raises:
        ValueError: an argument, a model or a row cannot be used.
    """
    from hf_ext.evaluation.forgetting import forgetting_report
    from hf_ext.recipes.loading import check_model_name, load_rows

    if options.target is None and options.context_free is None and not options.num_tokens and not options.general_text:
        raise ValueError("nothing to measure: give one of --target, --context-free, --num-tokens, --general-text")
    if options.context_free is not None and options.num_tokens is not None:
        raise ValueError("give --context-free or --num-tokens, not both")
    arms = _arms(options.new)
    for name in arms.values():
        if not (Path(name) / "adapter_config.json").is_file():
            check_model_name(name)
    # All that can be refused is read before the first model runs.
    target = None if options.target is None else rows_of(options, options.target)
    general = None if options.general_text is None else load_rows(options.general_text)
    store, dtype = _store(options.context_free)
    original, tokenizer = model_and_tokenizer(options.original, dtype, options.device)
    if options.num_tokens is not None:
        store = _fresh_samples(original, tokenizer, options)
    report = forgetting_report(
        original,
        arms,
        tokenizer,
        target=target,
        context_free=store,
        general_text=general,
        groups=options.groups,
        args=_sft_config(options),
        batch_size=options.batch_size,
        max_length=options.max_length,
        autocast_dtype=autocast_dtype(options),
    )
    folder = report.save(options.output)
    if options.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        print(report.to_markdown())
        print(f"report: {folder}")
    return 0


def _arms(words: list[str]) -> dict[str, str]:
    """`NAME=MODEL` as given; a bare model is named after the last part of its path."""
    arms: dict[str, str] = {}
    for word in words:
        name, equals, model = word.partition("=")
        if not equals:
            name, model = Path(word).name or word, word
        if not name or not model:
            raise ValueError(f"--new {word!r}: expected NAME=MODEL or MODEL")
        if name in arms:
            raise ValueError(f"--new {word!r}: there is an arm {name!r} already; give each a name, as in NAME=MODEL")
        arms[name] = model
    return arms


def _store(path: str | None) -> tuple[Any, str]:
    """The store and the dtype its model was in: in another one its rows would not be the model's own."""
    from hf_ext.data.context_free import ContextFreeStore

    if path is None:
        return None, "float32"  # a bfloat16 original would differ from its float32 copy by rounding
    store = ContextFreeStore(path)
    return store, store.manifest["dtype"]


def _fresh_samples(original: Any, tokenizer: Any, options: argparse.Namespace) -> Any:
    from hf_ext.data.context_free import generate_context_free

    return generate_context_free(
        original,
        tokenizer,
        options.num_tokens,
        output_dir=Path(options.output) / "fresh_samples",
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
