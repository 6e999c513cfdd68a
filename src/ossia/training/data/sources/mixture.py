"""How often each source comes in one pass over the mix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ossia.training.data.sources.manifest import Source


class Mixture(NamedTuple):
    """A pass over the mix.

    Attributes:
        repeats: how often a document of each source comes.
        tokens: about how many tokens the pass has.
        limited_by: the source whose cap on epochs makes the pass no longer; None without shares.
    """

    repeats: dict[str, float]
    tokens: int
    limited_by: str | None


def plan_mixture(sources: Sequence[Source], *, tokens: Mapping[str, int]) -> Mixture:
    """The longest pass in which the shares hold and no document comes more often than its source's `epochs`.

    A run that is longer than a pass sees documents more often than that. Without shares each source comes `epochs`
    times. Sources of which nothing is left get no part; the others keep the ratio of their shares.

    Args:
        sources: of the manifest.
        tokens: what each of them has.
    """
    present = [source for source in sources if tokens.get(source.name)]
    shares = {source.name: source.share for source in present if source.share is not None}
    if not shares:
        repeats = {source.name: float(source.epochs) for source in present}
        return Mixture(repeats, round(sum(repeats[name] * tokens[name] for name in repeats)), None)
    total = sum(shares.values())
    lengths = {source.name: source.epochs * tokens[source.name] * total / shares[source.name] for source in present}
    limit = min(lengths, key=lambda name: lengths[name])
    repeats = {name: lengths[limit] * share / total / tokens[name] for name, share in shares.items()}
    return Mixture(repeats, round(lengths[limit]), limit)
