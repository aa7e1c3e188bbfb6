"""Log-probabilities of many fixed rows under many models that differ in their top layers only."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm


class Scorer:
    """Log-probabilities of fixed rows under models that share the start's embeddings, lower layers, norm and head."""

    def __init__(self, start: Any, rows: list[tuple[list[int], list[int]]], trained: int, autocast: bool) -> None:
        self.start, self.rows, self.trained, self.autocast = start, rows, trained, autocast
        self.hidden: list[Tensor] = [torch.empty(0)] * len(rows)  # (row_len, hidden), input of the trained layers
        self.final: list[Tensor] = [torch.empty(0)] * len(rows)  # (completion_len, hidden), input of the start's head
        for chunk in tqdm(self._chunks(range(len(rows))), desc="Caching the frozen layers"):
            ids = self._padded_ids(chunk)
            with torch.no_grad(), self._autocast():
                output = start.model(input_ids=ids, output_hidden_states=True, use_cache=False)
            for i, lower, final in zip(
                chunk, output.hidden_states[-1 - trained], output.last_hidden_state, strict=True
            ):
                prompt, completion = self.rows[i]
                self.hidden[i] = lower[: len(prompt) + len(completion)].float().clone()
                self.final[i] = self._predicting(final, i).clone()

    def _chunks(self, rows: Any) -> list[list[int]]:
        ordered = sorted(rows, key=lambda i: len(self.rows[i][0]) + len(self.rows[i][1]))
        return [ordered[k : k + 16] for k in range(0, len(ordered), 16)]

    def _padded_ids(self, chunk: list[int]) -> Tensor:
        """(rows, padded_len). Padded on the right, where a causal model does not look."""
        whole = [prompt + completion for prompt, completion in (self.rows[i] for i in chunk)]
        return pad_sequence([torch.tensor(ids) for ids in whole], batch_first=True)

    def _autocast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.autocast)

    def _predicting(self, final: Tensor, row: int) -> Tensor:
        """The positions of `final` that predict the row's completion, from (padded_len, hidden)."""
        prompt, completion = self.rows[row]
        return final[len(prompt) - 1 : len(prompt) + len(completion) - 1].float()

    def _log_probs(self, final: Tensor) -> Tensor:
        """(positions, vocab_size). bf16 inside the product, float32 out: bf16 logits would be rounded to eighths."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium" if self.autocast else "highest")
        logits = final @ self.start.lm_head.weight.T
        torch.set_float32_matmul_precision(before)
        return torch.log_softmax(logits, dim=-1)

    def _final_of(self, model: Any, chunk: list[int]) -> Tensor:
        """Input of the head, (rows, padded_len, hidden), from the cached input of the trained layers."""
        body, layers = model.model, model.model.layers
        body.layers = layers[-self.trained :]
        try:
            with torch.no_grad(), self._autocast():
                hidden = pad_sequence([self.hidden[i] for i in chunk], batch_first=True)
                return body(inputs_embeds=hidden, use_cache=False).last_hidden_state
        finally:
            body.layers = layers

    def scores(self, model: Any, rows: Any = None, with_kl: bool = False) -> dict[str, np.ndarray]:
        """Of each row, NaN where not asked for: `logp` and `kl`, nats summed over the completion."""
        model.eval()
        sums = {name: np.full(len(self.rows), np.nan) for name in ("logp", "kl")}
        for chunk in self._chunks(range(len(self.rows)) if rows is None else rows):
            final = self._final_of(model, chunk)
            with torch.no_grad():
                for i, states in zip(chunk, final, strict=True):
                    log_q = self._log_probs(self._predicting(states, i))
                    tokens = torch.tensor(self.rows[i][1])[:, None]
                    sums["logp"][i] = log_q.gather(1, tokens).sum(dtype=torch.float64)
                    if with_kl:
                        log_p = self._log_probs(self.final[i])
                        sums["kl"][i] = (log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64)
        return sums

    def cache_error(self, model: Any) -> float:
        """Largest difference, in nats per sequence, between scores from the cache and from the whole model."""
        chunk = self._chunks(range(len(self.rows)))[-1][:4]
        cached = self.scores(model, chunk)["logp"]
        ids = self._padded_ids(chunk)
        with torch.no_grad(), self._autocast():
            final = model.model(input_ids=ids, use_cache=False).last_hidden_state
        errors = []
        for i, states in zip(chunk, final, strict=True):
            log_q = self._log_probs(self._predicting(states, i))
            whole = log_q.gather(1, torch.tensor(self.rows[i][1])[:, None]).sum(dtype=torch.float64)
            errors.append(abs(float(whole) - float(cached[i])))
        return max(errors)
