"""Pushes what a run has made to the Hugging Face Hub: its policy, its PPM and its data sets, each with a card.

Guarantees: nothing is uploaded before everything asked for is known to be there; a repository gets all its files in
one commit, or none; pickles, checkpoints and notes about the run folder stay at home. A card's numbers are those of
the run's own evaluation, and name their mode. Does not choose a licence: that is for the owners of the base model and
of the questions to say.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rstar_trl.config import PromptConfig, Recipe
from rstar_trl.errors import HubError, RunError
from rstar_trl.evolution import manifest
from rstar_trl.evolution.recipe import load_recipe
from rstar_trl.evolution.stages import ppm_folder
from rstar_trl.evolution.table import METHODS
from rstar_trl.io import read_jsonl
from rstar_trl.trajectories.dataset import FILES

KEPT_HOME = ("training_args.bin", manifest.MANIFEST, manifest.STARTED, "README.md")
TAGS = ["rstar-trl", "text-to-sql"]
PURPOSE = {
    "sft": "prompt-completion rows, what the policy was trained on",
    "instruction": "instruction, input and the plain SQL",
    "step_by_step": "numbered steps, then the whole query",
    "qa": "question and answer in prose",
    "preference": "preference pairs of sibling steps, with weights, for a process preference model",
    "stepwise": "TRL's stepwise supervision format",
    "trees": "whole search trees as JSON text",
}


@dataclass(frozen=True)
class Upload:
    """One repository: its files by their name in it, and the text of its card."""

    repo_id: str
    repo_type: Literal["model", "dataset"]
    files: dict[str, Path]
    card: str

    def summary(self) -> str:
        """One line for a person."""
        size = sum(path.stat().st_size for path in self.files.values())
        return f"{self.repo_type} {self.repo_id}: {len(self.files)} files, {size / 1e6:.1f} MB, and a card"


def uploads(
    run: Path,
    policy: str | None = None,
    ppm: str | None = None,
    dataset: str | None = None,
    number: int | None = None,
) -> list[Upload]:
    """What would be pushed to the repositories named, of round `number` or else of the newest that is finished.

    Raises `RunError` for a folder that is no run, a round that is not finished, or a run without a PPM.
    """
    if not (run / "recipe.yaml").exists():
        raise RunError(f"{run} is no run folder (it has no recipe.yaml); give the `output_dir` of a recipe.")
    recipe = load_recipe(run / "recipe.yaml").recipe
    number = _round(run, number)
    found = []
    if policy:
        folder = run / f"round-{number}/policy"
        found.append(Upload(policy, "model", _model_files(folder), policy_card(policy, recipe, run, number)))
    if ppm:
        folder_or_none = ppm_folder(run, number)
        if folder_or_none is None:
            raise RunError(f"{run} has no finished PPM up to round {number}; leave --ppm out, or run a further round.")
        # Training wrote the card, and knew the model by the name of its folder alone.
        card = (folder_or_none / "README.md").read_text(encoding="utf-8").replace('model="ppm"', f'model="{ppm}"')
        found.append(Upload(ppm, "model", _model_files(folder_or_none), card))
    if dataset:
        folder = run / f"round-{number}/data"
        files = {f"{name}.jsonl": folder / f"{name}.jsonl" for name in FILES if (folder / f"{name}.jsonl").exists()}
        found.append(Upload(dataset, "dataset", files, dataset_card(dataset, recipe, files, number)))
    return found


def push(todo: list[Upload], private: bool = False, say: Callable[[str], None] = print) -> None:
    """Makes each repository where it is missing and commits its files; raises `HubError` when the Hub refuses."""
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    # Versions of the client carry their requests by different libraries; the bases name the one in use.
    refusals: Any = (OSError, ValueError, *HfHubHTTPError.__bases__)
    api = HfApi()
    for each in todo:
        operations = [CommitOperationAdd(name, str(path)) for name, path in each.files.items()]
        operations.append(CommitOperationAdd("README.md", each.card.encode()))
        try:
            api.create_repo(each.repo_id, repo_type=each.repo_type, private=private, exist_ok=True)
            done = api.create_commit(
                each.repo_id, operations, commit_message="Upload by rstar-trl", repo_type=each.repo_type
            )
        except refusals as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise HubError(
                f"{each.repo_id} could not be pushed ({reason}); check the name, your login (`hf auth login`) and the "
                "network, and give the same command again: what is there already is not sent twice."
            ) from error
        say(f"{each.summary()}: {done.commit_url}")


def policy_card(repo_id: str, recipe: Recipe, run: Path, number: int) -> str:
    """The model card of a policy."""
    from huggingface_hub import ModelCardData

    base = recipe.model.name_or_path
    data = ModelCardData(
        base_model=base if base and not Path(base).exists() else None,
        library_name="peft" if recipe.model.lora else "transformers",
        pipeline_tag="text-generation",
        tags=TAGS,
        model_name=repo_id.partition("/")[2] or repo_id,
    )
    parts = [
        f"# {repo_id.partition('/')[2] or repo_id}",
        "A policy that writes SQL one step at a time: a comment line that says what the step does, and one clause, in "
        "the order a database works (FROM first, SELECT late). Every prefix of its steps is a query that can be run.",
        "## Use",
        f"```bash\nhf download {repo_id} --local-dir policy\n"
        'rstar-trl ask --db my.sqlite --model policy "How many singers are there?"\n```',
        "## Method",
        "Self-evolution by Monte Carlo tree search (rStar-Math, arXiv 2501.04519, carried over to SQL), by rstar-trl: "
        f"recipe `{recipe.name}`, round {number}, from {_base(recipe)}, on `{recipe.data.source}` questions, seed "
        f"{recipe.seed}. What it learned from was verified by running it. {_prompt(recipe)}",
        "## Results",
        _results(run, number),
        "## Limits",
        "It is good at databases like those it was taught on. Run its SQL read-only, with limits of time and memory, "
        "as `rstar-trl` does.",
        f"## Versions\n\n{_versions(run / f'round-{number}/policy')}",
    ]
    return _card(data, parts)


def dataset_card(repo_id: str, recipe: Recipe, files: dict[str, Path], number: int) -> str:
    """The data set card: one configuration for each file."""
    from huggingface_hub import DatasetCardData

    names = [name.removesuffix(".jsonl") for name in files]
    counts = {name: len(read_jsonl(files[f"{name}.jsonl"])[0]) for name in names}
    filled = [name for name in names if counts[name]]
    data = DatasetCardData(
        tags=TAGS,
        task_categories=["text-generation"],
        configs=[
            {"config_name": name, "data_files": f"{name}.jsonl"} | ({"default": True} if name == "sft" else {})
            for name in filled
        ],
    )
    rows = [f"| `{name}` | {counts[name]} | {PURPOSE[name]} |" for name in names]
    parts = [
        f"# {repo_id.partition('/')[2] or repo_id}",
        f"What the searches of rounds 1 to {number} of the recipe `{recipe.name}` found about `{recipe.data.source}` "
        "questions, as training data: right trajectories, ranked pairs of steps, whole trees. Right means that the "
        "query's result was the gold result when it was run.",
        f'```python\nfrom datasets import load_dataset\n\nrows = load_dataset("{repo_id}", "sft", split="train")\n```',
        "\n".join(["| configuration | rows | what it holds |", "|---|---|---|", *rows]),
        "The questions come from the data set named above, and its licence holds for them.",
    ]
    return _card(data, parts)


def _card(data: Any, parts: list[str]) -> str:
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _round(run: Path, number: int | None) -> int:
    done = [
        int(folder.parent.name.removeprefix("round-"))
        for folder in run.glob("round-*/policy")
        if manifest.read(folder) is not None
    ]
    if not done or (number is not None and number not in done):
        which = "no round" if number is None else f"round {number} not"
        raise RunError(f"{run} has {which} finished; run `rstar-trl evolve` on its recipe first.")
    return max(done) if number is None else number


def _model_files(folder: Path) -> dict[str, Path]:
    """The files of a model folder itself; sub-folders hold checkpoints."""
    return {
        path.name: path
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name not in KEPT_HOME and path.suffix != ".jsonl"
    }


def _base(recipe: Recipe) -> str:
    if recipe.model.from_scratch is not None:
        return f"random weights (`{recipe.model.from_scratch['architecture']}`)"
    return f"`{recipe.model.name_or_path}`"


def _prompt(recipe: Recipe) -> str:
    """What of the prompt is not the default: whoever asks the model must ask in the same way."""
    usual = PromptConfig()
    changed = {name: value for name, value in asdict(recipe.prompt).items() if value != getattr(usual, name)}
    said = ", ".join(f"`{name}: {json.dumps(value)}`" for name, value in changed.items())
    return f"Its prompts differ from the default ones: {said}." if said else "Its prompts are the default ones."


def _results(run: Path, number: int) -> str:
    measured = manifest.read(run / f"round-{number}/eval")
    methods = {name: measured.metrics[name] for name in METHODS if name in measured.metrics} if measured else {}
    if not methods:
        return "Not measured."
    rows = [
        f"| {METHODS[name]} | {100 * each['execution_accuracy']:.1f} | {each['tokens_per_question']:.0f} |"
        for name, each in methods.items()
    ]
    questions = next(iter(methods.values()))["questions"]
    head = (
        f"Execution accuracy in percent on {questions} held-out questions, mode `bag_ordered` (not an official score)."
    )
    return "\n".join([head, "", "| answered by | accuracy | tokens a question |", "|---|---|---|", *rows])


def _versions(folder: Path) -> str:
    done = manifest.read(folder)
    return ", ".join(f"{name} {version}" for name, version in done.versions.items()) if done else "Not recorded."
