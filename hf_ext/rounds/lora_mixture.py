"""LoRA experts by EM: who handles which row, the gate, an ordinary training of each adapter, and again."""

from __future__ import annotations

import copy
import gc
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from safetensors.torch import load, save
from torch import Tensor

from hf_ext._upstream.sft import load_original
from hf_ext.data.run_settings import begin_run, described, model_settings, settings_of, source_settings
from hf_ext.data.weighting import autocast_of, score_rows
from hf_ext.guards.disk import replacing, write_whole, writing
from hf_ext.guards.extras import require_extra
from hf_ext.guards.models import loading_model
from hf_ext.guards.runs import RunFolder, claims_output, remove_leftovers
from hf_ext.moe.gate import PromptGate, fit_gate, prompt_clusters, tempered_responsibilities
from hf_ext.moe.lora import GATE, LoraMixture, check_lora, copy_mixture, expert_name, prompt_embeddings, with_experts
from hf_ext.rounds._rounds import push_result, train_from_newest
from hf_ext.rounds.lora_report import losses_of, table_of
from hf_ext.rounds.lora_rows import PROMPT_LENGTH, ScoredRows, mixture_sft_rows
from hf_ext.trainers.base.card import card_settings
from hf_ext.trainers.moe_lora import METHOD
from hf_ext.trainers.moe_lora.config import LoraMixtureConfig

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

NEGLIGIBLE = 1e-3  # responsibility below which a row is left out of an expert's training: it costs a forward as all do
COLLAPSED = 0.99  # share of all responsibility in one expert that is warned of
_RESPONSIBILITIES = "responsibilities"


class LoraMixtureTrainer:
    r"""
    Trains a [`LoraMixture`] by EM over rows: $p(y \mid x) = \sum_i g_i(x)\, p_i(y \mid x)$, one latent expert a row.

    A round is an E-step, the gate's M-step and one weighted SFT an adapter, on the rows that it has a part in, with
    their responsibilities as `weight`. The first round's responsibilities are clusters of the prompts' embeddings.
    Adapters go on from round to round; optimiser and schedule begin anew, so that each is a generalised M-step.

    Every training is an ordinary run in its folder, `round-001/expert_0/train`. A run that was killed goes on, in the
    right round, adapter and step, when `train` is called again, and ends in the same weights.

    Args:
        model (`str` or `PreTrainedModel`):
            The base model: frozen, without adapters.
        args ([`LoraMixtureConfig`]):
            Of each adapter's training in a round, and of EM.
        train_dataset (`Dataset`):
            Rows with `prompt` and `completion`, texts or messages.
        eval_dataset (`Dataset`, *optional*):
            Held-out rows, scored after each round.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            The tokenizer; by default the model's.
        peft_config (`LoraConfig`, *optional*):
            Of every adapter; by default of rank 16 on the query and value projections that PEFT knows of the model.

    | column in | type |
    |---|---|
    | `prompt` | str or messages; what the gate reads |
    | `completion` | str or messages |

    Requirements: PEFT; LoRA without DoRA; no packing, streaming, FSDP or DeepSpeed.

    Raises:
        MissingExtraError: if PEFT is not installed.
        RowError: if a row is malformed, has no prompt, or no supervised token after truncation (see `on_bad_row`).
        ValueError: if a setting cannot be honoured, the rows have fewer different prompts than there are experts, or
            (in `train`) the folder holds a run of other settings or rows.

    Relations: with `num_experts=1` and one round it is [`WeightedSFTTrainer`] with a LoRA adapter.

    Reference: Fruytier et al. 2025 (arXiv 2411.06056) for EM of a gate and its experts; the experts here are language
    models, which the paper does not try, and the E-step is tempered.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: LoraMixtureConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: LoraConfig | None = None,
    ) -> None:
        require_extra("peft")
        from peft import LoraConfig

        if not isinstance(args, LoraMixtureConfig):
            raise TypeError(f"LoraMixtureTrainer needs a LoraMixtureConfig, got {type(args).__name__}.")
        self.args = args
        self.peft_config = peft_config or LoraConfig(r=16, lora_alpha=32, task_type="CAUSAL_LM")
        check_lora(self.peft_config)
        _refuse(args, model)
        self.state = PartialState()
        self.output = Path(args.output_dir)
        self.run_folder = RunFolder(self.output, "moe_lora.json", processes=self.state)
        self.raw_rows = {"training rows": train_dataset, "evaluation rows": eval_dataset}
        self.source = model
        with loading_model(model) if isinstance(model, str) else nullcontext():
            self.base, self.tokenizer = load_original(model, processing_class, args)
        self.base = self.base.to(args.device)
        self.rows = mixture_sft_rows(train_dataset, self.tokenizer, args, "train")
        self.eval_rows = None if eval_dataset is None else mixture_sft_rows(eval_dataset, self.tokenizer, args, "eval")

    @claims_output
    def train(self) -> LoraMixture:
        """
        Every step that is not finished, and the mixture in `output_dir`: `expert_0/`, `expert_1/`, ..., and `gate/`.

        Returns:
            [`LoraMixture`]: around the trainer's model.

        Raises:
            InUseError: if another run writes there.
            NonFiniteError: as of [`WeightedSFTTrainer`].
            ValueError: if the run was begun with other settings, rows or another base model; each change is named.
        """
        begin_run(self.run_folder, self._settings(), self.raw_rows, parts="round-*")
        train_rows = self._with_embeddings("train", self.rows)
        eval_rows = None if self.eval_rows is None else self._with_embeddings("eval", self.eval_rows)
        self._draw_adapters()
        for number in range(1, self.args.rounds + 2):
            self._expect(number, train_rows, eval_rows)
            self._fit_gate(number, train_rows)
            self._write_table(number)
            if number <= self.args.rounds:
                for expert in range(self.args.num_experts):
                    self._train_expert(number, expert)
        return self._publish()

    def push_to_hub(self, **kwargs: Any) -> CommitInfo:
        """
        Push adapters, gate, tokenizer and card; rounds and responsibilities stay here.

        Raises:
            PushError: if the Hub did not take it.
        """
        return push_result(self._closing / "model", self.args, **kwargs)

    def table(self) -> str:
        """The rounds so far in Markdown, a line each."""
        steps = [f"{self._round(number).name}/{_RESPONSIBILITIES}" for number in range(1, self.args.rounds + 2)]
        return table_of([self.run_folder.results(step) for step in steps])

    # --- what is computed once ---------------------------------------------------------------------------------------

    def _with_embeddings(self, name: str, rows: Dataset) -> ScoredRows:
        file = self.output / "round-000" / f"prompts-{name}.safetensors"
        if self._is_missing(file):
            prompts = [ids[:length] for ids, length in zip(rows["input_ids"], rows[PROMPT_LENGTH], strict=True)]
            shard = range(self.state.process_index, len(prompts), self.state.num_processes)
            embeddings = prompt_embeddings(
                self.base,
                [prompts[i] for i in shard],
                batch_size=self.args.per_device_eval_batch_size,
                autocast=self._autocast,
                show_progress=self._shows_progress,
            )
            self._write_tensors(file, {"embeddings": self._gathered(list(embeddings), shard)})
        counts = [sum(label != -100 for label in labels[1:]) for labels in rows["labels"]]
        embeddings = load(file.read_bytes())["embeddings"]
        return ScoredRows(rows, embeddings, torch.tensor(counts, dtype=torch.float64))

    def _draw_adapters(self) -> None:
        """The adapters to begin with: each from a seed of its own, on the disk, so that a kill changes nothing."""
        from peft import get_peft_model
        from transformers import set_seed

        from hf_ext.data.trained_adapters import require_untouched_adapters

        for expert in range(self.args.num_experts):
            folder = self._adapter(0, expert)
            if not self._is_missing(folder):
                continue
            set_seed(self.args.seed + expert)
            with self._adapted(get_peft_model(self.base, copy.deepcopy(self.peft_config))) as model:
                require_untouched_adapters(model, self._autocast)
                self._save_adapter(model, folder)

    # --- E-step ------------------------------------------------------------------------------------------------------

    def _expect(self, number: int, train_rows: ScoredRows, eval_rows: ScoredRows | None) -> None:
        """Responsibilities of a round: of the first, clusters; else by adapters and gate of the round before."""
        step = f"{self._round(number).name}/{_RESPONSIBILITIES}"
        if not self._is_missing(self.output / f"{step}.json"):
            return
        figures: dict[str, Any] = {}
        if number == 1:
            responsibilities = prompt_clusters(train_rows.embeddings, self.args.num_experts, self.args.seed)
        else:
            gate = PromptGate.load(self._round(number - 1) / GATE)
            log_gate = gate.log_probs(train_rows.embeddings)
            adapters = [self._adapter(number - 1, expert) for expert in range(self.args.num_experts)]
            with self._adapted(with_experts(self.base, adapters)) as model:
                log_likelihood = self._log_likelihood(model, train_rows)
                figures |= losses_of("", log_gate, log_likelihood, train_rows)
                if eval_rows is not None:
                    eval_log_gate = gate.log_probs(eval_rows.embeddings)
                    figures |= losses_of("eval_", eval_log_gate, self._log_likelihood(model, eval_rows), eval_rows)
            responsibilities = tempered_responsibilities(
                log_gate, log_likelihood, train_rows.num_tokens, self.args.e_step_temperature
            )
        shares = responsibilities.mean(0)
        entropy = float(torch.special.entr(responsibilities).sum(1).mean())
        self._warn_of_collapse(number, shares)
        self._write_tensors(
            self._round(number) / f"{_RESPONSIBILITIES}.safetensors", {_RESPONSIBILITIES: responsibilities}
        )
        self.run_folder.mark_done(step, {"shares": shares.tolist(), "entropy": entropy, **figures})
        self.state.wait_for_everyone()

    def _log_likelihood(self, model: PeftModel, scored: ScoredRows) -> Tensor:
        """Nats of each row's completion under each expert, `(n, k)`."""
        shard = range(self.state.process_index, len(scored.rows), self.state.num_processes)
        columns = []
        for expert in range(self.args.num_experts):
            model.set_adapter(expert_name(expert))
            scores = score_rows(
                model,
                scored.rows,
                pad_token_id=self.tokenizer.pad_token_id or 0,  # padding is not scored
                batch_size=self.args.per_device_eval_batch_size,
                autocast=self._autocast,
                indices=list(shard),
                adapters=True,
                show_progress=self._shows_progress,
            )
            columns.append(self._gathered([-nats[0] for nats, _ in scores], shard))
        return torch.stack(columns, dim=1)

    def _warn_of_collapse(self, number: int, shares: Tensor) -> None:
        if self.args.num_experts > 1 and float(shares.max()) > COLLAPSED:
            logger.warning(
                "After round %d %s has %.1f %% of the responsibility: the others learn next to nothing. Take fewer "
                "experts, a lower learning_rate, a higher gate_ridge or a higher e_step_temperature.",
                number - 1, expert_name(int(shares.argmax())), 100 * float(shares.max()),
            )  # fmt: skip

    # --- M-step ------------------------------------------------------------------------------------------------------

    def _fit_gate(self, number: int, train_rows: ScoredRows) -> None:
        folder = self._round(number) / GATE
        if not self._is_missing(folder):
            return
        if self.state.is_main_process:
            gate = fit_gate(train_rows.embeddings, self._responsibilities(number), ridge=self.args.gate_ridge)
            with _storing("the gate", folder) as temporary:
                gate.save(temporary)
        self.state.wait_for_everyone()

    def _train_expert(self, number: int, expert: int) -> None:
        """An ordinary weighted SFT of one adapter, in its folder of the round."""
        target = self._adapter(number, expert)
        if not self._is_missing(target):
            return
        start = self._adapter(number - 1, expert)
        weight = self._responsibilities(number)[:, expert]
        row_numbers = torch.nonzero(weight >= NEGLIGIBLE)[:, 0].tolist()
        if not row_numbers:
            logger.warning("%s has no row in round %d: it stays as it was.", expert_name(expert), number)
            if self.state.is_main_process:
                with _storing("an adapter", target) as temporary:
                    shutil.copytree(start, temporary, copy_function=shutil.copyfile)
            self.state.wait_for_everyone()
            return
        rows = self.rows.remove_columns(PROMPT_LENGTH).select(row_numbers)
        rows = rows.add_column("weight", weight[row_numbers].tolist())
        args = copy.copy(self.args)
        args.output_dir = str(target.parent / "train")
        args.bad_rows_path = str(target.parent / "bad_rows.jsonl")
        args.push_to_hub = False  # the mixture is pushed at the end
        args.seed = self.args.seed + number - 1
        self._run_sft(rows, args, start, target)

    def _run_sft(self, rows: Dataset, args: LoraMixtureConfig, start: Path, target: Path) -> None:
        """Train the adapter in `start` on weighted rows, from the newest checkpoint if there is one, into `target`."""
        from peft import PeftModel
        from transformers import set_seed

        from hf_ext.trainers.weighted_sft.trainer import WeightedSFTTrainer

        set_seed(args.seed)
        with self._adapted(PeftModel.from_pretrained(self.base, str(start), is_trainable=True)) as model:
            trainer = WeightedSFTTrainer(model, args, train_dataset=rows, processing_class=self.tokenizer)
            train_from_newest(trainer)
            self._save_adapter(model, target)
            del trainer
            gc.collect()  # its fused head lies on the base model until it is gone

    # --- the result --------------------------------------------------------------------------------------------------

    def _publish(self) -> LoraMixture:
        """Adapters of the last round and the gate after it, side by side; the same in `output_dir`."""
        adapters = [self._adapter(self.args.rounds, i) for i in range(self.args.num_experts)]
        folder = self._closing / "model"
        if self.state.is_main_process:
            with _storing("the mixture", folder) as temporary:
                temporary.mkdir()
                copy_mixture(adapters, self._closing / GATE, temporary)
                self.tokenizer.save_pretrained(temporary)
                self._write_card(temporary)
        self.state.wait_for_everyone()
        self.run_folder.publish(folder)
        return LoraMixture(with_experts(self.base, adapters), PromptGate.load(self._closing / GATE))

    def _write_card(self, folder: Path) -> None:
        from hf_ext.hub.cards import write_model_card

        result = self.run_folder.results(f"{self._closing.name}/{_RESPONSIBILITIES}") or {}
        settings = {name: getattr(self.args, name) for name in card_settings(METHOD, type(self.args))}
        settings = {name: getattr(value, "value", value) for name, value in settings.items()}
        settings |= {"lora_r": self.peft_config.r, "lora_alpha": self.peft_config.lora_alpha}
        settings |= {"processes": self.state.num_processes}
        settings |= {"shares of the experts": ", ".join(f"{share:.3f}" for share in result.get("shares", []))}
        write_model_card(
            folder,
            method=METHOD.name,
            base_model=self.base.config.name_or_path or None,
            license=self.args.model_license,
            settings=settings,
            model_name=self.args.hub_model_id or self.output.absolute().name,
        )

    def _write_table(self, number: int) -> None:
        if self.state.is_main_process:
            write_whole(self.output / "rounds.md", self.table() + "\n")

    # --- places and processes ----------------------------------------------------------------------------------------

    @property
    def _closing(self) -> Path:
        """Folder of the E-step and the gate after the last round: those of the next, where `rounds` is raised."""
        return self._round(self.args.rounds + 1)

    def _round(self, number: int) -> Path:
        return self.output / f"round-{number:03d}"

    def _adapter(self, number: int, expert: int) -> Path:
        """The adapter as it is after a round; it is there once it is whole."""
        return self._round(number) / expert_name(expert) / "adapter"

    def _is_missing(self, place: Path) -> bool:
        """Whether a step is still to do; all processes have looked before one writes."""
        is_missing = not place.exists()
        self.state.wait_for_everyone()
        return is_missing

    @contextmanager
    def _adapted(self, model: PeftModel) -> Iterator[PeftModel]:
        """The base model with adapters, which come off again, after an error too: `train` may be called anew."""
        try:
            yield model
        finally:
            self.base = model.unload()

    @property
    def _shows_progress(self) -> bool:
        return self.state.is_main_process and not self.args.disable_tqdm

    @property
    def _autocast(self) -> Any:
        return autocast_of(self.args, self.args.device.type)

    def _responsibilities(self, number: int) -> Tensor:
        return load((self._round(number) / f"{_RESPONSIBILITIES}.safetensors").read_bytes())[_RESPONSIBILITIES]

    def _gathered(self, values: list[Any], shard: range) -> Tensor:
        """What each process has of its rows, in the order of all rows."""
        pairs = sorted(gather_object(list(zip(shard, values, strict=True))), key=lambda pair: pair[0])
        ordered = [value for _, value in pairs]
        return torch.stack(ordered) if isinstance(ordered[0], Tensor) else torch.tensor(ordered, dtype=torch.float64)

    def _write_tensors(self, file: Path, tensors: dict[str, Tensor]) -> None:
        if self.state.is_main_process:
            with writing("what a round computed", file):
                write_whole(file, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
        self.state.wait_for_everyone()

    def _save_adapter(self, model: PeftModel, folder: Path) -> None:
        if self.state.is_main_process:
            with _storing("an adapter", folder) as temporary:
                model.save_pretrained(str(temporary))
                (temporary / "README.md").unlink(missing_ok=True)  # PEFT's, which names places; the mixture has one
        self.state.wait_for_everyone()

    def _settings(self) -> dict[str, Any]:
        is_name = isinstance(self.source, str)
        revision = (self.args.model_init_kwargs or {}).get("revision")
        return {
            "processes": self.state.num_processes,
            **settings_of(self.args, ("rounds",)),
            "peft_config": described(self.peft_config),
            "model": source_settings(self.source, revision) if is_name else model_settings(self.base),
            "tokenizer": described(self.tokenizer),
        }


@contextmanager
def _storing(subject: str, folder: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `folder` once it is whole; what a kill left of it goes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent, folder.name)
    with writing(subject, folder), replacing(folder, overwrite=True) as temporary:
        yield temporary


def _refuse(args: LoraMixtureConfig, model: object) -> None:
    refused = {
        "packing: each row has one expert": args.packing,
        "completion_only_loss=False: the gate reads the prompt, the experts the completion": (
            args.completion_only_loss is False
        ),
        "eval_strategy: the eval_dataset is scored after each round": args.eval_strategy != "no",
        "resume_from_checkpoint: the same call goes on by itself": args.resume_from_checkpoint,
        "FSDP or DeepSpeed: the E-step needs the whole model in each process": args.fsdp or args.deepspeed,
        "a PeftModel: pass its base model": not isinstance(model, str) and hasattr(model, "peft_config"),
    }
    for setting, is_set in refused.items():
        if is_set:
            raise ValueError(f"LoraMixtureTrainer does not take {setting}.")
