"""What the ablations consist of: variants of one recipe, and the stages that train and measure them, in order."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
OSSIA = (sys.executable, "-c", "from ossia.cli.main import main; main()")
REFERENCE = "reference"
REINFORCED = "reinforced"
DENSE = "dense"
PACKED = "packed"
TASKS = ("count_letters", "spell", "compare")
"""What is asked: the tasks of pretrain.toml."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One training that differs from the reference in one thing.

    Attributes:
        name: of its folder.
        title: in tables.
        settings: of the recipe, as `--set` takes them.
        by: how its vocabulary is chosen, as `ossia train vocabulary --by` takes it.
        measures_dense: whether its weights are measured before packing, too.
    """

    name: str
    title: str
    settings: tuple[str, ...] = ()
    by: str = "frequency"
    measures_dense: bool = False


VARIANTS = (
    Variant(name=REFERENCE, title="reference"),
    Variant(name="no-qat", title="no QAT", settings=("quantize={}",), measures_dense=True),
    Variant(name="no-balance", title="no balancing", settings=("loss.balance=0",)),
    Variant(name="first-n", title="first-N vocabulary", by="rank"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model that is measured: the table's column.

    Attributes:
        seed, variant, form: what it is; `form` is PACKED, DENSE or REINFORCED.
        folder: its model folder.
        run: the folder of its training.
    """

    seed: int
    variant: Variant
    form: str
    folder: Path
    run: Path

    @property
    def results(self) -> Path:
        """Where `ossia eval` leaves its accuracy."""
        return self.run / f"eval-{self.form}" / f"{self.folder.name}-accuracy.json"

    @property
    def measures(self) -> Path:
        """Where the other measures are kept."""
        return self.run / f"measures-{self.form}.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A command and what it leaves; where that is there already, it is not run again.

    Attributes:
        title: for the reader.
        command: of `ossia`, or of this package's `measure`.
        leaves: a file that is there once the stage is done.
        tokenizer: a folder that is copied into the run first.
        run: the folder of the training.
    """

    title: str
    command: tuple[str, ...]
    leaves: Path
    run: Path
    tokenizer: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What the user asked for.

    Attributes:
        out: the folder of all runs.
        seeds: one training of every variant a seed.
        variants: names of those that are trained; the table has all that there are.
        settings: for every pre-training, before a variant's own.
        rl_settings: for reinforcement learning.
        examples: of the mix that are counted for the vocabulary.
        limit: held-out problems a task and effort.
        tasks: what is asked.
    """

    out: Path
    seeds: tuple[int, ...] = (1,)
    variants: tuple[str, ...] = tuple(variant.name for variant in VARIANTS)
    settings: tuple[str, ...] = ()
    rl_settings: tuple[str, ...] = ()
    examples: int = 20_000
    limit: int = 200
    tasks: tuple[str, ...] = TASKS


def run_folder(options: Options, variant: Variant, seed: int) -> Path:
    """Where a variant of a seed is trained."""
    return options.out / f"seed-{seed}" / variant.name


def list_models(options: Options, *, seed: int) -> list[Model]:
    """The models of a seed that are measured."""
    models: list[Model] = []
    for variant in VARIANTS:
        run = run_folder(options, variant, seed)
        models.append(Model(seed=seed, variant=variant, form=PACKED, folder=run / "model", run=run))
        if variant.measures_dense:
            models.append(Model(seed=seed, variant=variant, form=DENSE, folder=run / "dense", run=run))
        if variant.name == REFERENCE:
            models.append(Model(seed=seed, variant=variant, form=REINFORCED, folder=run / "rl" / "model", run=run))
    return models


def plan(options: Options) -> list[Stage]:
    """All stages in the order in which they are run: seed by seed, and a variant's measures after its training."""
    chosen = [variant for variant in VARIANTS if variant.name in options.variants]
    stages = [
        Stage(
            title=f"vocabulary by {by}",
            command=(
                *("train", "vocabulary", "--recipe", str(HERE / "pretrain.toml"), "--by", by),
                *("--examples", str(options.examples), "--out", str(options.out / "vocabulary" / by)),
                *_set(options.settings),
            ),
            leaves=options.out / "vocabulary" / by / "tokenizer" / "tokenizer.json",
            run=options.out / "vocabulary" / by,
        )
        for by in dict.fromkeys(variant.by for variant in chosen)
    ]
    for seed in options.seeds:
        for variant in chosen:
            stages += _stages_of(options, variant, seed)
    return stages


def _stages_of(options: Options, variant: Variant, seed: int) -> list[Stage]:
    run = run_folder(options, variant, seed)
    stages = [
        Stage(
            title=f"seed {seed}, {variant.title}: pre-training",
            command=(
                *("train", "pretrain", "--recipe", str(HERE / "pretrain.toml"), "--out", str(run)),
                *_set((f"data.seed={seed}", *options.settings, *variant.settings)),
            ),
            leaves=run / "model" / "config.json",
            run=run,
            tokenizer=options.out / "vocabulary" / variant.by / "tokenizer",
        )
    ]
    for model in list_models(options, seed=seed):
        if model.variant == variant:
            stages += _making(options, model)
            stages += _measuring(options, model)
    return stages


def _making(options: Options, model: Model) -> list[Stage]:
    """What makes a model out of the pre-trained one."""
    name = f"seed {model.seed}, {model.variant.title}"
    if model.form == REINFORCED:
        command = (
            *("train", "rl", "--recipe", str(HERE / "rl.toml"), "--model", str(model.run / "model")),
            *("--out", str(model.run / "rl"), *_set((f"run.seed={model.seed}", *options.rl_settings))),
        )
        title = f"{name}: reinforcement learning"
    elif model.form == DENSE:
        command = ("measure", "dense", str(model.run), *_set(options.settings))
        title = f"{name}: its weights before packing"
    else:
        return []
    return [Stage(title=title, command=command, leaves=model.folder / "config.json", run=model.run)]


def _measuring(options: Options, model: Model) -> list[Stage]:
    title = f"seed {model.seed}, {model.variant.title}, {model.form}"
    return [
        Stage(
            title=f"{title}: accuracy",
            command=(
                *("eval", str(model.folder), "--tasks", ",".join(options.tasks), "--limit", str(options.limit)),
                *("--out", str(model.results.parent)),
            ),
            leaves=model.results,
            run=model.run,
        ),
        Stage(
            title=f"{title}: text",
            command=("measure", "text", str(model.folder), "--out", str(model.measures), *_set(options.settings)),
            leaves=model.measures,
            run=model.run,
        ),
    ]


def _set(settings: Sequence[str]) -> tuple[str, ...]:
    return tuple(part for setting in settings for part in ("--set", setting))
