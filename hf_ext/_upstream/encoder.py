"""A hook of the encoders: `SentenceTransformer`, where a saved model's files are read."""

from __future__ import annotations

from typing import Any

from sentence_transformers import SentenceTransformer

TOUCHED = (
    (
        "sentence_transformers.base.model.BaseModel",
        "_load_config_modules",
        "exemplars would not be read at the commit of the weights",
    ),
)


class EncoderHooks(SentenceTransformer):
    """
    A `SentenceTransformer` that can keep files of its own beside the modules.

    - `read_files(name, **source)`: while a saved model is loaded, with the commit that its weights come from. The host
      itself pins every file of a repository to that commit, and tells it to nobody outside.
    """

    def read_files(self, name: str, **source: Any) -> None:
        """
        Read further files of the model.

        Args:
            name (`str`): folder, or id on the Hub.
            **source: `revision` (the commit), `token`, `cache_folder`, `local_files_only`.
        """

    def _load_config_modules(
        self,
        model_name_or_path: str,
        token: bool | str | None,
        cache_folder: str | None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        local_files_only: bool = False,
        **kwargs: Any,
    ) -> Any:
        modules = super()._load_config_modules(
            model_name_or_path, token, cache_folder, revision, trust_remote_code, local_files_only, **kwargs
        )
        self.read_files(
            model_name_or_path,
            revision=revision,
            token=token,
            cache_folder=cache_folder,
            local_files_only=local_files_only,
        )
        return modules
