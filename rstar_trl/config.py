"""Every option of a recipe, as dataclasses; `rstar_trl.strict_yaml` reads them from YAML.

The `pretrain`, `sft` and `ppm` sections are not repeated here: their keys are the fields of TRL's `SFTConfig` and of
our `PPMConfig`, checked against those classes when a recipe is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from rstar_trl.errors import ConfigError


@dataclass(frozen=True)
class DataConfig:
    """Which questions, which databases, and how many labels the method may see."""

    source: Literal["demo", "spider", "bird", "jsonl"] = "demo"
    """Where questions come from: the embedded demo corpus, Spider's or BIRD's own file layout, or plain JSONL."""
    path: str | None = None
    """Folder (spider, bird) or folder with `train.jsonl`, `eval.jsonl`, `databases/` (jsonl); unused for the demo."""
    dialect: Literal["sqlite", "duckdb", "postgres", "mysql", "bigquery", "snowflake", "tsql", "oracle"] | None = None
    """The SQL dialect that the gold queries are written in, if it is not that of the databases' engine: they are then
    translated, and checked like any other."""
    label_fraction: float = 0.1
    """Fraction of the training questions that keep their gold SQL; the others keep the result of it alone."""
    train_size: int | None = None
    """Use this many training questions (a seeded sample); all when empty."""
    eval_size: int | None = None
    """Use this many evaluation questions (a seeded sample); all when empty."""
    databases: list[str] | None = None
    """Use only the questions about these databases; all when empty."""
    hardness: list[Literal["easy", "medium", "hard", "extra"]] | None = None
    """For the demo: draw all its questions from templates of these grades; all grades when empty."""
    held_out: float | None = None
    """Evaluate on this fraction of the training queries, kept from training with all their wordings, instead of on
    the data set's own evaluation questions (whose databases may all be new to the policy)."""
    variants: str | None = None
    """Folder that `rstar-trl data variants` wrote, for `verify: variants`; the run makes its own when empty."""
    variants_per_db: int = 4
    """Variants of each database that a run with `verify: variants` makes where no folder of them is named."""
    quarantine: str | None = None
    """A list that `rstar-trl data audit` wrote; its questions are left out, beside those the run finds itself."""
    seed: int = 0
    """Draws the samples and the labelled fraction; for the demo also the corpus."""

    def __post_init__(self) -> None:
        if self.source != "demo" and not self.path:
            raise ConfigError(f"`data.path` is needed for source {self.source}; give the folder of the data set.")
        if self.hardness is not None and self.source != "demo":
            raise ConfigError("`data.hardness` grades the demo's templates; delete it for other sources.")
        if self.held_out is not None and not 0 < self.held_out < 1:
            raise ConfigError(f"`data.held_out` must lie between 0 and 1, not {self.held_out}.")
        if not 1 <= self.variants_per_db <= 48:
            raise ConfigError(f"`data.variants_per_db` must lie between 1 and 48, not {self.variants_per_db}.")
        if not 0 < self.label_fraction <= 1:
            raise ConfigError(f"`data.label_fraction` must be above 0 and at most 1, not {self.label_fraction}.")


@dataclass(frozen=True)
class PromptConfig:
    """What the policy is shown before it writes."""

    show_schema: bool = True
    """Show tables and keys. A policy trained on the very databases it is asked about can do with their name alone."""
    sample_values: int = 2
    """Sample values shown per column; 0 shows none."""
    value_hints: int = 4
    """At most this many `column = value` hints, columns whose content matches words of the question; 0 shows none."""
    column_types: bool = True
    """Show each column's declared type."""
    instructions: bool = True
    """Begin with a message that explains the task and the step format; a model trained from scratch needs none."""


@dataclass(frozen=True)
class SandboxConfig:
    """Limits for model-written SQL."""

    workers: int = 2
    """Worker processes of one search process. With two, a query that runs into its limit does not hold up the rest."""
    timeout: float = 5.0
    """Seconds of wall clock a query may take before its worker is killed."""
    max_rows: int = 20_000
    """Rows a result may have; more is verdict `truncated`."""
    max_bytes: int = 16_000_000
    """Bytes a result may have; more is verdict `truncated`."""
    memory_mb: int = 1024
    """Address space of a worker, in MiB."""


@dataclass(frozen=True)
class SearchConfig:
    """One search over one question."""

    algorithm: Literal["mcts", "beam", "sample", "greedy"] = "mcts"
    """`mcts`; `beam`: step beam search; `sample`: `num_candidates` independent trajectories (majority-of-N,
    best-of-N); `greedy`: arg-max."""
    selection: Literal["puct", "uct"] = "puct"
    """PUCT weighs exploration by the policy's prior; UCT does not."""
    c_puct: float = 1.4
    """Weight of exploration against value."""
    first_play_urgency: float = 0.2
    """An unvisited child is valued at its parent's mean value minus this, so that no sibling starves."""
    num_candidates: int = 4
    """Steps sampled at an expansion (or whole trajectories, for `sample`)."""
    simulations: int = 16
    """Simulations per question."""
    parallel_simulations: int = 1
    """Simulations of one tree at once, spread out by virtual loss. More keep an engine busy with fewer trees; each
    then knows less of the others."""
    widening: float | None = None
    """Progressive widening: a node visited N times is asked for `num_candidates` steps about N ** widening times in
    all, and again while everything below it is finished, until nothing new comes; once when empty."""
    beam_width: int = 4
    """Trajectories that `beam` keeps at every step."""
    max_tokens: int | None = None
    """Generated tokens after which a question's search asks for no further step; no limit when empty."""
    max_seconds: float | None = None
    """Seconds after which a question's search asks for no further step; no limit when empty. Trees under a limit of
    time depend on the machine."""
    max_depth: int = 16
    """Steps a trajectory may have."""
    max_step_tokens: int = 96
    """Tokens a step may have; a longer one is a dead end."""
    temperature: float = 1.0
    """Sampling temperature of the policy."""
    simulate: bool = False
    """Roll each new leaf out to a finished query, whose steps join the tree."""
    value_scale: float = 5.0
    """PPM scores enter the search as tanh(score / value_scale), and the weighted vote as exp(score / value_scale)."""
    answer: Literal["ppm", "majority", "weighted"] = "weighted"
    """Pick the answer by best PPM score, by majority over execution results, or by PPM-weighted majority."""
    avoid_empty: bool = False
    """A step that leaves no row is a dead end (execution-guided decoding, Wang et al. 2018, arXiv 1807.03100). Right
    where questions have answers; wrong where "none" may be one."""
    grounded: bool = False
    """A condition that compares with a constant which stands nowhere in the prompt is a dead end. Right where
    questions and hints spell values as the database does. Numbers up to 12 pass: they may be written as words."""
    trees_in_flight: int = 128
    """Trees worked on at once; bounds memory and sets the generation batch."""
    stop_when_solved: int | None = None
    """In training, stop a tree of `mcts` once this many right trajectories are found; never when empty."""
    settled: float | None = None
    """At inference, stop a tree of `mcts` or `sample` once the leading result is ahead of the next by more than this
    times the weight still unseen: at 1 the answer by majority cannot change any more, below 1 it may. Never when
    empty, and never in `mcts` where the policy does not tell its probabilities, as some servers do not."""
    self_consistency: float | None = None
    """In training, reward questions without an answer by agreement: the result with the most votes is right, if it has
    at least this share of them. Such questions are not searched when empty."""
    reference: bool = False
    """rStar-Math's rules to the letter: UCT with c = 2, zero for unvisited children, first child wins ties. They know
    neither `widening` nor several simulations at once."""

    def __post_init__(self) -> None:
        counts = (
            "num_candidates", "simulations", "parallel_simulations", "beam_width", "max_depth", "max_step_tokens",
            "trees_in_flight",
        )  # fmt: skip
        problems = [
            f"`{name}` must be at least 1, not {getattr(self, name)}." for name in counts if getattr(self, name) < 1
        ]
        for name in ("widening", "settled", "self_consistency", "max_tokens", "max_seconds"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                problems.append(f"`{name}` must be above 0 (or empty), not {value}.")
        if self.temperature < 0 or self.value_scale <= 0:
            problems.append("`temperature` must not be negative, and `value_scale` must be above 0.")
        if self.reference and (self.widening is not None or self.parallel_simulations > 1):
            problems.append("`reference` knows neither `widening` nor `parallel_simulations`; leave them out.")
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True)
class TrajectoryConfig:
    """From trees to training rows."""

    top_k: int = 2
    """Right trajectories kept per question, by mean Q and then for diversity."""
    margin: float = 0.5
    """Preference pairs need a Q difference above this."""
    value_copies: int = 0
    """Train the policy on this many copies of each trajectory (the cold start's too) with other values of the same
    columns in question and query, each of which runs. For small models, which otherwise learn the values by heart."""
    near_misses: int = 0
    """Train the PPM also on each selected trajectory against this many queries that are near to it and give other
    rows: different in one place, or those of other questions with its constants. For small models, whose few wrong
    trajectories teach them little about new questions."""
    max_pairs_per_question: int | None = None
    """Keep at most this many of a question's pairs from search (largest margins first); all when empty."""


@dataclass(frozen=True)
class EngineConfig:
    """What runs the model that proposes steps: in search, in evaluation and for `ask`."""

    kind: Literal["transformers", "openai", "vllm"] = "transformers"
    """In this process by `transformers` or `vllm`, or over HTTP by any server that speaks the `openai` API."""
    model: str | None = None
    """Let this model answer as it stands, in place of the run's own policy: the recipe is then a baseline that trains
    nothing. A Hub name or folder, or the name a server gives it."""
    tokenizer: str | None = None
    """openai: renders and tokenises prompts. Empty: that of the run's own policy; with `model`, prompts are sent as
    plain text."""
    urls: list[str] = field(default_factory=list)
    """openai: one or more servers of the same model, such as http://localhost:8000/v1. Questions are spread over
    them."""
    endpoint: Literal["completions", "chat"] = "completions"
    """openai: `completions` for models trained here and base models, `chat` for hosted chat models."""
    prefill: bool = False
    """openai, chat: the server continues an assistant's message that stands last. Where it does not, a further message
    asks for the next step."""
    token_ids: bool = True
    """openai, completions: where there is a tokenizer, send token ids, so that the server reads to the token what
    training did. For servers that take text alone (`transformers serve`): false."""
    options: dict[str, Any] = field(default_factory=dict)
    """openai: fields added to every request (an empty one takes ours out); vllm: arguments of its engine."""
    api_key_env: str = "OPENAI_API_KEY"
    """openai: the environment variable that holds the API key."""
    concurrency: int = 64
    """openai, vllm: requests open at once, for each process."""
    timeout: float = 120.0
    """openai: seconds a request may take."""
    retries: int = 5
    """openai: times a request is repeated after a timeout, 429 or 5xx, with growing pauses."""
    patience: float = 300.0
    """openai: seconds for which a search waits while no server answers, one that restarts say; 0 stops it at once."""

    def __post_init__(self) -> None:
        problems = []
        if self.kind == "openai" and not self.urls:
            problems.append("`engine.urls` is needed for kind openai; give the server's address, ending in /v1.")
        for url in self.urls:
            scheme, _, rest = url.partition("://")
            if scheme not in ("http", "https") or not rest:
                problems.append(f"`engine.urls`: {url} is no address; write it as http://localhost:8000/v1.")
            elif "@" in rest.partition("/")[0]:
                problems.append(
                    "`engine.urls`: an address must hold no password, recipes are copied into run folders; put the "
                    "key into the environment variable that `engine.api_key_env` names."
                )
        if self.concurrency < 1 or self.timeout <= 0 or self.retries < 0 or self.patience < 0:
            problems.append(
                "`engine`: concurrency must be at least 1, timeout above 0, retries and patience not negative."
            )
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True)
class ModelConfig:
    """The policy's base model: a name or path, or one built from scratch. Neither where `engine.model` answers."""

    name_or_path: str | None = None
    """A Hub name or a local folder."""
    from_scratch: dict[str, Any] | None = None
    """`architecture` (a `model_type` of transformers), `vocab_size`, and the fields of that architecture's config."""
    dtype: str = "float32"
    """Torch dtype the model is loaded in for generation and scoring."""
    lora: dict[str, Any] | None = None
    """Fields of `peft.LoraConfig`; trains an adapter instead of all weights."""
    trust_remote_code: bool = False
    """Run code that comes with a Hub model."""

    def __post_init__(self) -> None:
        if self.name_or_path is not None and self.from_scratch is not None:
            raise ConfigError("`model` needs exactly one of `name_or_path` and `from_scratch`.")


@dataclass(frozen=True)
class FewShotConfig:
    """The cold start by a stronger model, for `bootstrap: few_shot`."""

    model: str | None = None
    """The stronger model, a Hub name or a folder; needed for `bootstrap: few_shot`."""
    examples: int = 3
    """Labelled questions shown with their steps before each question; 0 shows none."""
    questions: int | None = None
    """Ask it this many training questions (a seeded sample); all when empty."""
    search: dict[str, Any] = field(default_factory=dict)
    """What differs from the recipe's `search` section when it is searched."""

    def __post_init__(self) -> None:
        if self.examples < 0:
            raise ConfigError(f"`few_shot.examples` must not be negative, and is {self.examples}.")


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured after each round."""

    questions: int | None = None
    """Evaluate on this many evaluation questions; all when empty."""
    methods: list[Literal["greedy", "majority", "best_of_n", "mcts"]] = field(
        default_factory=lambda: ["greedy", "majority", "best_of_n", "mcts"]
    )
    """Ways of answering to compare; those that sample spend at least as many generated tokens as `mcts` did."""
    search: dict[str, Any] = field(default_factory=dict)
    """What differs from the recipe's `search` section at evaluation."""
    rounds: Literal["all", "last"] = "all"
    """Compare every method after every round, or only greedy until the last."""
    price_per_million_tokens: float | None = None
    """Price of generated tokens, for the cost metric; no money is reported when empty."""
    price_per_million_prompt_tokens: float = 0.0
    """Price of prompt tokens, as a server counts them; enters the cost metric beside that of generated tokens."""


@dataclass(frozen=True)
class RoundConfig:
    """One round of self-evolution after the cold start; whatever is given here overrides the recipe for this round."""

    guide: Literal["reward", "ppm"] = "ppm"
    """What values unfinished steps during search: nothing but the final reward, or the last round's PPM."""
    only: Literal["all", "unsolved"] = "all"
    """Search every training question, or those no earlier round has solved."""
    init: Literal["base", "previous"] = "base"
    """Train this round's policy from the base model again, or from the last round's policy."""
    ppm_init: Literal["policy", "cold_start"] = "policy"
    """Start this round's PPM from the round's policy, or from the cold start's. A small policy knows the trajectories
    it was trained on by heart; a PPM that starts there learns to prefer what it knows, which says nothing about new
    questions."""
    search: dict[str, Any] = field(default_factory=dict)
    """Overrides of the `search` section."""
    sft: dict[str, Any] = field(default_factory=dict)
    """Overrides of the `sft` section."""
    ppm: dict[str, Any] = field(default_factory=dict)
    """Overrides of the `ppm` section."""


@dataclass(frozen=True)
class Recipe:
    """A whole self-evolution run."""

    name: str
    """Shown in tables, cards and the report."""
    output_dir: str
    """The run folder, relative to where the command is given."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The policy's base model."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """What runs it when it proposes steps."""
    data: DataConfig = field(default_factory=DataConfig)
    """Questions and databases."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    """How schema and question are shown."""
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    """Limits of execution."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """Search during training rounds."""
    verify: Literal["database", "variants"] = "database"
    """In training a query is right when its result is right on the question's database, or also on its variants."""
    trajectories: TrajectoryConfig = field(default_factory=TrajectoryConfig)
    """Selection of training rows."""
    bootstrap: Literal["labels", "few_shot"] = "labels"
    """What the cold start trains on: the labelled gold SQL, taken apart, or what a stronger model answers right."""
    few_shot: FewShotConfig = field(default_factory=FewShotConfig)
    """The stronger model of `bootstrap: few_shot`."""
    pretrain: dict[str, Any] = field(default_factory=dict)
    """Fields of TRL's `SFTConfig`: before anything else, a base built from scratch reads every training prompt twice
    over, which teaches it the words and to copy values. Uses no label; skipped when empty."""
    sft: dict[str, Any] = field(default_factory=dict)
    """Fields of `TreeSFTConfig`: TRL's `SFTConfig`, and whether the trajectories of a question are packed."""
    ppm: dict[str, Any] = field(default_factory=dict)
    """Fields of `PPMConfig`."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What is measured after each round."""
    accelerate_config: str | None = None
    """The accelerate config file stages are launched with, relative to the recipe; accelerate's default when empty."""
    rounds: list[RoundConfig] = field(default_factory=list)
    """The rounds after the cold start (round 0)."""
    seed: int = 0
    """Seeds model building, search and training."""

    def __post_init__(self) -> None:
        if self.engine.model is None and self.model.name_or_path is None and self.model.from_scratch is None:
            raise ConfigError("`model` needs exactly one of `name_or_path` and `from_scratch`.")
