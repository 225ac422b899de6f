"""Exit codes of the command line and the one line a user sees.

======  ===========================================================================
code    meaning
======  ===========================================================================
0       done
1       an error nobody foresaw; ``--debug`` shows the traceback
2       usage: arguments, recipe keys, budgets
3       data: files that cannot be read, written or used
4       checkpoint or configuration: a model folder that does not fit
5       gate: a measured promise was not kept (verify, compile --check, bench --gate)
130     interrupted
======  ===========================================================================

The other rooms cannot import this one, so their exceptions are named by dotted strings in
`EXIT_CODES`. That also keeps torch out of a usage error.
"""

import errno
import sys
from collections.abc import Callable, Sequence

# Defined with the data, offered here beside the other errors of this room.
from .data.documents import DataError as DataError

USAGE, DATA, CHECKPOINT, GATE, INTERRUPTED = 2, 3, 4, 5, 130
UNFORESEEN = 1


class CommandError(Exception):
    """An error with an exit code; its text is one line with the value, the range and the fix."""

    exit_code = UNFORESEEN


class UsageError(CommandError, ValueError):
    """Arguments, recipe keys or recipe values that cannot be used."""

    exit_code = USAGE


class ModelFolderError(CommandError, ValueError):
    """A folder that is no model of ours, or does not fit what was asked of it."""

    exit_code = CHECKPOINT


class GateError(CommandError):
    """A promise that was measured and not kept."""

    exit_code = GATE


# Checked along the method resolution order, so a subclass may have its own row.
EXIT_CODES: dict[str, int] = {
    "nestling.configuration.budget.BudgetError": USAGE,
    "nestling.hub_cards.complete_folder.ExportError": CHECKPOINT,
    "nestling.hub_cards.delta_pack.PackFileError": DATA,
    "nestling.hub_cards.source_imports.RemoteCodeError": CHECKPOINT,
    "nestling.hub_cards.verify_export.VerifyError": GATE,
    "nestling.recipes.data.documents.DataError": DATA,
    "nestling.trainers.checkpoint_files.CheckpointError": CHECKPOINT,
    "nestling.trainers.checkpoint_files.CheckpointWriteError": DATA,
    "nestling.trainers.event_log.EventLogError": CHECKPOINT,
    "nestling.trainers.hooked_trainer.NonFiniteLossError": GATE,
    "nestling.trainers.metrics.update_spectrum.SpectrumError": CHECKPOINT,
    # One class; its module was renamed between releases.
    "safetensors_rust.SafetensorError": CHECKPOINT,
    "safetensors._safetensors_rust.SafetensorError": CHECKPOINT,
    "builtins.UnicodeDecodeError": DATA,
    # Configurations refuse bad values with a plain ValueError.
    "builtins.ValueError": CHECKPOINT,
}


def exit_code_of(error: BaseException) -> int:
    """Return the exit code for an exception of any room."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, CommandError):
        return error.exit_code
    for ancestor in type(error).__mro__:
        name = f"{ancestor.__module__}.{ancestor.__qualname__}"
        if name in EXIT_CODES:
            return EXIT_CODES[name]
    if isinstance(error, OSError):
        # transformers reports an unusable model folder as an OSError without a system error code.
        return CHECKPOINT if error.errno is None else DATA
    return UNFORESEEN


def one_line(error: BaseException) -> str:
    """Return what happened, what is allowed and the fix, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{text}; free some space or choose another output_dir, then run again with --resume"
    if exit_code_of(error) == UNFORESEEN:
        return f"{type(error).__name__}: {text} (run again with --debug for the traceback)"
    return text


def run_with_one_line(main: Callable[[], None]) -> int:
    """Run the entry point of a script; an error is one line, not a traceback.

    Returns:
        The exit code.
    """
    try:
        main()
    except Exception as error:
        sys.stderr.write(f"nestling: error: {one_line(error)}\n")
        return exit_code_of(error)
    return 0


def interrupted_line(arguments: Sequence[str]) -> str:
    """Return the line shown after Ctrl-C: how to go on.

    Args:
        arguments: the command line without the program name.
    """
    verb = arguments[0] if arguments else ""
    command = " ".join(["nestling", *arguments])
    if verb == "train":
        resumed = command if "--resume" in arguments else f"{command} --resume"
        return f"interrupted; go on from the last checkpoint with: {resumed}"
    if verb == "prepare":
        return f"interrupted; finished shards are kept, go on with: {command}"
    return f"interrupted; start again with: {command}"
