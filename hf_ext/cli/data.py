"""`hf-ext data flow-weights|context-free|curate|prune|privatize|relabel|exemplars`: make the data methods train on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ext.cli import curate, curation_verbs, exemplars, labels, prune
from hf_ext.cli.options import (
    add_precision_options,
    add_rows_options,
    autocast_dtype,
    check_columns,
    model_and_tokenizer,
    option,
    rows_of,
    telling_rows_by,
    temperature,
    write_rows,
)
from hf_ext.cli.outputs import add_output_options, rows_output
from hf_ext.data.backends.choice import BACKENDS, OURS, check_backend
from hf_ext.guards.exits import exit_status
from hf_ext.guards.numbers import BELOW_ONE, COUNT, POSITIVE, SEED, SIZE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from datasets import Dataset

    from hf_ext.data.context_free_store import ContextFreeStore

BARS = "▁▂▃▄▅▆▇█"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the parser of `hf-ext data`."""
    parser = subparsers.add_parser("data", help="curate, weight, sample, prune, privatize or relabel rows")
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    _add_flow_weights(actions)
    _add_context_free(actions)
    curate.add_parser(actions)
    curation_verbs.add_parsers(actions)
    prune.add_parser(actions)
    labels.add_parsers(actions)
    exemplars.add_data_parser(actions)


def _add_flow_weights(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        "flow-weights",
        help="score rows under the original model and fill 'weight' by FLOW",
        description="Score rows under the original model and fill 'weight' by FLOW: exp(-loss / tau). "
        "Train on the result with 'hf-ext train weighted_sft --normalize tokens'. Rows the original model finds "
        "hard get little weight.",
    )
    option(parser, "--model", required=True, help="the original model: a folder or a Hub name")
    option(parser, "--revision", help="of the model")
    add_output_options(parser, "a .parquet or .jsonl file, or a folder (Arrow)", required=True)
    option(
        parser,
        "--tau",
        type=temperature,
        default="median",
        help="'median', 'ess:SHARE' or nats per token (default: median)",
    )
    option(
        parser,
        "--weight-scale",
        choices=["mean", "none"],
        default="mean",
        help="'mean': weights have a mean of 1 over the tokens; 'none': exp(-loss / tau), the paper's (default: mean)",
    )
    option(parser, "--flow-floor", type=BELOW_ONE, default=0.0, help="least weight relative to the mean (default: 0)")
    option(parser, "--source-column", metavar="NAME", help="column of each row's source: a tau and a mean for each")
    option(parser, "--max-length", type=SIZE, default=1024, help="of training, in tokens (default: 1024)")
    option(parser, "--assistant-only-loss", action="store_true", help="score assistant turns only, as in training")
    option(parser, "--batch-size", type=SIZE, default=8, help="rows a forward (default: 8)")
    add_rows_options(parser, "--dataset", "the fine-tuning rows, of any TRL SFT data type", required=True)
    add_precision_options(parser)
    parser.set_defaults(run=lambda o: exit_status(lambda: run_flow_weights(o), "hf-ext data flow-weights"))


def _add_context_free(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        "context-free",
        help="sample rows from the original model, from a bare start token",
        description="Sample rows from the original model, exactly (temperature 1, no filter), into a store. Stopped, "
        "the same command continues. Rows may hold text the model memorised: read some before you publish them.",
    )
    option(parser, "--model", required=True, help="the original model: a folder or a Hub name")
    option(parser, "--revision", help="of the model")
    option(parser, "--num-tokens", type=COUNT, help="sampled tokens wanted (needed but with --replay)")
    option(parser, "--output", required=True, help="folder of the store")
    option(parser, "--max-new-tokens", type=SIZE, default=128, help="longest row, in sampled tokens (default: 128)")
    option(parser, "--batch-size", type=SIZE, default=32, help="rows sampled together (default: 32)")
    option(parser, "--seed", type=SEED, default=0, help="of the rows (default: 0)")
    option(
        parser,
        "--start",
        action="append",
        help="'bos', 'separator', 'chat' (the chat template up to a user's words), 'think' or a text; several, each "
        "as START=SHARE, mix them (default: bos)",
    )
    option(
        parser,
        "--temperature",
        type=POSITIVE,
        default=1.0,
        help="for ablations: rows of another one than 1 are no samples of the model (default: 1)",
    )
    option(
        parser,
        "--backend",
        choices=BACKENDS,
        default=OURS,
        help="what samples: our loop, transformers' continuous batching, a server that takes token ids, or vLLM in "
        "this process; all but the first are compared with the model before (default: transformers)",
    )
    option(parser, "--backend-url", metavar="URL", help="of the server of --backend completions")
    option(parser, "--replay", metavar="DATA", help="store real texts (column 'text') in place of samples")
    add_rows_options(parser, "--prompts", "sample after the prompts of these rows, in place of a start")
    add_precision_options(parser)
    parser.set_defaults(run=lambda o: exit_status(lambda: run_context_free(o), "hf-ext data context-free"))


@telling_rows_by("--dataset", title="")
def run_flow_weights(options: argparse.Namespace) -> int:
    """
    Score, weight, write; print tau, ESS/n and a histogram of the weights.

    Raises:
        ValueError: if an argument, a row or the model cannot be used. Everything but rows is checked before scoring.
    """
    with rows_output(options) as output:
        return _flow_weights(options, output)


def _flow_weights(options: argparse.Namespace, output: Path) -> int:
    import numpy as np

    from hf_ext.data.weighting import add_flow_weights, add_original_losses

    rows = rows_of(options, options.dataset)
    check_columns(rows, output)
    model, tokenizer = model_and_tokenizer(options.model, options.dtype, options.device, options.revision)
    scored = add_original_losses(rows, model, tokenizer, _sft_config(options), batch_size=options.batch_size)
    weighted = add_flow_weights(
        scored,
        options.tau,
        weight_scale=options.weight_scale,
        flow_floor=options.flow_floor,
        source_column=options.source_column,
    )
    write_rows(weighted, output, options.overwrite)
    for source, tau in _temperatures(scored, options).items():
        print(f"{source}tau {tau:.4f} nats/token")
    _print_weights(np.asarray(weighted["weight"]))
    print(f"{len(weighted):,} rows written to {output}")
    return 0


def run_context_free(options: argparse.Namespace) -> int:
    """
    Sample into the store; print tokens, speed and where it is.

    Raises:
        ValueError: if an argument or the model cannot be used, or the folder holds a store of other settings.
    """
    import time

    from hf_ext.data.context_free_store import ContextFreeStore

    if sum(value is not None for value in (options.start, options.prompts, options.replay)) > 1:
        raise ValueError("give one of --start, --prompts and --replay: they say what the rows are")
    if (options.num_tokens is None) == (options.replay is None):
        raise ValueError("give --num-tokens, or --replay, which stores all of its texts")
    check_backend(options.backend, options.backend_url)
    if options.replay is not None and options.backend != OURS:
        raise ValueError("--replay stores real texts and samples nothing: leave --backend out")
    folder = Path(options.output)
    texts = None if options.replay is None else _texts(options.replay)
    prompts = None if options.prompts is None else rows_of(options, options.prompts)
    model, tokenizer = model_and_tokenizer(options.model, options.dtype, options.device, options.revision)
    # a store goes on where it stopped, and the speed is that of this call
    tokens_before = ContextFreeStore(folder).manifest["tokens"] if (folder / "manifest.json").is_file() else 0
    start = time.perf_counter()
    store = _stored(options, model, tokenizer, folder, prompts, texts)
    seconds = time.perf_counter() - start
    manifest = store.manifest
    new_tokens = manifest["tokens"] - tokens_before
    speed = f"{new_tokens / seconds:,.0f} tokens/s" if new_tokens else "nothing was left to sample"
    print(f"{manifest['tokens']:,} tokens in {manifest['rows']:,} rows, {new_tokens:,} of them now ({speed})")
    print(f"store: {folder}")
    return 0


def _stored(
    options: argparse.Namespace,
    model: Any,
    tokenizer: Any,
    folder: Path,
    prompts: Dataset | None,
    texts: Dataset | None,
) -> ContextFreeStore:
    """Rows from starts, after prompts, or of real texts."""
    from hf_ext.data.backends.choice import sampling_backend
    from hf_ext.data.context_free import generate_context_free, generate_contextual
    from hf_ext.data.replay import store_replay
    from hf_ext.data.starts import starts_of_words

    shared: dict[str, Any] = {"output_dir": folder, "batch_size": options.batch_size}
    shared |= {"autocast_dtype": autocast_dtype(options)}
    if texts is not None:
        return store_replay(model, tokenizer, texts, max_length=options.max_new_tokens, **shared)
    shared |= {"max_new_tokens": options.max_new_tokens, "seed": options.seed, "temperature": options.temperature}
    engine_arguments = {} if options.revision is None else {"revision": options.revision}
    shared["backend"] = sampling_backend(
        options.backend, model, options.model, url=options.backend_url, **engine_arguments
    )
    if prompts is not None:
        return generate_contextual(model, tokenizer, prompts, options.num_tokens, **shared)
    start = starts_of_words(options.start or "bos")
    return generate_context_free(model, tokenizer, options.num_tokens, start=start, **shared)


def _texts(name: str) -> Dataset:
    from hf_ext.data.loading import load_rows

    return load_rows(name)


def _sft_config(options: argparse.Namespace) -> Any:
    """The preparation and precision of training, as far as scores depend on them; nothing is written."""
    import torch
    from trl import SFTConfig

    return SFTConfig(
        report_to="none",
        max_length=options.max_length,
        assistant_only_loss=options.assistant_only_loss,
        bf16=options.autocast == "bf16",
        fp16=options.autocast == "fp16",
        use_cpu=options.device == "cpu" or not torch.accelerator.is_available(),
    )


def _temperatures(scored: Dataset, options: argparse.Namespace) -> dict[str, float]:
    """Tau of all rows, under an empty name, or of every source."""
    from hf_ext.data.weighting import flow_temperature

    if not isinstance(options.tau, str):
        return {"": options.tau}
    if options.source_column is None:
        return {"": flow_temperature(scored, options.tau)}
    places: dict[Any, list[int]] = {}
    for i, source in enumerate(scored[options.source_column]):
        places.setdefault(source, []).append(i)
    return {f"{source}: ": flow_temperature(scored.select(rows), options.tau) for source, rows in places.items()}


def _print_weights(weights: npt.NDArray[np.float64]) -> None:
    """Effective sample size and a line of bars over ten equal intervals of the weights."""
    import numpy as np

    from hf_ext.data.flow_arithmetic import effective_sample_size_ratio

    ess = effective_sample_size_ratio(weights)
    # eight heights; the fullest interval gets the highest
    counts, edges = np.histogram(weights, bins=10)
    bars = "".join(BARS[min(7, int(8 * count / counts.max()))] if count else " " for count in counts)
    print(f"ESS/n {ess:.3f}")
    print(f"weights {edges[0]:.3g} |{bars}| {edges[-1]:.3g}")
    if ess > 0.95:
        print("The weights are nearly equal: training will differ little from plain SFT. Try --tau ess:0.8.")
