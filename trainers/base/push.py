"""What a trainer sends to the Hub: the saved folder, without pickles, rows or caches."""

from __future__ import annotations

import glob
import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Trainer, TrainingArguments

from hf_ext.hub.push import create_repo, push_folder
from hf_ext.hub.retry import Retry
from hf_ext.method import private_settings

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

logger = logging.getLogger(__name__)

# Of a checkpoint: what only serves to resume here. It is pickled, or means nothing without what is.
RESUME_STATE = (
    "optimizer*", "scheduler*", "scaler*", "rng_state*", "trainer_state.json", "*.pt", "*.pth", "*.bin",
    "global_step*", "zero_to_fp32.py", "latest", "pytorch_model_fsdp*", "moe_fit*",
)  # fmt: skip
HELD_PREFIX = "_push-"  # begins the name of a checkpoint's copy on its way to the Hub


class Pushing:
    """The pushes of a trainer that run beside training, one after the other."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="push")
        self.jobs: list[Future] = []

    def start(self, push: Callable[[], Any]) -> Future:
        """Push when the pushes before are through; a failure is logged, and raised where the result is asked for."""

        def logged() -> Any:
            try:
                return push()
            except Exception as error:
                logger.error("A push beside training failed: %s", error)
                raise

        job = self.pool.submit(logged)
        self.jobs.append(job)
        return job

    def is_done(self) -> bool:
        """Whether no push is under way."""
        return all(job.done() for job in self.jobs)

    def wait_until_done(self) -> None:
        """Wait for every push, whether it fails or not."""
        wait(self.jobs)


class PushesToHub(Trainer):
    """
    Pushes of the saved folder for any host trainer: retried, never twice, without pickles or training rows.

    It stands before the hooks of the host in the bases.
    """

    @property
    def model_license(self) -> str | None:
        """Licence of the card, where the arguments know one: a host's own do not."""
        return getattr(self.args, "model_license", None)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """
        Make the repository unless it is there; sets `hub_model_id` to its full name on the main process.

        Raises:
            PushError: if the Hub refuses, or cannot be reached.
        """
        if not self.is_world_process_zero():
            return
        from huggingface_hub import HfApi

        args = self.args
        name = args.hub_model_id or Path(args.output_dir).absolute().name
        api = HfApi(
            token=token if token is not None else args.hub_token,
            library_name="hf-ext",
            library_version=version("hf-ext"),
        )
        private = private if private is not None else args.hub_private_repo
        saved_folder = args.output_dir if glob.glob(f"{glob.escape(args.output_dir)}/*.safetensors") else None
        retry = Retry(f"model {name}", saved_folder)
        args.hub_model_id = create_repo(api, name, "model", private, retry)
        self.hub_model_id = args.hub_model_id
        self.push_in_progress = Pushing()
        for copy in Path(args.output_dir).glob(f"{HELD_PREFIX}*"):  # by a run that was killed
            shutil.rmtree(copy, ignore_errors=True)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        create_pr: bool = False,
        **kwargs: Any,
    ) -> CommitInfo | Future | None:
        """
        Save into `output_dir`, write the card, then push both to `hub_model_id`.

        Args:
            commit_message, blocking, token, revision, private:
                As in [`~transformers.Trainer.push_to_hub`].
            create_pr (`bool`, *optional*, defaults to `False`):
                Whether to open a pull request instead of committing to `main`.
            **kwargs:
                For `create_model_card`: `model_name`, `dataset_name`, `tags`.

        Returns:
            `CommitInfo`, or a `Future` of it unless `blocking`; `None` on processes other than the main one.

        Raises:
            PushError: if the push failed for good; the message says why and that everything is in `output_dir`.
        """
        args = self.args
        self.callback_handler.on_push_begin(args, self.state, self.control)
        self.save_model(args.output_dir, _internal_call=True)  # on every process: shards are gathered
        if not self.is_world_process_zero():
            return None
        token = token if token is not None else args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.create_model_card(**{"model_name": self.hub_model_id, **kwargs})
        self.push_in_progress.wait_until_done()

        def push() -> CommitInfo:
            return push_folder(
                args.output_dir,
                self.hub_model_id,
                token=token,
                private=private if private is not None else args.hub_private_repo,
                revision=revision if revision is not None else (None if create_pr else args.hub_revision),
                create_pr=create_pr,
                commit_message=commit_message or "End of training",
                ignore=_private_files(args),
                merge_card=True,
                license=self.model_license,
            )

        return push() if blocking else self.push_in_progress.start(push)

    def push_checkpoint(self, checkpoint: str) -> None:
        """
        Push a checkpoint's model beside training, as `hub_strategy` says; the states to resume from stay here.

        Those are pickles: a run resumes from the checkpoint on disk. A failure is logged and training goes on; the
        push after training brings everything.
        """
        args = self.args
        if not self.is_world_process_zero() or args.hub_strategy == "end":
            return
        if not (args.hub_always_push or self.push_in_progress.is_done()):
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        # Rotation may delete the checkpoint before its turn comes; links keep the files until then.
        held_copy = Path(args.output_dir) / f"{HELD_PREFIX}{Path(checkpoint).name}"
        shutil.rmtree(held_copy, ignore_errors=True)
        shutil.copytree(
            checkpoint, held_copy, ignore=shutil.ignore_patterns(*RESUME_STATE), copy_function=_link_or_copy
        )
        places = {"checkpoint": ["", "last-checkpoint"], "all_checkpoints": ["", Path(checkpoint).name]}
        message = f"Training in progress, step {self.state.global_step}"

        def push() -> None:
            try:
                for place in places.get(str(args.hub_strategy.value), [""]):
                    push_folder(
                        held_copy,
                        self.hub_model_id,
                        token=args.hub_token,
                        private=args.hub_private_repo,
                        revision=args.hub_revision,
                        commit_message=f"{message}, checkpoint" if place else message,
                        path_in_repo=place,
                        merge_card=True,
                        license=self.model_license,
                    )
            finally:
                shutil.rmtree(held_copy, ignore_errors=True)

        self.push_in_progress.start(push)


def _private_files(args: TrainingArguments) -> list[str]:
    """Patterns of what the arguments have put into `output_dir` and stays there, whatever it is called."""
    root = Path(args.output_dir).resolve()
    patterns = []
    for name in sorted(private_settings()):
        value = getattr(args, name, None)
        if value is not None and Path(value).resolve().is_relative_to(root):
            inside = Path(value).resolve().relative_to(root)
            by_rank = inside.with_suffix("").as_posix()  # each process writes its own bad rows
            patterns += [glob.escape(inside.as_posix()), f"{glob.escape(by_rank)}.rank*"]
    return patterns


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
