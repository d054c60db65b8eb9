"""Every engine that can run a Llama, as one table. Each is imported only in the process that it runs in.

All of them are given ids, keep the cache of what they read in their own way, and answer with logits. llama.cpp maps its
file, as it does by default, so that weights it reads as they are count as no anonymous memory; its cache and attention
are of 16 bits, as by default, but for the float32 file, which has to agree with torch within rounding.
"""

from __future__ import annotations

import ctypes
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["CONTEXT", "DECODERS", "Decode"]

CONTEXT = 512  # tokens an engine makes room for
Logits = npt.NDArray[np.float32]


class Decode(Protocol):
    """One model and the tokens it has read."""

    def reset(self) -> None:
        """Forget every token."""

    def read(self, ids: list[int], *, every: bool = False) -> Logits:
        """Read more tokens; the logits (1, vocabulary) after the last, or (tokens, vocabulary) after `every` one."""


class OnnxRuntime:
    """One of our bundles."""

    def __init__(self, artifact: Path, threads: int) -> None:
        from saten_runtime.bundle.folder import Bundle
        from saten_runtime.run.generation import Decoder
        from saten_runtime.run.session import make_session

        bundle = Bundle.open(artifact)
        self._decoder = Decoder(bundle, make_session(bundle, threads=threads))
        self.reset = self._decoder.reset

    def read(self, ids: list[int], *, every: bool = False) -> Logits:
        logits: Logits = self._decoder.forward(np.array([ids], np.int64), last=0 if every else 1)[0]
        return logits


class GenAi:
    """What onnxruntime-genai's model builder wrote."""

    def __init__(self, artifact: Path, threads: int) -> None:
        import onnxruntime_genai

        config = onnxruntime_genai.Config(str(artifact))
        options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}, allow_nan=False))
        model = onnxruntime_genai.Model(config)
        search = onnxruntime_genai.GeneratorParams(model)
        search.set_search_options(max_length=CONTEXT, do_sample=False)
        self._generator = onnxruntime_genai.Generator(model, search)

    def reset(self) -> None:
        self._generator.rewind_to(0)

    def read(self, ids: list[int], *, every: bool = False) -> Logits:
        self._generator.append_tokens(np.array(ids, np.int32))
        return self._generator.get_output("logits")[0] if every else self._generator.get_logits()[0]


class LlamaCpp:
    """`model.gguf`, through the C interface that llama-cpp-python binds."""

    def __init__(self, artifact: Path, threads: int) -> None:
        import llama_cpp

        self._library = llama_cpp
        logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(
            str(artifact / "model.gguf").encode(), llama_cpp.llama_model_default_params()
        )
        if not model:
            raise ValueError(f"{artifact}: llama.cpp does not load it")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = CONTEXT
        options.n_threads = options.n_threads_batch = threads
        if llama_cpp.llama_model_ftype(model) == llama_cpp.LLAMA_FTYPE_ALL_F32:
            options.type_k = options.type_v = llama_cpp.GGML_TYPE_F32
            options.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._context = llama_cpp.llama_init_from_model(model, options)
        self._batch = llama_cpp.llama_batch_init(CONTEXT, 0, 1)
        self.reset()

    def reset(self) -> None:
        self._past = 0
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)

    def read(self, ids: list[int], *, every: bool = False) -> Logits:
        batch = self._batch
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place] = token
            batch.pos[place] = self._past + place
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = 0
            batch.logits[place] = every or place == len(ids) - 1
        if self._library.llama_decode(self._context, batch):
            raise ValueError("llama.cpp cannot decode")
        self._past += len(ids)
        rows = len(ids) if every else 1
        found = self._library.llama_get_logits(self._context)
        return np.ctypeslib.as_array(ctypes.cast(found, ctypes.POINTER(ctypes.c_float)), (rows, self._vocabulary))


class Torch:
    """A Hugging Face folder, dense or Saten."""

    def __init__(self, artifact: Path, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        import saten_edge  # noqa: F401  registers the "saten" method

        torch.set_num_threads(threads)
        self._model = AutoModelForCausalLM.from_pretrained(artifact, dtype=torch.float32).eval()
        self.reset()

    def reset(self) -> None:
        self._cache: Any = None

    def read(self, ids: list[int], *, every: bool = False) -> Logits:
        import torch

        with torch.inference_mode():
            given = torch.tensor([ids])
            kept = {"logits_to_keep": 0 if every else 1}
            found = self._model(given, past_key_values=self._cache, use_cache=True, **kept)
        self._cache = found.past_key_values
        return np.asarray(found.logits[0])


DECODERS: dict[str, Callable[[Path, int], Decode]] = {
    "onnxruntime": OnnxRuntime,
    "genai": GenAi,
    "llama.cpp": LlamaCpp,
    "torch": Torch,
}
