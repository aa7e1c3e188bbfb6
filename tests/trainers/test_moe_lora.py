"""LoRA experts by EM: E-step, M-step, routing and interruptions, each against stock parts and plain formulas."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import TrainerCallback, set_seed

from hf_ext.cli import main
from hf_ext.guards.extras import MissingExtraError
from hf_ext.guards.models import ModelFilesError
from hf_ext.guards.rows import RowError
from hf_ext.moe.gate import PromptGate
from hf_ext.moe.lora import LoraMixture, with_experts
from hf_ext.rounds import lora_mixture
from hf_ext.rounds.lora_mixture import LoraMixtureTrainer
from hf_ext.trainers.moe_lora import LoraMixtureConfig
from hf_ext.trainers.weighted_sft.config import WeightedSFTConfig
from hf_ext.trainers.weighted_sft.trainer import WeightedSFTTrainer
from tests.forks import forked
from tests.tiny import tiny_model, tiny_prompt_completion_dataset
from tests.trainers.runs import TOKENIZER, config_of

RATE = 0.5


def rows_of_two_kinds(n: int = 12) -> Dataset:
    """Prompts that begin in two ways, so that they fall into two clusters of unequal size."""
    kinds = ("ADA BEN CHEN: ", "how many? ")
    return tiny_prompt_completion_dataset(n).map(
        lambda row, i: {"prompt": kinds[i % 3 > 0] + row["prompt"]}, with_indices=True
    )


def adapter(**changes) -> LoraConfig:
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    return LoraConfig(**(settings | changes))


def config(folder: Path, **changes) -> LoraMixtureConfig:
    """One step of SGD a round and adapter on all its rows, without clipping: it can be computed by hand."""
    settings = {"num_experts": 2, "rounds": 2, "max_steps": 1, "learning_rate": RATE, "max_grad_norm": 0.0}
    settings |= {"per_device_train_batch_size": 12, "e_step_temperature": 2.0}
    return config_of(LoraMixtureConfig, folder, **(settings | changes))


def mixture_trainer(folder: Path, *, rows: Dataset | None = None, **changes) -> LoraMixtureTrainer:
    kwargs = changes.pop("kwargs", {"peft_config": adapter()})
    rows = rows_of_two_kinds() if rows is None else rows
    model = changes.pop("model", None)
    model = tiny_model(TOKENIZER) if model is None else model
    return LoraMixtureTrainer(model, config(folder, **changes), rows, processing_class=TOKENIZER, **kwargs)


def tokens_of(row: dict) -> tuple[list[int], list[int]]:
    """Prompt and completion as stock SFT tokenises them."""
    prompt = TOKENIZER(row["prompt"])["input_ids"]
    both = TOKENIZER(row["prompt"] + row["completion"])["input_ids"] + [TOKENIZER.eos_token_id]
    return prompt, both[len(prompt) :]


def nll_of(model, row: dict) -> torch.Tensor:
    """Nats of a row's completion, by stock cross entropy, a row at a time."""
    prompt, completion = tokens_of(row)
    ids = torch.tensor([(prompt + completion)[:64]])
    labels = ids.clone()
    labels[:, : len(prompt)] = -100
    logits = model(input_ids=ids).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum")


def num_tokens(row: dict) -> int:
    prompt, completion = tokens_of(row)
    return min(len(prompt) + len(completion), 64) - len(prompt)


def responsibilities(folder: Path, number: int) -> torch.Tensor:
    return load_file(folder / f"round-{number:03d}" / "responsibilities.safetensors")["responsibilities"]


def adapter_of(folder: Path, number: int, expert: int) -> Path:
    return folder / f"round-{number:03d}" / f"expert_{expert}" / "adapter"


def result_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the saved mixture."""
    files = sorted([*folder.glob("expert_*/*.safetensors"), *folder.glob("gate/*.safetensors")])
    assert len(files) > 1
    return {f"{file.parent.name}/{name}": value for file in files for name, value in load_file(file).items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Folder of a run of two rounds, with held-out rows."""
    folder = tmp_path_factory.mktemp("moe_lora") / "out"
    kwargs = {"peft_config": adapter(), "eval_dataset": rows_of_two_kinds(6)}
    mixture_trainer(folder, kwargs=kwargs).train()
    return folder


def test_responsibilities_are_those_of_a_plain_loop_of_stock_cross_entropy(finished):
    rows = rows_of_two_kinds()
    gate = load_file(finished / "round-001" / "gate" / "gate.safetensors")
    joint = torch.zeros(12, 2).double()
    for expert in range(2):
        model = PeftModel.from_pretrained(tiny_model(TOKENIZER), adapter_of(finished, 1, expert)).eval()
        with torch.no_grad():
            nats = torch.stack([nll_of(model, row) for row in rows]).double()
            joint[:, expert] = -nats / (2.0 * torch.tensor([num_tokens(row) for row in rows]))
    body = tiny_model(TOKENIZER).model
    with torch.no_grad():
        embeddings = [body(torch.tensor([tokens_of(row)[0]])).last_hidden_state[0].mean(0) for row in rows]
    features = (torch.stack(embeddings).double() - gate["mean"]) / gate["scale"]
    log_gate = (features @ gate["weight"][:, :-1].T + gate["weight"][:, -1]).log_softmax(-1)
    expected = (log_gate + joint).softmax(-1)
    torch.testing.assert_close(responsibilities(finished, 2), expected, atol=1e-5, rtol=0)
    assert float(expected.min(1).values.max()) > 0.01  # some row is shared, so that the comparison means something


@pytest.mark.parametrize("expert", [0, 1])
def test_an_adapter_s_step_is_the_gradient_of_the_responsibility_weighted_loss(finished, expert):
    """Round 2, whose weights are fractions: sum of r x nats over tokens, by autograd on a stock model."""
    rows = rows_of_two_kinds()
    weight = responsibilities(finished, 2)[:, expert]
    own = [i for i in range(12) if weight[i] >= 1e-3]
    start = PeftModel.from_pretrained(tiny_model(TOKENIZER), adapter_of(finished, 1, expert), is_trainable=True)
    loss = sum(float(weight[i]) * nll_of(start, rows[i]) for i in own) / sum(num_tokens(rows[i]) for i in own)
    loss.backward()
    after = load_file(adapter_of(finished, 2, expert) / "adapter_model.safetensors")
    steps = {name: value for name, value in start.named_parameters() if value.grad is not None}
    assert len(steps) == len(after) == 8
    for name, value in steps.items():
        expected = value.detach() - RATE * value.grad
        torch.testing.assert_close(after[name.replace(".default", "")], expected, atol=2e-6, rtol=1e-4)
    assert any(float(value.grad.abs().max()) > 1e-4 for value in steps.values())


def test_the_losses_of_the_table_are_those_of_the_mixture(finished):
    """`-log sum_i g_i exp(-nats_i)` over tokens, of held-out rows under the adapters and the gate of round 2."""
    rows = rows_of_two_kinds(6)
    mixture = LoraMixture(
        with_experts(tiny_model(TOKENIZER), [adapter_of(finished, 2, i) for i in range(2)]),
        PromptGate.load(finished / "round-002" / "gate"),
    )
    total = routed = 0.0
    for row in rows:
        g = mixture.gate_probabilities(torch.tensor([tokens_of(row)[0]]))[0]
        nats = torch.zeros(2).double()
        for expert in range(2):
            mixture.model.set_adapter(f"expert_{expert}")
            with torch.no_grad():
                nats[expert] = nll_of(mixture.model, row)
        total -= float((g.log() - nats).logsumexp(0))
        routed += float(nats[g.argmax()])
    figures = json.loads((finished / "round-003" / "responsibilities.json").read_text())
    tokens = sum(num_tokens(row) for row in rows)
    assert figures["eval_nll"] == pytest.approx(total / tokens, abs=1e-5)
    assert figures["eval_routed_nll"] == pytest.approx(routed / tokens, abs=1e-5)
    assert f"{figures['eval_nll']:.4f}" in (finished / "rounds.md").read_text()


def test_one_expert_is_weighted_sft_with_a_lora_adapter(tmp_path):
    changes = {"per_device_train_batch_size": 4, "max_steps": 3, "optim": "adamw_torch", "learning_rate": 0.01}
    mixture = mixture_trainer(tmp_path / "one", num_experts=1, rounds=1, **changes).train()
    args = config_of(WeightedSFTConfig, tmp_path / "plain", max_grad_norm=0.0, **changes)
    set_seed(args.seed)
    model = get_peft_model(tiny_model(TOKENIZER), adapter())
    WeightedSFTTrainer(model, args, train_dataset=rows_of_two_kinds(), processing_class=TOKENIZER).train()
    plain = {name.replace(".default", ""): value for name, value in model.named_parameters() if "lora" in name}
    saved = load_file(tmp_path / "one" / "expert_0" / "adapter_model.safetensors")
    assert plain.keys() == saved.keys()
    for name, value in plain.items():
        torch.testing.assert_close(saved[name], value, atol=1e-6, rtol=1e-5)
    assert mixture.gate_probabilities(torch.tensor([[5, 6]])).tolist() == [[1.0]]


# --- the folder and what it generates --------------------------------------------------------------------------------


def test_the_folder_holds_stock_adapters_a_gate_and_a_card_and_no_pickle(finished):
    base = tiny_model(TOKENIZER)
    ids = torch.tensor([[7, 8, 9, 10]])
    mixture = LoraMixture.from_pretrained(finished, base_model=tiny_model(TOKENIZER))
    for expert in range(2):
        alone = PeftModel.from_pretrained(base, finished / f"expert_{expert}").eval()
        mixture.model.set_adapter(f"expert_{expert}")
        assert torch.equal(alone(ids).logits, mixture.model(ids).logits)
        base = alone.unload()
    assert "LoraMixture.from_pretrained" in (finished / "README.md").read_text()
    assert not [file for file in finished.rglob("*") if file.suffix in (".bin", ".pt", ".pkl", ".pth")]


def test_the_card_is_rendered_again_from_the_folder(finished, tmp_path):
    for name in ("expert_0", "expert_1", "gate"):
        shutil.copytree(finished / name, tmp_path / name)
    shutil.copy(finished / "README.md", tmp_path)
    assert main(["card", "render", str(tmp_path), "--name", "me/experts"]) == 0
    text = (tmp_path / "README.md").read_text()
    assert 'LoraMixture.from_pretrained("me/experts")' in text
    assert "| `num_experts` | 2 |" in text
    assert "pipeline(" not in text


@pytest.fixture
def opposite(tmp_path) -> LoraMixture:
    """Two adapters that differ widely, and a gate on the sign of the embeddings' first entry."""
    base = tiny_model(TOKENIZER)
    for seed in range(2):
        torch.manual_seed(seed)
        model = get_peft_model(base, adapter(init_lora_weights=False, lora_alpha=40))
        model.save_pretrained(tmp_path / f"expert_{seed}")
        base = model.unload()
    weight = torch.zeros(2, 33).double()
    weight[1, 0] = 9.0
    gate = PromptGate(weight, torch.zeros(32).double(), torch.ones(32).double())
    gate.save(tmp_path / "gate")
    return LoraMixture(with_experts(base, [tmp_path / "expert_0", tmp_path / "expert_1"]), gate)


def test_generating_a_batch_is_generating_each_row_with_its_adapter_alone(opposite):
    texts = ["Ada counts apples", "on the hill", "Ben", "Emil buys 7 hats near the old mill", "by the river."]
    inputs = [TOKENIZER(text)["input_ids"] for text in texts]
    width = max(map(len, inputs))
    ids = torch.tensor([[TOKENIZER.pad_token_id] * (width - len(row)) + row for row in inputs])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in inputs])
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": TOKENIZER.pad_token_id}
    experts = opposite.gate_probabilities(ids, mask).argmax(1).tolist()
    assert set(experts) == {0, 1}
    together = opposite.generate(ids, mask, **settings)
    for place, (row, expert) in enumerate(zip(inputs, experts, strict=True)):
        prompt = torch.tensor([row])
        embedding = tiny_model(TOKENIZER).model(prompt).last_hidden_state[0].mean(0)
        assert expert == int(embedding[0] > 0)
        outputs = []
        for name in ("expert_0", "expert_1"):
            opposite.model.set_adapter(name)
            outputs.append(opposite.model.generate(input_ids=prompt, **settings)[0, len(row) :].tolist())
        length = len(outputs[expert])
        assert together[place, width : width + length].tolist() == outputs[expert]


def test_adapters_of_different_base_models_are_refused_by_name(opposite, tmp_path):
    for number, base in enumerate(("org/one", "org/other")):
        file = tmp_path / f"expert_{number}" / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))
    with pytest.raises(ModelFilesError, match="expert_1 was trained on 'org/other', and expert_0 on 'org/one'"):
        LoraMixture.from_pretrained(tmp_path)


def test_a_base_model_of_another_width_is_refused(opposite, tmp_path):
    with pytest.raises(ModelFilesError, match="the gate reads 32 features, and the base model has 16"):
        LoraMixture.from_pretrained(tmp_path, base_model=tiny_model(TOKENIZER, width=16))


# --- interrupted and begun otherwise ---------------------------------------------------------------------------------


class KillAt(TrainerCallback):
    """Ends the process by SIGKILL at a step of all trainings together."""

    left = 0

    def on_step_end(self, args, state, control, **kwargs):
        KillAt.left -= 1
        if KillAt.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_run_killed_inside_a_round_ends_in_the_same_bits(tmp_path, monkeypatch):
    changes = {"max_steps": 2, "per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 1}
    changes |= {"rounds": 2, "optim": "adamw_torch", "learning_rate": 0.01}
    peft = {"peft_config": adapter(lora_dropout=0.2)}
    mixture_trainer(tmp_path / "whole", kwargs=peft, **changes).train()

    def killed() -> None:
        KillAt.left = 6  # of eight: round 2, the last step of the first adapter, whose checkpoint is not there
        host = WeightedSFTTrainer.__init__
        monkeypatch.setattr(
            WeightedSFTTrainer, "__init__", lambda self, *a, **kw: host(self, *a, callbacks=[KillAt()], **kw)
        )
        mixture_trainer(tmp_path / "killed", kwargs=peft, **changes).train()

    child = forked(killed)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "expert_0").exists()
    assert (adapter_of(tmp_path / "killed", 1, 1) / "adapter_model.safetensors").is_file()
    mixture_trainer(tmp_path / "killed", kwargs=peft, **changes).train()
    assert_same(result_of(tmp_path / "whole"), result_of(tmp_path / "killed"))


def test_a_finished_run_is_not_trained_again_and_grows_by_a_round(finished, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    runs = []
    host = LoraMixtureTrainer._run_sft
    monkeypatch.setattr(LoraMixtureTrainer, "_run_sft", lambda self, *a: runs.append(a[-1]) or host(self, *a))
    kwargs = {"peft_config": adapter(), "eval_dataset": rows_of_two_kinds(6)}
    mixture_trainer(folder, kwargs=kwargs).train()
    assert runs == []
    assert_same(result_of(finished), result_of(folder))
    mixture_trainer(folder, kwargs=kwargs, rounds=3).train()
    assert {path.parents[1].name for path in runs} == {"round-003"}


def test_a_run_begun_with_other_settings_rows_or_model_is_refused_by_name(finished):
    former = result_of(finished)
    kwargs = {"peft_config": adapter(), "eval_dataset": rows_of_two_kinds(6)}
    for changes, words in (
        ({"num_experts": 3}, "num_experts was 2, is 3"),
        ({"gate_ridge": 1.0}, "gate_ridge was 0.1, is 1.0"),
        ({"kwargs": kwargs | {"peft_config": adapter(r=3)}}, r"peft_config\.r was 2, is 3"),
        ({"rows": rows_of_two_kinds(11)}, "other training rows"),
        ({"model": tiny_model(TOKENIZER, seed=1)}, r"model\.initial_weights was"),
    ):
        with pytest.raises(ValueError, match=words):
            mixture_trainer(finished, **({"kwargs": kwargs} | changes)).train()
    assert_same(former, result_of(finished))


def test_responsibility_in_one_expert_is_warned_of_and_the_other_stays_as_it_was(tmp_path, monkeypatch, caplog):
    everything_first = torch.tensor([[1.0, 0.0]]).double().repeat(12, 1)
    monkeypatch.setattr(lora_mixture, "prompt_clusters", lambda *args: everything_first)
    mixture_trainer(tmp_path, rounds=1).train()
    assert "expert_0 has 100.0 % of the responsibility" in caplog.text
    assert "expert_1 has no row in round 1" in caplog.text
    start, end = (load_file(adapter_of(tmp_path, number, 1) / "adapter_model.safetensors") for number in (0, 1))
    assert_same(start, end)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_experts": 0}, "num_experts must be a whole number, at least 1"),
        ({"rounds": 0}, "rounds must be"),
        ({"e_step_temperature": 0.0}, "e_step_temperature must be a finite number above 0"),
        ({"gate_ridge": float("nan")}, "gate_ridge must be"),
        ({"normalize": "weights"}, "leave it at 'tokens'"),
        ({"packing": True}, "does not take packing"),
        ({"completion_only_loss": False}, "does not take completion_only_loss=False"),
        ({"eval_strategy": "epoch"}, "does not take eval_strategy"),
        ({"kwargs": {"peft_config": adapter(use_dora=True)}}, "use_dora=True does not go with"),
    ],
)
def test_a_setting_that_cannot_be_honoured_is_refused(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        mixture_trainer(tmp_path, **changes)


def with_row(**cells) -> Dataset:
    """Good rows, and the fourth with other cells."""
    rows = rows_of_two_kinds().to_list()
    rows[3] |= cells
    return Dataset.from_list(rows)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (with_row(prompt=""), "row 3, column 'prompt': it has no token, and the gate routes a row by its prompt"),
        (with_row(prompt=None), "row 3, column 'prompt'"),
        (with_row(completion=""), "row 3, column 'completion'"),
        (with_row(prompt="Ada counts 7 hats. " * 40), "row 3, .*no supervised token is left of .* truncation to 64"),
    ],
)
def test_a_row_without_a_prompt_or_too_long_is_named(tmp_path, rows, words):
    with pytest.raises(RowError, match=words):
        mixture_trainer(tmp_path, rows=rows)


def test_bad_rows_may_be_dropped_into_a_file(tmp_path):
    trainer = mixture_trainer(tmp_path, rows=with_row(prompt=""), on_bad_row="drop")
    assert trainer.rows["__hf_ext_row__"][:] == [0, 1, 2, *range(4, 12)]
    assert json.loads((tmp_path / "bad_rows.jsonl").read_text())["row_index"] == 3


def test_rows_with_weights_or_without_the_columns_and_a_model_with_adapters_are_refused(tmp_path):
    rows = rows_of_two_kinds()
    for wrong, words in (
        (rows.add_column("weight", [1.0] * 12), "fills that column itself"),
        (rows.rename_column("prompt", "question"), "has no column 'prompt'"),
    ):
        with pytest.raises(ValueError, match=words):
            mixture_trainer(tmp_path, rows=wrong)
    with pytest.raises(TypeError, match="needs a Dataset, got IterableDataset"):
        mixture_trainer(tmp_path, rows=rows.to_iterable_dataset())
    with pytest.raises(ValueError, match="does not take a PeftModel"):
        mixture_trainer(tmp_path, model=get_peft_model(tiny_model(TOKENIZER), adapter()))
    with pytest.raises(ValueError, match="have only 2 different prompts"):
        mixture_trainer(
            tmp_path / "alike", rows=Dataset.from_dict({"prompt": ["a", "b"] * 3, "completion": ["c d e"] * 6}),
            num_experts=3,
        ).train()  # fmt: skip


def test_without_peft_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_ext.guards.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"hf-ext\[peft\]"):
        mixture_trainer(tmp_path)
