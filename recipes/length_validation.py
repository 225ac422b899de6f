"""The rows that a recipe asks for must fit the model that it describes."""

from .cli_errors import UsageError
from .ddl_schema import DdlRecipe
from .recipe_schema import DeltaEncoderRecipe


def check_lengths(recipe: DeltaEncoderRecipe | DdlRecipe, longest: int) -> None:
    """Check the lengths of rows.

    Args:
        recipe: a recipe of either family.
        longest: tokens that its model takes.

    Raises:
        UsageError: for rows that are longer.
    """
    lengths = {
        "data.max_length": recipe.data.max_length,
        "evaluation.sequence_length": recipe.evaluation.sequence_length,
    }
    for key, length in lengths.items():
        if length is not None and length > longest:
            raise UsageError(
                f"{key} is {length}, the model takes at most {longest} tokens; lower it or raise "
                "model.max_position_embeddings"
            )
