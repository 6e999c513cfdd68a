"""`write_gguf`: a model as one GGUF file, for llama.cpp and what is built on it.

The package `gguf` writes metadata and the list of tensors; the tensors themselves go to their places chunk by chunk, in
the same loop that converts between the other formats, so memory stays small whatever the model's size.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ossia.core.errors import InvalidInputError, MissingExtraError
from ossia.harmony.chat_template import nano_chat_template
from ossia.harmony.hf_tokenizer import to_letters
from ossia.harmony.vocab import ControlToken
from ossia.model.checkpoint.gguf_layout import GgufCodec, gguf_layout
from ossia.model.checkpoint.layout import Layout, Part, Weight, weights_of
from ossia.model.checkpoint.source import Checkpoint
from ossia.model.checkpoint.staging import staged
from ossia.model.checkpoint.stream import Progress, transfer
from ossia.model.checkpoint.writer import Shard, ShardWriter
from ossia.model.config import ModelConfig, alternating
from ossia.model.loading import find_tokenizer, read_json_if_any

if TYPE_CHECKING:
    import gguf

    from ossia.harmony.tokenizer import Tokenizer

SUFFIX = ".gguf"
ARCHITECTURE = "gpt-oss"
ALIGNMENT = 32
PRE_TOKENIZER = "gpt-4o"
"""llama.cpp's name of the o200k pattern."""
SWIGLU_ALPHA, SWIGLU_LIMIT = 1.702, 7.0
"""Fixed in llama.cpp."""
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5


def write_gguf(
    source: Path | str, target: Path | str, *, dense: str = "bf16", progress: Progress | None = None
) -> None:
    """Write a model folder as one GGUF file. MXFP4 experts keep their numbers; bfloat16 ones are rounded to MXFP4.

    Args:
        source: a model folder of any of the three formats.
        target: the file, whose name ends in .gguf.
        dense: of matrices that are not experts: "bf16" (exact), "f16" (exact unless numbers are tiny), or "q8_0".
        progress: called after each weight.

    Raises:
        InvalidInputError: a name that is not a file's, or a model that the format or llama.cpp cannot hold.
        MissingExtraError: the package `gguf` is not installed.
        CheckpointError: the source cannot be read.
        StorageError: the file could not be written; one that was there is untouched.
    """
    target = Path(target)
    if target.suffix != SUFFIX or target.is_dir():
        raise InvalidInputError(
            f"a GGUF is one file, but the target is {target}; give a name that ends in {SUFFIX}", param="target"
        )
    layout = gguf_layout(dense)
    checkpoint = Checkpoint.open(Path(source))
    config = checkpoint.config
    check_config(config)
    tokenizer = find_tokenizer(checkpoint.folder, vocab_size=config.vocab_size)
    template = find_template(checkpoint.folder)
    weights = list(weights_of(config))
    for weight in weights:
        layout.parts(weight)  # a shape that does not fit fails here, before anything is written
    writer = _library().GGUFWriter(None, ARCHITECTURE)
    _add_model(writer, config, name=model_name(checkpoint))
    _add_tokenizer(writer, tokenizer, template=template)
    shard = plan_file(writer, target.name, weights=weights, layout=layout)
    with staged(target.absolute().parent, num_bytes=shard.num_bytes, is_stale=lambda _: False) as new:
        with ShardWriter(new, [shard], dtype=torch.float32) as sink:
            transfer(
                weights,
                source=checkpoint,
                source_layout=checkpoint.layout,
                sink=sink,
                sink_layout=layout,
                progress=progress,
            )
        os.truncate(new / shard.name, shard.num_bytes)  # with the padding behind the last tensor
    checkpoint.files.close()


def check_config(config: ModelConfig) -> None:
    """Refuse what llama.cpp would compute otherwise, without a word.

    Raises:
        InvalidInputError: such a model.
    """
    for name, got, wanted in (
        ("layer_types", list(config.layer_types), list(alternating(config.num_hidden_layers))),
        ("swiglu_alpha", config.swiglu_alpha, SWIGLU_ALPHA),
        ("swiglu_limit", config.swiglu_limit, SWIGLU_LIMIT),
    ):
        if got != wanted:
            raise InvalidInputError(
                f"this model's {name} is {got}, but llama.cpp computes gpt-oss with {wanted}; it cannot be written as "
                "GGUF",
                param=name,
            )


def plan_file(writer: gguf.GGUFWriter, name: str, *, weights: Iterable[Weight], layout: Layout) -> Shard:
    """Header and places of a file, from the metadata in `writer`."""
    sizes: dict[str, int] = {}
    for weight in weights:
        codec = layout.codec(weight)
        assert isinstance(codec, GgufCodec)
        for part in layout.parts(weight):
            sizes[part.name] = part.num_bytes(torch.float32)
            _add_info(writer, part, codec.ggml_type, num_bytes=sizes[part.name])
    header = _header(writer)
    offsets: dict[str, int] = {}
    end = len(header)
    for tensor, size in sizes.items():
        offsets[tensor] = end
        end += _padded(size)
    return Shard(name=name, header=header, offsets=offsets, num_bytes=end)


def model_name(checkpoint: Checkpoint) -> str:
    """What the model is called: by its own config, else its folder."""
    own = checkpoint.raw_config.get("ossia")
    name = own.get("name") if isinstance(own, dict) else None
    return str(name or checkpoint.folder.resolve().name)


def find_template(folder: Path) -> str:
    """The chat template of a model folder, else one that renders harmony for any vocabulary."""
    for place in (folder, folder.parent if folder.name == "original" else folder):
        path = place / "chat_template.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8")
        template = read_json_if_any(place / "tokenizer_config.json").get("chat_template")
        if isinstance(template, str):
            return template
    return nano_chat_template()


class TokenTable(NamedTuple):
    """Tokens by id in the byte-level alphabet, their kinds, and the merges in order."""

    tokens: list[str]
    kinds: list[int]
    merges: list[str]


def token_table(tokenizer: Tokenizer) -> TokenTable:
    """A tokenizer as GGUF lists it; ids without a token get a name of their own.

    Raises:
        VocabularyError: the ranks do not come from merging pairs.
    """
    vocabulary = tokenizer.vocabulary
    tokens = [f"[UNUSED{number}]" for number in range(vocabulary.size)]
    kinds = [_UNUSED] * vocabulary.size
    for token, number in vocabulary.ranks.items():
        tokens[number], kinds[number] = to_letters(token), _NORMAL
    for name, number in vocabulary.specials.items():
        tokens[number], kinds[number] = name, _CONTROL
    merges = [f"{to_letters(left)} {to_letters(right)}" for left, right in tokenizer.merges.values()]
    return TokenTable(tokens, kinds, merges)


def _add_model(writer: gguf.GGUFWriter, config: ModelConfig, *, name: str) -> None:
    rope = config.rope
    writer.add_name(name)
    writer.add_file_type(_library().LlamaFileType.MOSTLY_MXFP4_MOE)
    writer.add_quantization_version(2)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_expert_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_expert_count(config.num_local_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_sliding_window(config.sliding_window)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_freq_base(rope.theta)
    if rope.factor > 1:
        writer.add_rope_scaling_type(_library().RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope.factor)
        writer.add_rope_scaling_orig_ctx_len(rope.original_max_position_embeddings)
        writer.add_rope_scaling_yarn_beta_fast(rope.beta_fast)
        writer.add_rope_scaling_yarn_beta_slow(rope.beta_slow)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer, *, template: str) -> None:
    table = token_table(tokenizer)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(table.tokens)
    writer.add_token_types(table.kinds)
    writer.add_token_merges(table.merges)
    writer.add_bos_token_id(tokenizer.special_id(ControlToken.STARTOFTEXT))
    writer.add_eos_token_id(tokenizer.return_)
    writer.add_pad_token_id(tokenizer.endoftext)
    writer.add_add_bos_token(False)
    writer.add_chat_template(template)


def _add_info(writer: gguf.GGUFWriter, part: Part, ggml_type: str, *, num_bytes: int) -> None:
    import numpy as np

    # The library takes bytes for what it cannot name in numpy, and works out the shape.
    is_bytes = part.dtype == torch.uint8
    dtype = np.dtype(np.uint8 if is_bytes else np.uint16 if part.dtype != torch.float32 else np.float32)
    kind = _library().GGMLQuantizationType[ggml_type]
    writer.add_tensor_info(part.name, part.shape, dtype, num_bytes, raw_dtype=kind)


def _header(writer: gguf.GGUFWriter) -> bytes:
    """All that stands before the first tensor."""
    with tempfile.TemporaryDirectory(prefix="ossia-gguf-") as folder:
        path = Path(folder) / "header"
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        header = path.read_bytes()
    return header + b"\0" * (_padded(len(header)) - len(header))


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _library() -> Any:
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise MissingExtraError("gguf", extra="gguf") from error
    return gguf
