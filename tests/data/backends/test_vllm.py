"""vLLM in this process, where it is not installed: against a module that has its names, and an engine of the tests."""

from __future__ import annotations

import inspect
import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import pytest

from hf_ext import BackendError, VLLMBackend
from hf_ext.data.backends.choice import sampling_backend
from hf_ext.data.backends.protocol import RowRequest
from hf_ext.data.context_free import generate_context_free
from tests.data.backends.engines import PlainEngine, top_k
from tests.data.symbol_models import BOS, symbol_model, symbol_tokenizer, teacher_forced_logps


@pytest.fixture
def module(monkeypatch):
    """`vllm` with the two names that are used, as of its version 0.22; what they are given is kept."""
    model = symbol_model(64)
    module = ModuleType("vllm")
    module.__version__ = "0.22.0"
    module.engine = PlainEngine(model)
    module.reads = list
    module.model = model

    class SamplingParams:
        def __init__(
            self, n=1, presence_penalty=0.0, frequency_penalty=0.0, repetition_penalty=1.0, temperature=1.0, top_p=1.0,
            top_k=0, min_p=0.0, seed=None, stop=None, stop_token_ids=None, ignore_eos=False, max_tokens=16,
            min_tokens=0, logprobs=None, prompt_logprobs=None, detokenize=True, skip_special_tokens=True,
        ):  # fmt: skip
            vars(self).update({name: value for name, value in locals().items() if name != "self"})

    class LLM:
        def __init__(self, model, **arguments):
            module.arguments = {"model": model} | arguments

        def generate(self, prompts, sampling_params, use_tqdm=True):
            module.parameters = sampling_params
            rows = [
                RowRequest(tuple(prompt["prompt_token_ids"]), params.max_tokens, params.seed)
                for prompt, params in zip(prompts, sampling_params, strict=True)
            ]
            first = sampling_params[0]
            sampled = module.engine.sample(rows, first.temperature, first.stop_token_ids)
            return [
                SimpleNamespace(
                    prompt_token_ids=module.reads(row.prompt),
                    outputs=[
                        SimpleNamespace(
                            token_ids=list(answer.ids),
                            logprobs=[
                                {token: SimpleNamespace(logprob=logp)}
                                for token, logp in zip(answer.ids, answer.logps, strict=True)
                            ],
                        )
                    ],
                )
                for row, answer in zip(rows, sampled, strict=True)
            ]

    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def generate(folder, module, backend):
    return generate_context_free(
        module.model, symbol_tokenizer(64), 200, output_dir=folder, max_new_tokens=12, batch_size=4, backend=backend,
        show_progress=False,
    )  # fmt: skip


def test_rows_come_from_it_and_nothing_from_the_generation_config(tmp_path, module):
    backend = sampling_backend("vllm", module.model, "folder", revision="abc")
    assert module.arguments["model"] == "folder"
    assert module.arguments["generation_config"] == "vllm"
    assert module.arguments["revision"] == "abc"
    store = generate(tmp_path, module, backend)
    for row in store.to_dataset():
        expected = teacher_forced_logps(module.model, row["input_ids"])
        assert row["sampled_logps"][1:] == pytest.approx(expected.tolist(), abs=1e-4)
    assert store.manifest["shards"][0]["backend"] == {"name": "vllm", "vllm": "0.22.0"}
    plain = module.SamplingParams()
    filters = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
               "frequency_penalty", "min_tokens", "ignore_eos", "stop", "n")  # fmt: skip
    for params in module.parameters:
        assert {name: getattr(params, name) for name in filters} == {name: getattr(plain, name) for name in filters}
    assert len({params.seed for params in module.parameters}) == len(module.parameters)
    backend.close()


def test_other_ids_read_a_failure_and_a_filter_are_named(tmp_path, module):
    module.reads = lambda prompt: [BOS, *prompt]
    with pytest.raises(BackendError, match=r"vLLM, row 0: it read the ids \[0, 0\].*beginning token"):
        generate(tmp_path / "doubled", module, VLLMBackend("folder"))
    module.reads = list
    module.engine = PlainEngine(module.model, change=top_k(10))
    with pytest.raises(BackendError, match="The backend vllm is refused"):
        generate(tmp_path / "filtered", module, VLLMBackend("folder"))
    module.engine = SimpleNamespace(sample=lambda *_: 1 / 0)
    with pytest.raises(BackendError, match=r"could not sample 64 rows \(ZeroDivisionError.*intact"):
        generate(tmp_path / "broken", module, VLLMBackend("folder"))


def test_where_it_is_missing_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"pip install vllm.*'completions'"):
        VLLMBackend("folder")


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_the_names_are_those_of_the_installed_one():
    import vllm

    names = inspect.signature(vllm.SamplingParams).parameters
    assert {"n", "temperature", "top_k", "min_p", "repetition_penalty", "stop_token_ids", "detokenize"} <= set(names)
