"""Start-up probe: does this attention kernel keep packed documents apart?"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch

from hf_ext._upstream.adapters import model_as_before

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

TOLERANCE = 1e-5  # nats; a kernel that keeps documents apart gives the very same numbers


@torch.no_grad()
def check_documents_kept_apart(
    model: PreTrainedModel | PeftModel, autocast: Callable[[], AbstractContextManager]
) -> None:
    """
    Pack two short documents, change the first, and see whether the second one's log-probabilities move.

    Both batches have the same shape, so a kernel that honours restarting position ids gives bit-equal numbers in any
    precision, and one that lets documents attend to each other does not.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            With TRL's fused LM head. Models whose weights are sharded or on the meta device are not probed.
        autocast (`Callable`):
            The context the training forward runs in.

    Raises:
        ValueError: if the second document's log-probabilities move by more than 1e-5 nats.
    """
    weight = next(model.parameters())
    # shards of FSDP and DeepSpeed are empty here, or DTensors with a `_local_tensor`
    if any(p.is_meta or p.numel() == 0 or hasattr(p, "_local_tensor") for p in model.parameters()):
        logger.info("The model is sharded: its attention kernel is not probed for packed documents.")
        return
    vocab = model.config.get_text_config().vocab_size
    length = 8
    generator = torch.Generator().manual_seed(0)
    first, other, second = torch.randint(vocab, (3, length), generator=generator)
    # positions that restart are all that tells a kernel where a document begins
    positions = torch.arange(length).repeat(2)[None].to(weight.device)
    second_log_probs = []
    with model_as_before(model):
        model.eval()
        for document in (first, other):
            ids = torch.cat([document, second])[None].to(weight.device)
            labels = ids.clone()
            # the second document's first token is predicted from the first document: it may move
            labels[:, : length + 1] = -100
            with autocast():
                outputs = model(
                    input_ids=ids, position_ids=positions, labels=labels, use_cache=False, fused_lm_head=True
                )
            second_log_probs.append(outputs.log_probs[:, -(length - 1) :].float())
    leak = float((second_log_probs[0] - second_log_probs[1]).abs().max())
    if leak > TOLERANCE:
        raise ValueError(
            "This model's attention kernel lets packed documents attend to each other: changing one document moved "
            f"the next one's log-probabilities by {leak:.2g} nats. Leave attn_implementation unset (sdpa), use "
            "flash_attention_2 or 3, or set packing=False and padding_free=False."
        )
