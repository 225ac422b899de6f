"""The ``nestling`` command. Verbs parse, call one function and print; they hold no logic.

Heavy imports stand inside the verbs, so that ``--help``, ``list`` and usage errors are quick.
"""

import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .cli_arguments import ANYWHERE, rewrite_arguments
from .cli_checks import TokenRatio, TokenThreshold, token_choice
from .cli_errors import (
    INTERRUPTED,
    USAGE,
    GateError,
    ModelFolderError,
    UsageError,
    exit_code_of,
    interrupted_line,
    one_line,
)
from .cli_measuring import verbs as measuring_verbs
from .console import show_error, show_line, show_rows
from .original_flags import nearest_flag

app = typer.Typer(
    name="nestling",
    help="Train one model, cut it to many budgets, prove and publish each cut.",
    epilog="Recipes are changed by key=value: nestling train recipe=delta_encoder/tiny lr=5e-4",
    add_completion=False,
    pretty_exceptions_enable=False,
)

Overrides = Annotated[
    list[str],
    typer.Argument(
        metavar="recipe=NAME [KEY=VALUE]…",
        help="A recipe (nestling list, or a .yaml file) and changes to it.",
        show_default=False,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.")]
Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Folder of a trained model, or of its run.")
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of an exported model.")]
Budgets = Annotated[
    list[str] | None,
    typer.Option(metavar="B…", help="Budgets such as 0.5:6:6, or smallest, middle, largest, all."),
]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        show_line(version("nestling"))
        raise typer.Exit


@app.callback()
def _program(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if debug:
        import logging

        logging.getLogger("nestling").setLevel(logging.DEBUG)


@app.command("list")
def list_recipes() -> None:
    """List the recipes, the families and the benchmark suites."""
    from ..modeling.families import FAMILIES
    from .bench_catalogue import bench_suites
    from .recipe_catalogue import catalogue

    show_rows("Recipes", [{"recipe": e.name, "what it does": e.description} for e in catalogue()])
    show_rows(
        "Families",
        [{"family": f.model_type, "name": f.title, "cut by": f.axes} for f in FAMILIES.values()],
    )
    show_rows(
        "Benchmark suites",
        [{"suite": name, "what it measures": text} for name, text in bench_suites().items()],
    )


@app.command()
def prepare(
    overrides: Overrides,
    dry_run: DryRun = False,
) -> None:
    """Tokenize and pack the data of a recipe; an interrupted run goes on where it stopped."""
    from .recipe_loader import load_recipe, recipe_yaml
    from .saved_model import family_module

    recipe = load_recipe(overrides)
    if dry_run:
        show_line(recipe_yaml(recipe))
        return
    prepared = family_module(recipe.family, "train").prepare(recipe)
    show_line(f"Prepared data: {prepared}")


@app.command()
def train(
    overrides: Overrides,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.")
    ] = False,
    all_variants: Annotated[
        bool, typer.Option("--all-variants", help="Every variant of the family, on the same data.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Train a recipe; leaves model/, metrics.json, events.jsonl and recipe.yaml in output_dir."""
    from .ddl_validation import check_sweep
    from .recipe_loader import load_recipe, recipe_yaml
    from .recipe_overrides import split_arguments
    from .saved_model import family_module
    from .steady_memory import keep_freed_memory

    if all_variants:
        check_sweep(split_arguments(overrides))
    recipe = load_recipe(overrides)
    if all_variants and recipe.family != "ddl":
        raise UsageError(f"--all-variants needs a recipe of family ddl, not {recipe.family}")
    if dry_run:
        show_line(recipe_yaml(recipe))
        return
    keep_freed_memory()
    module = family_module(recipe.family, "train")
    run = module.train_all_variants if all_variants else module.train
    report = run(recipe, resume=resume)
    show_rows("Variants" if all_variants else "Budget ladder", report.rows)
    for name, path in report.written.items():
        show_line(f"{name:<8} {path}")
    if all_variants:
        show_line("One run of each: nestling compare says which differences can be separated.")


@app.command()
def evaluate(
    model: Model,
    output: Annotated[Path, typer.Option(metavar="FILE.json", help="Where results are written.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]…",
            help="Changes to data and evaluation of the saved recipe, such as data.path=… .",
            show_default=False,
        ),
    ] = None,
    budgets: Budgets = None,
    delta_token_ratio: TokenRatio = None,
    delta_token_threshold: TokenThreshold = None,
    delta_pack: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.safetensors",
            help="Read this upgrade pack and measure its delta, not the model's.",
        ),
    ] = None,
) -> None:
    """Measure quality and cost of every budget of a trained model."""
    from .evaluation.evaluation_table import notes
    from .evaluation_file import read_evaluation
    from .saved_model import family_module, family_of_folder

    family = family_of_folder(model)
    options = token_choice(model, delta_token_ratio, delta_token_threshold)
    if delta_pack is not None:
        if family != "delta_encoder":
            raise ModelFolderError(f"--delta-pack is for a delta_encoder, not {family}; drop it")
        options["delta_pack"] = delta_pack
    evaluate_folder = family_module(family, "evaluate").evaluate_folder
    rows = evaluate_folder(model, output, overrides or [], budgets, **options)
    show_rows(str(model), rows)
    for note in notes(read_evaluation(output)):
        show_line(note)
    show_line(f"Written: {output}")


@app.command()
def export(
    model: Model,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Receives one folder per budget.")],
    budgets: Budgets = None,
    budget: Annotated[
        str | None, typer.Option(metavar="B", help="One budget, written straight into --output.")
    ] = None,
    form: Annotated[
        Literal["auto", "native", "remote", "state-dict"],
        typer.Option("--format", help="auto: the stock architecture where it loses nothing."),
    ] = "auto",
    evaluation: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Results of nestling evaluate, for the cards."),
    ] = None,
    delta_token_ratio: TokenRatio = None,
    delta_token_threshold: TokenThreshold = None,
    load_delta_pack: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.safetensors",
            help="Read this upgrade pack and cut slices with its delta, not the model's.",
        ),
    ] = None,
    delta_pack: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.safetensors", help="Also write an upgrade pack of the model's delta."
        ),
    ] = None,
    with_atoms: Annotated[
        bool,
        typer.Option("--with-atoms", help="Put the atoms of a dictionary into --delta-pack, too."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be written, write nothing.")
    ] = False,
) -> None:
    """Cut a trained model and write self-contained folders."""
    if (budget is None) == (not budgets):
        raise UsageError("give either --budgets B1 B2 … (one folder each) or --budget B (one cut)")
    _check_written_pack(load_delta_pack, delta_pack, with_atoms)
    from .saved_model import model_folder

    # Before torch is imported.
    model = model_folder(model)
    options: dict[str, Any] = {
        "format": form,
        "evaluation": evaluation,
        "single": budget is not None,
        "delta_pack": load_delta_pack,
        **token_choice(model, delta_token_ratio, delta_token_threshold),
    }
    asked = budgets or [str(budget)]
    if dry_run:
        from ..hub_cards.export_slices import planned_slices

        show_rows("Would be exported", planned_slices(model, asked, output, **options))
        if delta_pack is not None:
            show_line(f"Would be exported: {delta_pack} (delta)")
        return
    from ..hub_cards.export_slices import export as export_slices

    for folder in export_slices(model, asked, output, **options):
        show_line(f"Exported: {folder}")
    if delta_pack is not None:
        from ..hub_cards.delta_pack import export_folder_pack

        size = export_folder_pack(model, delta_pack, with_atoms=with_atoms)
        atoms = f", atoms of {size.atoms:,} bytes" if with_atoms else ""
        show_line(f"Exported: {delta_pack} (delta of {size.pack:,} bytes{atoms})")


def _check_written_pack(read: Path | None, written: Path | None, with_atoms: bool) -> None:
    if with_atoms and written is None:
        raise UsageError("--with-atoms is for the pack that --delta-pack FILE writes; give both")
    if read is not None and written is not None:
        raise UsageError(
            f"--load-delta-pack {read} reads a pack and --delta-pack {written} writes that of the "
            "model without it; give one of them"
        )


@app.command()
def verify(folder: Folder) -> None:
    """Load an exported folder in a clean process and compare with its reference outputs."""
    from ..hub_cards.verify_export import verify_folder

    report = verify_folder(folder)
    show_rows(
        f"{folder}: equal outputs on transformers {report.transformers}",
        [asdict(check) for check in report.checks],
    )


@app.command("compile")
def compile_folder(
    folder: Folder,
    check: Annotated[
        bool, typer.Option("--check", help="Only prove static shapes; works on any machine.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences per call.")] = 1,
    sequence_length: Annotated[int, typer.Option(min=1, help="Tokens per sequence.")] = 128,
) -> None:
    """Compile an exported folder for Trainium (on a Neuron host), or check that it can be."""
    from ..hub_cards import neuron

    run = neuron.check if check else neuron.compile_folder
    result = run(folder, batch_size=batch_size, sequence_length=sequence_length)
    show_line(f"{'Checked' if check else 'Compiled'}: {result}")


@app.command()
def push(
    folder: Folder,
    repo_id: Annotated[str, typer.Option(metavar="ORG/NAME", help="Repository on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Create it as private.")] = False,
    tag: Annotated[str | None, typer.Option(help="Tag this upload.")] = None,
    collection: Annotated[str | None, typer.Option(help="Add it to this Collection.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print every call, do none.")] = False,
) -> None:
    """Upload an exported folder to the Hub in one commit."""
    from ..hub_cards.publish import push as publish

    calls = publish(
        folder, repo_id, private=private, tag=tag, collection=collection, dry_run=dry_run
    )
    for call in calls:
        show_line(str(call))


@app.command()
def doctor() -> None:
    """Report versions, hardware and what a missing thing would limit."""
    from .doctor import examine

    checks = examine()
    show_rows("This machine", [check._asdict() for check in checks])
    missing = [check.name for check in checks if check.status == "missing"]
    if missing:
        raise GateError(f"missing: {', '.join(missing)}; install what the table names")


app.add_typer(measuring_verbs)


def _run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    import logging

    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("nestling").setLevel(logging.INFO)
    shown = [argument for argument in arguments if argument != ANYWHERE]
    try:
        code = app(
            rewrite_arguments(arguments) or ["--help"],
            prog_name="nestling",
            standalone_mode=False,
        )
    except typer.TyperException as error:
        show_error(_usage_line(error, shown))
        return USAGE
    except typer.Abort:
        code = INTERRUPTED
    except Exception as error:
        if ANYWHERE in arguments:
            traceback.print_exception(error)
        show_error(one_line(error))
        return exit_code_of(error)
    if code == INTERRUPTED:
        show_error(interrupted_line(shown))
    return int(code or 0)


def _usage_line(error: typer.TyperException, arguments: Sequence[str]) -> str:
    text = " ".join(error.format_message().split())
    if text.startswith("No such option: --"):
        # The framework may name options that it finds alike; they are weighed with the others.
        flag, *alike = re.findall(r"--[^\s,()]+", text)
        hint = nearest_flag(flag, alike, arguments) or "."
        text = (
            f"No such option: {flag}{hint} Recipe keys are written key=value, for example "
            "training.lr=5e-4."
        )
    return f"{text} (nestling --help)"


def main() -> None:
    """Entry point of the ``nestling`` command."""
    sys.exit(_run(sys.argv[1:]))
