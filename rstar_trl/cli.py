"""The command line. Imports nothing heavy at the top, so that `--help` answers at once.

Guarantees: an error a user can mend ends in one sentence on standard error and exit code 2, without a traceback unless
`--debug` is given; an interrupt in exit code 130; what was finished before stays.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rstar_trl.errors import ConfigError, Interrupted, RStarError

if TYPE_CHECKING:
    from rstar_trl.evolution.recipe import LoadedRecipe

DEBUG = "RSTAR_TRL_DEBUG"
"""Environment variable that carries `--debug` into launched stages."""

app = typer.Typer(
    help="Small language models teach themselves SQL by search and self-evolution.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Look at the data of a recipe, or write the demo corpus.", no_args_is_help=True)
app.add_typer(data_app, name="data")

RecipeArgument = Annotated[Path | None, typer.Argument(metavar="RECIPE", help="The recipe file.", show_default=False)]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="The recipe file, when it is not the argument.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the recipe; may be repeated."),
]
RoundOption = Annotated[int, typer.Option("--round", min=0, help="The round; 0 is the cold start.")]
EngineOption = Annotated[
    Literal["transformers", "openai", "vllm"] | None,
    typer.Option("--engine", help="What runs the model: the same as --set engine.kind=..."),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.command()
def evolve(
    recipe: RecipeArgument = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved plan and stop.")] = False,
    in_process: Annotated[bool, typer.Option("--in-process", help="Run all stages in this one process.")] = False,
    restart_from: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Do this stage (round-1/search) and all later ones again.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Run a whole recipe: every round's search and training, then the table. Given again, it resumes."""
    from rstar_trl.evolution.dry_run import describe
    from rstar_trl.evolution.rounds import evolve as run

    loaded = _load(recipe, config, assignments)
    with _interruptible():
        print(describe(loaded) if dry_run else run(loaded, in_process, restart_from), end="")


@app.command()
def validate(
    recipe: RecipeArgument = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
    debug: DebugOption = False,
) -> None:
    """Load a recipe's data, run every gold query, and list what a run would quarantine."""
    from rstar_trl.evolution.validate import validate as run

    print(run(_load(recipe, config, assignments)))


def _stage_command(kind: str, first_round: int, summary: str) -> None:
    """Adds the command that runs one stage of one round alone; `first_round` is its default round."""

    @app.command(kind, help=summary)
    def run(
        recipe: RecipeArgument = None,
        config: ConfigOption = None,
        assignments: SetOption = None,
        number: RoundOption = first_round,
        debug: DebugOption = False,
    ) -> None:
        _stage(kind, _load(recipe, config, assignments), number)


def _engine_command(kind: str, first_round: int, summary: str) -> None:
    """The same for a stage in which an engine proposes steps."""

    @app.command(kind, help=summary)
    def run(
        recipe: RecipeArgument = None,
        config: ConfigOption = None,
        assignments: SetOption = None,
        engine: EngineOption = None,
        number: RoundOption = first_round,
        debug: DebugOption = False,
    ) -> None:
        _stage(kind, _load(recipe, config, _with_engine(engine, assignments)), number)


_stage_command(
    "pretrain", 0, "Let a from-scratch base read the prompts before it is taught (recipes with a `pretrain` section)."
)
_engine_command("search", 1, "Search the training questions of one round.")
_stage_command("sft", 0, "Train the policy of one round.")
_stage_command("ppm", 1, "Train the process preference model of one round.")
_engine_command("evaluate", 0, "Measure the policy and the PPM of one round.")


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="The question, in words.", show_default=False)],
    db: Annotated[str, typer.Option("--db", help="The database it is about: an SQLite file, or a URL.")],
    model: Annotated[Path | None, typer.Option("--model", help="A run folder, or a model folder.")] = None,
    assignments: SetOption = None,
    engine: EngineOption = None,
    tree: Annotated[bool, typer.Option("--tree", help="Print the search tree too.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the search.")] = 0,
    debug: DebugOption = False,
) -> None:
    """Answer one question about one database by a live search; --set reaches its `search` and `engine` sections."""
    from rstar_trl.evolution.ask import ask as run
    from rstar_trl.evolution.ask import find_model, render_answer, render_tree

    grown, result = run(find_model(model, _with_engine(engine, assignments)), db, question, seed)
    if tree:
        print(render_tree(grown), end="\n\n")
    print(render_answer(grown, result))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="The run folder.", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", help="The page to write; by default RUN/report.html.")] = None,
    debug: DebugOption = False,
) -> None:
    """Write a run as one HTML page: rounds, curves, time, quarantine, example trees."""
    from rstar_trl.report import write_report

    page = out or run / "report.html"
    write_report(run, page)
    print(page)


@app.command()
def push(
    run: Annotated[Path, typer.Argument(help="The run folder.", show_default=False)],
    policy: Annotated[str | None, typer.Option(metavar="REPO", help="Push the policy here (name/model).")] = None,
    ppm: Annotated[str | None, typer.Option(metavar="REPO", help="Push the PPM here.")] = None,
    dataset: Annotated[str | None, typer.Option(metavar="REPO", help="Push the training data here.")] = None,
    number: Annotated[
        int | None, typer.Option("--round", min=0, help="The round; the newest finished one by default.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make new repositories private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the cards and what would be sent.")] = False,
    debug: DebugOption = False,
) -> None:
    """Push a run's policy, PPM and training data to the Hugging Face Hub, each with a card."""
    from rstar_trl.hub import push as send
    from rstar_trl.hub import uploads

    todo = uploads(run, policy, ppm, dataset, number)
    if not todo:
        raise ConfigError("Nothing to push: name a repository with --policy, --ppm or --dataset.")
    if dry_run:
        print("\n\n".join(f"{each.summary()}\n\n{each.card}" for each in todo), end="")
    else:
        send(todo, private)


@app.command()
def metrics(
    gold: Annotated[Path, typer.Argument(help="The gold file: SQL, a tab, the database; or BIRD's JSON.")],
    predictions: Annotated[Path, typer.Argument(help="The predictions: one a line, or BIRD's JSON.")],
    db: Annotated[Path, typer.Option("--db", help="The folder that holds <name>/<name>.sqlite.")],
    layout: Annotated[
        Literal["spider", "bird"], typer.Option("--format", help="Whose file formats and metrics.")
    ] = "spider",
    tables: Annotated[Path | None, typer.Option(help="Spider's tables.json; by default beside the folder.")] = None,
    etype: Annotated[
        Literal["all", "exec", "match"], typer.Option(help="Spider: execution, exact set match, or both.")
    ] = "all",
    plug_value: Annotated[bool, typer.Option("--plug-value", help="Spider: fill gold values in.")] = False,
    keep_distinct: Annotated[bool, typer.Option("--keep-distinct", help="Spider: let DISTINCT count.")] = False,
    difficulty: Annotated[Path | None, typer.Option(help="BIRD: the JSON that holds the difficulties.")] = None,
    iterations: Annotated[int, typer.Option(min=0, help="BIRD: timed runs for VES (officially 100); 0: none.")] = 0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds a query may take.")] = 30.0,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    out: Annotated[Path | None, typer.Option("--json", help="Write all scores to this file.")] = None,
    debug: DebugOption = False,
) -> None:
    """Score a file of predictions by the official metrics of Spider or BIRD."""
    from rstar_trl.evaluation.command import metrics as run

    print(
        run(
            gold,
            predictions,
            db,
            layout,
            tables=tables,
            wanted=etype,
            plug_value=plug_value,
            keep_distinct=keep_distinct,
            difficulties=difficulty,
            iterations=iterations,
            timeout=timeout,
            workers=workers,
            out=out,
        )
    )


@data_app.command("demo")
def data_demo(
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")],
    seed: Annotated[int, typer.Option(help="Seed of the corpus.")] = 0,
    debug: DebugOption = False,
) -> None:
    """Write the demo corpus: train.jsonl, eval.jsonl and the databases."""
    from rstar_trl.evolution.validate import write_demo

    print(write_demo(out, seed))


@data_app.command("show")
def data_show(
    recipe: RecipeArgument = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
    limit: Annotated[int, typer.Option(min=0, help="Questions to show.")] = 3,
    debug: DebugOption = False,
) -> None:
    """Show the first questions of a recipe's data as a policy reads them."""
    from rstar_trl.evolution.validate import show

    print(show(_load(recipe, config, assignments), limit))


@data_app.command("audit")
def data_audit(
    recipe: RecipeArgument = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
    out: Annotated[Path, typer.Option("--out", help="The quarantine list to write.")] = Path("quarantine.jsonl"),
    debug: DebugOption = False,
) -> None:
    """Run every gold query, also where rows are stored in another order; write the list of those unfit as labels."""
    from rstar_trl.evolution.validate import audit

    print(audit(_load(recipe, config, assignments), out))


@data_app.command("variants")
def data_variants(
    recipe: RecipeArgument = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
    per_db: Annotated[int, typer.Option("--per-db", min=1, max=48, help="Variants of each database.")] = 8,
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")] = Path("variants"),
    debug: DebugOption = False,
) -> None:
    """Make variants of every database, on which queries that are right by accident are found out."""
    from rstar_trl.evolution.validate import variants

    print(variants(_load(recipe, config, assignments), per_db, out))


def main() -> None:
    """The entry point of `rstar-trl` and of `python -m rstar_trl`."""
    if "--debug" in sys.argv:
        os.environ[DEBUG] = "1"
    try:
        app()
    except RStarError as error:
        _fail(str(error), error)
    except Exception as error:
        # Each library words a full disk in its own exception type; the system's own words are in all of them.
        if getattr(error, "errno", None) != errno.ENOSPC and os.strerror(errno.ENOSPC) not in str(error):
            raise
        sentence = f"The disk is full ({error}); free space and give the same command again, finished work is kept."
        _fail(sentence, error)


def _fail(sentence: str, error: Exception) -> None:
    from rstar_trl.evolution.launch import ERROR_FILE, StageError

    if DEBUG in os.environ:
        traceback.print_exception(error)
    if ERROR_FILE in os.environ:
        Path(os.environ[ERROR_FILE]).write_text(sentence, encoding="utf-8")
        # A launcher answers a failing process with a traceback of its own, so a lone process ends quietly: its parent
        # has the sentence. Of several processes one must fail, or the launcher leaves the others waiting for it.
        sys.exit(0 if os.environ.get("WORLD_SIZE", "1") == "1" else 2)
    print(sentence, file=sys.stderr)
    sys.exit(error.code if isinstance(error, StageError) else 2)


def _stage(kind: str, loaded: LoadedRecipe, number: int) -> None:
    from rstar_trl.evolution.launch import ERROR_FILE, follow_parent
    from rstar_trl.evolution.rounds import run_alone

    if ERROR_FILE in os.environ:
        follow_parent()
    with _interruptible():
        run_alone(loaded, kind, number)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Says what an interrupt has left, once for all processes; a launched stage leaves that to its parent."""
    from rstar_trl.evolution.launch import ERROR_FILE, Processes

    try:
        yield
    except KeyboardInterrupt as interrupt:
        if ERROR_FILE not in os.environ:
            if Processes.from_environment().first:
                print("Interrupted; finished work is kept, give the same command again to go on.", file=sys.stderr)
            raise
        # All its processes end together, and well: a launcher answers anything else with a traceback of its own.
        if not isinstance(interrupt, Interrupted):
            raise


def _with_engine(kind: str | None, assignments: list[str] | None) -> list[str]:
    """Settings are made one by one and checked together, so the order does not matter."""
    return [*([f"engine.kind={kind}"] if kind else []), *(assignments or [])]


def _load(recipe: Path | None, config: Path | None, assignments: list[str] | None) -> LoadedRecipe:
    from rstar_trl.evolution.recipe import load_recipe

    path = recipe or config
    if path is None or (recipe is not None and config is not None):
        raise ConfigError("Give the recipe once, as the argument or with --config.")
    return load_recipe(path, assignments or [])
