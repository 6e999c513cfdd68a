"""The engine's batch against Transformers' `generate`, one prompt at a time, on the same small random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ossia.core.paths import PACKAGE_ROOT
from ossia.engine.build import EngineConfig
from ossia.engine.llm import LLM
from ossia.engine.request import SamplingParams
from ossia.harmony.hf_tokenizer import load_tokenizer
from ossia.model.checkpoint import load_model
from ossia.model.loading import Identity, LoadedModel, SamplingDefaults

transformers = pytest.importorskip("transformers")


def test_greedy_answers_are_those_of_transformers(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(PACKAGE_ROOT / "nano")
    config = transformers.GptOssConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=16,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    theirs = transformers.GptOssForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + ("norm" in name))
    theirs.save_pretrained(tmp_path)
    loaded = LoadedModel(
        name="small",
        model=load_model(tmp_path, dtype=torch.float32),
        tokenizer=tokenizer,
        identity=Identity(model_identity="", knowledge_cutoff=None),
        sampling=SamplingDefaults(),
    )
    prompts = [[(7 * i + 3 * j) % 8000 for j in range(10 + 9 * i)] for i in range(6)]
    llm = LLM(loaded, config=EngineConfig(num_pages=256, page_size=8, max_num_batched_tokens=48))
    ours = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True), progress=False)
    for prompt, completion in zip(prompts, ours, strict=True):
        with torch.inference_mode():
            ids = theirs.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                do_sample=False,
                min_new_tokens=24,
                max_new_tokens=24,
                pad_token_id=0,
            )
        assert completion.token_ids == tuple(ids[0, len(prompt) :].tolist())
