"""Pushing a saved folder to the Hub: no pickle, retried with back-off, one commit however often it is repeated."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ext.hub.labels import check_label_privacy, check_label_privacy_of_files, label_privacy_facts
from hf_ext.hub.pickles import is_pickle
from hf_ext.hub.retry import REQUEST_SECONDS, PushError, Retry

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from huggingface_hub import CommitInfo, HfApi

    from hf_ext.data.context_free import ContextFreeStore
    from hf_ext.data.pruning.report import PruneReport

__all__ = ["LEFTOVERS", "LEFT_OUT", "PushError", "create_repo", "files_to_push", "push_dataset", "push_folder"]

logger = logging.getLogger(__name__)

LEFTOVERS = ("_*", ".git/*", ".cache/*", "*.lock", "*.tmp", "cache-*.arrow", "*/cache-*.arrow")
"""Patterns of files that no push takes along: what tools leave behind."""

LEFT_OUT: tuple[str, ...] = (*LEFTOVERS, "checkpoint-*", "bad_rows.jsonl", "training_args.json", "original_losses/*")
LEFT_OUT += ("context_free/*", "report/fresh_samples/*")
"""Patterns of files in a trainer's folder that stay here: states, rows, samples, paths of this machine."""

SHARD_BYTES = 500 * 1000**2


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    repo_type: str = "model",
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload with hf-ext",
    path_in_repo: str = "",
    ignore: Sequence[str] | None = None,
    delete: Sequence[str] = (),
    attempts: int | None = None,
    backoff: float | None = None,
    timeout: float = REQUEST_SECONDS,
    endpoint: str | None = None,
    public_columns: Sequence[str] = (),
) -> CommitInfo:
    """
    Push a folder to the Hub as one commit; the folder itself is only read.

    Every file goes but pickles, told by name and by content ([`~hf_ext.hub.pickles.is_pickle`]), and what `ignore`
    names. Server errors, rate limits (`Retry-After` is kept to), lost connections and a head that moved meanwhile are
    tried again. Files that are already there, as after a commit whose answer was lost, are not committed again.

    Args:
        folder (`str` or `Path`):
            A complete local copy: save first, then push.
        repo_id (`str`):
            Such as `"me/tiny"`; made if it is not there.
        repo_type (`str`, *optional*, defaults to `"model"`):
            `"model"` or `"dataset"`.
        token (`str` or `bool`, *optional*):
            Token with write permission; by default the one of `hf auth login` or `HF_TOKEN`.
        private (`bool`, *optional*):
            Whether a repository made here is private; one that exists stays as it is.
        revision (`str`, *optional*):
            Branch to push to, made if it is not there; `main` by default.
        create_pr (`bool`, *optional*, defaults to `False`):
            Whether to open a pull request instead.
        commit_message (`str`, *optional*):
            First line of the commit.
        path_in_repo (`str`, *optional*):
            Folder of the repository to push into; its root by default.
        ignore, delete (`Sequence[str]`, *optional*):
            Patterns, as in `fnmatch`, of local files to leave out ([`LEFT_OUT`] for a model, [`LEFTOVERS`] for a
            dataset), and of files in the repository to remove if they are not pushed.
        attempts (`int`, *optional*, defaults to 6), backoff (`float`, *optional*, defaults to 2 seconds):
            Tries of each request, and the wait after the first failure; it doubles, with jitter, up to a minute.
        timeout (`float`, *optional*, defaults to 300 seconds):
            How long one request may go without an answer.
        endpoint (`str`, *optional*):
            Address of the Hub; by default `HF_ENDPOINT` or the public one.
        public_columns (`Sequence[str]`, *optional*):
            Of a dataset with randomised labels: columns that may give the true ones away, being public anyway.

    Returns:
        `CommitInfo`: the commit, or the head where nothing had changed.

    Raises:
        PushError: it failed for good; the message says why, what to do, and where the files are.
        ValueError: nothing to push, or `create_pr` together with a `revision`.
        LabelLeakError: clean labels beside randomised ones, see [`~hf_ext.hub.labels.check_label_privacy`].
        NotADirectoryError: there is no such folder.
    """
    from huggingface_hub import HfApi

    if create_pr and revision not in (None, "main"):
        raise ValueError(f"create_pr opens a pull request against main: leave one out, create_pr or {revision=}.")
    if ignore is None:
        ignore = LEFT_OUT if repo_type == "model" else LEFTOVERS
    files = files_to_push(folder, ignore)
    if repo_type == "dataset":
        check_label_privacy_of_files(files.values(), public_columns)
    retry = Retry(f"{repo_type} {repo_id}", folder, attempts=attempts, backoff=backoff, timeout=timeout)
    api = HfApi(endpoint=endpoint, token=token, library_name="hf-ext", library_version=version("hf-ext"))
    target = _Target(create_repo(api, repo_id, repo_type, private, retry), repo_type, revision, create_pr)
    if revision is not None and not revision.startswith("refs/"):
        retry(lambda _: api.create_branch(branch=revision, exist_ok=True, **target.repo))
    return retry(_Commit(api, target, files, commit_message, path_in_repo.strip("/"), tuple(delete)))


def files_to_push(folder: str | Path, ignore: Sequence[str] = LEFT_OUT) -> dict[str, Path]:
    """
    Files of a folder that may go to the Hub, by their path inside it; pickles are left out and named in the log.

    Raises:
        NotADirectoryError: there is no such folder.
        ValueError: nothing is left to push.
    """
    root = Path(folder).expanduser().resolve()
    if not root.is_dir():
        raise NotADirectoryError(f"{folder} is no folder: save the model or the dataset first, then push it.")
    names = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
    names = {name: path for name, path in names.items() if not _matches(name, ignore)}
    pickles = [name for name, path in names.items() if is_pickle(path)]
    if pickles:
        logger.warning(
            "Not pushed, because they hold pickles (or are named as if they did), which run code when loaded: %s.",
            ", ".join(pickles),
        )
    files = {name: path for name, path in names.items() if name not in pickles}
    if not files:
        raise ValueError(f"Nothing to push in {folder}: it has no file besides pickles and what 'ignore' leaves out.")
    return files


def create_repo(api: HfApi, repo_id: str, repo_type: str, private: bool | None, retry: Retry) -> str:
    """
    Make the repository unless it is there, with retries.

    Returns:
        `str`: its full name; `"tiny"` becomes `"me/tiny"`.

    Raises:
        PushError: the Hub refuses, or cannot be reached.
    """
    url = retry(lambda _: api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True))
    return str(url.repo_id)


@dataclass(frozen=True)
class _Target:
    repo_id: str
    repo_type: str
    revision: str | None
    create_pr: bool

    @property
    def repo(self) -> dict[str, str]:
        return {"repo_id": self.repo_id, "repo_type": self.repo_type}


@dataclass(frozen=True)
class _Commit:
    """One try to commit; called again by [`Retry`] after a failure, with the error before as argument."""

    api: HfApi
    target: _Target
    files: dict[str, Path]
    message: str
    path_in_repo: str
    delete: tuple[str, ...]

    def __call__(self, before: Exception | None) -> CommitInfo:
        if self.target.create_pr and before is not None:
            opened = self._opened_pull_request()
            if opened is not None:
                return opened
        # `create_commit` asks for the hashes on the Hub and leaves out what has not changed, so that a commit whose
        # answer was lost is found here; a parent keeps two writers from undoing each other.
        return self.api.create_commit(
            operations=self._operations(),
            commit_message=self.message,
            revision=self.target.revision,
            create_pr=self.target.create_pr,
            parent_commit=None if self.target.create_pr else self._head(),
            **self.target.repo,
        )

    def _head(self) -> str | None:
        return self.api.repo_info(revision=self.target.revision, **self.target.repo).sha

    def _operations(self) -> list[Any]:
        """Made anew for every try: a used operation remembers what the Hub said then."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        prefix = f"{self.path_in_repo}/" if self.path_in_repo else ""
        added = {prefix + name: path for name, path in self.files.items()}
        operations: list[Any] = [CommitOperationAdd(name, str(path)) for name, path in added.items()]
        if self.delete:
            there = self.api.list_repo_files(revision=self.target.revision, **self.target.repo)
            stale = [name for name in there if name not in added and _matches(name, self.delete)]
            operations += [CommitOperationDelete(name) for name in stale]
        return operations

    def _opened_pull_request(self) -> CommitInfo | None:
        """The open pull request with this title whose files are these: an earlier try went through unheard."""
        from huggingface_hub import CommitInfo

        for found in self.api.get_repo_discussions(
            discussion_type="pull_request", discussion_status="open", **self.target.repo
        ):
            if found.title != self.message or not self._equal_on(f"refs/pr/{found.num}"):
                continue
            info = self.api.repo_info(revision=f"refs/pr/{found.num}", **self.target.repo)
            return CommitInfo(
                commit_url=f"{self.api.endpoint}/{self.target.repo_id}/commit/{info.sha}",
                commit_message=self.message,
                commit_description="",
                oid=info.sha,
                pr_url=found.url,
                _endpoint=self.api.endpoint,
            )
        return None

    def _equal_on(self, revision: str) -> bool:
        """Whether every file stands on `revision` as it is here, by git's or LFS's hash."""
        from huggingface_hub.utils import sha

        there = {
            file.path: file
            for file in self.api.list_repo_tree(recursive=True, revision=revision, **self.target.repo)
            if hasattr(file, "blob_id")
        }
        for operation in self._operations():
            file = there.get(operation.path_in_repo)
            if not hasattr(operation, "upload_info"):  # a removal: it must be gone
                if file is not None:
                    return False
                continue
            if file is None or file.size != operation.upload_info.size:
                return False
            with operation.as_file() as content:
                if file.lfs is not None:
                    same = sha.sha_fileobj(content).hex() == file.lfs.sha256
                else:
                    same = sha.git_hash(content.read()) == file.blob_id
            if not same:
                return False
        return True


def push_dataset(
    dataset: Dataset | DatasetDict | ContextFreeStore | str | Path,
    repo_id: str,
    *,
    folder: str | Path | None = None,
    license: str | None = None,
    source_model: str | Path | None = None,
    report: PruneReport | None = None,
    private: bool | None = None,
    commit_message: str = "Upload dataset with hf-ext",
    public_columns: Sequence[str] = (),
    **kwargs: Any,
) -> CommitInfo:
    """
    Write a dataset and its card into a local folder, then push that folder.

    Nothing pushes context-free rows by itself: a model's samples may hold text that it memorised. Read some first; a
    repository made for them is private unless told otherwise.

    Args:
        dataset (`Dataset`, `DatasetDict`, [`ContextFreeStore`], `str` or `Path`):
            Rows, a store, or a folder of files. A store keeps its files, so that a download of it is a store again,
            and `load_dataset` reads it too.
        repo_id (`str`):
            Such as `"me/rows"`; made if it is not there.
        folder (`str` or `Path`, *optional*):
            Where rows in memory are written, as Parquet; the repository's name in the working folder by default.
        license (`str`, *optional*):
            Hub licence key; for a store that of the source model, if its card is on this machine.
        source_model (`str` or `Path`, *optional*):
            Hub id or folder of the model that wrote the rows.
        report ([`PruneReport`], *optional*):
            How rows in memory were pruned, from `prune(..., return_report=True)`: pushed as `report/`, shown in the
            card. Rows that were not kept are left out of it.
        private (`bool`, *optional*):
            Whether a repository made here is private; by default only a store's is.
        public_columns (`Sequence[str]`, *optional*):
            Of rows with randomised labels: columns that may give the true ones away, being public anyway.
        commit_message, **kwargs:
            As in [`push_folder`]. A folder's own `README.md` is kept; cards of rows and stores are written afresh.

    Returns:
        `CommitInfo`: the commit, or the head where nothing had changed.

    Raises:
        PushError: see [`push_folder`]; the written folder stays.
        FileExistsError: `folder` holds a dataset already.
        LabelLeakError: clean labels beside randomised ones; nothing is written.
        ValueError: an incomplete store, or a dataset without rows.
    """
    from hf_ext.hub.cards import write_dataset_card

    if hasattr(dataset, "column_names"):
        check_label_privacy(dataset if isinstance(dataset, dict) else {"train": dataset}, public_columns)
    where, store = _dataset_folder(dataset, Path(folder or repo_id.split("/")[-1]))
    card: dict[str, Any] = {"license": license, "source_model": source_model, "dataset_name": repo_id}
    if store is not None:
        rows = store.to_dataset()
        card |= {"kind": "context_free", "data_files": {"train": "shard-*.arrow"}, "splits": {"train": len(rows)}}
        card["settings"] = {name: store.manifest[name] for name in ("tokens", "max_new_tokens", "seed", "dtype")}
        private = True if private is None else private
    elif not isinstance(dataset, str | Path):
        splits: dict[str, Any] = dataset if isinstance(dataset, dict) else {"train": dataset}
        card |= {"data_files": {name: f"data/{name}-*.parquet" for name in splits}}
        card |= {"splits": {name: len(rows) for name, rows in splits.items()}}
        card["label_privacy"] = label_privacy_facts(splits, public_columns)
        kwargs = {"delete": ("data/*.parquet",)} | kwargs  # of an earlier push with other rows
        if report is not None:
            card["report"] = report
            report.without_dropped_rows().save(where / "report")
    files_as_given = isinstance(dataset, str | Path) and store is None
    if not (files_as_given and (where / "README.md").exists()):
        write_dataset_card(where, **card)
    shared: dict[str, Any] = {"private": private, "commit_message": commit_message, "public_columns": public_columns}
    return push_folder(where, repo_id, repo_type="dataset", **shared, **kwargs)


def _dataset_folder(dataset: Any, new: Path) -> tuple[Path, ContextFreeStore | None]:
    """The folder to push and, if that is what it holds, the store; rows in memory are written into `new`."""
    from hf_ext.data.context_free import ContextFreeStore

    if isinstance(dataset, ContextFreeStore):
        return Path(dataset.path), dataset
    if isinstance(dataset, str | Path):
        is_store = any(Path(dataset).glob("shard-*.arrow")) and (Path(dataset) / "manifest.json").is_file()
        return Path(dataset), ContextFreeStore(dataset) if is_store else None
    if (new / "data").exists():
        raise FileExistsError(
            f"{new} holds a dataset already: push that one, push_dataset({str(new)!r}, ...), or pass another folder."
        )
    splits = dataset if isinstance(dataset, dict) else {"train": dataset}
    empty = [name for name, rows in splits.items() if len(rows) == 0]
    if empty:
        raise ValueError(f"split {empty[0]!r} has no rows: there is nothing to push.")
    writing = new / "_data"  # renamed when whole, so that a kill leaves nothing that looks like a dataset
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    for name, rows in splits.items():
        shards = max(1, -(-rows.data.nbytes // SHARD_BYTES))
        for index in range(shards):
            part = rows.shard(shards, index, contiguous=True)
            part.to_parquet(writing / f"{name}-{index:05d}-of-{shards:05d}.parquet")
    writing.rename(new / "data")
    return new, None


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
