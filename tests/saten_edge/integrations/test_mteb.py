"""mteb measures a bundle through sentence-transformers: a task of its own class, with pairs that need no hub."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from saten_runtime import Runner

pytest.importorskip("sentence_transformers.base.modules", reason="needs sentence-transformers 6 or newer")
mteb = pytest.importorskip("mteb", reason="needs mteb (extra saten-edge[mteb])")


def task_of(pairs: list[tuple[str, str]], scores: list[float]) -> Any:
    """A similarity task over these pairs."""
    from datasets import Dataset
    from mteb.abstasks.sts import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata

    class Pairs(AbsTaskSTS):  # type: ignore[misc]
        metadata = TaskMetadata(
            name="Pairs",
            description="Pairs of made-up texts.",
            reference=None,
            dataset={"path": "nowhere/pairs", "revision": "1"},
            type="STS",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="cosine_spearman",
        )
        min_score, max_score = 0, 5

        def load_data(self, **_: Any) -> None:
            first, second = zip(*pairs, strict=True)
            columns = {"sentence1": list(first), "sentence2": list(second), "score": scores}
            self.dataset, self.data_loaded = {"test": Dataset.from_dict(columns)}, True

    return Pairs()


@pytest.mark.filterwarnings("ignore")  # of mteb's own
def test_mteb_scores_a_bundle_as_its_vectors_say(tiny_bundle: Callable[[str], Path], texts: list[str]) -> None:
    from saten_edge.integrations.sentence_transformers import sentence_transformer

    bundle = tiny_bundle("dense-fp32")
    pairs = list(pairwise(texts[:25]))
    scores = np.random.default_rng(3).uniform(0, 5, len(pairs)).tolist()
    result = mteb.evaluate(sentence_transformer(bundle), task_of(pairs, scores), cache=None, show_progress_bar=False)
    (found,) = result.task_results[0].scores["test"]
    first, second = (Runner.load(bundle).predict(list(side)) for side in zip(*pairs, strict=True))
    cosines = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    assert found["cosine_spearman"] == pytest.approx(spearmanr(cosines, scores).statistic, abs=1e-6)
    assert found["cosine_pearson"] == pytest.approx(pearsonr(cosines, scores).statistic, abs=1e-6)
    assert found["cosine_pearson"] != pytest.approx(pearsonr(cosines[::-1], scores).statistic, abs=1e-3)
