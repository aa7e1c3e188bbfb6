"""Online InfoPO: sample answers, score and pair them, tune, and again; a phase that is done is not done again."""

from __future__ import annotations

import copy
import gc
import glob
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hf_ext.data.backends.choice import sampling_backend
from hf_ext.data.run_settings import LOGGING, begin_run, described, settings_of, source_settings
from hf_ext.guards.disk import write_whole
from hf_ext.guards.runs import RunFolder, claims_output
from hf_ext.rounds._rounds import push_result, repo_name, train_from_newest
from hf_ext.rounds.answers import (
    Prompt,
    Sampling,
    form_pairs,
    questions_of_round,
    read_answers,
    sample_answers,
    seed_of,
)
from hf_ext.rounds.online_report import Round, no_pairs_message, table
from hf_ext.rounds.scoring import Scorer, reward_scorer, verifier_digest, verifier_scorer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase
    from trl import ModelConfig

    from hf_ext.trainers.infopo.config import InfoPOConfig
    from hf_ext.trainers.infopo.trainer import InfoPOTrainer

PAIRS = "pairs.jsonl"
# What changes no result: `rounds` may grow, every backend samples from the policy, and the rows themselves are
# compared, not where they lie.
FREE = (
    "rounds", "backend", "dataset_name", "dataset_config", "dataset_data_dir", "dataset_train_split",
    "dataset_test_split", "dataset_streaming", "eval_dataset_name", "max_train_rows", "max_eval_rows",
    "expected_num_processes",
)  # fmt: skip


class OnlineSettings(Protocol):
    """What the rounds read of the recipe's arguments, which say what each is; they are a dataclass."""

    rounds: int
    questions_per_round: int | None
    answers_per_question: int
    temperature: float
    max_new_tokens: int
    sample_batch_size: int
    stop: list[str] | None
    backend: str
    verifier: str | None
    reward_model: str | None
    reward_margin: float
    prompt_column: str | None
    prompt_template: str | None
    dataset_name: str | None


class OnlineLoop:
    """
    The rounds of one run.

    Args:
        script_args ([`OnlineSettings`]):
            How answers are sampled and scored, and for how many rounds.
        training_args ([`~hf_ext.InfoPOConfig`]):
            Of every round's training; their `model_init_kwargs` say how the model is loaded.
        model_args (`ModelConfig`):
            The original model, and the adapter if there is one.
        rows (`Dataset`):
            The questions, with whatever columns the verifier reads.

    Raises:
        ValueError: if the rows have no such column of questions.
    """

    def __init__(
        self, script_args: OnlineSettings, training_args: InfoPOConfig, model_args: ModelConfig, rows: Dataset
    ) -> None:
        from accelerate import PartialState

        self.script = script_args
        self.args = training_args
        self.model_args = model_args
        self.rows = rows
        self.output = Path(training_args.output_dir)
        self.state = PartialState()
        self.run_folder = RunFolder(self.output, "online.json", processes=self.state)
        self.rounds = [Round(number, self.run_folder) for number in range(script_args.rounds)]
        self.column = script_args.prompt_column or "prompt"
        if self.column not in rows.column_names:
            raise ValueError(
                f"the dataset has no column {self.column!r}; it has {rows.column_names}: see prompt_column"
            )

    @claims_output
    def run(self) -> str:
        """
        Every round that is not finished, the table after each, and at the end the last round's model.

        Returns:
            `str`: the table, in Markdown.

        Raises:
            ValueError: if the run was begun with other settings or questions, or if a round gave no pair.
        """
        begin_run(self.run_folder, self._settings(), {"questions": self.rows}, parts="round-*")
        for this_round in self.rounds:
            if not this_round.has_done("trained"):
                self._run_round(this_round)
                self._write_table(this_round.number)
        self._write_table(self.script.rounds - 1)
        self.run_folder.publish(self.rounds[-1].folder / "model")
        return table(self.rounds)

    def push(self) -> str:
        """
        Push the last round's model; answers and pairs stay here.

        Returns:
            `str`: name of the repository.

        Raises:
            PushError: if the Hub did not take it.
        """
        push_result(self.rounds[-1].folder / "model", self.args)
        return repo_name(self.args)

    # --- a round -----------------------------------------------------------------------------------------------------

    def _run_round(self, this_round: Round) -> None:
        start = self._start(this_round)
        questions = questions_of_round(
            len(self.rows), self.script.questions_per_round, this_round.number, self.args.seed
        )
        if not this_round.has_done("sampled"):
            self._sample(this_round, start, questions)
            self.state.wait_for_everyone()
            this_round.finish("sampled", questions=len(questions))
        self.state.wait_for_everyone()
        if not this_round.has_done("paired") and self.state.is_main_process:
            self._pair(this_round)
        self.state.wait_for_everyone()
        self._train(this_round, start)

    def _sample(self, this_round: Round, start: str, questions: Sequence[int]) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from hf_ext.guards.models import loading_model

        script = self.script
        trusts_code = self.args.trust_remote_code
        load_kwargs = {**self._load_kwargs(this_round), "trust_remote_code": trusts_code}
        with loading_model(start):
            tokenizer = AutoTokenizer.from_pretrained(
                start, revision=load_kwargs["revision"], trust_remote_code=trusts_code
            )
            model = AutoModelForCausalLM.from_pretrained(start, **load_kwargs).to(self.args.device)
        revision = {} if load_kwargs["revision"] is None else {"revision": load_kwargs["revision"]}
        backend = sampling_backend(script.backend, model, start, **revision)
        try:
            sample_answers(
                model,
                tokenizer,
                [(row, self._prompt(tokenizer, row)) for row in questions],
                Sampling(
                    self.args.seed, this_round.number, script.answers_per_question, script.temperature,
                    script.max_new_tokens, script.sample_batch_size, tuple(script.stop or ()),
                ),
                this_round.folder / "answers",
                rank=self.state.process_index,
                world=self.state.num_processes,
                autocast_dtype=torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else None,
                backend=backend,
                show_progress=not self.args.disable_tqdm,
            )  # fmt: skip
        finally:
            if backend is not None:
                backend.close()
        del model
        gc.collect()

    def _prompt(self, tokenizer: PreTrainedTokenizerBase, row: int) -> Prompt:
        """What the policy is asked: the template's text; else messages where the tokenizer has a chat template."""
        prompt = self.rows[row][self.column]
        if not isinstance(prompt, str):
            return prompt
        if self.script.prompt_template is not None:
            return self.script.prompt_template.replace("{prompt}", prompt)
        return prompt if tokenizer.chat_template is None else [{"role": "user", "content": prompt}]

    def _pair(self, this_round: Round) -> None:
        answers = read_answers(this_round.folder / "answers")
        scores = self._scorer()([(answer.prompt, answer.completion, self.rows[answer.row]) for answer in answers])
        pairs, counts = form_pairs(answers, scores, self.script.reward_margin)
        mean_score = sum(scores) / len(scores)
        if not pairs:
            raise ValueError(no_pairs_message(this_round, counts, mean_score))
        lines = "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)
        write_whole(this_round.folder / PAIRS, lines)
        cut_share = sum(not answer.finished for answer in answers) / len(answers)
        this_round.finish("paired", answers=len(answers), mean_score=mean_score, cut_share=cut_share, **counts)

    def _scorer(self) -> Scorer:
        if self.script.verifier is not None:
            return verifier_scorer(self.script.verifier)
        assert self.script.reward_model is not None, "the recipe takes one of both"
        return reward_scorer(
            self.script.reward_model,
            batch_size=self.script.sample_batch_size,
            max_length=self.args.max_length,
            device=self.args.device,
        )

    def _train(self, this_round: Round, start: str) -> None:
        """An ordinary run in `round-N/train`, whose reference is its own start; then its model, whole."""
        from datasets import load_dataset
        from transformers import set_seed
        from trl import get_peft_config

        from hf_ext.trainers.infopo.trainer import InfoPOTrainer

        folder = this_round.folder / "train"
        args = copy.copy(self.args)
        args.output_dir = str(folder)
        args.bad_rows_path = str(folder / "bad_rows.jsonl")
        args.push_to_hub = False  # the last round's model is pushed at the end
        args.precompute_ref_log_probs = not (args.reference_free or args.sync_ref_model)
        args.seed = seed_of(self.args.seed, this_round.number)
        args.model_init_kwargs = self._load_kwargs(this_round)
        # From the file, not from memory: the processes then share one cache, as the host's preparation expects.
        # `datasets` takes a pattern: brackets in a folder's name would be one.
        file = glob.escape(str(this_round.folder / PAIRS))
        pairs = load_dataset("json", data_files={"train": file}, split="train")
        set_seed(args.seed)  # an adapter is drawn before the trainer seeds anything
        trainer = InfoPOTrainer(
            model=start,
            args=args,
            train_dataset=pairs.select_columns(["prompt", "chosen", "rejected"]),
            peft_config=get_peft_config(self.model_args),
        )
        train_from_newest(trainer)
        self._store_model(trainer, this_round.folder / "model")
        this_round.finish("trained", steps=trainer.state.global_step, **_last_deltas(trainer))
        self.state.wait_for_everyone()
        del trainer
        gc.collect()

    def _store_model(self, trainer: InfoPOTrainer, folder: Path) -> None:
        """The round's model as a stock folder; an adapter is merged, for the next round starts from it."""
        if self.state.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)  # left by a killed run
        self.state.wait_for_everyone()
        if not self.model_args.use_peft:
            trainer.save_model(str(folder), _internal_call=True)
        elif self.state.is_main_process:
            trainer.accelerator.unwrap_model(trainer.model).merge_and_unload().save_pretrained(folder)
            trainer.processing_class.save_pretrained(folder)
            trainer.create_model_card(dataset_name=self.script.dataset_name)
            shutil.copy(Path(trainer.args.output_dir) / "README.md", folder)
        self.state.wait_for_everyone()

    # --- what a round depends on -------------------------------------------------------------------------------------

    def _start(self, this_round: Round) -> str:
        """The model that a round samples from and tunes: the original one, or that of the round before."""
        if this_round.number == 0:
            return self.model_args.model_name_or_path
        return str(self.rounds[this_round.number - 1].folder / "model")

    def _load_kwargs(self, this_round: Round) -> dict[str, Any]:
        """How that model is loaded: a revision is the original one's."""
        load_kwargs = dict(self.args.model_init_kwargs)
        if this_round.number > 0:
            load_kwargs["revision"] = None
        return load_kwargs

    def _settings(self) -> dict[str, Any]:
        # The guard counts logs, and may end a round by them.
        logging_names = LOGGING if self.args.likelihood_guard == "stop" else ()
        settings = {
            "processes": self.state.num_processes,
            **settings_of(self.args),
            **{name: described(getattr(self.args, name, None)) for name in logging_names},
            **settings_of(self.script, FREE),
            **settings_of(self.model_args),
            "model": source_settings(self.model_args.model_name_or_path, self.model_args.model_revision),
        }
        if self.script.reward_model is not None:
            settings["reward_model files"] = source_settings(self.script.reward_model)
        if self.script.verifier is not None:
            settings["verifier file"] = verifier_digest(self.script.verifier)
        return settings

    def _write_table(self, last: int) -> None:
        if self.state.is_main_process:
            write_whole(self.output / "rounds.md", table(self.rounds[: last + 1]) + "\n")


def _last_deltas(trainer: InfoPOTrainer) -> dict[str, float | None]:
    """Change of the log-probability of chosen and rejected, nats per token, as last logged in training."""
    history = trainer.state.log_history
    names = ("chosen_delta", "rejected_delta")
    return {
        name: next((log[f"infopo/{name}"] for log in reversed(history) if f"infopo/{name}" in log), None)
        for name in names
    }
