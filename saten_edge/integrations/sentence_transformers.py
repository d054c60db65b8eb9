"""Bundles in sentence-transformers (https://sbert.net): one module that is the whole pipeline of a bundle.

    model = sentence_transformer("my-bundle")
    scores = model.similarity(model.encode_query(["a question"]), model.encode_document(["an answer"]))

ONNX Runtime computes, so there is nothing to train. Needs the extra `saten-edge[sentence-transformers]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule

from saten_edge.integrations.copies import copy_bundle
from saten_runtime.bundle.manifest import Tokenizer
from saten_runtime.errors import UsageError
from saten_runtime.run.predict import vectors_of
from saten_runtime.run.runner import Runner
from saten_runtime.run.text import Text
from saten_runtime.vocabulary.tasks import FEATURE_EXTRACTION, TEXTS

__all__ = ["BundleModule", "sentence_transformer"]

Features = dict[str, Any]


def sentence_transformer(bundle: str | Path, *, threads: int = 1, memory: str = "fast") -> SentenceTransformer:
    """A bundle as a SentenceTransformer, with the prompts and the similarity of the model that it was made of.

    Raises:
        UsageError: the bundle does not embed texts.
        SatenError: as `Runner.load`.
    """
    module = BundleModule(bundle, threads=threads, memory=memory, default_prompt=False)
    manifest = module.runner.bundle.manifest
    prompts, default = _prompts(module.runner.bundle.tokenizer)
    return SentenceTransformer(
        modules=[module],
        prompts=prompts,
        default_prompt_name=default,
        similarity_fn_name=manifest.postprocess.similarity,
        device="cpu",
    )


class BundleModule(InputModule):  # type: ignore[misc]
    """Tokenizer, graph, pooling and what follows it, with the numbers of `Runner`.

    default_prompt: whether a text without a prompt of its own gets the bundle's default one, as `Runner` gives it.

    Raises:
        UsageError: the bundle does not embed texts.
        SatenError: as `Runner.load`.
    """

    save_in_root = False
    config_file_name = "saten_module.json"
    config_keys = ["default_prompt", "memory", "threads"]  # noqa: RUF012 - the library's declaration

    def __init__(
        self, bundle: str | Path, *, threads: int = 1, memory: str = "fast", default_prompt: bool = True
    ) -> None:
        super().__init__()
        self.runner = Runner.load(bundle, threads=threads, memory=memory)
        self.threads, self.memory, self.default_prompt = threads, memory, default_prompt
        found = self.runner.bundle
        if found.task is not FEATURE_EXTRACTION or found.items != TEXTS:
            raise UsageError(f"{found.path}: {found.task.name} of {found.items}; expected one that embeds texts")

    @property
    def max_seq_length(self) -> int:
        """Tokens that texts are cut to."""
        return self.runner.encoder.longest

    @max_seq_length.setter
    def max_seq_length(self, tokens: int) -> None:
        self.runner.encoder.cut_to(tokens)

    def get_embedding_dimension(self) -> int:
        """Numbers of a vector."""
        return int(self.runner.predict([]).shape[1])

    def preprocess(self, inputs: Sequence[Text], prompt: str | None = None, **given: Any) -> Features:
        """The inputs of the graph; prompt: what stands before every text, in place of the bundle's own.

        Raises:
            UsageError: settings of a tokenizer, which the bundle's has not.
        """
        if given.get("processing_kwargs"):
            raise UsageError(f"processing_kwargs {given['processing_kwargs']}: a bundle's tokenizer is as it is")
        encoder = self.runner.encoder
        before = prompt if prompt is not None or self.default_prompt else ""
        feeds = encoder.feeds(encoder.encode(inputs, prompt=before))
        return {name: torch.from_numpy(array) for name, array in feeds.items()}

    def forward(self, features: Features, **_: Any) -> Features:
        """`features`, with `sentence_embedding` (batch, width) and, if the graph has them, `token_embeddings`."""
        manifest = self.runner.bundle.manifest
        feeds = {name: features[name].cpu().numpy() for name in manifest.inputs}
        outputs = self.runner.run(feeds)
        hidden, vectors = outputs[manifest.outputs[0]], vectors_of(self.runner)(outputs, feeds)
        tokens = (
            {"token_embeddings": torch.from_numpy(hidden)} if hidden.ndim == len(("batch", "token", "width")) else {}
        )
        return {**features, **tokens, "sentence_embedding": torch.from_numpy(vectors)}

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Copy the bundle into a folder, with the settings of this module."""
        copy_bundle(self.runner.bundle, Path(output_path))
        self.save_config(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **how: Any) -> BundleModule:
        """Read what `save` wrote."""
        known = ("token", "cache_folder", "revision", "local_files_only")
        place = {name: how[name] for name in known if name in how}
        settings = cls.load_config(model_name_or_path, subfolder=subfolder, **place)
        return cls(cls.load_dir_path(model_name_or_path, subfolder=subfolder, **place), **settings)


def _prompts(tokenizer: Tokenizer) -> tuple[dict[str, str], str | None]:
    """The prompts by name, and the name of the default one."""
    prompts = dict(tokenizer.prompts)
    if not tokenizer.prompt:
        return prompts, None
    names = [name for name, text in prompts.items() if text == tokenizer.prompt]
    return (prompts, names[0]) if names else ({**prompts, "default": tokenizer.prompt}, "default")
