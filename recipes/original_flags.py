"""The command lines of the original tools, in our terms. Standard library only.

Flags of the Deep Delta Learning tool become recipe keys (``--d-model 128`` is
``model.hidden_size=128``), ``--resume DIR`` goes on with the run in DIR, and without ``recipe=``
its own defaults apply (``recipe=ddl/original``). Flags that our verbs have themselves are left
alone.

The Delta-Matryoshka scripts name the model of an export ``--checkpoint``. Their ``--export_only``
is training that trains nothing; the answer is the command line of the verb that exports.
"""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

from .cli_errors import UsageError

ORIGINAL_RECIPE = "ddl/original"
SAVED_RECIPE = "recipe.yaml"

# Flags of `train` -> recipe keys.
TRAIN_KEYS = {
    "--train-file": "data.path",
    "--valid-file": "data.valid_path",
    "--train-tokens": "data.train_tokens",
    "--valid-tokens": "data.valid_tokens",
    "--out": "output_dir",
    "--variant": "model.variant",
    "--seq-len": "data.max_length",
    "--batch-size": "training.batch_size",
    "--d-model": "model.hidden_size",
    "--layers": "model.num_hidden_layers",
    "--heads": "model.num_attention_heads",
    "--head-dim": "model.head_dim",
    "--mlp-hidden": "model.intermediate_size",
    "--vocab-size": "model.vocab_size",
    "--d-value": "model.d_value",
    "--beta-init": "model.beta_init",
    "--k-eps": "model.k_eps",
    "--rope-theta": "model.rope_theta",
    "--max-seq-len": "model.max_position_embeddings",
    "--shortconv-kernel-size": "model.conv_kernel",
    "--max-steps": "training.max_steps",
    "--eval-interval": "training.eval_steps",
    "--learning-rate": "training.lr",
    "--warmup-steps": "training.warmup_steps",
    "--weight-decay": "training.weight_decay",
    "--beta1": "training.adam_beta1",
    "--beta2": "training.adam_beta2",
    "--epsilon": "training.adam_epsilon",
    "--grad-clip": "training.max_grad_norm",
    "--seed": "seed",
}
# Flags of other verbs that are spelled differently here.
OTHER_FLAGS = {"generate": {"--checkpoint": "--model"}}
# Of a misspelt flag to the one that was meant; --lr is no --layers.
LEAST_LIKENESS = 0.7


def translate_flags(arguments: Sequence[str]) -> list[str]:
    """Return the same command line with the original's flags translated.

    Args:
        arguments: without the name of the program; the verb comes first.

    Raises:
        UsageError: for a flag without its value.
    """
    verb = _verb(arguments)
    if verb == "train":
        _refuse_export_only(arguments)
        return _translate_train(list(arguments))
    if verb == "export":
        return _translate_export(list(arguments))
    renamed = OTHER_FLAGS.get(verb, {})
    return [renamed.get(argument, argument) for argument in arguments]


def nearest_flag(flag: str, known: Sequence[str], arguments: Sequence[str]) -> str:
    """Return ``; did you mean --FLAG?`` for a misspelt flag, or nothing.

    Args:
        flag: what was typed, such as ``--dmodel``.
        known: flags of the verb's own; those of the original are added.
        arguments: the whole command line, without the name of the program.
    """
    verb = _verb(arguments)
    originals = TRAIN_KEYS if verb == "train" else OTHER_FLAGS.get(verb, {})
    # Without the dashes, which make all flags look alike.
    names = [name.lstrip("-") for name in (*known, *originals)]
    match = get_close_matches(flag.lstrip("-"), names, n=1, cutoff=LEAST_LIKENESS)
    return f"; did you mean --{match[0]}?" if match else ""


def _verb(arguments: Sequence[str]) -> str:
    return next((word for word in arguments if not word.startswith("-")), "")


def _translate_export(arguments: list[str]) -> list[str]:
    """Put the folder of ``--checkpoint`` where the verb has its MODEL."""
    left: list[str] = []
    model: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag == "--tokenizer":
            raise UsageError(
                f"{flag} is not needed: a model folder holds its tokenizer, and every slice gets "
                "it; leave it out"
            )
        if flag == "--checkpoint":
            model = [value if equals else _value(flag, rest)]
        else:
            left.append(argument)
    after_verb = left.index("export") + 1
    return [*left[:after_verb], *model, *left[after_verb:]]


def _refuse_export_only(arguments: Sequence[str]) -> None:
    """Answer the original's export inside training, written as flags or keys, with our command.

    Raises:
        UsageError: with the command line to use.
    """
    given = _words_by_flag(arguments)
    if "export_only" not in given or given["export_only"] == ["false"]:
        return
    model = " ".join(given.get("load_path", ["MODEL"]))
    budgets = " ".join(given.get("export_budgets", ["B…"])).replace(",", " ").strip("[]")
    output = " ".join(given.get("output_dir", ["DIR"]))
    raise UsageError(
        "export_only trains nothing, and an export is a verb of its own: nestling export "
        f"{model} --budgets {budgets} --output {output} (with --format state-dict for weights "
        "and configuration alone)"
    )


def _words_by_flag(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Return the values that stand behind each flag, or in each ``key=value``."""
    words: dict[str, list[str]] = {}
    flag = ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if argument.startswith("--") or equals:
            flag = name.removeprefix("--")
            words[flag] = [value] if equals else []
        elif flag:
            words[flag].append(argument)
    return words


def _translate_train(arguments: list[str]) -> list[str]:
    translated: list[str] = []
    is_original = False
    rest = iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag in TRAIN_KEYS:
            is_original = True
            translated.append(f"{TRAIN_KEYS[flag]}={value if equals else _value(flag, rest)}")
        else:
            translated.append(argument)
    return _with_recipe(translated, is_original)


def _value(flag: str, rest: Iterator[str]) -> str:
    found = next(rest, None)
    if found is None or found.startswith("--"):
        raise UsageError(f"{flag} needs a value, such as {flag} 8")
    return found


def _with_recipe(arguments: list[str], is_original: bool) -> list[str]:
    """Give the command a recipe where the original needs none, and take the folder of --resume."""
    has_recipe = any(argument.startswith("recipe=") for argument in arguments)
    added: list[str] = []
    if "--resume" in arguments:
        place = arguments.index("--resume") + 1
        folder = arguments[place] if place < len(arguments) else "--"
        if not folder.startswith("-") and "=" not in folder:
            del arguments[place]
            added.append(f"output_dir={folder}")
            if not has_recipe:
                if not (Path(folder) / SAVED_RECIPE).is_file():
                    raise UsageError(
                        f"--resume {folder}: the folder holds no {SAVED_RECIPE}; give the "
                        "output_dir of a run that was interrupted"
                    )
                added.append(f"recipe={Path(folder) / SAVED_RECIPE}")
                has_recipe = True
    if is_original and not has_recipe:
        added.append(f"recipe={ORIGINAL_RECIPE}")
    return arguments + added
