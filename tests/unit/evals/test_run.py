from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from ossia.core.errors import InvalidInputError
from ossia.engine.llm import LLM
from ossia.evals import run as run_module
from ossia.evals.run import (
    Evaluated,
    Question,
    draw_problems,
    hash_weights,
    judge,
    load_evaluated,
    render_prompt,
    run_eval,
)
from ossia.harmony.hf_tokenizer import write_tokenizer_folder
from ossia.harmony.message import Effort
from ossia.harmony.prune import count_tokens, prune_vocabulary
from ossia.harmony.tokenizer import Tokenizer
from ossia.kernels import native
from ossia.model.checkpoint import save_checkpoint
from ossia.model.config import ModelConfig
from ossia.model.loading import Identity, LoadedModel, SamplingDefaults
from ossia.model.transformer import Transformer
from ossia.tasks.base import Answer, Problem, Solution
from ossia.tasks.registry import TASKS

MAX_TOKENS = 96


@pytest.fixture(scope="module")
def evaluated() -> Evaluated:
    """A random model just large enough for the real vocabulary."""
    tokenizer = Tokenizer.o200k_harmony()
    model = small_model(vocab_size=tokenizer.vocab_size)
    return Evaluated(
        loaded=LoadedModel(
            name="random",
            model=model,
            tokenizer=tokenizer,
            identity=Identity(model_identity="You are a test.", knowledge_cutoff=None),
            sampling=SamplingDefaults(),
        )
    )


def small_model(*, vocab_size: int) -> Transformer:
    config = ModelConfig.from_hf(
        {
            "model_type": "gpt_oss",
            "vocab_size": vocab_size,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "sliding_window": 16,
            "max_position_embeddings": 512,
        }
    )
    model = Transformer(config, dtype=torch.float32, device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model.eval()


class Parity:
    """A task with ten problems, to be answered by even or odd."""

    name = "parity"

    def problem(self, rng: random.Random, *, held_out: bool) -> Problem:
        number = rng.randrange(10) + (100 if held_out else 0)
        return Problem(task=self.name, prompt=f"Is {number} even or odd?", answer=("even", "odd")[number % 2])

    def solve(self, problem: Problem, *, effort: Effort, rng: random.Random) -> Solution:
        return Solution(analysis="", final=(problem.answer,))

    def grade(self, problem: Problem, answer: Answer) -> bool:
        return answer.final == problem.answer


def completion(evaluated: Evaluated, final: str, *, analysis: str = "") -> list[int]:
    """What a model that gives this answer samples."""
    text = f"<|channel|>analysis<|message|>{analysis}<|end|><|start|>assistant" if analysis else ""
    return evaluated.loaded.tokenizer.encode_with_specials(f"{text}<|channel|>final<|message|>{final}<|return|>")


def judge_text(evaluated: Evaluated, text: str, *, max_tokens: int = MAX_TOKENS):
    task = Parity()
    problem = Problem(task="parity", prompt="Is 103 even or odd?", answer="odd")
    question = Question(task=task, effort=Effort.LOW, problem=problem, prompt_ids=[1])
    ids = evaluated.loaded.tokenizer.encode_with_specials(text)
    return judge(question, tuple(ids), tokenizer=evaluated.loaded.tokenizer, max_tokens=max_tokens)


def test_the_final_message_is_graded_not_the_reasoning(evaluated: Evaluated) -> None:
    right = "<|channel|>analysis<|message|>even<|end|><|start|>assistant<|channel|>final<|message|>odd<|return|>"
    wrong = "<|channel|>analysis<|message|>odd<|end|><|start|>assistant<|channel|>final<|message|>even<|return|>"
    none = "<|channel|>analysis<|message|>odd<|end|>"
    assert judge_text(evaluated, right).is_correct
    assert judge_text(evaluated, right).repairs == ()
    assert not judge_text(evaluated, wrong).is_correct
    assert not judge_text(evaluated, none).is_correct
    assert judge_text(evaluated, none).answer.final is None


def test_repairs_are_counted_and_do_not_make_an_answer_wrong(evaluated: Evaluated) -> None:
    outcome = judge_text(evaluated, "<|channel|>final final<|message|>odd<|return|>")
    assert outcome.is_correct
    assert outcome.repairs


def test_a_spent_budget_is_not_a_stop_at_the_last_token(evaluated: Evaluated) -> None:
    stopped = "<|channel|>final<|message|>odd<|return|>"
    length = len(evaluated.loaded.tokenizer.encode_with_specials(stopped))
    assert not judge_text(evaluated, stopped, max_tokens=length).is_capped
    assert judge_text(evaluated, "<|channel|>final<|message|>odd odd", max_tokens=length).is_capped


def test_run_eval_counts_each_cell(evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    """With answers of a known quality: right at high effort, half right at low, and some that never end."""
    task = Parity()
    problems = draw_problems(task, num_problems=500, seed=0)
    answers: dict[tuple[int, ...], list[int]] = {}
    for index, problem in enumerate(problems):
        low = render_prompt(evaluated.loaded, problem.prompt, effort=Effort.LOW)
        high = render_prompt(evaluated.loaded, problem.prompt, effort=Effort.HIGH)
        answers[tuple(low)] = completion(evaluated, problem.answer if index % 2 else "neither")
        answers[tuple(high)] = completion(evaluated, problem.answer, analysis="a thought")
    first = tuple(render_prompt(evaluated.loaded, problems[0].prompt, effort=Effort.LOW))
    answers[first] = evaluated.loaded.tokenizer.encode("and so on " * MAX_TOKENS)[:MAX_TOKENS]

    def fake(_: LLM, questions: list[Question], *, max_tokens: int, **__: object) -> list[tuple[int, ...]]:
        assert max_tokens == MAX_TOKENS
        return [tuple(answers[tuple(question.prompt_ids)]) for question in questions]

    monkeypatch.setattr(run_module, "answer", fake)
    results = run_eval(
        evaluated,
        tasks={"parity": task},
        efforts=(Effort.LOW, Effort.HIGH),
        num_problems=500,
        batch_size=8,
        max_tokens=MAX_TOKENS,
    )
    low, high = results.cells
    assert (low.task, low.effort, low.num_problems, low.num_correct) == ("parity", Effort.LOW, 10, 5)
    assert (low.num_capped, low.num_clean) == (1, 9)
    assert (high.effort, high.num_correct, high.num_clean, high.num_capped) == (Effort.HIGH, 10, 10, 0)
    assert high.mean_tokens == len(completion(evaluated, "odd", analysis="a thought"))
    assert [failure.prompt for failure in low.failures] == [problems[i].prompt for i in (0, 2, 4)]
    assert low.failures[0].is_capped
    assert low.failures[1].final == "neither"
    assert low.failures[1].completion == "<|channel|>final<|message|>neither<|return|>"


def test_run_eval_of_a_random_model_is_repeatable(evaluated: Evaluated) -> None:
    tasks = {name: TASKS[name] for name in ("count_letters", "add")}
    seen: list[tuple[int, int]] = []
    first, second = (
        run_eval(
            evaluated,
            tasks=tasks,
            efforts=(Effort.MEDIUM,),
            num_problems=3,
            batch_size=size,
            max_tokens=8,
            progress=lambda done, total: seen.append((done, total)),
        )
        for size in (4, 1)
    )
    assert seen[-1] == (6, 6)
    assert first.cells == second.cells
    assert [cell.num_problems for cell in first.cells] == [3, 3]
    assert sum(cell.num_correct for cell in first.cells) == 0
    assert first.dtype == "float32"
    assert first.environment["hardware"]


def test_efforts_and_tasks_do_not_change_the_problems() -> None:
    add = draw_problems(TASKS["add"], num_problems=20, seed=5)
    assert draw_problems(TASKS["add"], num_problems=20, seed=5) == add
    assert draw_problems(TASKS["add"], num_problems=20, seed=6) != add
    assert draw_problems(TASKS["add"], num_problems=10, seed=5) == add[:10]
    assert len({problem.prompt for problem in add}) == 20


@pytest.mark.parametrize("name", list(TASKS))
def test_every_task_grades_its_own_solutions(name: str) -> None:
    task = TASKS[name]
    rng = random.Random(0)
    for problem in draw_problems(task, num_problems=30, seed=0):
        for effort in Effort:
            assert task.grade(problem, task.solve(problem, effort=effort, rng=rng).answer)


def test_a_task_with_few_problems_gives_what_it_has() -> None:
    problems = draw_problems(Parity(), num_problems=500, seed=0)
    assert len(problems) == 10
    assert all("10" in problem.prompt for problem in problems)


def test_the_prompt_says_the_identity_and_the_effort(evaluated: Evaluated) -> None:
    text = evaluated.loaded.tokenizer.decode(render_prompt(evaluated.loaded, "Hi", effort=Effort.HIGH))
    assert text.startswith("<|start|>system<|message|>You are a test.\n")
    assert "Reasoning: high" in text
    assert text.endswith("<|start|>user<|message|>Hi<|end|><|start|>assistant")


def test_a_folder_is_loaded_with_its_identity(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    whole = Tokenizer.o200k_harmony()
    vocabulary = prune_vocabulary(count_tokens(["How many rs are in strawberry?"], whole), size=512)
    model = small_model(vocab_size=512)
    save_checkpoint(model, folder, format="hf-mxfp4")
    write_tokenizer_folder(Tokenizer(vocabulary), folder)
    config = json.loads((folder / "config.json").read_text())
    config["ossia"] = {"model_identity": "You are tiny.", "knowledge_cutoff": None}
    (folder / "config.json").write_text(json.dumps(config))
    evaluated = load_evaluated(str(folder))
    text = evaluated.loaded.tokenizer.decode(render_prompt(evaluated.loaded, "Hi", effort=Effort.LOW))
    assert text.startswith("<|start|>system<|message|>You are tiny.\nCurrent date: 2026-01-01\n\nReasoning: low")
    is_native = native.is_available()  # the C++ kernels take the checkpoint's own dtypes
    assert evaluated.loaded.model.embed_tokens.weight.dtype == (torch.bfloat16 if is_native else torch.float32)
    assert evaluated.loaded.model.layers[0].mlp.experts.is_packed == is_native
    assert evaluated.weights_sha256 == hash_weights(folder)
    results = run_eval(evaluated, tasks={"parity": Parity()}, num_problems=2, max_tokens=4)
    assert [cell.effort for cell in results.cells] == list(Effort)


def test_hash_depends_on_every_weights_file(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"1")
    one = hash_weights(tmp_path)
    (tmp_path / "b.safetensors").write_bytes(b"2")
    (tmp_path / "notes.txt").write_bytes(b"3")
    assert hash_weights(tmp_path) != one


@pytest.mark.parametrize("name", ["num_problems", "batch_size", "max_tokens"])
def test_numbers_must_be_positive(evaluated: Evaluated, name: str) -> None:
    with pytest.raises(InvalidInputError, match=f"{name} is 0"):
        run_eval(evaluated, **{name: 0})


def test_something_must_be_asked(evaluated: Evaluated) -> None:
    with pytest.raises(InvalidInputError, match="at least one task"):
        run_eval(evaluated, tasks={})
