"""A saved folder opens after `import hf_ext`, in fresh processes, whatever was imported first."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_ext import _registration
from hf_ext.moe.modeling_moe import MoEForSequenceClassification
from tests.moe.models import mixture_of, saved_folder

# What runs before the folder is opened.
ORDERS = {
    "hf_ext, transformers": "import hf_ext; assert 'torch' not in sys.modules\nimport transformers",
    "transformers, hf_ext": "import transformers; transformers.AutoModelForSequenceClassification\nimport hf_ext",
    "torch, hf_ext": "import torch\nimport hf_ext",
    "the model's own module": "from hf_ext.moe.modeling_moe import MoEForSequenceClassification",
    "AutoConfig used, hf_ext": "from transformers import AutoConfig\nAutoConfig.for_model('bert')\nimport hf_ext",
}
OPEN = """
import inspect, torch
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.models.auto import configuration_auto
assert inspect.getsource(configuration_auto.AutoConfig.register)  # the table's own loader is asked
assert type(AutoConfig.from_pretrained(folder)).__name__ == "MoEConfig"
model = AutoModelForSequenceClassification.from_pretrained(folder)
print(json.dumps(model(embeddings=torch.tensor(rows)).logits.tolist()))
"""
OPEN_ENCODER = """
from transformers import AutoModel
encoder = AutoModel.from_pretrained(folder)
assert "hf_ext" not in sys.modules
print(json.dumps([type(encoder).__name__, float(encoder.embed_tokens.weight.sum())]))
"""
COST = """
import time, typing  # which `import hf_ext` has always needed
start = time.process_time()
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("registration", path)
module = module_from_spec(spec)
spec.loader.exec_module(module)
module.register()
print(json.dumps(1000 * (time.process_time() - start)))
"""
PIPELINE = """
import hf_ext
from transformers import pipeline
print(json.dumps(pipeline("text-classification", folder)(texts, top_k=None)))
"""


def in_a_fresh_process(code: str, **values: Any) -> Any:
    """What the code prints last, as JSON."""
    head = "import json, sys\n" + "".join(
        f"{name} = json.loads({json.dumps(value)!r})\n" for name, value in values.items()
    )
    done = subprocess.run([sys.executable, "-c", head + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_folder(tmp_path_factory.mktemp("mixture"))


@pytest.mark.parametrize("order", ORDERS)
def test_the_folder_opens_with_stock_classes_in_any_order_of_imports(order: str, folder: Path) -> None:
    parameters = mixture_of("softmax", d=32)
    rows = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    logits = in_a_fresh_process(f"{ORDERS[order]}\n{OPEN}", folder=str(folder), rows=rows.tolist())
    torch.testing.assert_close(torch.tensor(logits), parameters.predict(rows).float(), rtol=0, atol=1e-5)


def test_a_stock_pipeline_gives_the_mixtures_own_probabilities(folder: Path) -> None:
    texts = ["the red fox", "a lazy dog sleeps near the river and the"]
    answers = in_a_fresh_process(PIPELINE, folder=str(folder), texts=texts)
    from transformers import AutoTokenizer

    model = MoEForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text, answer in zip(texts, answers, strict=True):
        with torch.no_grad():
            features = model.features(**tokenizer(text, return_tensors="pt"))
        expected = mixture_of("softmax", d=32).predict(features)[0].exp()
        for entry in answer:
            assert entry["score"] == pytest.approx(float(expected[int(entry["label"][1:])]), abs=1e-5)


def test_without_hf_ext_the_encoders_folder_opens(folder: Path) -> None:
    name, total = in_a_fresh_process(OPEN_ENCODER, folder=str(folder / "encoder"))
    model = MoEForSequenceClassification.from_pretrained(folder)
    assert name == "LlamaModel"
    assert total == float(model.encoder.embed_tokens.weight.sum())


@pytest.mark.slow
def test_the_hook_costs_at_most_8_ms() -> None:
    """Median of 11 processes: milliseconds of the processor for the hook's module and its `register`."""
    assert statistics.median(in_a_fresh_process(COST, path=_registration.__file__) for _ in range(11)) <= 8
