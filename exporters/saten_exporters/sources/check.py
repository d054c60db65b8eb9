"""Whether every setting in a model's files is honoured: what the table does not let pass is refused or said."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from saten_exporters.exportable import Exportable
from saten_exporters.sources.chat import chat_of
from saten_exporters.sources.sentence_files import ROWS as SENTENCE_ROWS
from saten_exporters.sources.setting import REFUSED, REPORTED, Setting
from saten_exporters.sources.transformers_files import ROWS as TRANSFORMERS_ROWS
from saten_exporters.tracing.signatures import kind_of
from saten_runtime.errors import ExportError
from saten_runtime.vocabulary.files import (
    CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    MODULES_FILE,
    PROMPTS_FILE,
    TOKENIZER_CONFIG_FILE,
    TRANSFORMER_FILE,
    TRANSFORMER_FILES,
)

__all__ = ["SETTINGS", "check_settings"]

SETTINGS: Mapping[tuple[str, str], Setting] = {(row.file, row.key): row for row in (*TRANSFORMERS_ROWS, *SENTENCE_ROWS)}
"""By file and key. A test compares them with what the installed libraries define."""

_MOST_SHOWN = 60  # characters of a value


def check_settings(source: Exportable) -> list[str]:
    """What the model's files say that nothing is made of, a sentence for each.

    Raises:
        ExportError: a setting that would change the numbers, and that no bundle expresses.
    """
    _refuse_clean_up(source)
    _refuse_what_generate_refuses(source)
    defaults = _defaults(source)
    notices = _chat_notices(source)
    for file, kind, key, value in _said(source):
        row = SETTINGS.get((kind, key))
        if row is None and value != defaults.get(kind, {}).get(key, value):
            raise _refusal(source, file, key, value, "this version does not know the setting")
        if row is None:
            notices.append(f"{file}: {key} = {_shown(value)} is no setting known here; nothing was made of it")
        elif not _neutral(row, value):
            if row.treatment == REFUSED:
                raise _refusal(source, file, key, value, row.why)
            if row.treatment == REPORTED:
                notices.append(f"{file}: {key} = {_shown(value)}: {row.why}")
    return notices


def _said(source: Exportable) -> Iterator[tuple[str, str, str, Any]]:
    """(file, its name in the table, key, value) of every setting of the model's files."""
    modules: Mapping[str, str] = source.settings.get(MODULES_FILE, {})
    for file, values in source.settings.items():
        if file == MODULES_FILE:
            yield from ((file, MODULES_FILE, kind, None) for kind in values.values())
            continue
        folder, _, _ = file.rpartition("/")
        named = TRANSFORMER_FILE if file in TRANSFORMER_FILES else file
        kind = modules.get(folder, "Pooling").lower() if folder else named
        yield from ((file, kind, key, value) for key, value in values.items() if not _idle(source, file, key, value))
    if kind_of(source).cached:
        yield from (
            (GENERATION_CONFIG_FILE, GENERATION_CONFIG_FILE, *item)
            for item in source.model.generation_config.to_dict().items()
        )


def _idle(source: Exportable, file: str, key: str, value: Any) -> bool:
    """Whether a setting has nothing to act on: prompts that are empty or put before texts, a pooling without them."""
    if (file, key) == (PROMPTS_FILE, "prompts"):
        return {prompt for prompt in value.values() if prompt} <= {source.prompt}
    return key == "include_prompt" and not source.prompt


def _defaults(source: Exportable) -> dict[str, Mapping[str, Any]]:
    """What the library takes where a file is silent, of the files that decide numbers and are read by its classes."""
    from transformers import GenerationConfig

    return {CONFIG_FILE: type(source.model.config)().to_dict(), GENERATION_CONFIG_FILE: GenerationConfig().to_dict()}


def _neutral(row: Setting, value: Any) -> bool:
    return value is None or value in row.neutral


def _chat_notices(source: Exportable) -> list[str]:
    """What a bundle does not say of a decoder's chat template; nothing where it says all, or there never was one."""
    chat, why = chat_of(source.tokenizer) if kind_of(source).cached else (None, "")
    refused = ", which no bundle expresses; `saten-run chat` refuses this one" if chat is None else ""
    return [f"chat_template: {why}{refused}"] if why else []


def _refuse_clean_up(source: Exportable) -> None:
    """Refuse to generate with a tokenizer whose decoded texts transformers repairs: that of BPE it leaves alone."""
    repairs = kind_of(source).cached and source.tokenizer.clean_up_tokenization_spaces
    if repairs and type(source.tokenizer.backend_tokenizer.model).__name__ != "BPE":
        raise _refusal(
            source, TOKENIZER_CONFIG_FILE, "clean_up_tokenization_spaces", True, "generated text is not repaired"
        )


def _refuse_what_generate_refuses(source: Exportable) -> None:
    """Refuse what transformers' generate does not take, such as a penalty that is a whole number.

    Its own rules say so, tried on the logits of one token: of ids beyond the vocabulary they complain only there.
    """
    if not kind_of(source).cached:
        return
    import torch

    said = source.model.generation_config.to_dict()
    ids, logits = torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, source.model.config.vocab_size)
    for key, rule in _rules(said).items():
        try:
            rule(said[key])(ids, logits)
        except (TypeError, ValueError) as cause:
            raise _refusal(
                source, GENERATION_CONFIG_FILE, key, said[key], f"transformers' generate refuses it: {cause}"
            ) from None


def _rules(said: Mapping[str, Any]) -> dict[str, Callable[[Any], Any]]:
    """What makes a rule of a value, of the settings that generate makes a rule of."""
    from transformers import generation

    rules: dict[str, Callable[[Any], Any]] = {
        "repetition_penalty": generation.RepetitionPenaltyLogitsProcessor,
        "bad_words_ids": lambda words: generation.NoBadWordsLogitsProcessor(words, said.get("eos_token_id")),
        **({"temperature": generation.TemperatureLogitsWarper} if said.get("do_sample") else {}),
    }
    return {key: rule for key, rule in rules.items() if said.get(key) not in (None, 1)}


def _refusal(source: Exportable, file: str, key: str, value: Any, why: str) -> ExportError:
    return ExportError(f"{source.source['model']}: {file}: {key} = {_shown(value)} cannot be honoured; {why}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 1]}…"
