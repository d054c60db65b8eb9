"""The recipe of a chosen bundle, and the same bundle from its recipe, bit for bit."""

from __future__ import annotations

from pathlib import Path

from saten_edge.checkpoints.resolve import resolve_model
from saten_edge.console import Progress, told
from saten_edge.engines import ENGINES
from saten_edge.optimize.chains import Chains
from saten_edge.optimize.inputs import model_hash
from saten_edge.optimize.output import CHOSEN, RECIPE_FILE, WORK, claim, put
from saten_edge.optimize.space import Candidate
from saten_edge.optimize.tasks import Input, Source, Task, made
from saten_edge.recipes import RecipeFile, recorded, write_recipe
from saten_runtime.bundle.folder import Bundle
from saten_runtime.bundle.recipe import Option, Recipe, Stage, versions_here
from saten_runtime.errors import ParityError, UsageError
from saten_runtime.machine.lock import output_lock
from saten_runtime.records.files import sha256_file
from saten_runtime.vocabulary.files import MODEL_FILE

__all__ = ["recipe_of", "replay"]

# What has to be the same in a bundle that is made again; its card and its checks hold times and names.
WEIGHTS = (MODEL_FILE, f"{MODEL_FILE}.data")


def recipe_of(chains: Chains, candidate: Candidate, bundle: Bundle, threads: int) -> Recipe:
    """Of a candidate's bundle: the search, with paths and hashes of what it read, and then every stage in its order.

    threads: of each process; other sums of floating-point numbers come of another number.
    """
    sources = {"model": chains.model, "data": chains.data}
    sources |= {} if chains.prices is None else {"prices": chains.prices}
    inputs: dict[str, dict[str, Option]] = {
        role: {"path": source.path, "sha256": source.key} for role, source in sources.items()
    }
    outcome: dict[str, Option] = {"bundle": bundle.name, "threads": threads, **_hashes(bundle)}
    first = Stage("optimize", recorded("optimize", chains.options), inputs, outcome, versions_here())
    made_by = bundle.manifest.recipe.stages if bundle.manifest.recipe else ()
    return Recipe((first, *_unrecorded(chains.dense_of(candidate)), *made_by))


def _unrecorded(dense: Input) -> list[Stage]:
    """The stages that made a dense model, which has no record of its own."""
    if isinstance(dense, Source):
        return []
    return [*_unrecorded(dense.inputs["model"]), Stage(dense.do, dict(dense.options))]


def replay(
    file: RecipeFile,
    out: str | Path,
    *,
    model: str | None = None,
    data: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Make the bundle of a recipe again, as `chosen` in the folder `out`, and see that it is the same.

    model, data: where they are now, instead of the paths in the recipe; their content has to be what it was.

    Raises:
        UsageError: the recipe has no search or no export, or an input has other content.
        ParityError: the bundle is another one; the message says which versions differ.
    """
    out, first = Path(out), file.stage("optimize")
    options = file.options(first)
    given = {"model": model, "data": data}
    paths = {role: str(each or _input(file, first, role)["path"]) for role, each in given.items()}
    folder, training = resolve_model(paths["model"]), Path(paths["data"])
    if not training.is_file():
        raise UsageError(f"--data {training}: no such file")
    found = {"model": model_hash(folder), "data": sha256_file(training)}
    for role, sha256 in found.items():
        if sha256 != _input(file, first, role)["sha256"]:
            raise UsageError(f"{file.where(first)}: {paths[role]} is not the {role} of this recipe, its sha256 differs")
    sources = {
        "model": Source(str(folder.resolve()), found["model"]),
        "data": Source(str(training.resolve()), found["data"]),
        **_prices(file, first),
    }
    task, threads = _task_of(file, sources), int(str(first.outcome.get("threads", 1)))
    with output_lock(out):
        claim(out, options, found, [file.path, *paths.values()], resume=False, overwrite=overwrite)
        work = (out / WORK).resolve()
        work.mkdir()
        with ENGINES["local"](work, 1, threads, None) as engine, told(progress, f"replay {file.path.name}"):
            engine.run([{"do": "task", "task": task.to_json()}], lambda done: None)
        put(out, CHOSEN, made(task, work))
        write_recipe(out / RECIPE_FILE, file.recipe)
    bundle = Bundle.open(out / CHOSEN)
    _refuse_difference(file, first, bundle)
    return bundle


def _task_of(file: RecipeFile, sources: dict[str, Source]) -> Task:
    """The chain of tasks that the stages after the search describe."""
    model: Input = sources["model"]
    dense: Input | None = None
    for stage in file.recipe.stages[1:]:
        inputs: dict[str, Input] = {"model": model, "data": sources["data"]}
        options = dict(stage.options)
        if stage.stage == "compress":
            dense, texts = model, stage.inputs.get("calibration", {})
            options["texts"] = texts.get("texts", texts.get("images", 0))
        elif stage.stage == "finetune" and dense is not None:
            inputs["teacher"] = dense
        elif stage.stage == "export":
            name = str(file.stage("optimize").outcome.get("bundle", CHOSEN))
            priced = {role: source for role, source in sources.items() if role == "prices"}
            return Task("export", {**options, "name": name, "prices": None}, {"model": model, **priced})
        model = Task(stage.stage, options, inputs)
    raise UsageError(f"{file.path}: has no stage export, so there is no bundle to make")


def _prices(file: RecipeFile, first: Stage) -> dict[str, Source]:
    """The file of prices that the search chose by, where it was or beside the recipe; none of those that ship.

    Raises:
        UsageError: it is gone, or has other content.
    """
    if "prices" not in first.inputs:
        return {}
    found = _input(file, first, "prices")
    there = Path(str(found["path"]))
    path = next((each for each in (there, file.path.parent / there.name) if each.is_file()), None)
    if path is None or sha256_file(path) != found["sha256"]:
        what = f"{there} is missing" if path is None else f"{path} is not the prices of this recipe, its sha256 differs"
        raise UsageError(f"{file.where(first)}: {what}")
    return {"prices": Source(str(path.resolve()), str(found["sha256"]))}


def _input(file: RecipeFile, stage: Stage, role: str) -> dict[str, Option]:
    found = dict(stage.inputs.get(role, {}))
    if not {"path", "sha256"} <= set(found):
        raise UsageError(f"{file.where(stage)}: optimize: inputs has no {role} with a path and a sha256")
    return found


def _hashes(bundle: Bundle) -> dict[str, Option]:
    """Of graph and weights."""
    return {name.replace(".", "_"): entry.sha256 for name, entry in bundle.manifest.files.items() if name in WEIGHTS}


def _refuse_difference(file: RecipeFile, first: Stage, bundle: Bundle) -> None:
    other = [name for name, sha256 in _hashes(bundle).items() if first.outcome.get(name, sha256) != sha256]
    if other:
        here = versions_here()
        odd = [f"{name} {was}, here {here.get(name)}" for name, was in first.versions.items() if here.get(name) != was]
        why = (
            f"the recipe was made with {', '.join(odd)}"
            if odd
            else "the versions are the same, the processor may not be"
        )
        raise ParityError(f"{bundle.path}: {', '.join(other)} is not what the recipe made; {why}")
