"""
How fast are context-free rows sampled next to transformers' `generate`?

Both sample SmolLM2-135M-Instruct from the bare start token at temperature 1 without a filter, in one process, turn by
turn, in bf16 where the processor multiplies it in hardware, else in float32; the result says which. Each runs at its
own best batch size of 16 to 256, found first on rows of 64 tokens. Natural rows have a limit of 128 tokens, at least
10,000 of them are kept. Then every row gets a limit of its own, uniform from 16 to 256, the same for both, unknown to
either beforehand: rows come in the order drawn, at least two batches of either sampler, so that there are slots to
refill. `generate` runs whole batches; a stopping criterion ends a batch once each of its rows has met its limit or its
end token. What it computes beyond a row's end is not kept.

Last line, one JSON object:
  benchmark, batch_size, peer_batch_size
  speedup               kept tokens a second, ours over the peer's; median of the rounds (natural lengths)
  bound                 tokens the peer computed over those it kept: the gain from never computing past a row's end
  speedup_over_bound    goal >= 0.9
  speedup_uniform       as `speedup`, with a limit of its own for each row (goal >= 1.6)
  bound_uniform         as `bound`, there
with --backend, of an engine that passes the probe and samples the natural rows in one call, turn by turn with both:
  backend, backend_tokens_per_second, ours_tokens_per_second, generate_tokens_per_second
  backend_over_ours     median of the rounds

    python benchmarks/context_free_speed.py [--rounds 2]    # some 20 minutes on 2 cores with nothing else on them
    python benchmarks/context_free_speed.py --cpu-clock     # CPU seconds of one thread: for a machine that is shared
    python benchmarks/context_free_speed.py --backend continuous_batching    # vllm, or completions --backend-url URL
    python benchmarks/context_free_speed.py --quick         # seconds, a tiny model, not the claim
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from common import finish, has_bf16, parser
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, StoppingCriteria

from hf_ext.data.backends.choice import BACKENDS, OURS, sampling_backend
from hf_ext.data.backends.probe import probe_backend
from hf_ext.data.backends.protocol import RowRequest, row_seed
from hf_ext.data.sampling import end_ids, row_uniforms, sample_rows, sampling_mode, start_ids
from hf_ext.data.slots import can_refill


@dataclass(frozen=True)
class Sizes:
    """What is run: the real sizes, or those of a quick run."""

    batch_sizes: tuple[int, ...] = (16, 32, 64, 96, 128, 192, 256)
    sweep_tokens: int = 64
    natural_limit: int = 128
    natural_tokens: int = 10_000
    uniform_limits: tuple[int, int] = (16, 256)


QUICK = Sizes((4, 8), 4, 12, 200, (2, 16))


@dataclass(frozen=True)
class Run:
    """One run of one sampler."""

    part: str
    sampler: str
    batch_size: int
    rows: int
    kept: int
    computed: int
    seconds: float

    @property
    def rate(self) -> float:
        """Kept tokens a second."""
        return self.kept / self.seconds


class OwnLimits(StoppingCriteria):
    """A row is done once it has its own number of tokens."""

    def __init__(self, lengths: Tensor) -> None:
        self.lengths = lengths  # start included

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Which rows are done, `(rows,)`."""
        return input_ids.shape[1] >= self.lengths


class Samplers:
    """Both samplers on one model, and the engine if there is one; every run draws afresh."""

    def __init__(
        self, model: Any, tokenizer: Any, longest: int, clock: Callable[[], float], backend: Any = None
    ) -> None:
        self.model, self.device, self.clock, self.backend = model, model.device, clock, backend
        self.start = torch.tensor(start_ids(model, tokenizer, "bos", longest), device=model.device)
        self.eos = torch.tensor(end_ids(model, tokenizer))
        self.runs: list[Run] = []
        self.drawn = 0
        with sampling_mode(model):
            if not can_refill(model, self.start, longest):
                sys.exit("The model cannot be refilled: nothing to measure.")

    def run(self, part: str, sampler: str, batch_size: int, limits: Tensor) -> Run:
        """Sample a row for each limit; every run has another seed."""
        self.drawn += 1
        sample = {"ours": self._ours, "peer": self._peer, "backend": self._engine}[sampler]
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        started = self.clock()
        kept, computed = sample(batch_size, limits)
        seconds = round(self.clock() - started, 4)
        self.runs.append(Run(part, sampler, batch_size, len(limits), kept, computed, seconds))
        tqdm.write(
            f"{part:8} {sampler:5} {self.runs[-1].rate:8.1f} kept tokens/s  batch {batch_size}", file=sys.stderr
        )
        return self.runs[-1]

    def _ours(self, batch_size: int, limits: Tensor) -> tuple[int, int]:
        with sampling_mode(self.model):
            uniforms = row_uniforms(self.drawn, range(len(limits)), int(limits.max()))
            _, _, lengths = sample_rows(
                self.model, self.start, uniforms, self.eos, batch_size=batch_size, refill=True, limits=limits
            )
        return int(lengths.sum()), int(lengths.sum())

    def probe(self, longest: int) -> None:
        """Stop here if the engine is off: its speed would be that of something else."""
        probe_backend(
            self.backend, self.model, [self.start.tolist()], eos_ids=self.eos.tolist(), max_new_tokens=longest
        )

    def _engine(self, batch_size: int, limits: Tensor) -> tuple[int, int]:
        prompt = tuple(self.start.tolist())
        requests = [
            RowRequest(prompt, limit, row_seed(self.drawn, number)) for number, limit in enumerate(limits.tolist())
        ]
        rows = self.backend.sample(requests, 1.0, self.eos.tolist())
        kept = sum(len(row.ids) for row in rows)
        return kept, kept

    def _peer(self, batch_size: int, limits: Tensor) -> tuple[int, int]:
        torch.manual_seed(self.drawn)
        kept = computed = 0
        for batch in limits.to(self.device).split(batch_size):
            config = GenerationConfig(
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=int(batch.max()),
                eos_token_id=self.eos.tolist(),
                pad_token_id=int(self.eos[0]),
            )
            same = bool((batch == batch[0]).all())
            ids = self.model.generate(
                self.start.expand(len(batch), -1),
                attention_mask=torch.ones(len(batch), len(self.start), dtype=torch.long, device=self.device),
                generation_config=config,
                stopping_criteria=None if same else [OwnLimits(len(self.start) + batch)],
            )[:, len(self.start) :]
            computed += ids.numel()
            kept += int(kept_lengths(ids, self.eos.to(self.device), batch).sum())
        return kept, computed


def kept_lengths(ids: Tensor, eos: Tensor, limits: Tensor) -> Tensor:
    """Tokens of each row `(rows,)` up to its limit or its first end token, that one included."""
    ended = torch.isin(ids, eos)
    first = torch.where(ended.any(dim=1), ended.int().argmax(dim=1) + 1, ids.shape[1])
    return torch.minimum(first, limits)


def load(quick: bool) -> tuple[Any, Any]:
    """The model and its tokenizer, or tiny ones."""
    if quick:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        from tests.tiny import tiny_model, tiny_tokenizer

        tokenizer = tiny_tokenizer()
        return tiny_model(tokenizer), tokenizer
    from hf_ext.demo.model import embedded_model

    path = embedded_model()
    dtype = torch.bfloat16 if has_bf16() else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), AutoTokenizer.from_pretrained(path)


def source_of(model: Any, work: Path) -> str:
    """A folder from which an engine loads the model itself."""
    if model.name_or_path:
        return str(model.name_or_path)
    work.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(work / "tiny")
    return str(work / "tiny")


def headline_of(runs: list[Run], best: dict[str, int], backend: str | None = None) -> dict[str, Any]:
    """The headline from the runs."""
    values: dict[str, float] = {}
    for part in ("natural", "uniform"):
        of = {name: [run for run in runs if run.part == part and run.sampler == name] for name in ("ours", "peer")}
        rates = [ours.rate / peer.rate for ours, peer in zip(of["ours"], of["peer"], strict=True)]
        values[f"speedup_{part}"] = median(rates)
        values[f"bound_{part}"] = sum(run.computed for run in of["peer"]) / sum(run.kept for run in of["peer"])
    headline = {
        "benchmark": "context_free_speed",
        "batch_size": best["ours"],
        "peer_batch_size": best["peer"],
        "speedup": round(values["speedup_natural"], 3),
        "bound": round(values["bound_natural"], 3),
        "speedup_over_bound": round(values["speedup_natural"] / values["bound_natural"], 3),
        "speedup_uniform": round(values["speedup_uniform"], 3),
        "bound_uniform": round(values["bound_uniform"], 3),
    }
    return headline | ({} if backend is None else {"backend": backend} | backend_headline(runs))


def backend_headline(runs: list[Run]) -> dict[str, float]:
    """What is told of an engine beside both samplers."""
    of = {
        name: [run.rate for run in runs if run.part == "natural" and run.sampler == name]
        for name in ("backend", "ours", "peer")
    }
    return {
        "backend_tokens_per_second": round(median(of["backend"]), 1),
        "ours_tokens_per_second": round(median(of["ours"]), 1),
        "generate_tokens_per_second": round(median(of["peer"]), 1),
        "backend_over_ours": round(median(b / o for b, o in zip(of["backend"], of["ours"], strict=True)), 3),
    }


def main() -> None:
    """Find the batch sizes, run both in turn, print the headline."""
    options = parser(__doc__ or "", "context_free_speed")
    options.add_argument("--rounds", type=int, default=2, help="Rounds at natural lengths; half as many uniform ones.")
    options.add_argument("--cpu-clock", action="store_true", help="Count the CPU seconds of one thread instead.")
    options.add_argument(
        "--backend", choices=[name for name in BACKENDS if name != OURS], help="An engine beside both."
    )
    options.add_argument("--backend-url", metavar="URL", help="Of the server of --backend completions.")
    args = options.parse_args()
    if args.backend is not None and args.output == options.get_default("output"):
        args.output = args.work / f"{args.backend}.json"  # the committed result is that of both samplers alone
    if args.backend == "completions" and args.cpu_clock:
        options.error("--cpu-clock counts the seconds of this process, and a server is another one")
    if args.cpu_clock:
        torch.set_num_threads(1)  # threads that wait for each other burn time on a busy machine
    clock = time.process_time if args.cpu_clock else time.perf_counter
    sizes = QUICK if args.quick else Sizes()
    model, tokenizer = load(args.quick)
    backend = None
    if args.backend is not None:
        backend = sampling_backend(args.backend, model, source_of(model, args.work), url=args.backend_url)
    samplers = Samplers(model, tokenizer, sizes.uniform_limits[1], clock, backend)
    if backend is not None:
        samplers.probe(sizes.natural_limit)
    for name in ("peer", "ours"):
        samplers.run("warm-up", name, sizes.batch_sizes[0], torch.full((sizes.batch_sizes[0],), 4))

    best: dict[str, int] = {}
    for name in tqdm(("peer", "ours"), desc="Batch sizes", unit="sampler"):
        sweep = [
            samplers.run("sweep", name, size, torch.full((size,), sizes.sweep_tokens)) for size in sizes.batch_sizes
        ]
        best[name] = max(sweep, key=lambda run: run.rate).batch_size

    # Whole batches of the peer, and enough of them that early ends leave the tokens wanted (a fifth is plenty).
    wanted = 1.2 * sizes.natural_tokens / sizes.natural_limit
    peer = best["peer"]
    natural = torch.full((-int(-wanted // peer) * peer,), sizes.natural_limit)
    low, high = sizes.uniform_limits
    # Two batches of either sampler: with one no slot would ever be refilled.
    count = -(-2 * max(len(natural), *best.values()) // peer) * peer
    uniform = torch.randint(low, high + 1, (count,), generator=torch.Generator().manual_seed(0))
    parts = [("natural", natural)] * args.rounds + [("uniform", uniform)] * max(1, args.rounds // 2)
    for number, (part, limits) in enumerate(tqdm(parts, desc="Rounds", unit="round")):
        for name in ("peer", "ours") if number % 2 else ("ours", "peer"):
            samplers.run(part, name, best[name], limits)
        if backend is not None and part == "natural":
            samplers.run(part, "backend", len(limits), limits)
    rows = [asdict(run) for run in samplers.runs if run.part != "warm-up"]
    how = {"threads": torch.get_num_threads(), "clock": "cpu" if args.cpu_clock else "wall"}
    how["dtype"] = str(samplers.model.dtype).removeprefix("torch.")
    finish(args, {"rows": rows, **how}, headline_of(samplers.runs, best, args.backend))


if __name__ == "__main__":
    main()
