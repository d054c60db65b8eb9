"""Whether the ids that a tokenizer makes and the tables that a model looks them up in fit each other."""

from __future__ import annotations

import inspect
from typing import Any

from saten_runtime.errors import ExportError
from saten_runtime.vocabulary.tasks import PAIRS, Task

__all__ = ["first_position", "refuse_ids_without_row", "settle_padding"]


def first_position(model: Any) -> int:
    """Rows at the start of the position table that no text reaches.

    RoBERTa and MPNet count positions from the row after their padding's, whatever id that has.
    """
    own = getattr(getattr(model.base_model, "embeddings", None), "padding_idx", None)
    return 0 if own is None else int(own) + 1


def refuse_ids_without_row(where: str, model: Any, tokenizer: Any, task: Task) -> None:
    """Refuse a tokenizer that makes an id, of a token or of a part of a pair, that a table has no row for.

    Raises:
        ExportError: naming the token, its id, the table and its rows, and what to do.
    """
    rows, vocabulary = int(model.config.vocab_size), tokenizer.get_vocab()
    texts = [_a_word(tokenizer)] * (2 if PAIRS in task.takes else 1)
    encoded = tokenizer(*texts)
    added = {f"special token {each}": each for each in encoded["input_ids"]}  # a template names its ids itself
    beyond = sorted((number, token) for token, number in {**added, **vocabulary}.items() if not 0 <= number < rows)
    if beyond:
        (number, token), more = beyond[0], f", and {len(beyond) - 1} more" * (len(beyond) > 1)
        raise ExportError(
            f"{where}: its tokenizer makes {token!r} the id {number}{more}; its word table has the {rows} rows 0 … "
            f"{rows - 1}; give it more by model.resize_token_embeddings(len(tokenizer)), or remove the token"
        )
    parts = getattr(model.config, "type_vocab_size", None)
    largest = max(encoded.get("token_type_ids") or [0])
    if parts and largest >= parts and "token_type_ids" in inspect.signature(model.forward).parameters:
        raise ExportError(
            f"{where}: its tokenizer makes the token type {largest}; its type table has {parts} rows "
            f"(type_vocab_size); save it with a tokenizer whose model_input_names lacks token_type_ids"
        )


def settle_padding(where: str, model: Any, tokenizer: Any, *, sought: bool) -> int:
    """The id that short rows are filled up with. Where the config names none, it is told.

    sought: the model looks for this id, as transformers' classifiers on decoders do, which read a row's last token
    that is no padding, or its last where the config names none. Then the config's id counts, even where the tokenizer
    has another: with it, a text in a batch gets the answer that it gets alone.

    Raises:
        ExportError: the model seeks a padding that nobody names, and every id may end a text.
    """
    config, pad = model.config, tokenizer.pad_token_id
    if sought and config.pad_token_id in range(config.vocab_size):
        return int(config.pad_token_id)
    if sought:
        last = tokenizer(_a_word(tokenizer))["input_ids"][-1]
        if last in tokenizer.all_special_ids and pad in (None, last):
            pad = int(last == 0)  # every text ends with `last`: any other id will do
        if pad is None:
            raise ExportError(
                f"{where}: its classifier looks for the last token before the padding, and neither config.json nor its "
                "tokenizer names a padding token; set pad_token_id in config.json to an id that no text ends with"
            )
    if sought or config.pad_token_id is None:
        config.pad_token_id = pad
    return int(pad or 0)


def _a_word(tokenizer: Any) -> str:
    """An entry of the vocabulary that is no special token; the empty text where there is none."""
    special = set(tokenizer.all_special_tokens)
    return next((token for token in tokenizer.get_vocab() if token not in special), "")
