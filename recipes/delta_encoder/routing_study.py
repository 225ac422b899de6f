"""Which tokens should get the delta? The preview network against confidence and chance.

    python -m nestling.recipes.delta_encoder.routing_study runs/study/ablations/token-routing-0 \
        runs/study/ablations/token-routing-1 --output routing.json

Every rule chooses the same number of tokens of each row, so the gathered FLOPs are equal. What a
rule needs to know beside is not: the preview network costs next to nothing, and confidence needs a
forward pass without the delta and with the head on every token. Two controls cannot be used in
practice: `labelled` knows which tokens are predicted, and takes them first, in random order;
`benefit` also knows the labels, and takes first those that the delta helps most. Only predicted
tokens are counted, most of which are masks that are easy to see, so a rule must beat `labelled` to
have learned more than where the masks are.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...configuration.delta_budget import DeltaBudget
from ...modeling.token_routing import choose_by_share, choose_by_threshold
from ...trainers.losses.masked_lm import IGNORED_LABEL, token_losses
from ..cli_errors import ModelFolderError, run_with_one_line
from ..environment import environment_block
from ..evaluation_file import write_json
from .evaluation_inputs import open_run
from .study_summary import interval

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
RULES = ("preview", "confidence", "random", "labelled", "benefit")
RATIOS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
DRAW_SEED = 0


def run_routing_study(
    folders: Sequence[Path], ratios: Sequence[float], overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Measure every rule at every ratio for the model of each folder.

    Args:
        folders: runs with ``model.token_routing``, one per seed.
        ratios: shares of the real tokens that get the delta, in [0, 1].
        overrides: ``section.key=value`` changes to the saved recipes.

    Returns:
        ``curves``: rule -> ratio -> cross-entropy with interval over the folders;
        ``minus_random``, the same as differences of each model; ``labelled_share``, which share
        of the predicted tokens a rule chooses; ``flops`` per ratio, over those of all tokens;
        ``preview_auc``, see `benefit_auc`; ``benefit``, by how much the delta lowers the
        cross-entropy of a token on average; ``learned_threshold``, the share of the tokens above
        it in masked and in clean text, and ``threshold_loss``, the cross-entropy with the delta on
        those of masked text, on as many of each batch chosen row by row, and the difference.

    Raises:
        ModelFolderError: if a model has no preview network.
    """
    found = [measure_model(folder, ratios, overrides) for folder in folders]

    def summed_up(key: str, minus: str | None = None) -> dict[str, Any]:
        return {
            rule: {
                str(ratio): interval(
                    [
                        each[key][rule][ratio] - (each[key][minus][ratio] if minus else 0.0)
                        for each in found
                    ]
                )
                for ratio in ratios
            }
            for rule in RULES
            if rule != minus
        }

    learned = [each["learned_threshold"] for each in found if each["learned_threshold"]]

    def of_threshold(key: str, minus: str | None = None) -> dict[str, Any]:
        return interval([each[key] - (each[minus] if minus else 0.0) for each in learned])

    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "routing_study",
        "models": [folder.name for folder in folders],
        "predicted_tokens": found[0]["predicted_tokens"],
        "curves": summed_up("curves"),
        "minus_random": summed_up("curves", minus="random"),
        "labelled_share": summed_up("labelled_share"),
        "flops": {str(ratio): found[0]["flops"][ratio] for ratio in ratios},
        "preview_auc": interval([each["preview_auc"] for each in found]),
        "benefit": interval([each["benefit"] for each in found]),
        "learned_threshold": {text: of_threshold(text) for text in ("masked", "clean")}
        if learned
        else None,
        "threshold_loss": {
            "threshold": of_threshold("loss"),
            "same_share": of_threshold("same_share_loss"),
            "minus_same_share": of_threshold("loss", minus="same_share_loss"),
        }
        if learned
        else None,
        "environment": environment_block([DRAW_SEED]),
    }


@torch.inference_mode()
def measure_model(
    folder: Path, ratios: Sequence[float], overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Measure one model; see `run_routing_study`."""
    run = open_run(folder, overrides)
    model, config = run.model, run.model.config
    if not config.token_routing:
        raise ModelFolderError(
            f"{folder} has no preview network; train it with model.token_routing=true "
            "loss.preview_weight=1"
        )
    whole = DeltaBudget.full(config)
    generator = torch.Generator().manual_seed(DRAW_SEED)
    sums = {rule: dict.fromkeys(ratios, 0.0) for rule in RULES}
    reached = {rule: dict.fromkeys(ratios, 0) for rule in RULES}
    above = {"masked": 0, "clean": 0}
    threshold_sums = {"loss": 0.0, "same_share_loss": 0.0}
    real = 0
    labelled_scores: list[Tensor] = []
    benefits: list[Tensor] = []
    for batch in run.loader:
        batch = {name: value.to(model.device) for name, value in batch.items()}
        scores, benefit = score_tokens(model, batch, whole, generator)
        where = batch["labels"] != IGNORED_LABEL
        labelled_scores.append(scores["preview"][where])
        benefits.append(benefit)
        is_real = batch["attention_mask"] > 0
        for rule in RULES:
            for ratio in ratios:
                chosen = choose_by_share(scores[rule], is_real, ratio)
                sums[rule][ratio] += _summed_loss(model, batch, whole, chosen)
                reached[rule][ratio] += int((chosen & where).sum())
        real += int(is_real.sum())
        threshold = config.learned_token_threshold
        if threshold is not None:
            clean = batch["labels"].where(where, batch["input_ids"])
            unmasked = model(**{**batch, "input_ids": clean}, budgets=(whole,), routed=(whole, 0.5))
            for text, seen in (("masked", scores["preview"]), ("clean", unmasked.scores)):
                above[text] += int(choose_by_threshold(seen, is_real, threshold).sum())
            chosen = choose_by_threshold(scores["preview"], is_real, threshold)
            share = float(chosen.sum() / is_real.sum())
            threshold_sums["loss"] += _summed_loss(model, batch, whole, chosen)
            same = choose_by_share(scores["preview"], is_real, share)
            threshold_sums["same_share_loss"] += _summed_loss(model, batch, whole, same)
    benefit = torch.cat(benefits)
    tokens, length = len(benefit), run.recipe.data.max_length
    full = whole.flops(config, length)
    return {
        "predicted_tokens": tokens,
        "curves": {
            rule: {ratio: total / tokens for ratio, total in of_rule.items()}
            for rule, of_rule in sums.items()
        },
        "labelled_share": {
            rule: {ratio: count / tokens for ratio, count in of_rule.items()}
            for rule, of_rule in reached.items()
        },
        "learned_threshold": None
        if config.learned_token_threshold is None
        else {
            **{text: count / real for text, count in above.items()},
            **{name: total / tokens for name, total in threshold_sums.items()},
        },
        "flops": {
            ratio: whole.flops(config, length, delta_ratio=ratio) / full for ratio in ratios
        },
        "preview_auc": benefit_auc(torch.cat(labelled_scores), benefit),
        "benefit": float(benefit.mean()),
    }


def _summed_loss(
    model: Any, batch: dict[str, Tensor], whole: DeltaBudget, chosen: Tensor
) -> float:
    """Return the cross-entropy of the labelled tokens with the delta on the chosen ones."""
    labelled = int((batch["labels"] != IGNORED_LABEL).sum())
    first = model.config.routing_layer  # a rule is compared where a preview network would choose
    loss = model(**batch, budget=whole, delta_tokens=chosen, delta_first_layer=first).loss
    return float(loss) * labelled


def score_tokens(
    model: Any,
    batch: dict[str, Tensor],
    whole: DeltaBudget,
    generator: torch.Generator,
) -> tuple[dict[str, Tensor], Tensor]:
    """Return (batch, tokens) scores of every rule, and the benefit of the labelled tokens.

    The benefit is the cross-entropy with the delta on no token minus that with it on all. The
    rule `benefit` knows it where there is a label, and puts every other token behind; the rule
    `labelled` only knows where there is a label.
    """
    nested = model(**batch, budgets=(whole,), routed=(whole, 0.5))
    full_loss, _, base_loss = (token_losses(z, nested.labels) for z in nested.budget_logits)
    benefit = base_loss - full_loss
    unlabelled = {name: value for name, value in batch.items() if name != "labels"}
    where = batch["labels"] != IGNORED_LABEL
    nowhere = model(
        **unlabelled,
        budget=whole,
        delta_tokens=torch.zeros_like(where),
        delta_first_layer=model.config.routing_layer,
    )
    confidence = nowhere.logits.float().softmax(-1).amax(-1)
    known = torch.full_like(nested.scores, -torch.inf)
    known[where] = benefit
    drawn = torch.rand(where.shape, generator=generator).to(where.device)
    scores = {
        "preview": nested.scores,
        "confidence": -confidence,
        "random": drawn,
        "labelled": where + drawn,
        "benefit": known,
    }
    return scores, benefit


def benefit_auc(scores: Tensor, benefit: Tensor) -> float:
    """Return how often a token that the delta helps scores above one that it does not.

    Formula: the area under the ROC curve of ``benefit > 0`` by score, ties counted half; 0.5 for
    scores that know nothing.

    Args:
        scores: (tokens,).
        benefit: (tokens,) in nats.

    Returns:
        A number in [0, 1]; NaN where the delta helps all tokens or none.
    """
    from scipy.stats import rankdata

    helped = (benefit > 0).cpu().numpy()
    positive, negative = int(helped.sum()), int((~helped).sum())
    if not positive or not negative:
        return float("nan")
    ranks = rankdata(scores.cpu().numpy())
    return float((ranks[helped].sum() - positive * (positive + 1) / 2) / (positive * negative))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, one per seed")
    parser.add_argument("--ratios", type=float, nargs="+", default=list(RATIOS))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for ratio in arguments.ratios:
        if not 0 <= ratio <= 1:
            parser.error(f"--ratios has {ratio}, give shares in [0, 1]")
    content = run_routing_study(arguments.runs, arguments.ratios, arguments.overrides)
    write_json(arguments.output, content)


if __name__ == "__main__":
    sys.exit(run_with_one_line(main))
