"""Reading models and tokenizers from a folder or the Hugging Face hub, and saving them whole."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from saten_edge.checkpoints.architectures import Architecture, architecture, task_of
from saten_edge.checkpoints.checkpoint import (  # importing it registers the "saten" method with transformers
    SatenConfig,
    recipe_of,
    seal,
    verify_folder,
)
from saten_edge.checkpoints.foreign import refuse_bare, refuse_rounded, with_safetensors
from saten_edge.checkpoints.gguf_header import is_gguf
from saten_edge.checkpoints.guard import Entry, read_headers, refuse_bomb
from saten_edge.checkpoints.ids import first_position, refuse_ids_without_row, settle_padding
from saten_edge.checkpoints.mapped import streamed_saving
from saten_edge.checkpoints.modules import saten_layers
from saten_edge.checkpoints.pictures import fit_positions
from saten_edge.checkpoints.resolve import resolve_model
from saten_edge.checkpoints.sentences import (
    Sentences,
    is_cross_encoder,
    lower_case,
    read_cross_encoder,
    read_sentences,
    read_transformer,
)
from saten_exporters.exportable import LayerParts
from saten_runtime.bundle.manifest import Postprocess
from saten_runtime.bundle.recipe import Recipe
from saten_runtime.errors import CheckpointError, ExportError, SatenError, UsageError
from saten_runtime.records.files import read_json, sha256_file
from saten_runtime.records.folders import new_folder
from saten_runtime.records.plain_text import one_line
from saten_runtime.run.pooling import Step, pool
from saten_runtime.vocabulary.files import (
    CONFIG_FILE,
    MODULES_FILE,
    PREPROCESSOR_CONFIG_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
)
from saten_runtime.vocabulary.tasks import (
    FEATURE_EXTRACTION,
    HUB_TASKS,
    PROMPTS,
    QUESTION_ANSWERING,
    TEXT_CLASSIFICATION,
    TEXT_GENERATION,
    VALUES,
    device_task,
)

__all__ = ["LoadedModel", "load_model", "save_model", "save_sentences", "silent_transformers", "task_in"]

# Tokens of the shortest text that a graph can be traced for.
SHORTEST_LENGTH = 2
# What a model says of itself, beside what sentence-transformers keeps.
SETTINGS_FILES = (CONFIG_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, PREPROCESSOR_CONFIG_FILE)
# A config may ask for more outputs, or for a tuple of them; a graph has its task's, by name.
ONE_OUTPUT = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}


@dataclass
class LoadedModel:
    """A model in evaluation mode, what prepares its inputs, and what stands around it to make an embedding.

    task: a name in `HUB_TASKS`. tokenizer: None for a vision model. processor: of images, None for a model of texts.
    pad_id: what fills up short rows of ids. folder: what was loaded, a GGUF file among others. files: what
    `SETTINGS_FILES` said, by their names.
    """

    model: Any
    tokenizer: Any
    sentences: Sentences
    max_length: int
    source: dict[str, str]
    folder: Path
    task: str = FEATURE_EXTRACTION.hub
    processor: Any = None
    pad_id: int = 0
    files: Mapping[str, Any] = field(default_factory=dict)

    @property
    def architecture(self) -> Architecture:
        """The model's row of `ARCHITECTURES`."""
        return architecture(self.model.config.model_type)

    @property
    def recipe(self) -> Recipe:
        """The stages that made the model; none of a dense one."""
        return recipe_of(self.model)

    @property
    def postprocess(self) -> Postprocess:
        """What follows the model to make an embedding."""
        return self.sentences.postprocess

    @property
    def steps(self) -> Sequence[Step]:
        """The layers of `postprocess`, with their numbers."""
        return self.sentences.steps

    @property
    def prompt(self) -> str:
        """What stands before every text."""
        return self.sentences.prompt

    @property
    def prompts(self) -> dict[str, str]:
        """What may stand there in its place, by name."""
        return dict(self.sentences.prompts)

    @property
    def settings(self) -> dict[str, Any]:
        """What its files say, by their path in the folder."""
        return {**self.files, **self.sentences.settings}

    def encode(self, items: Sequence[Any], max_length: int | None = None) -> dict[str, torch.Tensor]:
        """The model's inputs for texts, for pairs of texts, or for images.

        items: strings, tuples of two strings, or images as PIL has them; all of one kind. Texts give
        input_ids, attention_mask …, each (items, longest) int64; images give pixel_values (items, channels,
        height, width).
        """
        if self.processor is not None:
            return dict(self.processor(images=list(items), return_tensors="pt"))
        cut = min(self.max_length, max_length or self.max_length)
        columns = [list(column) for column in zip(*items, strict=True)] if _are_pairs(items) else [list(items)]
        return self.pad(self.tokenize(columns, cut))

    def tokenize(self, columns: Sequence[list[str]], cut: int) -> dict[str, Any]:
        """Texts, or the columns of pairs of them, as ids behind the default prompt, cut to so many tokens, unpadded."""
        first = [self.prompt + text for text in columns[0]]
        return dict(self.tokenizer(first, *columns[1:], truncation=True, max_length=cut, return_attention_mask=True))

    def pad(self, rows: Any) -> dict[str, torch.Tensor]:
        """Tokenized texts, one after the other or by column, as one batch: filled up on the right, as on a device."""
        from transformers.data.data_collator import pad_without_fast_tokenizer_warning

        how = {"padding_side": "right", "return_attention_mask": True, "return_tensors": "pt"}
        batch = dict(pad_without_fast_tokenizer_warning(self.tokenizer, rows, **how))
        batch["input_ids"].masked_fill_(batch["attention_mask"] == 0, self.pad_id)
        return batch

    def layer_parts(self) -> dict[str, LayerParts]:
        """The numbers of every compressed layer, for the exporter; none for a dense model."""
        return {name: layer.parts() for name, layer in saten_layers(self.model).items()}

    def pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(n, t, width), (n, t) → (n, width), as `saten_runtime` does it on the device."""
        return torch.from_numpy(pool(hidden.detach().numpy(), mask.long().numpy(), self.postprocess, self.steps))


def load_model(
    name: str | Path,
    task: str | None = None,
    *,
    num_labels: int | None = None,
    seed: int = 0,
    dtype: torch.dtype | str = torch.float32,
) -> LoadedModel:
    """A dense or Saten model from a folder, from a GGUF file, or by name from the Hugging Face hub.

    task: a name in `HUB_TASKS`; None reads it from the config, and a sentence-transformers folder is one for
    feature-extraction. num_labels: size of a classifier; where the files hold none of that size, a new one is
    drawn from `seed`, and nothing else ever is. One label is a regression. dtype: of the weights;
    "auto" leaves them as they are stored, and then they stay in the file, mapped, until they are written to.

    Raises:
        CheckpointError: there is no such model, or its files cannot be read.
        ExportError: a family that is not in `ARCHITECTURES`, or an option of it that we cannot express.
        UsageError: a task that there is not, or that the family does not have.
    """
    folder = resolve_model(str(name))
    with with_safetensors(folder) as readable:
        return _load(str(name), folder, readable, task, num_labels, seed, dtype)


def _load(
    name: str,
    origin: Path,
    folder: Path,
    task: str | None,
    num_labels: int | None,
    seed: int,
    dtype: torch.dtype | str,
) -> LoadedModel:
    """`load_model` of a folder that stands for `origin`."""
    tensors = read_headers(folder)
    verify_folder(folder, tensors)
    row, task = _family_and_task(folder, task)
    try:
        model, missing = _read_weights(folder, tensors, row, task, num_labels, seed, dtype)
        tokenizer, processor = _preprocessors(folder, row)
        fit_positions(model, row, processor)
        pad_id = 0 if tokenizer is None else _fitted(name, model, tokenizer, row, task)
    except SatenError:
        raise
    except Exception as cause:  # transformers raises almost anything on a bad folder
        raise CheckpointError(f"{name}: cannot be loaded as a transformers model ({one_line(cause, 200)})") from cause
    if missing:  # transformers would go on with random numbers
        headless = all(key.startswith(tuple(f"{head}." for head in row.heads)) for key in missing)
        advice = f"it has no head for {task}: fine-tune it on labels first" if headless else "download it again"
        raise CheckpointError(f"{name}: {_some(missing)} missing from its safetensors files; {advice}")
    sentences = _sentences(folder, task)
    if sentences.lower:
        lower_case(tokenizer)
    return LoadedModel(
        model.eval(),
        tokenizer,
        sentences,
        _max_length(sentences.max_length or read_transformer(folder).max_length, model, task, tokenizer),
        _source(name, origin if is_gguf(origin) else folder, model),
        origin,
        task,
        processor,
        pad_id,
        _settings(folder),
    )


def save_model(
    loaded: LoadedModel,
    path: Path,
    *,
    extra: dict[str, Any] | None = None,
    overwrite: bool = False,
    max_shard_size: str = "5GB",
) -> None:
    """Write model, tokenizer and side files into a new folder; it appears complete or not at all.

    extra: file name → JSON data to put beside them. max_shard_size: of a weight file, in transformers' spelling.
    """
    with new_folder(path, overwrite=overwrite) as folder:
        with silent_transformers(), streamed_saving():
            loaded.model.save_pretrained(folder, max_shard_size=max_shard_size)
        (loaded.tokenizer or loaded.processor).save_pretrained(folder)
        save_sentences(loaded, folder)
        for name, data in (extra or {}).items():
            (folder / name).write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        if isinstance(getattr(loaded.model.config, "quantization_config", None), SatenConfig):
            seal(folder)


def save_sentences(loaded: LoadedModel, folder: Path) -> None:
    """Write what sentence-transformers keeps beside the model into a folder that is there."""
    for name in (*loaded.sentences.settings, *loaded.sentences.weights):
        (folder / name).parent.mkdir(exist_ok=True)
    for name in loaded.sentences.settings:
        shutil.copyfile(loaded.folder / name, folder / name)
    for name, tensors in loaded.sentences.weights.items():
        save_file(dict(tensors), folder / name, {"format": "pt"})


def task_in(folder: Path) -> str:
    """The task, as the hub names it, that the files of a model say.

    Raises:
        CheckpointError: its config is none.
        UsageError: none of ours.
    """
    if is_gguf(folder):
        return TEXT_GENERATION.hub
    if (folder / MODULES_FILE).is_file() and not is_cross_encoder(folder):  # sentence-transformers' embeddings
        return FEATURE_EXTRACTION.hub
    return task_of(list(read_json(folder / CONFIG_FILE, CheckpointError).get("architectures") or ()))


def _family_and_task(folder: Path, task: str | None) -> tuple[Architecture, str]:
    """The row of the folder's model_type, and the task asked for or written in its config; both checked."""
    config = read_json(folder / CONFIG_FILE, CheckpointError)
    refuse_rounded(folder, config)
    if "model_type" not in config:
        raise CheckpointError(f"{folder / CONFIG_FILE}: names no model_type; expected a transformers model folder")
    row = architecture(config["model_type"])
    task = task or task_in(folder)
    if task not in HUB_TASKS:
        raise UsageError(f"no task {task!r}; there are: {', '.join(HUB_TASKS)}")
    row.check_task(task)
    return row, task


def _read_weights(
    folder: Path,
    tensors: Mapping[str, Entry],
    row: Architecture,
    task: str,
    num_labels: int | None,
    seed: int,
    dtype: torch.dtype | str,
) -> tuple[Any, list[str]]:
    """The model and the weights it lacks but for a new head's.

    The pooler of a base model, which embeddings do not read, is left out where it can be.
    """
    import transformers

    with silent_transformers():  # a pooler left unread is reported as unexpected keys
        config = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=False, **ONE_OUTPUT, **_labels(task, num_labels)
        )
        row.check_options(config.to_dict())
        options: dict[str, Any] = {"add_pooling_layer": False} if HUB_TASKS[task].pooled and row.pooler else {}
        auto = getattr(transformers, HUB_TASKS[task].auto)
        if not hasattr(config, "quantization_config"):  # of a Saten model, its quantizer does it
            with torch.device("meta"):
                refuse_bomb(f"{folder / CONFIG_FILE}", auto.from_config(config), tensors)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, found = auto.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=num_labels is not None,
                **options,
            )
    absent = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    new = tuple(f"{head}." for head in row.heads) if num_labels is not None else ()
    return model, sorted(key for key in absent if not key.startswith(new))


def _labels(task: str, num_labels: int | None) -> dict[str, Any]:
    if num_labels is None:
        return {}
    if task == QUESTION_ANSWERING.hub and num_labels == 2:  # where an answer begins, and where it ends
        return {"num_labels": num_labels}
    if num_labels < 1 or HUB_TASKS[task].labels is None:
        raise UsageError(f"{num_labels} labels for {task}; expected at least one, for a classification")
    regression = device_task(task, num_labels).labels == VALUES
    return {"num_labels": num_labels, **({"problem_type": "regression"} if regression else {})}


def _preprocessors(folder: Path, row: Architecture) -> tuple[Any, Any]:
    """The tokenizer of a text model, or the image processor of a vision model, and None for the other."""
    import transformers

    refuse_bare(folder, row.kind)
    if row.kind == "vision":
        return None, transformers.AutoImageProcessor.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # decoders often name none; the mask hides it
    return tokenizer, None


@contextlib.contextmanager
def silent_transformers() -> Iterator[None]:
    """No progress bars and no advice from transformers; `Talk` says what is going on."""
    from transformers import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _source(name: str, folder: Path, model: Any) -> dict[str, str]:
    """Where the weights come from; of a Saten checkpoint, which model was compressed."""
    weights = [folder] if is_gguf(folder) else sorted(folder.glob("*.safetensors"))
    own = {
        "model": Path(name).name if Path(name).exists() else name,
        "architecture": type(model).__name__,
        "sha256": sha256_file(weights[0]) if weights else "",
    }
    config = getattr(model.config, "quantization_config", None)
    if not isinstance(config, SatenConfig):
        return own
    return {**own, "model": config.source["model"], "checkpoint": own["model"]}


def _fitted(where: str, model: Any, tokenizer: Any, row: Architecture, task: str) -> int:
    """The padding id, after tokenizer and model were seen to fit each other."""
    refuse_ids_without_row(where, model, tokenizer, HUB_TASKS[task])
    return settle_padding(where, model, tokenizer, sought=row.kind == "decoder" and HUB_TASKS[task].per_item)


def _sentences(folder: Path, task: str) -> Sentences:
    """What sentence-transformers' files say of a model for the task."""
    if HUB_TASKS[task].pooled:
        return read_sentences(folder)
    crossed = task == TEXT_CLASSIFICATION.hub and is_cross_encoder(folder)
    return read_cross_encoder(folder) if crossed else Sentences(Postprocess())


def _max_length(said: int | None, model: Any, task: str, tokenizer: Any) -> int:
    """The length texts are cut to: sentence-transformers' choice, or the tokenizer's; what the model has positions for.

    A decoder that writes on takes prompts up to its last position, whatever its tokenizer says.
    """
    positions = int(getattr(model.config, "max_position_embeddings", 512)) - first_position(model)
    if said is None and tokenizer is not None and PROMPTS not in HUB_TASKS[task].takes:
        said = tokenizer.model_max_length
    length = min(positions, int(said or positions))
    if tokenizer is not None and length < SHORTEST_LENGTH:
        raise ExportError(
            f"texts are cut to {length} token (model_max_length of the tokenizer, or max_seq_length), "
            f"which leaves nothing of them; expected {SHORTEST_LENGTH} or more"
        )
    return length


def _settings(folder: Path) -> dict[str, Any]:
    return {name: read_json(folder / name, CheckpointError) for name in SETTINGS_FILES if (folder / name).is_file()}


def _are_pairs(items: Sequence[Any]) -> bool:
    return bool(items) and isinstance(items[0], tuple)


def _some(names: list[str]) -> str:
    """The first of some names, and how many more there are."""
    return f"{names[0]} and {len(names) - 1} more weights are" if len(names) > 1 else f"{names[0]} is"
