"""Bundles in transformers: the pipelines, and models under the names that optimum gives its own.

    from saten_edge.integrations.transformers import ORTModelForSequenceClassification, pipeline

    classify = pipeline("text-classification", "my-bundle")
    model = ORTModelForSequenceClassification.from_pretrained("my-bundle")

ONNX Runtime computes; torch only carries the arrays, on the CPU.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import transformers
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutput,
    CausalLMOutputWithPast,
    ImageClassifierOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from saten_edge.integrations.copies import copy_bundle
from saten_runtime.bundle.folder import Bundle
from saten_runtime.bundle.manifest import Choice
from saten_runtime.errors import UsageError
from saten_runtime.run.generation import Decoder
from saten_runtime.run.runner import Runner
from saten_runtime.vocabulary.tasks import (
    FEATURE_EXTRACTION,
    IMAGE_CLASSIFICATION,
    IMAGES,
    QUESTION_ANSWERING,
    TEXT_CLASSIFICATION,
    TEXT_GENERATION,
    TEXT_REGRESSION,
    TOKEN_CLASSIFICATION,
    Task,
)

__all__ = [
    "MODELS",
    "DecoderCache",
    "ORTModel",
    "ORTModelForCausalLM",
    "ORTModelForFeatureExtraction",
    "ORTModelForImageClassification",
    "ORTModelForQuestionAnswering",
    "ORTModelForSequenceClassification",
    "ORTModelForTokenClassification",
    "image_processor",
    "load_bundle",
    "pipeline",
]

Array = npt.NDArray[Any]
Model = TypeVar("Model", bound="ORTModel")

# What optimum's `from_pretrained` may be given that a bundle does anyway.
_AS_IT_IS: Mapping[str, tuple[Any, ...]] = {
    "provider": ("CPUExecutionProvider",),
    "providers": (["CPUExecutionProvider"],),
    "export": (False,),
    "use_io_binding": (False, None),
    "trust_remote_code": (False,),
    "local_files_only": (True, False),
}
_PIPELINE_LOG = "transformers.pipelines.base"


def pipeline(
    task: str | None = None, model: str | Path | ORTModel | None = None, *, threads: int = 1, **given: Any
) -> transformers.Pipeline:
    """Transformers' pipeline of a bundle, with the bundle's tokenizer or the settings of its pictures.

    task: the bundle's own by default. given: as transformers takes it.

    Raises:
        UsageError: no bundle is named, or its task has no pipeline any more.
        SatenError: as `Runner.load`.
    """
    if model is None:
        raise UsageError("pipeline: model is missing; expected the folder of a bundle")
    loaded = model if isinstance(model, ORTModel) else load_bundle(model, threads=threads)
    bundle = loaded.runner.bundle
    if bundle.task is QUESTION_ANSWERING:
        raise UsageError(
            f"{bundle.path}: transformers 5 has no pipeline for {bundle.task.name}; use saten_runtime.Runner.predict"
        )
    if bundle.items == IMAGES:
        parts = {"image_processor": image_processor(bundle)}
        name = "image-feature-extraction" if bundle.task is FEATURE_EXTRACTION else bundle.task.hub
    else:
        parts = {"tokenizer": transformers.AutoTokenizer.from_pretrained(bundle.path)}
        name = bundle.task.hub
    return transformers.pipeline(task or name, model=loaded, **{**parts, "device": "cpu", **given})


def load_bundle(bundle: str | Path, *, threads: int = 1, memory: str = "fast") -> ORTModel:
    """A bundle as the model of its task.

    Raises:
        SatenError: as `Runner.load`.
    """
    return _wrap(Runner.load(bundle, threads=threads, memory=memory))


def image_processor(bundle: Bundle) -> Any:
    """What makes of pictures what the bundle takes, as transformers does it.

    Raises:
        BundleError: the bundle takes no pictures.
    """
    how = bundle.image
    kinds = {0: {}, 1: {"shortest_edge": how.resize[0] if how.resize else 0}}
    size = {"height": how.resize[0], "width": how.resize[1]} if len(how.resize) == len("hw") else kinds[len(how.resize)]
    crop = {"crop_size": {"height": how.crop[0], "width": how.crop[1]}} if how.crop else {}
    return transformers.CLIPImageProcessorPil(
        do_resize=bool(how.resize),
        size=size or None,
        resample=transformers.image_utils.PILImageResampling[how.resample.upper()],
        do_center_crop=bool(how.crop),
        rescale_factor=how.rescale,
        image_mean=how.mean,
        image_std=how.std,
        do_convert_rgb=len(how.mean) > 1,
        **crop,
    )


class ORTModel(PreTrainedModel):  # type: ignore[misc]
    """A bundle as a model of transformers; `output` is what a call gives, with the graph's outputs by name.

    Raises:
        UsageError: the bundle is of another task.
    """

    tasks: ClassVar[tuple[Task, ...]] = ()
    output: ClassVar[type] = BaseModelOutput

    def __init__(self, runner: Runner) -> None:
        bundle = runner.bundle
        if bundle.task not in self.tasks:
            names = ", ".join(task.name for task in self.tasks)
            raise UsageError(f"{bundle.path}: is of the task {bundle.task.name}; {type(self).__name__} takes {names}")
        config = transformers.AutoConfig.from_pretrained(bundle.path)
        super().__init__(config)
        self.runner, self.name_or_path = runner, str(bundle.path)
        self.main_input_name = "pixel_values" if bundle.items == IMAGES else "input_ids"

    @classmethod
    def from_pretrained(
        cls: type[Model], bundle: str | Path, *, threads: int = 1, memory: str = "fast", **given: Any
    ) -> Model:
        """Load a bundle.

        Raises:
            UsageError: a setting of optimum's that a bundle does not follow, or a bundle of another task.
            SatenError: as `Runner.load`.
        """
        for name, value in given.items():
            if value not in _AS_IT_IS.get(name, ()):
                raise UsageError(f"from_pretrained: {name}={value!r:.60} is not followed by a bundle; leave it out")
        return cls(Runner.load(bundle, threads=threads, memory=memory))

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Copy the bundle."""
        copy_bundle(self.runner.bundle, Path(save_directory))

    @property
    def device(self) -> torch.device:
        """Where the arrays are."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of what a call gives."""
        return torch.float32

    def to(self, *where: Any, **how: Any) -> ORTModel:
        """Itself; a bundle stays on the CPU.

        Raises:
            UsageError: another device or type.
        """
        asked = [*where, *how.values()]
        if any(str(one) not in ("cpu", "torch.float32", "None") for one in asked):
            raise UsageError(f"to({', '.join(map(str, asked))}): a bundle runs on the CPU and gives float32")
        return self

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """The graph's outputs.

        Raises:
            UsageError: an input that is missing, or one that says something and that the graph does not take.
        """
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "pixel_values": pixel_values,
        }
        found = self.runner.run(self._feeds({name: value for name, value in given.items() if value is not None}))
        names = self.runner.bundle.task.outputs
        result = self.output(**{name: torch.from_numpy(found[name]) for name in names})
        return result if return_dict in (None, True) else result.to_tuple()

    def _feeds(self, given: Mapping[str, torch.Tensor]) -> dict[str, Array]:
        known = {name: value.cpu().numpy() for name, value in given.items()}
        if self.main_input_name not in known:
            raise UsageError(f"{self.name_or_path}: {self.main_input_name} is missing")
        neutral = {"attention_mask": np.ones, "token_type_ids": np.zeros}
        wanted = self.runner.bundle.manifest.inputs
        for name, value in known.items():
            if name not in wanted and not (name in neutral and (value == neutral[name](value.shape)).all()):
                raise UsageError(f"{self.name_or_path}: the graph takes no {name}, and the one given is not neutral")
        shape = known[self.main_input_name].shape
        return {name: known[name] if name in known else neutral[name](shape, np.int64) for name in wanted}


class ORTModelForFeatureExtraction(ORTModel):
    """Vectors of tokens or patches."""

    tasks = (FEATURE_EXTRACTION,)


class ORTModelForSequenceClassification(ORTModel):
    """Logits of a text, or the number that it is given."""

    tasks = (TEXT_CLASSIFICATION, TEXT_REGRESSION)
    output = SequenceClassifierOutput


class ORTModelForTokenClassification(ORTModel):
    """Logits of every token."""

    tasks = (TOKEN_CLASSIFICATION,)
    output = TokenClassifierOutput


class ORTModelForQuestionAnswering(ORTModel):
    """Logits of where an answer begins and ends."""

    tasks = (QUESTION_ANSWERING,)
    output = QuestionAnsweringModelOutput


class ORTModelForImageClassification(ORTModel):
    """Logits of a picture."""

    tasks = (IMAGE_CLASSIFICATION,)
    output = ImageClassifierOutput


class DecoderCache:
    """What a decoder has read, as transformers asks for it. It grows in place: it goes on, not back."""

    is_compileable = False

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens that were read."""
        return self.decoder.past


class ORTModelForCausalLM(ORTModel, GenerationMixin):  # type: ignore[misc]
    """Logits of the next token, and `generate`."""

    tasks = (TEXT_GENERATION,)
    output = CausalLMOutputWithPast

    def __init__(self, runner: Runner) -> None:
        super().__init__(runner)
        self.generation_config = _generation_config(runner.bundle)

    @classmethod
    def can_generate(cls) -> bool:
        """It can."""
        return True

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: DecoderCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> Any:
        """Logits (batch, tokens, vocabulary), float32, and with `use_cache` or a cache one to go on from.

        A row may be padded at either end; what is at its padding is no number to use. position_ids: those that the
        mask gives, which the graph counts itself.

        Raises:
            UsageError: padded rows with a cache, other positions, or more tokens than the bundle takes.
        """
        if input_ids is None:
            raise UsageError(f"{self.name_or_path}: input_ids is missing")
        ids = input_ids.cpu().numpy()
        mask = np.ones_like(ids) if attention_mask is None else attention_mask.cpu().numpy()
        cache = past_key_values or (DecoderCache(self.runner.decoder()) if use_cache else None)
        own = mask[:, -ids.shape[1] :]
        counted = own.cumsum(axis=1) - 1 + (cache.get_seq_length() if cache else 0)
        if position_ids is not None and (position_ids.cpu().numpy() != counted)[own != 0].any():
            raise UsageError(
                f"{self.name_or_path}: position_ids are not those of the tokens in the mask; leave them out"
            )
        if mask.all():
            logits = (cache.decoder if cache else self.runner.decoder()).step(ids)
        elif cache is None:
            logits = self._unpadded(ids, mask)
        else:
            raise UsageError(f"{self.name_or_path}: a cache is of rows without padding; give them one by one")
        kept = torch.from_numpy(np.asarray(logits[:, -logits_to_keep:], np.float32))
        result = CausalLMOutputWithPast(logits=kept, past_key_values=cache)
        return result if return_dict in (None, True) else result.to_tuple()

    def generate(self, inputs: torch.Tensor | None = None, **given: Any) -> Any:
        """As transformers', for each row alone, without its padding; rows end with the padding id.

        Raises:
            UsageError: several beams, several texts of one prompt, or outputs as a dictionary of several rows.
        """
        asked = GenerationConfig(**{**self.generation_config.to_dict(), **_said(given)})
        if (asked.num_beams or 1) > 1 or (asked.num_return_sequences or 1) > 1:
            raise UsageError(f"{self.name_or_path}: generate makes one text of a prompt, by one token at a time")
        ids = inputs if inputs is not None else given.pop("input_ids", None)
        mask = given.pop("attention_mask", None)
        if ids is None:
            raise UsageError(f"{self.name_or_path}: input_ids is missing")
        rows = [row[None] if mask is None else row[mask[index] != 0][None] for index, row in enumerate(ids)]
        made = [self._generate(row, given) for row in rows]
        if len(made) == 1:
            return made[0]
        if not all(isinstance(one, torch.Tensor) for one in made):
            raise UsageError(f"{self.name_or_path}: return_dict_in_generate is for one prompt at a time")
        new = [one[0, row.shape[1] :] for one, row in zip(made, rows, strict=True)]
        pad = self.runner.bundle.tokenizer.pad_id
        return torch.cat([ids, torch.nn.utils.rnn.pad_sequence(new, batch_first=True, padding_value=pad)], dim=1)

    def _generate(self, row: torch.Tensor, given: Mapping[str, Any]) -> Any:
        cache = DecoderCache(self.runner.decoder())
        return super().generate(row, attention_mask=torch.ones_like(row), past_key_values=cache, **given)

    def _unpadded(self, ids: Array, mask: Array) -> Array:
        rows = [self.runner.decoder().step(row[kept != 0][None])[0] for row, kept in zip(ids, mask, strict=True)]
        logits = np.zeros((*ids.shape, rows[0].shape[-1]), np.float32)
        for index, row in enumerate(rows):
            logits[index, mask[index] != 0] = row
        return logits


def _generation_config(bundle: Bundle) -> GenerationConfig:
    """How the model wants its tokens chosen, as transformers says it."""
    model, plain = bundle.generation, Choice()
    said = {name: value for name, value in vars(model.choice).items() if value != getattr(plain, name)}
    return GenerationConfig(**said, eos_token_id=model.stop_ids or None, pad_token_id=bundle.tokenizer.pad_id)


def _said(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one call, of its `generation_config` and beside it."""
    config = given.get("generation_config")
    whole = {} if config is None else config.to_diff_dict()
    return {**whole, **{name: value for name, value in given.items() if name in ("num_beams", "num_return_sequences")}}


MODELS: Mapping[str, type[ORTModel]] = {
    task.name: kind
    for kind in (
        ORTModelForFeatureExtraction,
        ORTModelForSequenceClassification,
        ORTModelForTokenClassification,
        ORTModelForQuestionAnswering,
        ORTModelForImageClassification,
        ORTModelForCausalLM,
    )
    for task in kind.tasks
}
"""The model of each task, by the task's name."""


def _wrap(runner: Runner) -> ORTModel:
    return MODELS[runner.bundle.task.name](runner)


def _is_news(record: logging.LogRecord) -> bool:
    """Pipelines say that they do not know a class by its name, and work all the same."""
    return not any(f"'{kind.__name__}' is not supported" in record.getMessage() for kind in MODELS.values())


logging.getLogger(_PIPELINE_LOG).addFilter(_is_news)
