"""Linear pipelines of scikit-learn on exactly the rows of a run: the yardstick of the n-gram floor.

    python experiments/baselines/pipelines.py data=files data.train=train.csv data.test=test.csv [--json FILE]

The overrides are those of ``kdresearch train``: source, split and its seed are composed from them, so that a pipeline
trains on the rows that the run trains on (without its validation rows) and is scored on the same test rows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from hydra import initialize_config_dir
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from kdresearch.artifacts import Store
from kdresearch.bench.plan import Data
from kdresearch.commands.compose import compose_overrides, plan_of
from kdresearch.conf_path import config_dir
from kdresearch.data.corpus import load
from kdresearch.data.split import labels_of, split


class LogCountRatio(BaseEstimator, TransformerMixin):
    """Features times their log-count ratio between two classes (Wang & Manning 2012), α = 1."""

    def fit(self, features: Any, labels: np.ndarray) -> LogCountRatio:
        positive, negative = (np.asarray(features[labels == value].sum(0)).ravel() + 1 for value in (1, 0))
        self.ratio_ = np.log(positive / positive.sum()) - np.log(negative / negative.sum())
        return self

    def transform(self, features: Any) -> Any:
        return features.multiply(self.ratio_).tocsr()


def pipelines(characters: bool) -> dict[str, Callable[[], Any]]:
    words = {"ngram_range": (1, 2)}
    found: dict[str, Callable[[], Any]] = {
        "tfidf 1-2 + LinearSVC(C=1)": lambda: make_pipeline(TfidfVectorizer(**words), LinearSVC(C=1)),
        "tfidf 1-2 + LogisticRegression(C=10)": lambda: make_pipeline(
            TfidfVectorizer(**words), LogisticRegression(C=10, max_iter=1000)
        ),
        "binary 1-3 + NB + LogisticRegression(C=1)": lambda: make_pipeline(
            CountVectorizer(ngram_range=(1, 3), binary=True, token_pattern=r"(?u)\b\w+\b|[^\w\s]"),
            OneVsRestClassifier(make_pipeline(LogCountRatio(), LogisticRegression(C=1, solver="liblinear"))),
        ),
    }
    if characters:
        found["tfidf char_wb 3-5 + LinearSVC(C=1)"] = lambda: make_pipeline(
            TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True), LinearSVC(C=1)
        )
    return found


def rows(data: Data, seed: int) -> dict[str, tuple[list[str], np.ndarray]]:
    """Texts and labels of the training and test rows of a run."""
    corpus = load(data.source.build("data"), Store(), print)
    carved = split(corpus, seed=seed, **data.carving)
    labels = labels_of(corpus)

    def texts(index: np.ndarray) -> list[str]:
        chunks: Iterable[list[str]] = corpus.texts(np.sort(index))
        return [text for chunk in chunks for text in chunk]

    return {
        name: (texts(index), labels[np.sort(index)]) for name, index in (("train", carved.train), ("test", carved.test))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of kdresearch train: data=..., seeds.split=...")
    parser.add_argument("--json", type=Path, help="where the figures are written, too")
    parser.add_argument("--characters", action="store_true", help="a fourth pipeline, of character n-grams")
    given = parser.parse_args()
    with initialize_config_dir(config_dir(), version_base="1.3"):
        plan = plan_of(compose_overrides(given.overrides))
    found = rows(plan.data, plan.seeds.split)
    (texts, labels), (unseen, answers) = found["train"], found["test"]
    print(f"{len(texts):,} training rows, {len(unseen):,} test rows, {len(np.unique(labels))} classes")
    told = []
    for name, make in pipelines(given.characters).items():
        start = time.perf_counter()
        model = make().fit(texts, labels)
        fitted = time.perf_counter() - start
        predicted = model.predict(unseen)
        figures = {
            "pipeline": name,
            "accuracy": float(accuracy_score(answers, predicted)),
            "macro_f1": float(f1_score(answers, predicted, average="macro", zero_division=0)),
            "seconds": round(fitted, 2),
        }
        print(
            f"{name:45s} {100 * figures['accuracy']:6.2f} {100 * figures['macro_f1']:6.2f} {fitted:7.1f} s", flush=True
        )
        told.append(figures)
    if given.json is not None:
        counts = {"train": len(texts), "test": len(unseen), "classes": len(np.unique(labels))}
        given.json.write_text(json.dumps({"overrides": given.overrides, **counts, "pipelines": told}, indent=1))


if __name__ == "__main__":
    main()
