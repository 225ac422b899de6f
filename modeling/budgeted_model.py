"""What the models of every family share: budgets, slices, and saving without code."""

from os import PathLike
from typing import Any, Self

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from .nested_layers import leading_corner

logger = logging.get_logger(__name__)


class BudgetedModel(PreTrainedModel):
    """A model that runs at a budget and can be cut to it.

    The configuration has ``validate``, ``budget_class`` and ``budget_list``. A family says what the
    configuration and the weights of a slice are; every weight of a slice is a leading corner.
    """

    config: Any

    def __init__(self, config: Any, **kwargs: Any) -> None:
        config.validate()
        super().__init__(config, **kwargs)
        self.active_budget: Any = None

    def save_pretrained(
        self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any
    ) -> None:
        """Save weights and configuration. Inside the package no code is written, hence no map.

        ``nestling export`` writes folders that load by themselves.
        """
        if not __name__.startswith("transformers_modules."):
            vars(self.config).pop("auto_map", None)
            logger.warning_once(
                "saving weights and configuration only; `nestling export` writes a folder that "
                "loads without nestling"
            )
        super().save_pretrained(save_directory, *args, **kwargs)

    def set_budget(self, budget: Any) -> None:
        """Run at ``budget`` from now on; None runs the full model.

        Raises:
            BudgetError: if the model cannot be cut so.
        """
        self.active_budget = None if budget is None else self._checked(budget)
        trunk: Any = self.base_model
        if trunk is not self:
            trunk.set_budget(self.active_budget)

    def slice(self, budget: Any) -> Self:
        """Return a standalone model that computes what this one computes at ``budget``.

        Raises:
            BudgetError: if the model cannot be cut so.
        """
        budget = self._checked(budget)
        with torch.device("meta"):
            smaller = type(self)(self.sliced_config(budget))
        state = self.sliced_weights(budget)
        smaller.load_state_dict(
            {k: leading_corner(state[k], v.shape) for k, v in smaller.state_dict().items()},
            assign=True,
        )
        smaller.tie_weights()
        return smaller.train(self.training)

    def sliced_config(self, budget: Any) -> Any:
        """Return the configuration of the slice at ``budget``."""
        raise NotImplementedError

    def sliced_weights(self, budget: Any) -> dict[str, Tensor]:
        """Return weights whose leading corners are those of the slice at ``budget``."""
        raise NotImplementedError

    def _checked(self, budget: Any) -> Any:
        kind = self.config.budget_class
        return (budget if isinstance(budget, kind) else kind.parse(budget)).check(self.config)
