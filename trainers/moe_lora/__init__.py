"""LoRA experts by EM: adapters that share a language model's rows among themselves, and a gate on the prompt."""

from hf_ext.guards.lazy import lazy_names
from hf_ext.method import Method
from hf_ext.trainers import moe_em

METHOD = Method(
    name="moe_lora",
    summary="LoRA experts by EM: adapters that share the rows among them, and a gate that routes prompts",
    commands=("train moe_lora",),
    trainer="LoraMixtureTrainer",
    config="LoraMixtureConfig",
    recipe="hf_ext.recipes.moe_lora.train",
    card="moe_lora",
    library="peft",
    telltale_settings=("e_step_temperature",),
    card_settings=("num_experts", "rounds", "e_step_temperature", "gate_ridge"),
    private_settings=("bad_rows_path",),
    paper=moe_em.METHOD.paper,
)

EXPORTS = {
    "hf_ext.moe.lora": ("LoraMixture",),
    "hf_ext.rounds.lora_mixture": ("LoraMixtureTrainer",),
    "hf_ext.trainers.moe_lora.config": ("LoraMixtureConfig",),
}
__getattr__, __dir__ = lazy_names(__name__, EXPORTS)
