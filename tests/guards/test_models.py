"""A model's folder of odd shape is refused in a sentence that names the file, before a host library reads it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_ext.data.loading import check_model_name
from hf_ext.guards.models import ModelFilesError, check_model_folder, loading_model
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "m"
    tiny_model(len(tiny_tokenizer())).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def model(folder: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "m"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def edited(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return harm


def written(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def config(**values: Any) -> Callable[[Path], None]:
    return edited("config.json", lambda config: config.update(values))


def index(shard: object) -> Callable[[Path], object]:
    return written("model.safetensors.index.json", json.dumps({"weight_map": {"a": shard}}))


def piped(name: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return harm


def linked(folder: Path) -> None:
    (folder / "config.json").rename(folder.parent / "other.json")
    (folder / "config.json").symlink_to(folder.parent / "other.json")


HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "tokenizer is a list": (written("tokenizer.json", "[]"), r"tokenizer\.json holds a list"),
    "tokenizer is cut": (written("tokenizer.json", '{"model"'), r"tokenizer\.json is no JSON"),
    "tokenizer without model": (written("tokenizer.json", "{}"), r"tokenizer\.json holds no object 'model'"),
    "model of a tokenizer is a list": (edited("tokenizer.json", lambda t: t.update(model=[])), "no object 'model'"),
    "token of text": (edited("tokenizer.json", lambda t: t["model"]["vocab"].update(a="x")), "the number 'x'"),
    "token below 0": (edited("tokenizer.json", lambda t: t["model"]["vocab"].update(a=-1)), "the number -1"),
    "token far off": (edited("tokenizer.json", lambda t: t["model"]["vocab"].update(a=2**40)), r"the number 1,?0995"),
    "added tokens of text": (edited("tokenizer.json", lambda t: t.update(added_tokens="x")), "'added_tokens' must be"),
    "added token far off": (
        edited("tokenizer.json", lambda t: t.update(added_tokens=[{"id": 10**9, "content": "x"}])),
        "the number 1000000000",
    ),
    "tokenizer settings are a list": (written("tokenizer_config.json", "[1]"), r"tokenizer_config\.json holds a list"),
    "deep settings": (written("tokenizer_config.json", "[" * 10**5), "nested too deeply"),
    "config is a list": (written("config.json", "[]"), r"config\.json holds a list"),
    "config of bytes": (
        lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"),
        r"config\.json is no JSON",
    ),
    "wide": (config(hidden_size=10**9), "'hidden_size' is 1,000,000,000"),
    "wider than its weights": (config(hidden_size=10**6), "does not fit the weights beside it"),
    "many labels": (config(num_labels=10**9), "'num_labels' is 1,000,000,000"),
    "many layers": (config(num_hidden_layers=10**9), "'num_hidden_layers' is 1,000,000,000"),
    "many layers inside": (config(text_config={"num_hidden_layers": 10**9}), "'num_hidden_layers' is"),
    "many positions": (config(max_position_embeddings=10**12), "'max_position_embeddings' is"),
    "wide pooling": (
        lambda folder: [
            (folder / "1_Pooling").mkdir(),
            (folder / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 1000000000}'),
        ],
        "'word_embedding_dimension' is 1,000,000,000",
    ),
    "adapter of a high rank": (written("adapter_config.json", '{"r": 1000000000}'), "'r' is 1,000,000,000"),
    "many words": (config(vocab_size=10**8), "'vocab_size' 100,000,000 does not fit the weights"),
    "shard outside": (index("../x.safetensors"), r"index\.json names '\.\./x\.safetensors', which is no path inside"),
    "shard of the system": (index("/etc/hosts"), "which is no path inside"),
    "shard is a number": (index(3), "which is no path inside"),
    "index without map": (written("model.safetensors.index.json", "{}"), "no object 'weight_map'"),
    "module outside": (
        written("modules.json", json.dumps([{"type": "sentence_transformers.x", "path": "../x"}])),
        r"modules\.json names a module outside",
    ),
    "modules of text": (written("modules.json", '["x"]'), r"modules\.json must hold objects"),
    "pipe": (piped("tokenizer.json"), r"tokenizer\.json is a named pipe"),
    "pipe of weights": (piped("model.safetensors"), r"model\.safetensors is a named pipe"),
    "link": (linked, r"config\.json is a link that leads out of"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_folder_of_odd_shape_is_refused_by_the_name_of_its_file(model: Path, harm: str) -> None:
    change, problem = HARMS[harm]
    change(model)
    with pytest.raises(ModelFilesError, match=rf"^model '{model}' cannot be loaded: .*{problem}"):
        check_model_name(str(model))


READ_BY_THE_HOST: dict[str, Callable[[Path], object]] = {
    "code of its own": config(model_type="x", auto_map={"AutoConfig": "code.Config", "AutoModel": "code.Model"}),
    "tokenizer of its own code": edited(
        "tokenizer_config.json", lambda t: t.update(tokenizer_class="X", auto_map={"AutoTokenizer": ["code.X", None]})
    ),
    "vocabulary of lists": edited("tokenizer.json", lambda t: t["model"].update(vocab=[[1]])),
    "no kind of model": edited("tokenizer.json", lambda t: t["model"].update(type="Nonsense")),
    "normalizer of text": edited("tokenizer.json", lambda t: t.update(normalizer="x")),
    "special token of numbers": edited("tokenizer_config.json", lambda t: t.update(eos_token=7)),
    "no kind of architecture": config(model_type=7),
    "heads of text": config(num_attention_heads="x"),
    "cut weights": lambda folder: os.truncate(folder / "model.safetensors", 100),
}


def load(model: Path) -> None:
    check_model_name(str(model))
    with loading_model(model):
        AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        AutoModelForCausalLM.from_pretrained(model, trust_remote_code=False)


@pytest.mark.parametrize("harm", READ_BY_THE_HOST)
def test_what_a_host_library_meets_becomes_one_sentence_and_no_code_runs(model: Path, harm: str) -> None:
    READ_BY_THE_HOST[harm](model)
    (model / "code.py").write_text(f"import os\nos.mkdir({str(model.parent / 'marked')!r})\n")
    with pytest.raises(ModelFilesError, match=rf"^(model|tokenizer) '{model}' cannot be loaded: \w+: .") as info:
        load(model)
    assert "\n" not in str(info.value)
    assert not (model.parent / "marked").exists()


def test_a_good_folder_passes_and_an_interrupt_and_a_full_memory_pass_through(folder: Path) -> None:
    check_model_folder(folder)
    assert check_model_name(str(folder)) == str(folder)
    for error in (KeyboardInterrupt, MemoryError):
        with pytest.raises(error), loading_model(folder):
            raise error
    with pytest.raises(OSError, match="No space left"), loading_model(folder):
        raise OSError(28, "No space left on device")
