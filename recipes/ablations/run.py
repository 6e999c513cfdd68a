"""What reinforcement learning, quantization-aware training, load balancing and the choice of the vocabulary each bring.

    python -m recipes.ablations.run --out runs/ablations --seeds 1,2

Trains one small model whole, and again without each of these things, and writes OUT/ablations.json and .md. All runs on
one core of a CPU, in some 50 minutes a seed. A stage that is done is not done again, and training that was stopped goes
on from its last checkpoint, so after a stop run the same line again. `--table` only writes the table, of what there is.
The text is that of runs/nano/corpus, which `bash recipes/speedrun.sh nano` builds; recipes/corpora/README.md says from
what.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from recipes.ablations.page import collect, render
from recipes.ablations.stages import OSSIA, TASKS, VARIANTS, Options, Stage, plan

from ossia.core.errors import OssiaError
from ossia.core.files import write_text

ALL = tuple(variant.name for variant in VARIANTS)
MEASURE = (sys.executable, "-m", "recipes.ablations.measure")


def run_stage(stage: Stage) -> bool:
    """Run a stage unless what it leaves is there; says whether it ran.

    Raises:
        subprocess.CalledProcessError: its command failed; what it said is on the terminal.
    """
    if stage.leaves.is_file():
        print(f"== {stage.title}: is done", flush=True)
        return False
    if stage.tokenizer is not None and not (stage.run / "tokenizer").is_dir():
        stage.run.mkdir(parents=True, exist_ok=True)
        aside = stage.run / "tokenizer.new"
        shutil.copytree(stage.tokenizer, aside, dirs_exist_ok=True)
        aside.rename(stage.run / "tokenizer")
    is_ours = stage.command[0] == "measure"
    shown = "python -m recipes.ablations.measure" if is_ours else "ossia"
    rest = stage.command[1:] if is_ours else stage.command
    print(f"== {stage.title}: {shown} {shlex.join(rest)}", flush=True)
    subprocess.run([*(MEASURE if is_ours else OSSIA), *rest], check=True)  # noqa: S603 - ours
    return True


def write_table(options: Options, *, command: str) -> None:
    """Write OUT/ablations.json and .md from what is there."""
    record = collect(options, command=command)
    write_text(options.out / "ablations.json", json.dumps(record, indent=1) + "\n")
    write_text(options.out / "ablations.md", render(record))


def parse_options(argv: Sequence[str] | None) -> tuple[Options, bool]:
    """The command line: the options, and whether only the table is wanted."""
    parser = argparse.ArgumentParser(description="Train and measure the ablations, and write their table.")
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs, and of the table")
    parser.add_argument("--seeds", default="1", metavar="A,B", help="a training of every variant each")
    parser.add_argument(
        "--variants", default=",".join(ALL), metavar="A,B", help=f"which to train, of {', '.join(ALL)}; default: all"
    )
    parser.add_argument("--limit", type=int, default=200, help="held-out problems a task and effort")
    parser.add_argument("--examples", type=int, default=20_000, help="examples counted for the vocabulary")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of pretrain.toml")
    parser.add_argument("--set-rl", action="append", default=[], metavar="KEY=VALUE", help="of rl.toml")
    parser.add_argument("--tasks", default=",".join(TASKS), metavar="A,B", help="what is asked")
    parser.add_argument("--table", action="store_true", help="run nothing, write the table of what is there")
    args = parser.parse_args(argv)
    try:
        seeds = tuple(int(seed) for seed in args.seeds.split(","))
    except ValueError:
        parser.error(f"--seeds is {args.seeds!r}; give whole numbers with commas between, as in 1,2")
    variants = tuple(args.variants.split(","))
    if unknown := set(variants) - set(ALL):
        parser.error(f"--variants names {', '.join(sorted(unknown))}; there are {', '.join(ALL)}")
    options = Options(
        out=args.out,
        seeds=seeds,
        variants=variants,
        settings=tuple(args.set),
        rl_settings=tuple(args.set_rl),
        examples=args.examples,
        limit=args.limit,
        tasks=tuple(args.tasks.split(",")),
    )
    return options, args.table


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is not done yet, and write the table after each stage."""
    options, is_table_only = parse_options(argv)
    command = shlex.join(["python", "-m", "recipes.ablations.run", *(sys.argv[1:] if argv is None else argv)])
    try:
        for stage in () if is_table_only else plan(options):
            if run_stage(stage):
                write_table(options, command=command)
        write_table(options, command=command)
    except subprocess.CalledProcessError as error:
        print(f"a stage failed (exit status {error.returncode}); mend it and run the same line again", file=sys.stderr)
        return 1
    except OssiaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"the table is {options.out / 'ablations.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
