"""A nano model by the command on the page: pushed with its CORE, and opened by stock classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_ext.cli import main
from hf_ext.data.curation.packing import pack
from tests.evaluation.core.small_tasks import small_rows, write_tasks
from tests.hub.fake_hub import FakeHub
from tests.tiny import tiny_text_dataset, tiny_tokenizer
from tests.trainers.pretraining import TINY
from tests.trainers.runs import assert_same_weights

COMMAND = """
train pretraining --config pretraining/nano_1x --dataset_name shards --output_dir nano --core_data core_eval
--core_max_rows 2 --push_to_hub true --hub_model_id me/nano --sequence_length 32 --sequences_per_step 4
--per_device_train_batch_size 4 --max_steps 2 --warmup_steps 1 --save_steps 1 --use_cpu true --disable_tqdm true
"""


def test_a_nano_model_is_pushed_with_its_core_and_opened_by_stock_classes(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pack(tiny_text_dataset(40), tiny_tokenizer(), "shards", sequence_length=32)
    write_tasks(tmp_path / "core_eval", {label: small_rows(label, 3) for label in ("copa", "lambada_openai")})
    assert main([*COMMAND.split(), "--architecture", json.dumps(TINY)]) == 0
    local = AutoModelForCausalLM.from_pretrained("nano")
    assert_same_weights(AutoModelForCausalLM.from_pretrained("me/nano"), local)
    assert AutoTokenizer.from_pretrained("me/nano").get_vocab() == tiny_tokenizer().get_vocab()
    card = ModelCard.load("me/nano")
    assert "## DCLM CORE" in card.text
    assert "core2_v2" in card.text
    assert {"hf-ext", "pretraining"} <= set(card.data.tags)
    files = hub.files("me/nano")
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
