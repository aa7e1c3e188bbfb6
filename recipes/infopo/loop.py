"""The rounds of the online recipe: sample, score and pair, tune, next; a phase that is done is not done again."""

from __future__ import annotations

import copy
import gc
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl import ModelConfig

from hf_ext.data.loading import load_rows
from hf_ext.data.run_settings import LOGGING, claim_run, described, settings_of, source_settings
from hf_ext.guards.checkpoints import newest_whole
from hf_ext.guards.disk import replacing, write_whole
from hf_ext.guards.runs import claims_output
from hf_ext.recipes.infopo.answers import (
    Answer,
    Sampling,
    form_pairs,
    questions_of_round,
    read_answers,
    sample_answers,
    seed_of,
)
from hf_ext.recipes.infopo.rounds import PAIRS, Round, no_pairs_message, table
from hf_ext.recipes.infopo.scoring import Scorer, reward_scorer, verifier_digest, verifier_scorer
from hf_ext.recipes.launch import Recipe

# What changes no result: `rounds` may grow, and the rows themselves are compared, not where they lie.
FREE = (
    "rounds", "dataset_name", "dataset_config", "dataset_data_dir", "dataset_train_split", "dataset_test_split",
    "dataset_streaming", "eval_dataset_name", "max_train_rows", "max_eval_rows", "expected_num_processes",
)  # fmt: skip
MANIFEST = "online.json"


class OnlineLoop:
    """
    The rounds of one run.

    Args:
        recipe ([`~hf_ext.recipes.launch.Recipe`]): makes the trainers.
        script_args, training_args, model_args: the parsed arguments.
        rows (`Dataset`): the questions, with whatever columns the verifier reads.
    """

    def __init__(
        self, recipe: Recipe, script_args: Any, training_args: Any, model_args: ModelConfig, rows: Any
    ) -> None:
        from accelerate import PartialState

        self.recipe, self.script, self.args, self.model_args, self.rows = (
            recipe, script_args, training_args, model_args, rows,
        )  # fmt: skip
        self.output = Path(training_args.output_dir)
        self.state = PartialState()
        self.column = script_args.prompt_column or "prompt"
        if self.column not in rows.column_names:
            raise ValueError(
                f"the dataset has no column {self.column!r}; it has {rows.column_names}: see prompt_column"
            )

    @claims_output
    def run(self) -> None:
        """Every round that is not finished, the table after each, and at the end the last round's model."""
        rows = {"questions": self.rows}
        claim_run(self.output / MANIFEST, self._settings(), rows, state=self.state, stages="round-*")
        rounds: list[Round] = []
        for number in range(self.script.rounds):
            one = Round(number, self.output / f"round-{number:03d}", self.state.is_main_process)
            rounds.append(one)
            if not one.has_done("trained"):
                self._run_round(one, self._start(rounds))
                self._write_table(rounds)
        self._write_table(rounds)
        if self.state.is_main_process:
            print(table(rounds))
            _publish(rounds[-1].folder / "model", self.output)
            print(f"Model saved to {self.output}.")
        self.state.wait_for_everyone()

    def push(self) -> None:
        """Push the last round's model; answers and pairs stay here."""
        from hf_ext.hub.push import push_folder

        repo = self.args.hub_model_id or self.output.absolute().name
        push_folder(
            self.output / f"round-{self.script.rounds - 1:03d}" / "model",
            repo,
            token=self.args.hub_token,
            private=self.args.hub_private_repo,
            merge_card=True,
            license=self.args.model_license,
        )
        print(f"Model pushed to the Hub: {repo}.")

    # --- a round -----------------------------------------------------------------------------------------------------

    def _run_round(self, one: Round, start: str) -> None:
        questions = questions_of_round(len(self.rows), self.script.questions_per_round, one.number, self.args.seed)
        one.begin(questions=len(questions))
        self.state.wait_for_everyone()
        if not one.has_done("sampled"):
            self._sample(one, start, questions)
            self.state.wait_for_everyone()
            one.finish("sampled")
        self.state.wait_for_everyone()
        if not one.has_done("paired") and self.state.is_main_process:
            self._pair(one)
        self.state.wait_for_everyone()
        self._train(one, start)

    def _sample(self, one: Round, start: str, questions: Sequence[int]) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from hf_ext.guards.models import loading_model

        kwargs = {**self.args.model_init_kwargs, "trust_remote_code": self.args.trust_remote_code}
        if one.number > 0:
            kwargs["revision"] = None
        with loading_model(start):
            tokenizer = AutoTokenizer.from_pretrained(
                start, revision=kwargs["revision"], trust_remote_code=self.args.trust_remote_code
            )
            model = AutoModelForCausalLM.from_pretrained(start, **kwargs).to(self.args.device)
        sample_answers(
            model,
            tokenizer,
            [(row, self._prompt(tokenizer, row)) for row in questions],
            self._sampling(one.number),
            one.folder / "answers",
            rank=self.state.process_index,
            world=self.state.num_processes,
            autocast_dtype=torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else None,
            show_progress=not self.args.disable_tqdm,
        )
        del model
        gc.collect()

    def _prompt(self, tokenizer: Any, row: int) -> Any:
        """What the policy is asked: the template's text; else messages where the tokenizer has a chat template."""
        prompt = self.rows[row][self.column]
        if not isinstance(prompt, str):
            return prompt
        if self.script.prompt_template is not None:
            return self.script.prompt_template.replace("{prompt}", prompt)
        return prompt if tokenizer.chat_template is None else [{"role": "user", "content": prompt}]

    def _pair(self, one: Round) -> None:
        answers = read_answers(one.folder / "answers")
        scores = self._scorer()([(a.prompt, a.completion, self.rows[a.row]) for a in answers])
        pairs, counts = form_pairs(answers, scores, self.script.reward_margin)
        mean = sum(scores) / len(scores)
        if not pairs:
            raise ValueError(no_pairs_message(one, counts, mean))
        one.write_pairs(pairs)
        one.finish("paired", answers=len(answers), mean_score=mean, cut_share=_cut_share(answers), **counts)

    def _scorer(self) -> Scorer:
        if self.script.verifier is not None:
            return verifier_scorer(self.script.verifier)
        return reward_scorer(
            self.script.reward_model,
            batch_size=self.script.sample_batch_size,
            max_length=self.args.max_length,
            device=self.args.device,
        )

    def _train(self, one: Round, start: str) -> None:
        """An ordinary run in `round-N/train`, whose reference is its own start; then its model, whole."""
        from transformers import set_seed

        args = copy.copy(self.args)
        args.output_dir = str(one.folder / "train")
        args.bad_rows_path = str(one.folder / "train" / "bad_rows.jsonl")
        args.push_to_hub = False  # the last round's model is pushed at the end
        args.precompute_ref_log_probs = not (args.reference_free or args.sync_ref_model)
        args.seed = seed_of(self.args.seed, one.number)
        args.model_init_kwargs = {
            **self.args.model_init_kwargs,
            "revision": self.args.model_init_kwargs["revision"] if one.number == 0 else None,
        }
        # From the file, not from memory: the processes then share one cache, as the host's preparation expects.
        rows = load_rows(str(one.folder / PAIRS)).select_columns(["prompt", "chosen", "rejected"])
        set_seed(args.seed)  # an adapter is drawn before the trainer seeds anything
        trainer = self.recipe.make_trainer(start, args, self.model_args, train_dataset=rows)
        checkpoint, _ = newest_whole(args.output_dir)
        self.state.wait_for_everyone()
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        self._store_model(trainer, one.folder / "model")
        one.finish("trained", steps=trainer.state.global_step, **_changes(trainer))
        self.state.wait_for_everyone()
        del trainer
        gc.collect()

    def _store_model(self, trainer: Any, folder: Path) -> None:
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

    def _start(self, rounds: Sequence[Round]) -> str:
        return self.model_args.model_name_or_path if len(rounds) == 1 else str(rounds[-2].folder / "model")

    def _sampling(self, number: int) -> Sampling:
        script = self.script
        return Sampling(
            self.args.seed, number, script.answers_per_question, script.temperature, script.max_new_tokens,
            script.sample_batch_size, tuple(script.stop or ()),
        )  # fmt: skip

    def _settings(self) -> dict[str, Any]:
        # The guard counts logs, and may end a round by them.
        counted = LOGGING if self.args.likelihood_guard == "stop" else ()
        settings = {
            "processes": self.state.num_processes,
            **settings_of(self.args),
            **{name: described(getattr(self.args, name, None)) for name in counted},
            **settings_of(self.script, FREE),
            **settings_of(self.model_args),
            "model": source_settings(self.model_args.model_name_or_path, self.model_args.model_revision),
        }
        if self.script.reward_model is not None:
            settings["reward_model files"] = source_settings(self.script.reward_model)
        if self.script.verifier is not None:
            settings["verifier file"] = verifier_digest(self.script.verifier)
        return settings

    def _write_table(self, rounds: Sequence[Round]) -> None:
        if self.state.is_main_process:
            write_whole(self.output / "rounds.md", table(rounds) + "\n")


def _cut_share(answers: Sequence[Answer]) -> float:
    return sum(not answer.finished for answer in answers) / len(answers)


def _changes(trainer: Any) -> dict[str, float | None]:
    """Change of the log-probability of chosen and rejected, nats per token, as last logged in training."""
    history = trainer.state.log_history
    names = ("chosen_delta", "rejected_delta")
    return {
        name: next((log[f"infopo/{name}"] for log in reversed(history) if f"infopo/{name}" in log), None)
        for name in names
    }


def _publish(model: Path, output: Path) -> None:
    """Copy a round's model into `output_dir`, each file whole."""
    for file in sorted(model.iterdir()):
        if file.is_file():
            with replacing(output / file.name) as temporary:
                shutil.copyfile(file, temporary)
