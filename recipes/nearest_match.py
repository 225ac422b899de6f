"""Suggestions for misspelt names in error messages."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str], count: int = 1) -> list[str]:
    """Return the names most like ``name``, best first; dotted ones also match by their last part."""
    names = list(known)
    by_leaf: dict[str, list[str]] = {}
    for candidate in names:
        by_leaf.setdefault(candidate.rsplit(".", 1)[-1], []).append(candidate)
    leaf = name.rsplit(".", 1)[-1]
    matches = list(by_leaf.get(leaf, []))
    matches += get_close_matches(name, names, n=count, cutoff=0.6)
    for close in get_close_matches(leaf, by_leaf, n=count, cutoff=0.6):
        matches += by_leaf[close]
    return list(dict.fromkeys(matches))[:count]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean X?``, or nothing where no known name is near."""
    matches = nearest(name, known)
    return f"; did you mean {matches[0]}?" if matches else ""
