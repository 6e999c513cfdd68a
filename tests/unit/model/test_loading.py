from __future__ import annotations

from pathlib import Path

import pytest

from ossia.core.errors import CorruptFileError, InvalidInputError, MissingFileError, ModelNotFoundError
from ossia.harmony.hf_tokenizer import write_tokenizer_folder
from ossia.harmony.tokenizer import Tokenizer
from ossia.harmony.vocab import ControlToken, Vocabulary
from ossia.model.config import PUBLISHED, ModelConfig
from ossia.model.loading import (
    Identity,
    SamplingDefaults,
    choose_device,
    find,
    find_tokenizer,
    is_small,
    read_identity,
    read_json_if_any,
    read_sampling,
)

CHATGPT = Identity(
    model_identity="You are ChatGPT, a large language model trained by OpenAI.", knowledge_cutoff="2024-06"
)


def test_identity_of_the_folder_or_of_the_published_models() -> None:
    own = {"ossia": {"model_identity": "You are Nano.", "knowledge_cutoff": None}}
    assert read_identity(own) == Identity(model_identity="You are Nano.", knowledge_cutoff=None)
    assert read_identity({}) == read_identity({"ossia": {}}) == read_identity({"ossia": "x"}) == CHATGPT


def test_sampling_defaults() -> None:
    assert read_sampling({}) == SamplingDefaults(temperature=1.0, top_p=1.0)
    assert read_sampling({"do_sample": False, "temperature": 0.7}) == SamplingDefaults(temperature=0.0, top_p=1.0)
    sampled = read_sampling({"do_sample": True, "temperature": 0.7, "top_p": 0.9})
    assert sampled == SamplingDefaults(temperature=0.7, top_p=0.9)
    assert read_sampling({"max_new_tokens": 1024}).max_tokens == 1024


def test_json_files(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert read_json_if_any(path) == {}
    path.write_text("[1]")
    with pytest.raises(CorruptFileError, match="JSON object"):
        read_json_if_any(path)
    path.write_bytes(b'{"half')
    with pytest.raises(CorruptFileError, match=r"x\.json"):
        read_json_if_any(path)


def test_published_configs_need_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSSIA_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = find("openai/gpt-oss-120b")
    assert (found.config.num_local_experts, found.folder, found.format) == (128, None, None)
    with pytest.raises(ModelNotFoundError, match="someone/else"):
        find("someone/else")


def test_the_tokenizer_may_lie_a_folder_up_or_be_built_in(tmp_path: Path) -> None:
    original = tmp_path / "original"
    original.mkdir()
    assert find_tokenizer(original, vocab_size=201_088) is Tokenizer.o200k_harmony()
    with pytest.raises(MissingFileError, match=r"tokenizer\.json"):
        find_tokenizer(original, vocab_size=300)
    ranks = {bytes([value]): value for value in range(256)}
    specials = {str(name): 256 + place for place, name in enumerate(ControlToken)}
    write_tokenizer_folder(Tokenizer(Vocabulary(ranks=ranks, specials=specials, size=300)), tmp_path)
    assert find_tokenizer(original, vocab_size=300).encode("é") == [0xC3, 0xA9]


def test_small_models_are_unpacked() -> None:
    shape = {"num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64}
    nano = ModelConfig(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=256,
        num_local_experts=16,
        **shape,  # pyright: ignore
    )
    assert is_small(nano)
    assert not is_small(PUBLISHED["openai/gpt-oss-20b"])


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda")
    for name in ("tpu", "meta", "cuda:77", "", "cpu cpu"):
        with pytest.raises(InvalidInputError) as caught:
            choose_device(name)
        assert caught.value.param == "device"
