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
from transformers import AutoModel, AutoTokenizer

from hf_ext import _registration
from hf_ext.moe.modeling_moe import MoEForSequenceClassification
from tests.moe.models import mixture_of, saved_folder

# What runs before the folder is opened.
ORDERS = {
    "hf_ext, transformers": "import hf_ext; assert 'torch' not in sys.modules\nimport transformers",
    "transformers, hf_ext": "import transformers; transformers.AutoModelForSequenceClassification\nimport hf_ext",
    "torch, hf_ext": "import torch\nimport hf_ext",
    "AutoConfig used, hf_ext": "from transformers import AutoConfig\nAutoConfig.for_model('bert')\nimport hf_ext",
    "the model's own module": "from hf_ext.moe.modeling_moe import MoEForSequenceClassification",
}
OPEN = """
import inspect, torch
from transformers import AutoConfig, pipeline
from transformers.models.auto import configuration_auto
assert inspect.getsource(configuration_auto.AutoConfig.register)  # asks the module's own loader
assert type(AutoConfig.from_pretrained(folder)).__name__ == "MoEConfig"
classify = pipeline("text-classification", folder)
answers = [classify.model(embeddings=torch.tensor(rows)).logits.tolist(), classify(texts, top_k=None)]
print(json.dumps(answers))
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


def in_a_fresh_process(code: str, **values: Any) -> Any:
    """What the code prints last, as JSON."""
    assignments = [f"{name} = json.loads({json.dumps(value)!r})\n" for name, value in values.items()]
    program = "".join(["import json, sys\n", *assignments, code])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_folder(tmp_path_factory.mktemp("mixture"))


# A process takes seconds: `make test` has the four that differ most.
IN_MAKE_TEST = ORDERS.keys() - {"torch, hf_ext"}


@pytest.mark.parametrize(
    "order", [pytest.param(order, marks=[] if order in IN_MAKE_TEST else pytest.mark.slow) for order in ORDERS]
)
def test_a_stock_pipeline_gives_the_mixtures_own_probabilities_in_any_order_of_imports(
    order: str, folder: Path
) -> None:
    mixture = mixture_of("softmax", d=32)
    rows = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    texts = ["the red fox", "a lazy dog sleeps near the river and the"]
    values = {"folder": str(folder), "rows": rows.tolist(), "texts": texts}
    logits, answers = in_a_fresh_process(f"{ORDERS[order]}\n{OPEN}", **values)
    torch.testing.assert_close(torch.tensor(logits), mixture.predict(rows).float(), rtol=0, atol=1e-5)
    model = MoEForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text, answer in zip(texts, answers, strict=True):
        with torch.no_grad():
            features = model.features(**tokenizer(text, return_tensors="pt"))
        expected = mixture.predict(features)[0].exp()
        assert len(answer) == 4
        for entry in answer:
            assert entry["score"] == pytest.approx(float(expected[int(entry["label"].removeprefix("c"))]), abs=1e-5)


def test_the_folder_in_it_is_the_stock_encoder(folder: Path) -> None:
    encoder = AutoModel.from_pretrained(folder / "encoder")
    assert type(encoder).__module__ == "transformers.models.llama.modeling_llama"
    whole = MoEForSequenceClassification.from_pretrained(folder)
    for name, weight in encoder.state_dict().items():
        assert torch.equal(weight, whole.encoder.state_dict()[name])


@pytest.mark.slow
def test_the_hook_costs_at_most_8_ms() -> None:
    """Median of 11 processes: milliseconds of the processor for the hook's module and its `register`."""
    assert statistics.median(in_a_fresh_process(COST, path=_registration.__file__) for _ in range(11)) <= 8
