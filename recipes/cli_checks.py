"""What verbs refuse before torch is imported."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from ..configuration.delta_settings import LEARNED
from .cli_errors import UsageError
from .saved_model import family_of_folder

RATIO, THRESHOLD = "--delta-token-ratio", "--delta-token-threshold"
TokenRatio = Annotated[
    float | None,
    typer.Option(
        metavar="R", help="Share of the tokens that get the delta, in [0, 1]; delta_encoder only."
    ),
]
TokenThreshold = Annotated[
    str | None,
    typer.Option(
        metavar="X", help="Instead, the score above which a token gets it: a number, or learned."
    ),
]


def token_choice(folder: Path, ratio: float | None, threshold: str | None) -> dict[str, Any]:
    """Return the option that was given, checked, under its name in Python; nothing where none was.

    Args:
        folder: the model.
        ratio: value of ``--delta-token-ratio``.
        threshold: text of ``--delta-token-threshold``.

    Raises:
        UsageError: for both at once, a model of another family, or a value out of range.
        ModelFolderError: if the folder is no model.
    """
    given = {RATIO: ratio, THRESHOLD: threshold}
    texts = [f"{name} {value}" for name, value in given.items() if value is not None]
    if not texts:
        return {}
    if len(texts) > 1:
        raise UsageError(f"{' and '.join(texts)} are both given; give one of them")
    if (family := family_of_folder(folder)) != "delta_encoder":
        raise UsageError(
            f"{texts[0]} needs a model of family delta_encoder, not {family}; leave it out"
        )
    if ratio is None:
        return {"delta_token_threshold": _number_or_learned(str(threshold))}
    if not 0.0 <= ratio <= 1.0:
        raise UsageError(f"{RATIO} {ratio:g} must be in [0, 1]; 1 runs the delta on all tokens")
    return {"delta_token_ratio": ratio}


def _number_or_learned(text: str) -> float | str:
    if text == LEARNED:
        return text
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{THRESHOLD} {text} must be a finite number, or {LEARNED}")
    return value
