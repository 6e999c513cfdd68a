"""Logistic regression over words and pairs of words, which judges the passages that the keyword prefilter found.

Features are CRC-32 values of words and of pairs of words. Only those seen in training have a weight; words that it has
never seen say nothing, so that an unknown passage is kept. The value of each is 1 / sqrt(number of features), so that
long passages are not judged by their length. Trained by L-BFGS with an L2 penalty, on the CPU, in seconds, to the same
weights each time.
"""

from __future__ import annotations

import itertools
import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ossia.core.errors import DatasetError, InvalidInputError, StorageError
from ossia.training.data.filters.hazard.templates import Example
from ossia.training.data.filters.hazard.terms import KeywordFilter

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = Path(__file__).parent / "weights.safetensors"
"""The classifier that ships; `ossia data hazard-train` makes it."""
MIN_COUNT = 2
PENALTY = 1e-4
KEYWORD = "§"
ARTICLES = frozenset({"a", "an", "the"})
_WORD = re.compile(rf"[^\W\d_]+(?:'[a-z]+)?|{KEYWORD}")
_KEYWORDS = KeywordFilter()


def features(text: str, *, keywords: KeywordFilter = _KEYWORDS) -> list[int]:
    """The different words and pairs of words of a text, as CRC-32 values.

    Keywords become one sign, so that what is said of one thing holds for another; articles are left out. Pairs are of
    neighbours, and of neighbours but one.
    """
    marked = keywords.pattern.sub(f" {KEYWORD} ", text.lower())
    words = ["^", *(word for word in _WORD.findall(marked) if word not in ARTICLES), "$"]
    pairs = (f"{left} {right}" for left, right in itertools.pairwise(words))
    wide = (f"{left} * {right}" for left, right in zip(words, words[2:], strict=False))
    return sorted({zlib.crc32(feature.encode()) for feature in (*words[1:-1], *pairs, *wide)})


class HazardClassifier(NamedTuple):
    """Weights of a trained classifier.

    Attributes:
        hashes: features with a weight [F] of uint32, in order.
        weights: their weights [F] of float32.
        bias: what a text without known features scores, in logits.
        threshold: probability from which a passage is a hazard.
    """

    hashes: np.ndarray
    weights: np.ndarray
    bias: float
    threshold: float

    def probability(self, text: str, *, keywords: KeywordFilter = _KEYWORDS) -> float:
        """How probable it is that a passage is hazardous, `keywords` being those that it was found by."""
        found = np.asarray(features(text, keywords=keywords), dtype=np.uint32)
        places = np.minimum(np.searchsorted(self.hashes, found), len(self.hashes) - 1)
        is_known = self.hashes[places] == found
        logit = self.bias + float(self.weights[places[is_known]].sum()) / math.sqrt(max(1, len(found)))
        return 1 / (1 + math.exp(-logit))

    def save(self, path: Path) -> None:
        """Write the weights as safetensors.

        Raises:
            StorageError: the file cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(
                {"hashes": self.hashes, "weights": self.weights},
                path,
                metadata={"format": "ossia-hazard-1", "bias": repr(self.bias), "threshold": repr(self.threshold)},
            )
        except (OSError, SafetensorError) as error:
            raise StorageError(f"cannot write the classifier to {path}: {error}") from error

    @staticmethod
    def load(path: Path = WEIGHTS) -> HazardClassifier:
        """Read weights.

        Raises:
            DatasetError: the file is absent or damaged.
        """
        try:
            with safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != "ossia-hazard-1":
                    raise ValueError(f"its format is {metadata.get('format')!r}")
                loaded = HazardClassifier(
                    file.get_tensor("hashes"),
                    file.get_tensor("weights"),
                    float(metadata["bias"]),
                    float(metadata["threshold"]),
                )
            if loaded.hashes.shape != loaded.weights.shape or not len(loaded.hashes):
                raise ValueError("its tensors do not belong together")
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise DatasetError(
                f"the hazard classifier {path} cannot be read ({error}); make one with `ossia data hazard-train`"
            ) from error
        return loaded


def fit(examples: Sequence[Example], *, threshold: float = 0.5, penalty: float = PENALTY) -> HazardClassifier:
    """Train on labelled texts.

    Raises:
        InvalidInputError: they are all of one kind.
    """
    import torch  # judging needs none, and each of many processes would load it

    labels = torch.tensor([float(example.is_hazard) for example in examples])
    if not examples or labels.min() == labels.max():
        raise InvalidInputError("the classifier needs hazardous and benign examples", param="examples")
    found = [features(example.text) for example in examples]
    counts = Counter(feature for one in found for feature in one)
    hashes = np.asarray(sorted(feature for feature, count in counts.items() if count >= MIN_COUNT), dtype=np.uint32)
    place = {int(feature): number for number, feature in enumerate(hashes)}
    known = [[place[feature] for feature in one if feature in place] for one in found]
    flat = torch.tensor([number for one in known for number in one])
    offsets = torch.tensor([0, *np.cumsum([len(one) for one in known])[:-1].tolist()])
    values = torch.tensor([1 / math.sqrt(len(one)) for one, kept in zip(found, known, strict=True) for _ in kept])
    weights, bias = _minimize(flat, offsets, values, labels, size=len(hashes), penalty=penalty)
    return HazardClassifier(hashes, weights.numpy(), bias, threshold)


def _minimize(
    flat: Tensor, offsets: Tensor, values: Tensor, labels: Tensor, *, size: int, penalty: float
) -> tuple[Tensor, float]:
    """Weights [size] and bias of least mean log loss plus penalty / 2 x squared weights."""
    import torch

    weights = torch.zeros(size, 1, requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = torch.nn.functional.embedding_bag(flat, weights, offsets, mode="sum", per_sample_weights=values)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0] + bias, labels)
        loss = loss + penalty / 2 * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return weights.detach()[:, 0], float(bias.detach())


def choose_threshold(classifier: HazardClassifier, examples: Sequence[Example], *, recall: float) -> float:
    """The highest threshold, in steps of 0.05 between 0.1 and 0.9, at which so much of the hazards is still found."""
    scores = [classifier.probability(example.text) for example in examples if example.is_hazard]
    for step in range(18, 1, -1):
        if sum(score >= step * 0.05 for score in scores) >= recall * len(scores):
            return round(step * 0.05, 2)
    return 0.1
