"""The nano that ships: it answers, and Transformers reads the same folder to the same tokens."""

from __future__ import annotations

import random

import pytest
import torch

from ossia.engine.build import EngineConfig
from ossia.engine.llm import LLM
from ossia.engine.request import SamplingParams
from ossia.evals.run import Evaluated, load_evaluated, render_prompt, run_eval
from ossia.evals.sweeps import SWEEPS
from ossia.harmony.message import Effort
from ossia.model.checkpoint import load_model, resolve_model
from ossia.model.generate import GenerationOptions, generate
from ossia.tasks.registry import TASKS


@pytest.fixture(scope="module")
def nano():
    return load_evaluated("nano").loaded


def greedy(nano, *, max_tokens: int) -> GenerationOptions:
    stops = nano.model.config.eos_token_ids
    return GenerationOptions(temperature=0.0, max_tokens=max_tokens, stop_ids=stops)


def answer(nano, question: str, *, effort: Effort) -> dict[str, str]:
    """Ask one question; the texts of the answer by channel."""
    llm = LLM(nano, config=EngineConfig(num_pages=256))
    (turn,) = llm.chat([question], SamplingParams(temperature=0.0, max_tokens=400), effort=effort, progress=False)
    assert not turn.repairs
    return {message.channel: message.content for message in turn.messages}


@pytest.mark.parametrize("effort", [Effort.MEDIUM, Effort.HIGH])
def test_strawberry_has_three_rs(nano, effort):
    texts = answer(nano, "How many rs are in the word 'strawberry'?", effort=effort)
    assert "3" in texts["final"]
    assert "8r=2 9r=3" in texts["analysis"]


def test_low_effort_answers_at_once(nano):
    assert set(answer(nano, "What is 2 + 2?", effort=Effort.LOW)) == {"final"}


@pytest.mark.slow
def test_held_out_accuracy_on_the_cpu_keeps_its_promise(nano):
    """A small sample on the CPU, asked as this nano was taught; all figures: benchmarks/results/nano-accuracy.md."""
    tasks = {name: SWEEPS[name] for name in ("add_by_length", "subtract_by_length")}
    results = run_eval(Evaluated(loaded=nano), tasks=tasks, efforts=(Effort.HIGH,), num_problems=60)
    for cell in results.cells:
        parts = [part for part in cell.parts if int(part.name.split(" ")[0]) <= 6]
        wanted = 0.9 * sum(part.num_problems for part in parts)
        assert sum(part.num_correct for part in parts) >= wanted, (cell.task, cell.failures)


@pytest.mark.slow
def test_transformers_gives_the_same_greedy_tokens(nano):
    transformers = pytest.importorskip("transformers")
    folder = resolve_model("nano")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        quantization_config=transformers.Mxfp4Config(dequantize=True),
    ).float()
    ours = load_model(folder, dtype=torch.float32)
    rng = random.Random(5)
    for name in ("count_letters", "add", "reverse"):
        prompt = render_prompt(nano, TASKS[name].problem(rng, held_out=True).prompt, effort=Effort.HIGH)
        mine = list(generate(ours, prompt, options=greedy(nano, max_tokens=64)))
        out = theirs.generate(torch.tensor([prompt]), max_new_tokens=64, do_sample=False)[0, len(prompt) :].tolist()
        assert mine == out[: len(mine)]
        assert len(out) - len(mine) <= 1


@pytest.mark.slow
def test_transformers_tokenizes_and_templates_alike(nano):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(resolve_model("nano"))
    text = "How many rs are in the word 'strawberry'? 12345 + 678"
    assert theirs(text, add_special_tokens=False)["input_ids"] == nano.tokenizer.encode(text)
    ids = theirs.apply_chat_template(
        [{"role": "user", "content": text}],
        add_generation_prompt=True,
        reasoning_effort="high",
        return_dict=True,
    )["input_ids"]
    assert nano.tokenizer.decode(ids).endswith("<|start|>assistant")
