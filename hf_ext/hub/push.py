"""Pushing a saved folder to the Hub: no secret, no pickle, retried, one commit however often it is repeated."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ext.hub.adapters import adapter_config_to_push
from hf_ext.hub.files import files_to_push, matches, strings
from hf_ext.hub.labels import check_label_privacy, check_label_privacy_of_files, label_privacy_facts
from hf_ext.hub.retry import REQUEST_SECONDS, PushError, Retry
from hf_ext.hub.rows import CARD, refuse_unlike, splits_of, write_rows_folder

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from huggingface_hub import CommitInfo, HfApi

    from hf_ext.data.context_free import ContextFreeStore
    from hf_ext.data.curation.report import CurationReport
    from hf_ext.data.pruning.report import PruneReport

__all__ = ["PushError", "create_repo", "files_to_push", "push_dataset", "push_folder"]

logger = logging.getLogger(__name__)

# Of a folder that `curate` wrote: ids of dropped documents, and paths of this machine. The report has the counts.
CURATION_STAYS = ("drops", "counts.json", "manifest.json")
_CHUNKS = ".hf-ext-chunks"  # of a curation


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
    ignore: str | Sequence[str] = (),
    delete: str | Sequence[str] = (),
    attempts: int | None = None,
    backoff: float | None = None,
    timeout: float = REQUEST_SECONDS,
    endpoint: str | None = None,
    public_columns: str | Sequence[str] = (),
    merge_card: bool = False,
    license: str | list[str] | None = None,
) -> CommitInfo:
    """
    Push a folder to the Hub as one commit; the folder itself is only read.

    [`~hf_ext.hub.files.files_to_push`] chooses the files; secrets and pickles are never pushed. Server errors, rate
    limits (`Retry-After` is kept to), lost connections and a head that moved meanwhile are tried again. Files already
    there, as after a commit whose answer was lost, are not committed again.

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
            Whether a repository made here is private. Where one exists it stays as it is, and `True` refuses a public
            one before anything is sent.
        revision (`str`, *optional*):
            Branch to push to, made if it is not there; `main` by default.
        create_pr (`bool`, *optional*, defaults to `False`):
            Whether to open a pull request instead.
        commit_message (`str`, *optional*):
            First line of the commit.
        path_in_repo (`str`, *optional*):
            Folder of the repository to push into; its root by default.
        ignore, delete (`str` or `Sequence[str]`, *optional*):
            Patterns, as in [`~hf_ext.hub.files.matches`], of further local files to leave out, and of files in the
            repository to remove if they are not pushed. A text is one pattern.
        attempts (`int`, *optional*, defaults to 6), backoff (`float`, *optional*, defaults to 2 seconds):
            Tries of each request, and the wait after the first failure; it doubles, with jitter, up to a minute.
        timeout (`float`, *optional*, defaults to 300 seconds):
            How long one request may go without an answer.
        endpoint (`str`, *optional*):
            Address of the Hub; by default `HF_ENDPOINT` or the public one.
        public_columns (`str` or `Sequence[str]`, *optional*):
            Of a dataset with randomised labels: columns that may give the true ones away, being public anyway.
        merge_card (`bool`, *optional*, defaults to `False`):
            Whether the folder's card is merged with the one on the Hub, as in
            [`~hf_ext.hub.front_matter.merge_cards`], so that nothing is lost that somebody wrote there; it replaces
            that one otherwise. Trainers and [`push_dataset`] merge the cards that they write.
        license (`str` or `list[str]`, *optional*):
            Where cards are merged: the licence that replaces the one on the Hub.

    Returns:
        `CommitInfo`: the commit, or the head where nothing had changed.

    Raises:
        PushError: if it failed for good, a file holds a key or a token, or the repository is public and `private` is
            asked for; the message says why, what to do, and where the files are.
        ValueError: if there is nothing to push, or `create_pr` comes together with a `revision`.
        LabelLeakError: if clean labels stand beside randomised ones, see [`~hf_ext.hub.labels.check_label_privacy`].
        NotADirectoryError: if there is no such folder.
        TypeError: if an entry of a list of texts is no text.
    """
    from huggingface_hub import HfApi

    if create_pr and revision not in (None, "main"):
        raise ValueError(f"create_pr opens a pull request against main: leave one out, create_pr or {revision=}.")
    to_delete = strings(delete, "delete")  # a lone text is one pattern, not a pattern a letter
    files = files_to_push(folder, ignore, repo_type)
    check_label_privacy_of_files(files, strings(public_columns, "public_columns"))
    retry = Retry(f"{repo_type} {repo_id}", folder, attempts=attempts, backoff=backoff, timeout=timeout)
    api = HfApi(endpoint=endpoint, token=token, library_name="hf-ext", library_version=version("hf-ext"))
    target = _Target(create_repo(api, repo_id, repo_type, private, retry), repo_type, revision, create_pr)
    if revision is not None and not revision.startswith("refs/"):
        retry(lambda _: api.create_branch(branch=revision, exist_ok=True, **target.repo))
    merges = merge_card and CARD in files and not path_in_repo.strip("/")
    return retry(_Commit(api, target, files, commit_message, path_in_repo.strip("/"), to_delete, merges, license))


def create_repo(api: HfApi, repo_id: str, repo_type: str, private: bool | None, retry: Retry) -> str:
    """
    Make the repository unless it is there, with retries.

    Returns:
        `str`: its full name; `"tiny"` becomes `"me/tiny"`.

    Raises:
        PushError: if the Hub refuses or cannot be reached; or `private` is asked for and the repository is public.
    """
    url = retry(lambda _: api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True))
    name = str(url.repo_id)
    # `create_repo` takes no notice of `private` where the repository exists (huggingface_hub 2.4).
    if private and not retry(lambda _: api.repo_info(name, repo_type=repo_type)).private:
        raise retry.failure(
            "the repository is public, and a private one was asked for",
            "Make it private in its settings on the Hub, push to another one, or pass private=False to publish.",
        )
    return name


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
    merge_card: bool
    license: str | list[str] | None

    def __call__(self, last_error: Exception | None) -> CommitInfo:
        if self.target.create_pr and last_error is not None:
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
        contents = {name: adapter_config_to_push(path) or str(path) for name, path in self.files.items()}
        added: dict[str, str | bytes] = {prefix + name: content for name, content in contents.items()}
        hub_names: list[str] = []
        if self.delete or self.merge_card:
            hub_names = self.api.list_repo_files(revision=self.target.revision, **self.target.repo)
        if self.merge_card and CARD in hub_names:
            added[CARD] = self._merged_card()
        operations: list[Any] = [CommitOperationAdd(name, content) for name, content in added.items()]
        stale = [name for name in hub_names if name not in added and matches(name, self.delete)]
        return operations + [CommitOperationDelete(name) for name in stale]

    def _merged_card(self) -> bytes:
        """Read from the Hub for every try: somebody may have written it meanwhile."""
        from hf_ext.hub.front_matter import merge_cards

        hub_path = self.api.hf_hub_download(filename=CARD, revision=self.target.revision, **self.target.repo)
        local_card = self.files[CARD].read_bytes()
        existing = Path(hub_path).read_bytes()
        if existing == local_card:
            return local_card
        return merge_cards(local_card.decode(), existing.decode("utf-8", "replace"), license=self.license).encode()

    def _opened_pull_request(self) -> CommitInfo | None:
        """The open pull request with this title whose files are these: an earlier try went through unheard."""
        from huggingface_hub import CommitInfo

        for discussion in self.api.get_repo_discussions(
            discussion_type="pull_request", discussion_status="open", **self.target.repo
        ):
            if discussion.title != self.message or not self._equal_on(f"refs/pr/{discussion.num}"):
                continue
            info = self.api.repo_info(revision=f"refs/pr/{discussion.num}", **self.target.repo)
            return CommitInfo(
                commit_url=f"{self.api.endpoint}/{self.target.repo_id}/commit/{info.sha}",
                commit_message=self.message,
                commit_description="",
                oid=info.sha,
                pr_url=discussion.url,
                _endpoint=self.api.endpoint,
            )
        return None

    def _equal_on(self, revision: str) -> bool:
        """Whether every file stands on `revision` as it is here, by git's or LFS's hash."""
        from huggingface_hub.utils import sha

        hub_files = {
            file.path: file
            for file in self.api.list_repo_tree(recursive=True, revision=revision, **self.target.repo)
            if hasattr(file, "blob_id")
        }
        for operation in self._operations():
            file = hub_files.get(operation.path_in_repo)
            if not hasattr(operation, "upload_info"):  # a removal: it must be gone
                if file is not None:
                    return False
                continue
            if file is None or file.size != operation.upload_info.size:
                return False
            with operation.as_file() as content:
                # the Hub keeps large files by their SHA-256, all others by git's own hash
                if file.lfs is not None:
                    is_same = sha.sha_fileobj(content).hex() == file.lfs.sha256
                else:
                    is_same = sha.git_hash(content.read()) == file.blob_id
            if not is_same:
                return False
        return True


def push_dataset(
    dataset: Dataset | DatasetDict | ContextFreeStore | str | Path,
    repo_id: str,
    *,
    folder: str | Path | None = None,
    license: str | None = None,
    source_model: str | Path | None = None,
    report: PruneReport | CurationReport | None = None,
    private: bool | None = None,
    commit_message: str = "Upload dataset with hf-ext",
    public_columns: str | Sequence[str] = (),
    overwrite_card: bool = False,
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
            Where rows in memory are written, as Parquet with their pictures and sound inside; the repository's name in
            the working folder by default. It must be new, or hold the same rows from a call that was stopped.
        license (`str`, *optional*):
            Hub licence key; for a store that of the source model, if its card is on this machine.
        source_model (`str` or `Path`, *optional*):
            Hub id or folder of the model that wrote the rows.
        report ([`PruneReport`] or [`CurationReport`], *optional*):
            How rows in memory were pruned, from `prune(..., return_report=True)`, or curated: pushed as `report/`,
            shown in the card. Rows that were not kept are left out of it. A folder that `curate` wrote has its own;
            its drop ledger and manifest, with ids of what was dropped and names of files here, are not pushed.
        private (`bool`, *optional*):
            Whether a repository made here is private; by default only a store's is.
        public_columns (`str` or `Sequence[str]`, *optional*):
            Of rows with randomised labels: columns that may give the true ones away, being public anyway.
        overwrite_card (`bool`, *optional*, defaults to `False`):
            Whether the card of rows or of a store replaces one that is there, here or on the Hub. By default they are
            merged, so that nothing is lost that somebody wrote. A folder's own `README.md` is pushed as it is.
        commit_message, **kwargs:
            As in [`push_folder`].

    Returns:
        `CommitInfo`: the commit, or the head where nothing had changed.

    Raises:
        PushError: if [`push_folder`] fails; the written folder stays.
        FileExistsError: if `folder` holds something else already.
        LabelLeakError: if clean labels stand beside randomised ones; nothing is written.
        TypeError: if the rows are not at hand, such as those of an `IterableDataset`.
        ValueError: if a store is incomplete or holds other rows than samples from a seed, or `load_dataset`
            could not read a split back: it has no rows, or other names or columns than `load_dataset` takes.
    """
    from hf_ext.data.context_free import ContextFreeStore
    from hf_ext.data.starts import seed_lines
    from hf_ext.hub.cards import write_dataset_card

    public_columns = strings(public_columns, "public_columns")
    card: dict[str, Any] = {"license": license, "source_model": source_model, "dataset_name": repo_id}
    if isinstance(dataset, str | Path | ContextFreeStore):
        push_path, store = _folder_and_store(dataset)
        if store is not None:
            require_samples(store)
            rows = store.to_dataset()
            card |= {"kind": "context_free", "data_files": {"train": "shard-*.arrow"}, "splits": {"train": len(rows)}}
            card["seeds"] = seed_lines(store.manifest)
            card["settings"] = {name: store.manifest[name] for name in ("tokens", "max_new_tokens", "seed", "dtype")}
            private = True if private is None else private
        elif _is_curated(push_path):
            report = _curation_report(push_path, report)
            card |= {"data_files": {"train": "data/train-*.parquet"}, "report": report}
            card["splits"] = {"train": report.counts.rows_kept}
            kwargs["ignore"] = (*strings(kwargs.get("ignore"), "ignore"), *CURATION_STAYS)
        writes_card = store is not None or "report" in card or not (push_path / CARD).exists()
        if writes_card:
            write_dataset_card(push_path, overwrite=overwrite_card, **card)
    else:
        writes_card = True
        splits = splits_of(dataset)
        check_label_privacy(splits, public_columns)  # first: to a pusher a leak says more than columns that differ
        refuse_unlike(splits)
        push_path = Path(folder or repo_id.split("/")[-1])
        card |= {"data_files": {name: f"data/{name}-*.parquet" for name in splits}}
        card |= {"splits": {name: len(rows) for name, rows in splits.items()}, "report": report}
        card["label_privacy"] = label_privacy_facts(splits, public_columns)
        write_rows_folder(splits, push_path, card, report, overwrite_card)
        kwargs = {"delete": ("data/*.parquet",)} | kwargs  # of an earlier push with other rows
    shared: dict[str, Any] = {"private": private, "commit_message": commit_message, "public_columns": public_columns}
    shared |= {"merge_card": writes_card and not overwrite_card, "license": license}
    return push_folder(push_path, repo_id, repo_type="dataset", **shared, **kwargs)


def _folder_and_store(dataset: str | Path | ContextFreeStore) -> tuple[Path, ContextFreeStore | None]:
    """The folder to push and, if that is what it holds, the store."""
    from hf_ext.data.context_free import ContextFreeStore

    if isinstance(dataset, ContextFreeStore):
        return Path(dataset.path), dataset
    folder = Path(dataset).expanduser()
    if not folder.is_dir():
        raise NotADirectoryError(f"{dataset} is no folder: pass a folder of files, a store, or rows.")
    is_store = any(folder.glob("shard-*.arrow")) and (folder / "manifest.json").is_file()
    return folder, ContextFreeStore(folder) if is_store else None


def require_samples(store: ContextFreeStore) -> None:
    """
    Refuse a store whose rows the card of context-free rows would describe wrongly.

    Raises:
        ValueError: if they are real texts, follow somebody's prompts, or were drawn at another temperature than 1.
    """
    manifest = store.manifest
    kind = manifest.get("kind", "context_free")
    temperature = manifest.get("temperature", 1.0)
    if kind != "context_free" or temperature != 1.0:
        what = f"{kind} rows" if kind != "context_free" else f"rows of temperature {temperature}"
        raise ValueError(
            f"{store.path} holds {what}, which are no samples of a model from a seed: push "
            "store.to_dataset() as rows, with a card that says what they are and whose texts they hold."
        )


def _is_curated(folder: Path) -> bool:
    """Whether `curate` wrote there, to its end or not."""
    return (folder / _CHUNKS).is_dir() or ((folder / "drops").is_dir() and (folder / "counts.json").is_file())


def _curation_report(folder: Path, report: PruneReport | CurationReport | None) -> CurationReport:
    """The report to push with a folder that `curate` wrote, in its place there."""
    from hf_ext.data.curation.report import CurationReport

    if report is not None and not isinstance(report, CurationReport):
        raise TypeError(f"{folder} was written by curate, whose report is a CurationReport, not {report!r:.80}.")
    if (folder / _CHUNKS).is_dir() and not (folder / "manifest.json").is_file():
        raise ValueError(f"{folder} holds a curation that did not come to its end: run it again, then push.")
    curation_report = (report or CurationReport.of_folder(folder)).without_dropped_rows()
    place = folder / "report"
    files = curation_report.files()
    # a plot is never the same bytes twice: a report that is there is left alone, so that a second push has no change
    if not all((place / name).is_file() and (place / name).read_text("utf-8") == text for name, text in files.items()):
        curation_report.save(place)
    return curation_report
