"""`trim`: a dense model folder in, a smaller one out, and what that changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saten_edge.checkpoints.foreign import with_safetensors
from saten_edge.checkpoints.gguf_header import is_gguf
from saten_edge.checkpoints.models import LoadedModel, load_model, save_sentences, silent_transformers
from saten_edge.checkpoints.resolve import resolve_model
from saten_edge.console import Progress, told
from saten_edge.options import TrimOptions
from saten_edge.texts import read_texts
from saten_edge.trimming.entries import Entries
from saten_edge.trimming.files import ModelFiles
from saten_edge.trimming.measure import compare_outputs, compare_pieces, count, pieces_of
from saten_exporters.sources.chat import chat_of
from saten_runtime.bundle.chat import ASSISTANT, SYSTEM, USER
from saten_runtime.bundle.recipe import Option, Stage, options_of, versions_here
from saten_runtime.errors import CheckpointError, DataError, ParityError, UsageError
from saten_runtime.machine.lock import output_lock
from saten_runtime.records.files import digest_of, read_json, write_json
from saten_runtime.records.folders import check_output, new_folder
from saten_runtime.vocabulary.files import CONFIG_FILE

__all__ = ["TRIM_FILE", "Rows", "rows_left", "trim"]

TRIM_FILE = "saten_trim.json"


def trim(
    model: str | Path,
    out: str | Path,
    data: str | Path | Sequence[str],
    options: TrimOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Leave out of a dense model the entries of its vocabulary that the texts of a task do not use.

    model: a folder, a GGUF file, or a name on the Hugging Face hub. out: folder to write, a dense model again. data: a
    JSON Lines or CSV file, or texts.

    Returns:
        What `saten_trim.json` in `out` holds; pairs are before and after. "vocabulary": entries, those that the data
        uses, and those that every text needs; "table_rows"; "weights_bytes"; "pieces": of the judging texts, the share
        that keeps its pieces, pieces for each text, and unknown ones; "outputs": how far those of some texts moved,
        relatively; "stage": options, inputs and versions.

    Raises:
        UsageError: `out` cannot be written, `vocabulary` does not fit, or the model is compressed or takes images.
        DataError, CheckpointError: data or the model cannot be read.
        ExportError: a tokenizer or a word table that cannot be trimmed.
        ParityError: the tokenizer that was written reads texts otherwise than it should.
    """
    options, out = options or TrimOptions(), Path(out)
    given = data if isinstance(data, (str, Path)) else None
    check_output(out, overwrite=overwrite, inputs=[model, given, options.judge])
    with output_lock(out):
        texts = read_texts(data) if isinstance(data, (str, Path)) else list(data)
        if not texts:
            raise DataError("there are no texts; expected those that the model is to read")
        judging = read_texts(options.judge) if options.judge else texts
        folder = resolve_model(str(model))
        _refuse_compressed(folder)
        with with_safetensors(folder) as readable:
            before = load_model(readable)
            source = {**before.source, "model": folder.name if Path(model).exists() else str(model)}
            work = _Trimming(dataclasses.replace(before, source=source), readable, texts, judging, options, progress)
            return work.run(out, overwrite=overwrite)


@dataclasses.dataclass(frozen=True)
class Rows:
    """What trimming leaves of the tensors with a row for each word.

    tensors: their names, seen from the base model. before, after: their rows.
    """

    tensors: frozenset[str]
    before: int
    after: int

    def shape(self, name: str, shape: Sequence[int]) -> tuple[int, ...]:
        """What the shape of a tensor becomes; name: seen from the base model."""
        return (self.after, *shape[1:]) if name in self.tensors else tuple(shape)


def rows_left(model: str | Path, data: str | Path, options: TrimOptions | None = None) -> Rows:
    """What `trim` would leave, without writing anything.

    Raises:
        SatenError: as `trim`, but for what only the trimmed model shows.
    """
    folder = resolve_model(str(model))
    _refuse_compressed(folder)
    with with_safetensors(folder) as readable:
        work = _Trimming(load_model(readable), readable, read_texts(data), (), options or TrimOptions(), None)
        chosen = work.choose()
    return Rows(chosen.files.bare, chosen.files.rows, len(chosen.numbers))


def _refuse_compressed(folder: Path) -> None:
    said = {} if is_gguf(folder) else read_json(folder / CONFIG_FILE, CheckpointError).get("quantization_config")
    if isinstance(said, dict) and said.get("quant_method") == "saten":
        raise UsageError(f"{folder}: is compressed already; trim the dense model, and compress what that writes")


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """The entries that stay. counts: (rows,), how often the texts use each id. always: ids that every text may need.

    numbers: old id → new id of each row that stays, rising. kept: how many entries of the tokenizer these are.
    """

    tokenizer: Any
    entries: Entries
    files: ModelFiles
    counts: np.ndarray
    always: set[int]
    numbers: dict[int, int]
    kept: int


@dataclasses.dataclass(frozen=True)
class _Trimming:
    """One model, its files, and texts that count and that judge."""

    before: LoadedModel
    folder: Path
    texts: Sequence[str]
    judging: Sequence[str]
    options: TrimOptions
    progress: Progress | None

    def choose(self) -> _Chosen:
        """Which entries stay.

        Raises:
            UsageError, ExportError: as `trim`.
        """
        if self.before.tokenizer is None:
            raise UsageError(f"{self.folder}: takes images, and has no vocabulary to trim")
        tokenizer = _read_tokenizer(self.folder)  # one that has not been used: use leaves traces in its file
        entries, files = Entries(str(self.folder), tokenizer), ModelFiles.read(self.folder)
        with told(self.progress, f"count the pieces of {len(self.texts)} texts") as advance:
            counts = count(self.before, self.texts, files.rows, advance)
        there, named = set(entries.ids.values()), files.named()
        always = entries.always | (named & there) | self._own_pieces()
        kept = sorted(entries.choose(counts.tolist(), always, self.options.vocabulary))
        # A row that config.json names and that no token has keeps its place behind the tokens.
        numbers = {old: new for new, old in enumerate([*kept, *sorted(named - there)])}
        return _Chosen(tokenizer, entries, files, counts, always, numbers, len(kept))

    def run(self, out: Path, *, overwrite: bool) -> dict[str, Any]:
        """Write the smaller folder."""
        chosen = self.choose()
        entries, files, numbers, tokenizer = chosen.entries, chosen.files, chosen.numbers, chosen.tokenizer
        tokenizer._tokenizer = entries.renumbered(numbers)
        with new_folder(out, overwrite=overwrite) as aside:
            stored = files.write(aside, numbers)
            tokenizer.save_pretrained(aside)
            save_sentences(self.before, aside)
            after = load_model(aside, self.before.task)
            _refuse_other_ids(str(self.folder), entries, numbers, after.tokenizer)
            found: dict[str, Any] = {
                "vocabulary": {
                    "entries": [len(set(entries.ids.values())), chosen.kept],
                    "used": int(np.count_nonzero(chosen.counts)),
                    "needed": len(chosen.always),
                },
                "weights_bytes": [files.value_bytes, stored],
                "table_rows": [files.rows, len(numbers)],
                **self._judged(after, numbers, files.rows),
            }
            found["stage"] = dataclasses.asdict(self._stage(found["vocabulary"]))
            write_json(aside / TRIM_FILE, found)
        return found

    def _own_pieces(self) -> set[int]:
        """Ids of what the model's own files put around a text: prompts, and the texts of a chat template."""
        chat, _ = chat_of(self.before.tokenizer)
        said = [*self.before.prompts.values()]
        if chat is not None:
            roles = [*[SYSTEM] * (chat.system is not None), USER, ASSISTANT, USER]
            said.append(chat.render([{"role": role, "content": "."} for role in roles]))
        return {number for rows in pieces_of(self.before, said) for ids in rows for number in ids}

    def _judged(self, after: LoadedModel, numbers: Mapping[int, int], rows: int) -> dict[str, Any]:
        """What is said of the texts that judge.

        Raises:
            ParityError: more is unknown than before.
        """
        placed = np.full(rows, -1)
        placed[list(numbers)] = list(numbers.values())
        with told(self.progress, f"split {len(self.judging)} texts again") as advance:
            pieces, kept = compare_pieces(self.before, after, self.judging, placed, advance)
        before, now = pieces["unknown_pieces"]
        if now > before:
            raise ParityError(
                f"{self.folder}: {now} unknown pieces in {len(self.judging)} texts, and {before} before; expected no "
                "more, as what goes is spelled by what stays; please report this"
            )
        with told(self.progress, "compare outputs") as advance:
            outputs = compare_outputs(self.before, after, self.judging, kept, advance)
        return {"pieces": pieces, "outputs": outputs}

    def _stage(self, outcome: dict[str, Any]) -> Stage:
        inputs = {"model": options_of(**self.before.source), "data": _described(self.texts)}
        inputs |= {"judge": _described(self.judging)} if self.options.judge else {}
        given = options_of(vocabulary=self.options.vocabulary)
        return Stage("trim", given, inputs, options_of(**outcome), versions_here())


def _described(texts: Sequence[str]) -> dict[str, Option]:
    return options_of(sha256=digest_of(list(texts)), texts=len(texts))


def _read_tokenizer(folder: Path) -> Any:
    import transformers

    with silent_transformers():
        return transformers.AutoTokenizer.from_pretrained(folder)


def _refuse_other_ids(where: str, entries: Entries, numbers: Mapping[int, int], tokenizer: Any) -> None:
    """Refuse a tokenizer that gives entries other ids when it is read again.

    Raises:
        ParityError: naming the first.
    """
    wanted = {text: numbers[number] for text, number in entries.ids.items() if number in numbers}
    found = tokenizer.get_vocab()
    for text in [*wanted, *found]:
        if wanted.get(text) != found.get(text):
            raise ParityError(
                f"{where}: {type(tokenizer).__name__} reads {text!r:.60} as {found.get(text)} from the files that were "
                f"written; expected {wanted.get(text)}; please report this"
            )
