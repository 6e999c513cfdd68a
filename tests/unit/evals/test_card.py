from __future__ import annotations

from ossia.evals.card import CardTexts, render_card
from ossia.evals.results import Cell, EvalResults
from ossia.harmony.message import Effort
from ossia.model.config import PUBLISHED

CONFIG = PUBLISHED["openai/gpt-oss-20b"]
RESULTS = EvalResults(
    model="small",
    weights_sha256="ab" * 32,
    seed=0,
    max_tokens=100,
    dtype="bfloat16",
    seconds=1.0,
    environment={"hardware": "a computer"},
    cells=(
        Cell(
            task="add",
            effort=Effort.HIGH,
            num_problems=50,
            num_correct=49,
            num_clean=50,
            num_capped=0,
            mean_tokens=20.0,
        ),
    ),
)


def card(*, procedure: tuple[str, ...]) -> str:
    texts = CardTexts(
        name="small", license="Apache-2.0", data="Our own text.", procedure=procedure, limits="- It is small."
    )
    about = {"model_identity": "You are small."}
    return render_card(texts, config=CONFIG, about=about, num_bytes=3 << 20, results=RESULTS)


def test_a_card_says_all_there_is_to_say() -> None:
    text = card(procedure=("ossia train pretrain --recipe small --out runs/small", "ossia eval runs/small/model"))
    assert text.startswith("---\nlicense: apache-2.0\n")
    for part in (
        "# small: model card",
        "20,914,757,184",
        "3.0 MiB",
        "You are small.",
        "Our own text.",
        "ossia train pretrain --recipe small --out runs/small\nossia eval runs/small/model",
        "98.0 %",
        "ab" * 32,
        "- It is small.",
    ):
        assert part in text


def test_without_commands_there_is_no_procedure() -> None:
    assert "## Procedure" not in card(procedure=())
