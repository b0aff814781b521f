"""How prompts and steps become tokens, in one place: search, scoring and training must agree to the token.

A trajectory is `prompt`, then steps separated by a blank line, then the end-of-sequence token. Each step is encoded
together with what ends it (the blank line, or nothing before the end-of-sequence token), and no special tokens are
added: a chat template or `render` has already written those it wants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rstar_trl.errors import EngineError

DELIMITER = "\n\n"

Render = Callable[[list[dict[str, str]]], str]


def load_tokenizer(path: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model folder or Hub name; a missing one is an `EngineError`. A pad token is ensured."""
    from transformers import AutoTokenizer

    check_path(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, TypeError) as error:
        raise EngineError(f"no tokenizer could be loaded from {path}: {first_line(error)}; check the path.") from error
    if tokenizer.eos_token_id is None:
        raise EngineError(f"the tokenizer of {path} has no end-of-sequence token; the policy could never stop.")
    return tokenizer


def check_ppm(path: str, labels: int, tokenizer: Any, embeddings: int) -> None:
    """Refuses a model of so many labels and embedded tokens that is no PPM, or none of this tokenizer."""
    if labels != 1:
        raise EngineError(f"{path} has {labels} labels; a PPM has exactly one.")
    if len(tokenizer) > embeddings:
        raise EngineError(
            f"the tokenizer in {path} has {len(tokenizer)} tokens, its PPM knows {embeddings}: they do not belong "
            "together; train the PPM again."
        )


def check_path(path: str) -> None:
    """A path that looks local and is missing is named here; otherwise the Hub would be asked for it.

    A folder loads in a moment and needs no progress bar; a download keeps its own.
    """
    from transformers.utils import logging

    if Path(path).is_dir():
        logging.disable_progress_bar()
    if (path.startswith((".", "/", "~")) or path.count("/") > 1) and not Path(path).exists():
        raise EngineError(f"the model folder {path} does not exist; check the path or train the model first.")


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for a one-sentence message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def renderer(tokenizer: Any) -> Render:
    """Turns messages into the prompt string: by the chat template where there is one, else their plain contents."""

    def render(messages: list[dict[str, str]]) -> str:
        if tokenizer.chat_template is not None:
            return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        return (tokenizer.bos_token or "") + plain(messages)

    return render


def plain(messages: list[dict[str, str]]) -> str:
    """The messages' contents, a blank line between them, ending with a newline."""
    return DELIMITER.join(message["content"] for message in messages) + "\n"


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a rendered prompt."""
    return list(tokenizer(prompt, add_special_tokens=False)["input_ids"])


def encode_step(tokenizer: Any, step: str, final: bool) -> list[int]:
    """Token ids of a step and of what ends it: the delimiter, or end-of-sequence when `final`."""
    if final:
        return [*tokenizer(step, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return list(tokenizer(step + DELIMITER, add_special_tokens=False)["input_ids"])


def encode_completion(tokenizer: Any, steps: Sequence[str]) -> list[int]:
    """Token ids of a whole trajectory after its prompt."""
    ids: list[int] = []
    for index, step in enumerate(steps):
        ids += encode_step(tokenizer, step, final=index == len(steps) - 1)
    return ids
