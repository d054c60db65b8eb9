"""Where a model lies: in a folder, in a GGUF file, or on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from saten_edge.checkpoints.foreign import PICKLE_FILES, refuse_adapter
from saten_edge.checkpoints.gguf_header import is_gguf
from saten_edge.checkpoints.guard import refuse_odd_files
from saten_edge.checkpoints.sentences import PICKLED_WEIGHTS_FILE
from saten_runtime.bundle.manifest import MANIFEST_FILE
from saten_runtime.errors import CheckpointError
from saten_runtime.records.files import refuse_home
from saten_runtime.records.plain_text import one_line
from saten_runtime.vocabulary.files import CONFIG_FILE

__all__ = ["resolve_model"]

# The last is of a module of sentence-transformers.
FETCHED = ("*.json", "*.safetensors", "*.txt", "*.model", f"[1-9]_*/{PICKLED_WEIGHTS_FILE}")
_NAMED = 5  # folders in a message at most


def resolve_model(name: str) -> Path:
    """The folder of a model, as given or downloaded from the hub, or its GGUF file.

    Raises:
        CheckpointError: there is none, or it cannot be fetched.
    """
    refuse_home(Path(name), CheckpointError)
    if is_gguf(Path(name)) and Path(name).exists():
        return Path(name)
    if Path(name).is_file():
        around = Path(name).parent
        which = f", {around}" if (around / CONFIG_FILE).is_file() else ""
        raise CheckpointError(f"{name}: is a file; give the folder of the model{which}")
    folder = Path(name) if Path(name).is_dir() else _fetched(name)
    if (folder / MANIFEST_FILE).is_file():
        raise CheckpointError(f"{name}: is a bundle, which holds a graph; give the model that it was exported from")
    if not (folder / CONFIG_FILE).is_file():
        refuse_adapter(folder)
        raise CheckpointError(f"{name}: has no config.json; expected a transformers model folder{_inside(folder)}")
    refuse_odd_files(folder)
    return folder


def _inside(folder: Path) -> str:
    """Models in a folder that is none itself, such as the checkpoints of a training."""
    found = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}"))
    more = ", …" if len(found) > _NAMED else ""
    return f", such as those in it: {', '.join(found[:_NAMED])}{more}" if found else ""


def _fetched(name: str) -> Path:
    """The folder in the hub's cache; weights that torch pickled come where there are no others."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(FETCHED)))
        if any(folder.glob("*.safetensors")):
            return folder
        return Path(snapshot_download(name, allow_patterns=[*FETCHED, PICKLE_FILES]))
    except HFValidationError:
        raise CheckpointError(f"{name}: no such folder, and no name of a model on the hub either") from None
    except Exception as cause:  # the hub client raises many kinds, offline ones too
        raise CheckpointError(
            f"{name}: no such folder, and it cannot be fetched from the hub ({one_line(cause, 200)})"
        ) from None
