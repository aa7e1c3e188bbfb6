# /// script
# dependencies = [
#     "hf-ext",
#     "peft",
# ]
# ///

"""
Tune in rounds: sample answers from the current policy, score them, pair better with worse, tune on the pairs, go on.

The reference model of a round is the policy that the round starts from. A run that was stopped, even by `kill -9`,
goes on where it was when the same command is run again.

# The recipe: SmolLM2-135M-Instruct on the questions of GSM8K's training set, answers checked by their last number
```bash
hf-ext train infopo_online --config infopo/online_gsm8k.yaml
```

# A verifier of your own, my_module.py with `def check(prompt, completion, row) -> float`
```bash
hf-ext train infopo_online \
    --config infopo/online_gsm8k.yaml \
    --verifier my_module:check
```

# On several GPUs
```bash
hf-ext train infopo_online --num_processes 8 --config infopo/online_gsm8k.yaml
accelerate launch --num_processes 8 -m hf_ext.recipes.infopo.online --config infopo/online_gsm8k.yaml
```
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trl import DatasetMixtureConfig, ModelConfig

from hf_ext.data.backends.choice import BACKENDS, OURS
from hf_ext.data.loading import check_model_name, first_rows, load_rows
from hf_ext.guards.world import check_world_size
from hf_ext.recipes.launch import Recipe, RecipeArguments, is_sharded, model_init_kwargs
from hf_ext.rounds.online import OnlineLoop
from hf_ext.rounds.scoring import load_verifier
from hf_ext.trainers.infopo import ONLINE

if TYPE_CHECKING:
    from transformers import TrainingArguments


@dataclass
class OnlineArguments(RecipeArguments):
    """
    [`RecipeArguments`], how answers are sampled and scored, and for how many rounds.

    Parameters:
        rounds (`int`, *optional*, defaults to `3`):
            Number of rounds; a finished run goes on when it is raised.
        questions_per_round (`int`, *optional*):
            Questions a round asks: the next ones of a shuffled order. All by default.
        answers_per_question (`int`, *optional*, defaults to `2`):
            Answers sampled for each; the best and the worst make the pair.
        temperature (`float`, *optional*, defaults to `1.0`):
            Of sampling; 1 is the policy itself.
        max_new_tokens (`int`, *optional*, defaults to `256`):
            Longest answer; one that is cut here is never chosen.
        sample_batch_size (`int`, *optional*, defaults to `16`):
            Answers sampled together.
        stop (`list[str]`, *optional*):
            Texts at which an answer ends, for models that go on with a next question.
        backend (`str`, *optional*, defaults to `"transformers"`):
            What samples: `transformers` (`generate`), `continuous_batching` or `vllm`, which a probe compares with
            each round's policy first. A run may go on with another one.
        verifier (`str`, *optional*):
            `gsm8k`, or `module:function` of your own: `(prompt, completion, row) -> float`.
        reward_model (`str`, *optional*):
            A sequence-classification model that scores instead.
        reward_margin (`float`, *optional*, defaults to `0.0`):
            Scores must differ by more than this.
    """

    rounds: int = field(default=3, metadata={"help": "Number of rounds; raise it to go on after the last."})
    questions_per_round: int | None = field(
        default=None, metadata={"help": "Questions a round asks: the next ones of a shuffled order. Default: all."}
    )
    answers_per_question: int = field(
        default=2, metadata={"help": "Answers sampled for each question; the best and the worst make the pair."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature; 1 is the policy itself."})
    max_new_tokens: int = field(
        default=256, metadata={"help": "Longest answer in tokens; one that is cut here is never chosen."}
    )
    sample_batch_size: int = field(default=16, metadata={"help": "Answers sampled together."})
    stop: list[str] | None = field(
        default=None, metadata={"help": r"Texts at which an answer ends, such as '\nQuestion:'; not part of it."}
    )
    backend: str = field(
        default=OURS,
        metadata={
            "help": "What samples: generate, transformers' continuous batching, or vLLM in this process.",
            "choices": [name for name in BACKENDS if name != "completions"],  # a server cannot follow the policy
        },
    )
    verifier: str | None = field(
        default=None,
        metadata={"help": "What scores an answer: 'gsm8k', or module:function, called with prompt, completion, row."},
    )
    reward_model: str | None = field(
        default=None, metadata={"help": "A sequence-classification model (folder or Hub name) that scores instead."}
    )
    reward_margin: float = field(
        default=0.0, metadata={"help": "Two answers make a pair where their scores differ by more than this."}
    )

    def check(self) -> None:
        """
        Refuse settings that cannot be used.

        Raises:
            ValueError: if a setting cannot be used; the message names it.
        """
        least = {"rounds": 1, "answers_per_question": 2, "max_new_tokens": 1, "sample_batch_size": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")
        if not 0 <= self.reward_margin < float("inf"):
            raise ValueError(f"reward_margin must be finite and at least 0, got {self.reward_margin}")
        if (self.verifier is None) == (self.reward_model is None):
            raise ValueError("give a verifier ('gsm8k' or module:function) or a reward_model, and not both")
        if self.prompt_template is not None and "{prompt}" not in self.prompt_template:
            raise ValueError(f"prompt_template={self.prompt_template!r} has no {{prompt}} in it")
        if any(not word for word in self.stop or ()):
            raise ValueError("stop has an empty text in it, which would end every answer at once")
        if self.verifier is not None:
            load_verifier(self.verifier)


@dataclass(frozen=True)
class OnlineRecipe(Recipe[OnlineArguments]):
    """InfoPO in rounds; each is an ordinary run in its own folder of `output_dir`."""

    arguments: type[OnlineArguments] = OnlineArguments

    def check(
        self,
        script_args: OnlineArguments,
        training_args: TrainingArguments,
        model_args: ModelConfig,
        dataset_args: DatasetMixtureConfig,
    ) -> None:
        """Refuse now what would fail, or be ignored, after a long run."""
        super().check(script_args, training_args, model_args, dataset_args)
        script_args.check()
        if script_args.reward_model is not None:
            check_model_name(script_args.reward_model)
        refused = {
            "a 'datasets' mixture": bool(dataset_args.datasets),
            "dataset_streaming": script_args.dataset_streaming,
            "eval_strategy (evaluate the saved model instead)": training_args.eval_strategy != "no",
            "resume_from_checkpoint (the same command goes on by itself)": training_args.resume_from_checkpoint,
            "quantization (a round's adapter is merged into the model)": model_args.load_in_4bit
            or model_args.load_in_8bit,
            "FSDP or DeepSpeed (sampling needs the whole model in each process)": is_sharded(training_args),
        }
        for setting, is_set in refused.items():
            if is_set:
                raise ValueError(f"infopo_online does not take {setting}")

    def main(
        self,
        script_args: OnlineArguments,
        training_args: TrainingArguments,
        model_args: ModelConfig,
        dataset_args: DatasetMixtureConfig,
    ) -> None:
        """
        Run the rounds that are not finished, and leave the last one's model in `output_dir`.

        Raises:
            ValueError: if an argument cannot be honoured, a round was begun with other settings, or gave no pair.
            PushError: if the Hub did not take the model; it is saved by then.
        """
        from accelerate import PartialState

        check_world_size(script_args.expected_num_processes)
        self.check(script_args, training_args, model_args, dataset_args)
        training_args.model_init_kwargs = model_init_kwargs(training_args, model_args)
        rows = load_rows(
            script_args.dataset_name, config=script_args.dataset_config, split=script_args.dataset_train_split
        )
        loop = OnlineLoop(script_args, training_args, model_args, first_rows(rows, script_args.max_train_rows))
        table = loop.run()
        state = PartialState()
        if state.is_main_process:
            print(table)
            print(f"Model saved to {training_args.output_dir}.")
            if training_args.push_to_hub:
                print(f"Model pushed to the Hub: {loop.push()}.")
        state.wait_for_everyone()
        state.destroy_process_group()


RECIPE = OnlineRecipe(ONLINE)
main = RECIPE.main
make_parser = RECIPE.make_parser


if __name__ == "__main__":
    sys.exit(RECIPE.run())
