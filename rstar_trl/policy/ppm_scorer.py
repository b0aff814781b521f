"""Scores steps with a process preference model, all children of a node and all nodes of a batch in one pass.

The score of a step is the model's output at the step's last token (its delimiter, or end-of-sequence when it finishes
the trajectory), exactly where `PPMTrainer` trains it. Prefixes already scored are not computed again. A trajectory
that the PPM cannot read whole is refused, and so is one that does not fit into the device's memory alone.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from rstar_trl.errors import EngineError
from rstar_trl.policy.branches import PrefixCache, prefill, prepare
from rstar_trl.policy.interface import Refused, ScoreRequest
from rstar_trl.policy.memory import MemoryLimit, usual_rows
from rstar_trl.policy.tokens import check_path, check_ppm, encode_prompt, encode_step, first_line, load_tokenizer


class PPMScorer:
    """Implements `rstar_trl.policy.interface.Scorer` in process."""

    def __init__(self, model: Any, tokenizer: Any, rows_per_batch: int | None = None, cache_bytes: int | None = None):
        """`model`: a one-label sequence-classification model; see `TransformersEngine` for the other arguments."""
        self.head = model.eval().score
        self.backbone = getattr(model, model.base_model_prefix)
        prepare(self.backbone, read_last=False)
        self.rows_per_batch = rows_per_batch or usual_rows(model.device)
        self.cache = PrefixCache(cache_bytes or 0)
        self.memory = MemoryLimit(self.cache, model.device if cache_bytes is None else None)
        self._most = getattr(model.config, "max_position_embeddings", None)
        self._encode_prompt = lru_cache(4096)(lambda text: encode_prompt(tokenizer, text))
        self._encode_step = lru_cache(65536)(lambda text, final: encode_step(tokenizer, text, final))

    @classmethod
    def load(cls, path: str, dtype: str = "float32", trust_remote_code: bool = False) -> PPMScorer:
        """Loads a PPM folder or Hub name on the accelerator where there is one."""
        from transformers import AutoModelForSequenceClassification

        check_path(path)
        options = {"dtype": getattr(torch, dtype), "attn_implementation": "sdpa"}
        try:
            model = AutoModelForSequenceClassification.from_pretrained(
                path, trust_remote_code=trust_remote_code, **options
            )
        except (OSError, ValueError) as error:
            raise EngineError(f"no PPM could be loaded from {path}: {first_line(error)}; check the path.") from error
        tokenizer = load_tokenizer(path, trust_remote_code)
        check_ppm(path, model.config.num_labels, tokenizer, model.get_input_embeddings().num_embeddings)
        return cls(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer)

    def score(self, requests: list[ScoreRequest]) -> list[float | Refused]:
        """Raw scores, one per request, in order; a trajectory that the PPM cannot read whole is refused."""
        rows: dict[tuple[str, ...], list[int]] = {}
        scores: list[float | Refused] = [0.0] * len(requests)
        for index, request in enumerate(requests):
            length = sum(self._lengths(request))
            if self._most is not None and length > self._most:
                scores[index] = Refused(f"{length} tokens are more than the {self._most} that the PPM reads")
            else:
                rows.setdefault(_row(request), []).append(index)
        order = [index for key in sorted(rows, key=len) for index in rows[key]]
        found = self.memory.in_passes(
            order,
            lambda left: self._fitting([requests[i] for i in left]),
            lambda chunk: self._score([requests[i] for i in chunk]),
        )
        for index, score in found:
            scores[index] = self._too_large(requests[index]) if score is None else score
        return scores

    def _fitting(self, requests: list[ScoreRequest]) -> tuple[int, int]:
        """How many of `requests`, from their start, go into one pass, at least one; and the size of that pass."""
        widths: dict[tuple[str, ...], int] = {}
        widest = size = 0
        for count, request in enumerate(requests):
            key, (prefix, step) = _row(request), self._lengths(request)
            widths[key] = widths.get(key, prefix) + step
            widest = max(widest, widths[key])
            larger = len(widths) * widest
            if count and (len(widths) > self.rows_per_batch or larger > self.memory.most):
                return count, size
            size = larger
        return len(requests), size

    def _lengths(self, request: ScoreRequest) -> tuple[int, int]:
        """Tokens of the prompt and all steps but the last, and of the last."""
        before = sum(len(self._encode_step(step, False)) for step in request.steps[:-1])
        last = len(self._encode_step(request.steps[-1], request.final))
        return len(self._encode_prompt(request.prompt)) + before, last

    def _too_large(self, request: ScoreRequest) -> Refused:
        return Refused(
            f"{sum(self._lengths(request))} tokens need more memory to be scored than the device has, even alone; "
            "show less of the schema or use a device with more memory"
        )

    @torch.inference_mode()
    def _score(self, requests: list[ScoreRequest]) -> list[float]:
        """The scores of requests in one pass; siblings, which must come together, share a row."""
        rows: dict[tuple[str, ...], list[ScoreRequest]] = {}
        for request in requests:
            rows.setdefault(_row(request), []).append(request)
        keys = list(rows)
        steps = [[self._encode_step(r.steps[-1], r.final) for r in group] for group in rows.values()]
        pieces = [[self._encode_prompt(key[0]), *(self._encode_step(step, False) for step in key[1:])] for key in keys]
        width = max(sum(map(len, row)) for row in steps)
        batch, _, _ = prefill(self.backbone, self.cache, keys, pieces, width, read_last=False)
        new = [
            (token, row, sibling, offset)
            for row, group in enumerate(steps)
            for sibling, ids in enumerate(group)
            for offset, token in enumerate(ids)
        ]
        start = batch.used
        hidden = batch.append(*torch.tensor(new, device=batch.device).unbind(1)).last_hidden_state
        values = self.head(hidden)[0, :, 0].float().tolist()
        scores, last = [], -1
        for row, (key, group) in enumerate(rows.items()):
            end = start
            for request, ids in zip(group, steps[row], strict=True):
                begin, end = end, end + len(ids)
                last += len(ids)
                scores.append(values[last])
                if not request.final:
                    self.cache.put((*key, request.steps[-1]), batch.segment(row, begin, end))
        return scores


def _row(request: ScoreRequest) -> tuple[str, ...]:
    """What names the row that a request shares with its siblings."""
    return (request.prompt, *request.steps[:-1])
