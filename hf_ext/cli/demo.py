"""`hf-ext demo`: fine-tune a model four ways and show what each gained and forgot."""

from __future__ import annotations

import argparse
import sys

from hf_ext.guards.numbers import SEED


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the parser of `hf-ext demo`."""
    parser = subparsers.add_parser(
        "demo",
        help="fine-tune the embedded model four ways and show what each forgot",
        description="Fine-tunes SmolLM2-135M-Instruct, which comes in a wheel, on a generated skill in four ways "
        "(SFT, FLOW, context-free, both) with equal steps and learning rate, and says what each gained and forgot. "
        "No network, account, GPU or data set. After a stop, the same command continues.",
    )
    parser.add_argument(
        "--output", metavar="DIR", help="folder of the run (default: hf-ext-demo, or hf-ext-demo-fast)"
    )
    parser.add_argument("--seed", type=SEED, default=0, help="seed of rows, samples and order (default: 0)")
    parser.add_argument(
        "--fast", action="store_true", help="a tiny model built in code: about a minute, no wheel needed"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """
    Run the demo.

    Returns:
        `int`: 0, or 1 with a message on stderr where the model's wheel, disk or memory is missing, or the output
        folder holds something else.
    """
    from hf_ext.demo.model import EmbeddedModelMissing
    from hf_ext.demo.run import run_demo
    from hf_ext.demo.settings import fast_settings, full_settings

    output = options.output or ("hf-ext-demo-fast" if options.fast else "hf-ext-demo")
    try:
        run_demo(output, fast_settings(options.seed) if options.fast else full_settings(options.seed))
    except (EmbeddedModelMissing, ValueError, OSError, MemoryError) as error:
        print(f"hf-ext demo: error: {error}", file=sys.stderr)
        return 1
    return 0
