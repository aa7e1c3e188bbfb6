"""A trainer's push: the stock classes load it back without a pickle; what belongs to the owner stays here."""

from __future__ import annotations

import json
import pickle
import zipfile
from concurrent.futures import Future
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_ext.data.context_free import generate_context_free
from hf_ext.hub.push import PushError
from hf_ext.recipes.weighted_sft.train import RECIPE
from hf_ext.trainers.context_free.config import ContextFreeSFTConfig
from hf_ext.trainers.context_free.trainer import ContextFreeSFTTrainer
from hf_ext.trainers.flow.config import FlowSFTConfig
from hf_ext.trainers.flow.trainer import FlowSFTTrainer
from hf_ext.trainers.infopo.config import InfoPOConfig, InfoPOUnpairedConfig
from hf_ext.trainers.infopo.trainer import InfoPOTrainer
from hf_ext.trainers.infopo.unpaired import InfoPOUnpairedTrainer
from hf_ext.trainers.weighted_sft.config import WeightedSFTConfig
from hf_ext.trainers.weighted_sft.trainer import WeightedSFTTrainer
from tests.hub.fake_hub import FOR_EVER, FakeHub, Repo
from tests.tiny import tiny_model, tiny_sentences, tiny_text_dataset
from tests.trainers.preference import pairs, singles
from tests.trainers.runs import TOKENIZER, assert_same_weights, build, config_of

TRAINERS = {
    "weighted_sft": (WeightedSFTTrainer, WeightedSFTConfig),
    "flow": (FlowSFTTrainer, FlowSFTConfig),
    "context_free": (ContextFreeSFTTrainer, ContextFreeSFTConfig),
    "infopo": (InfoPOTrainer, InfoPOConfig),
    "infopo_unpaired": (InfoPOUnpairedTrainer, InfoPOUnpairedConfig),
}
ROWS = {"infopo": pairs, "infopo_unpaired": singles}


def trainer_for(hub: FakeHub, folder: Path, method: str = "weighted_sft", **kwargs: Any) -> Any:
    trainer_class, config_class = TRAINERS[method]
    extra = {"peft_config": kwargs.pop("peft_config")} if "peft_config" in kwargs else {}
    model = tiny_model(TOKENIZER)
    if method == "context_free":
        extra["context_free_dataset"] = generate_context_free(
            model, TOKENIZER, 40, output_dir=folder / "context_free", max_new_tokens=8, show_progress=False
        )
    if method in ROWS and "peft_config" not in extra:
        extra["ref_model"] = tiny_model(TOKENIZER)
    args = config_of(config_class, folder, **{"max_steps": 1, "hub_model_id": "me/tiny", **kwargs})
    return build(trainer_class, args, ROWS.get(method, tiny_text_dataset)(8), model=model, **extra)


def looks_pickled(name: str, content: bytes) -> bool:
    """Independent of the code under test: torch's archives by their members, pickles by their first and last byte."""
    if name.endswith((".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")):
        return True
    if content[:2] == b"PK" and zipfile.is_zipfile(BytesIO(content)):
        return any(member.endswith(".pkl") for member in zipfile.ZipFile(BytesIO(content)).namelist())
    return content[:1] == b"\x80" and content[1:2] in b"\x02\x03\x04\x05" and content.rstrip()[-1:] == b"."


def assert_no_pickle_was_ever_pushed(repo: Repo) -> None:
    commits = [commit for log in repo.refs.values() for commit in log]
    assert commits
    found = {name for commit in commits for name, content in commit.files.items() if looks_pickled(name, content)}
    assert not found


@pytest.fixture
def no_code_from_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpickling, and importing a module that came with a model, fail."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a pickle was loaded, or code that came with a model was imported")

    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(owner, name, refuse)
    for name in ("get_class_in_module", "get_cached_module_file", "get_class_from_dynamic_module"):
        monkeypatch.setattr(f"transformers.dynamic_module_utils.{name}", refuse)


@pytest.mark.parametrize("method", TRAINERS)
def test_stock_classes_load_what_a_trainer_pushed(
    hub: FakeHub, tmp_path: Path, method: str, request: pytest.FixtureRequest
) -> None:
    trainer = trainer_for(hub, tmp_path / "out", method)
    trainer.train()
    info = trainer.push_to_hub(dataset_name="me/rows")
    assert info.oid == hub.repo("me/tiny").find("main").oid
    assert hub.titles("me/tiny") == ["End of training"]
    assert_no_pickle_was_ever_pushed(hub.repo("me/tiny"))
    request.getfixturevalue("no_code_from_files")
    assert_same_weights(AutoModelForCausalLM.from_pretrained("me/tiny", dtype="float32"), trainer.model)
    assert AutoTokenizer.from_pretrained("me/tiny").get_vocab() == TOKENIZER.get_vocab()
    card = ModelCard.load("me/tiny")
    assert method in card.data.tags
    assert card.data.datasets == "me/rows"
    assert 'model="me/tiny"' in card.text
    assert str(tmp_path) not in str(card)


def test_an_adapter_is_pushed_and_loaded_by_peft(hub: FakeHub, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    config = LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)
    trainer = trainer_for(hub, tmp_path / "out", peft_config=config)
    trainer.train()
    trainer.push_to_hub()
    assert "adapter_model.safetensors" in hub.files("me/tiny")
    assert "model.safetensors" not in hub.files("me/tiny")
    assert_no_pickle_was_ever_pushed(hub.repo("me/tiny"))
    request.getfixturevalue("no_code_from_files")
    loaded = PeftModel.from_pretrained(tiny_model(TOKENIZER), "me/tiny").eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    ours = trainer.model.eval()
    torch.testing.assert_close(loaded(ids).logits, ours(ids).logits, atol=1e-6, rtol=0)
    with ours.disable_adapter():
        assert not torch.allclose(loaded(ids).logits, ours(ids).logits, atol=1e-4)


def test_what_belongs_to_the_owner_stays(hub: FakeHub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    trainer = trainer_for(hub, out, "context_free")
    assert (out / "context_free" / "shard-00000.arrow").exists()
    (out / "bad_rows.jsonl").write_text('{"row": "a secret"}\n')
    for name in ("report/fresh_samples/half.arrow", "report/forgetting.json", "checkpoint-1/model.safetensors"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("{}")
    (out / "renamed.txt").write_bytes(pickle.dumps({"a": 1}))
    trainer.push_to_hub()
    pushed = set(hub.files("me/tiny"))
    assert {"model.safetensors", "config.json", "README.md", "report/forgetting.json"} <= pushed
    assert {name.split("/")[0] for name in pushed}.isdisjoint({"context_free", "checkpoint-1", "bad_rows.jsonl"})
    assert "report/fresh_samples/half.arrow" not in pushed
    assert "renamed.txt" not in pushed
    assert not [name for name, content in hub.files("me/tiny").items() if str(tmp_path).encode() in content]


def test_the_cache_of_losses_under_the_original_model_stays(hub: FakeHub, tmp_path: Path) -> None:
    trainer = trainer_for(hub, tmp_path / "out", "flow")
    trainer.train()
    assert any((tmp_path / "out" / "original_losses").rglob("*"))
    trainer.push_to_hub()
    assert not [name for name in hub.files("me/tiny") if name.startswith("original_losses")]


def test_arguments_of_a_push_are_passed_on(hub: FakeHub, tmp_path: Path) -> None:
    trainer = trainer_for(hub, tmp_path / "out", hub_model_id="tiny")
    job = trainer.push_to_hub("mine", blocking=False, private=True, revision="dev", tags="extra")
    assert isinstance(job, Future)
    assert job.result(timeout=60).commit_message == "mine"
    assert trainer.hub_model_id == "me/tiny"
    assert hub.repo("me/tiny").private
    assert hub.titles("me/tiny", revision="dev") == ["mine"]
    assert b"- extra" in hub.files("me/tiny", revision="dev")["README.md"]
    assert trainer.push_to_hub(create_pr=True).pr_num == 1
    with pytest.raises(PushError, match="401"):
        trainer.push_to_hub(token="hf_wrong")


def test_what_somebody_wrote_into_the_card_on_the_hub_stays(hub: FakeHub, tmp_path: Path) -> None:
    trainer = trainer_for(hub, tmp_path / "out")
    trainer.push_to_hub("first")
    repo = hub.repo("me/tiny")
    head = repo.find("main")
    assert head is not None
    card = head.files["README.md"].replace(b"license: unknown", b"license: mit") + b"\n## My notes\n\nRead them.\n"
    repo.commit("main", "somebody", head.files | {"README.md": card}, head)
    trainer.push_to_hub("second", tags="extra")
    text = hub.files("me/tiny")["README.md"].decode()
    assert "- extra" in text
    assert "license: mit" in text
    assert "## My notes\n\nRead them." in text


@pytest.mark.parametrize("strategy", ["end", "every_save", "all_checkpoints"])
def test_a_private_model_is_never_pushed_to_a_public_repository(hub: FakeHub, tmp_path: Path, strategy: str) -> None:
    hub.make_repo("me/tiny")
    settings = {"hub_private_repo": True, "push_to_hub": True, "hub_strategy": strategy}
    with pytest.raises(PushError, match="model me/tiny was not pushed: the repository is public"):
        trainer_for(hub, tmp_path / "out", **settings)  # before training, not after it
    trainer = trainer_for(hub, tmp_path / "out")
    trainer.push_to_hub()
    with pytest.raises(PushError, match="the repository is public"):
        trainer.push_to_hub("again", private=True)
    assert hub.titles("me/tiny") == ["End of training"]


@pytest.mark.parametrize(("route", "kind"), [("create", 401), ("commit", 503)])
def test_a_failed_push_leaves_the_saved_model_and_says_where(
    hub: FakeHub, tmp_path: Path, route: str, kind: int
) -> None:
    trainer = trainer_for(hub, tmp_path / "out")
    trainer.train()
    hub.fail(route, kind, FOR_EVER)
    with pytest.raises(PushError, match="your files are in") as error:
        trainer.push_to_hub()
    assert str((tmp_path / "out").resolve()) in str(error.value)
    assert_same_weights(AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="float32"), trainer.model)


def test_saving_pushes_where_the_host_would(hub: FakeHub, tmp_path: Path) -> None:
    trainer = trainer_for(hub, tmp_path / "out", push_to_hub=True)
    assert hub.count("create") == 1
    trainer.save_model()
    assert hub.titles("me/tiny") == ["Model save"]
    assert b"me/tiny" in hub.files("me/tiny")["README.md"]
    trainer.save_model(_internal_call=True)
    assert hub.titles("me/tiny") == ["Model save"]


def test_a_hub_that_refuses_stops_the_run_before_training(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(PushError, match="hf auth login"):
        trainer_for(hub, tmp_path / "out", push_to_hub=True, hub_token="hf_wrong")


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_pushes_beside_training_hold_no_state_to_resume_from(hub: FakeHub, tmp_path: Path, strategy: str) -> None:
    trainer = trainer_for(
        hub, tmp_path / "out", push_to_hub=True, hub_strategy=strategy, hub_always_push=True, max_steps=2,
        save_strategy="steps", save_steps=1, save_total_limit=1,
    )  # fmt: skip
    trainer.train()
    files = hub.files("me/tiny")
    folders = {name.split("/")[0] for name in files if "/" in name}
    expected = {"checkpoint": {"last-checkpoint"}, "all_checkpoints": {"checkpoint-1", "checkpoint-2"}}
    assert folders == expected.get(strategy, set())
    assert ("model.safetensors" in files) == (strategy != "end")
    assert_no_pickle_was_ever_pushed(hub.repo("me/tiny"))
    assert not [name for name in files if name.endswith("trainer_state.json")]
    local = {path.name for path in (tmp_path / "out" / "checkpoint-2").iterdir()}
    assert {"optimizer.pt", "scheduler.pt", "trainer_state.json"} <= local  # here a run still resumes
    assert not list((tmp_path / "out").glob("_push-*"))
    if strategy != "end":
        assert_same_weights(AutoModelForCausalLM.from_pretrained("me/tiny", dtype="float32"), trainer.model)


def test_a_push_that_fails_beside_training_does_not_stop_it(
    hub: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_for(
        hub, tmp_path / "out", push_to_hub=True, max_steps=2, save_strategy="steps", save_steps=2
    )  # fmt: skip
    hub.fail("commit", 403)
    trainer.train()
    assert trainer.state.global_step == 2
    assert "A push beside training failed" in caplog.text
    trainer.push_to_hub()
    assert hub.titles("me/tiny") == ["End of training"]


# --- the recipe's exit status ----------------------------------------------------------------------------------------


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Arguments of a recipe for one step on files on disk."""
    tiny_model(TOKENIZER).save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    rows = [json.dumps({"text": text}) for text in tiny_sentences(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    words = f"--model_name_or_path {tmp_path}/base --dataset_name {tmp_path}/rows.jsonl --output_dir {tmp_path}/out"
    words += (
        " --max_steps 1 --bf16 false --report_to none --save_strategy no --push_to_hub true --hub_model_id me/tiny"
    )
    return words.split()


@pytest.mark.parametrize(("route", "kind", "status"), [("commit", None, 0), ("commit", 403, 3), ("create", 401, 3)])
def test_the_exit_status_tells_whether_the_hub_took_it(
    hub: FakeHub, tmp_path: Path, arguments: list[str], capsys: Any, route: str, kind: int | None, status: int
) -> None:
    if kind is not None:
        hub.fail(route, kind, FOR_EVER)
    assert RECIPE.run(arguments, prog="hf-ext train weighted_sft") == status
    trained = route == "commit"
    assert (tmp_path / "out" / "model.safetensors").exists() == trained
    error = capsys.readouterr().err
    if status == 0:
        assert hub.titles("me/tiny") == ["End of training"]
        assert str(tmp_path).encode() not in b"".join(hub.files("me/tiny").values())
    else:
        assert f"hf-ext train weighted_sft: error: model me/tiny was not pushed: HTTP {kind}" in error
        assert ("your files are in" in error) == trained
