"""The accelerate configs are read by accelerate as what their names say."""

from __future__ import annotations

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from hf_ext.recipes.files import find_accelerate_config, recipe_names

KINDS = {"single_gpu": "NO", "multi_gpu": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_it(name):
    config = load_config_from_file(str(find_accelerate_config(name)))
    assert config.distributed_type == KINDS[name]
    assert config.use_cpu is False
    # several processes are the user's to count: accelerate refuses -1 with a sentence
    assert config.num_processes == (1 if name == "single_gpu" else -1)
    if name.startswith("zero"):
        assert config.deepspeed_config["zero_stage"] == int(name[-1])
    if name == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2


def test_every_config_of_the_package_is_checked_here():
    names = {name.split("/")[1].removesuffix(".yaml") for name in recipe_names() if name.startswith("accelerate")}
    assert names == set(KINDS)


def test_a_file_on_disk_works_and_a_wrong_name_lists_the_right_ones(tmp_path):
    (tmp_path / "mine.yaml").write_text("distributed_type: FSDP\n")
    assert find_accelerate_config(str(tmp_path / "mine.yaml")) == tmp_path / "mine.yaml"
    with pytest.raises(ValueError, match="zero3"):
        find_accelerate_config("zero4")
