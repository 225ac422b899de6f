"""Suggestions for misspelt names in error messages."""

from collections.abc import Iterable
from difflib import SequenceMatcher

LEAST_LIKENESS = 0.6


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most like ``name``, or None where none is near.

    The last part of a dotted name counts most: a key in the wrong section is found by its own
    name, ``model.lr -> training.lr``.
    """
    scored = [(_likeness(name, candidate), candidate) for candidate in known]
    best = max(scored, key=lambda pair: pair[0], default=(0.0, ""))
    return best[1] if best[0] >= LEAST_LIKENESS else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean X?``, or nothing where no known name is near."""
    match = nearest(name, known)
    return f"; did you mean {match}?" if match else ""


def _likeness(name: str, candidate: str) -> float:
    parent, _, leaf = name.rpartition(".")
    candidate_parent, _, candidate_leaf = candidate.rpartition(".")
    leaves = SequenceMatcher(None, leaf, candidate_leaf).ratio()
    whole = SequenceMatcher(None, name, candidate).ratio()
    return max(leaves + 0.1 * (parent == candidate_parent), 0.9 * whole)
