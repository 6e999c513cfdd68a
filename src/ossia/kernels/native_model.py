"""A whole model on the C++ kernels: one call runs a step through all layers, from token ids to logits.

`NativeModel` describes the tensors of a `Transformer` to the library without copying its matrices. `NativeCache` is the
paged cache of keys and values, or a contiguous one seen as a single page.

What a step computes in: the residual stream and everything between products is float32 (torch rounds to the model's
dtype after each operation). A step of up to 8 tokens, or any step of an `exact` model, multiplies float32 activations
with bfloat16 weights, and 16-bit block-scaled activations with MXFP4 and 8-bit weights; without AMX so does a step of
up to 48, and experts do in any step in which each has 12 tokens or fewer on average. Larger steps stay in float32, but
on the level amx: there activations have 16 significant bits up to 64 tokens, and are bfloat16 beyond. Within each of
these ways a token's results are the same whatever else is in the step, to the bit.
"""

# T tokens, N sequences, D model, H heads, K KV heads, C head dim, L layers, E experts, A active experts, V vocabulary,
# P pages, S page size, B blocks of a sequence

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ossia.core.errors import InvalidInputError
from ossia.core.mappings import drop_file_pages
from ossia.kernels.mxfp4 import Mxfp4
from ossia.kernels.native import (
    BF12_GROUP,
    KIND_BF16,
    KIND_F32,
    KIND_FP8,
    Q8,
    CLayer,
    CMatrix,
    CModel,
    CStep,
    Weight,
    c_matrix,
    check_status,
    pack_bf12,
    quantize_q8,
    require,
)

FULL, SLIDING = 0, 1
"""The two groups of layers, which have a block table each."""
CACHE_KINDS = {torch.float32: KIND_F32, torch.bfloat16: KIND_BF16, torch.float8_e4m3fn: KIND_FP8}
"""What keys and values may be; float8 is rounded to nearest and clamped to +-448."""


QUANTIZE = ("q8", "bf12")
"""Other forms of attention's projections and lm_head: 8 bits, or bfloat16 in 12 bits without loss."""


class NativeCache:
    """Keys and values of all layers, described to the library once.

    Args:
        keys: of each layer [P, S, K, C], contiguous, all of one dtype, one of CACHE_KINDS.
        values: likewise.
    """

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        self.tensors = (list(keys), list(values))
        first = keys[0]
        self.page_size = first.shape[1]
        self.kind = CACHE_KINDS.get(first.dtype)
        if self.kind is None:
            allowed = ", ".join(map(str, CACHE_KINDS))
            raise InvalidInputError(f"the cache is {first.dtype}; the CPU kernels take {allowed}")
        for tensor in (*keys, *values):
            is_same = tensor.dtype == first.dtype and tensor.shape[1:] == first.shape[1:]
            if not is_same or not tensor.is_contiguous() or tensor.device.type != "cpu":
                raise InvalidInputError(
                    f"a layer's cache is {tensor.dtype} {list(tensor.shape)} on {tensor.device}; allowed: contiguous, "
                    f"on the CPU, {first.dtype} and [P, {', '.join(map(str, first.shape[1:]))}]"
                )
        self.keys = _pointers(keys)
        self.values = _pointers(values)

    @classmethod
    def contiguous(cls, keys: Tensor, values: Tensor) -> NativeCache:
        """One sequence's [L, capacity, K, C], each layer as a single page."""
        return cls([layer.unsqueeze(0) for layer in keys.unbind(0)], [layer.unsqueeze(0) for layer in values.unbind(0)])


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class NativeBatch:
    """The tokens of one step and where their keys and values go; int tensors on the CPU, contiguous.

    Attributes:
        ids: int64 [T].
        positions: int64 [T].
        cu_seqlens: int32 [N + 1]; sequence n's queries are tokens cu[n] : cu[n + 1].
        block_tables: int32 [N, B] of the full layers and of the sliding ones (the same tensor twice if they share).
        slot_mappings: int64 [T] likewise: page * S + offset.
        cache: keys and values.
    """

    ids: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    block_tables: tuple[Tensor, Tensor]
    slot_mappings: tuple[Tensor, Tensor]
    cache: NativeCache

    def __post_init__(self) -> None:
        T, N = self.ids.shape[0], self.cu_seqlens.shape[0] - 1
        wanted = [
            ("ids", self.ids, torch.int64, (T,)),
            ("positions", self.positions, torch.int64, (T,)),
            ("cu_seqlens", self.cu_seqlens, torch.int32, (N + 1,)),
            *((f"block_tables[{g}]", self.block_tables[g], torch.int32, (N, None)) for g in (FULL, SLIDING)),
            *((f"slot_mappings[{g}]", self.slot_mappings[g], torch.int64, (T,)) for g in (FULL, SLIDING)),
        ]
        for name, tensor, dtype, shape in wanted:
            fits = len(shape) == tensor.dim() and all(n in (None, m) for n, m in zip(shape, tensor.shape, strict=True))
            if not fits or tensor.dtype != dtype or not tensor.is_contiguous():
                raise InvalidInputError(
                    f"{name} is {tensor.dtype} {list(tensor.shape)}; allowed: contiguous {dtype} "
                    f"[{', '.join('B' if n is None else str(n) for n in shape)}]",
                    param=name,
                )


class NativeOutput(NamedTuple):
    """Of the rows asked for: hidden states float32 [R, D] after the final norm, and logits float32 [R, V]."""

    hidden: Tensor | None
    logits: Tensor | None


class NativeModel:
    """A `Transformer`'s weights as the library sees them.

    Matrices are used where they lie; vectors (norms, biases, sinks) that are not float32 are copied, and so is what is
    quantised; what is then no longer read of a mapped file leaves this process's memory. When the model's values have
    changed in place, `refresh` brings the copies up to date.

    Args:
        model: a `ossia.model.transformer.Transformer` on the CPU, float32 or bfloat16, experts dense or packed.
        exact: run every step by the kernels for few tokens: slower prefill, and a token's results never depend on the
            size of a step.
        quantize: "q8" keeps attention's projections and lm_head in 8 bits; "bf12" keeps those that are bfloat16 in 12
            bits, without loss. Both are copies. None leaves them as they are.

    Raises:
        InvalidInputError: weights that the kernels do not take.
        OssiaError: the library is not in use.
    """

    def __init__(self, model: Any, *, exact: bool = False, quantize: str | None = None) -> None:
        if quantize not in (None, *QUANTIZE):
            allowed = " or ".join(map(repr, (None, *QUANTIZE)))
            raise InvalidInputError(f"quantize is {quantize!r}; allowed: {allowed}", param="quantize")
        self.library = require()
        self.config = model.config
        self._exact, self._quantize = exact, quantize
        self._contiguous: tuple[Any, NativeCache] | None = None
        self._describe(model)

    def _describe(self, model: Any) -> None:
        """Make what the library gets; the model's tensors and all copies are kept from here on."""
        config = self.config
        self._source = model
        self._kept: list[Any] = []
        self._copies: list[tuple[Tensor, Tensor]] = []  # the model's tensor, and its copy in float32
        self._rounded: list[tuple[Tensor, Q8]] = []  # the model's tensor, and its copy in 8 bits
        self._replaced: list[Tensor] = []  # the model's tensors of which the kernels read another form
        self._layers = (CLayer * config.num_hidden_layers)(*map(self._layer, model.layers))
        cos, sin = model.rope(torch.device("cpu"))
        self._model = CModel(
            dim=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            experts=config.num_local_experts,
            active=config.num_experts_per_tok,
            hidden=config.intermediate_size,
            vocab=config.vocab_size,
            num_layers=config.num_hidden_layers,
            exact=int(self._exact),
            eps=config.rms_norm_eps,
            alpha=config.swiglu_alpha,
            limit=config.swiglu_limit,
            embed=self._matrix("embed_tokens", model.embed_tokens.weight),
            lm_head=self._matrix("lm_head", model.lm_head.weight, may_quantize=True),
            final_norm=self._vector(model.norm.weight),
            rope_cos=self._vector(cos),
            rope_sin=self._vector(sin),
            num_positions=cos.shape[0],
            layers=ctypes.cast(self._layers, ctypes.POINTER(CLayer)),
        )
        drop_file_pages([(tensor.data_ptr(), tensor.nbytes) for tensor in self._replaced])

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy again what was copied, from the model's tensors as they are now; their addresses must be the same."""
        if self._quantize == "bf12":  # what does not fit into 12 bits may be more than before
            self._describe(self._source)
            return
        for source, copy in self._copies:
            copy.copy_(source)
        for source, copy in self._rounded:
            new = quantize_q8(source)
            copy.data.copy_(new.data)
            copy.scales.copy_(new.scales)

    def step(
        self,
        batch: NativeBatch,
        *,
        out_rows: Tensor | None = None,
        needs_logits: bool = True,
        needs_hidden: bool = False,
        chosen: Tensor | None = None,
    ) -> NativeOutput:
        """Run a step: writes the new keys and values, returns what is asked for.

        Args:
            batch: the tokens.
            out_rows: int32 [R], the tokens whose output is wanted; None for each sequence's last.
            needs_logits: return logits.
            needs_hidden: return hidden states.
            chosen: int32 [L, T, A], to be filled with the experts of each token.

        Raises:
            InvalidInputError: an id or position out of range; nothing was written.
        """
        if out_rows is None:
            out_rows = batch.cu_seqlens[1:] - 1
        R, config = out_rows.shape[0], self.config
        hidden = torch.empty(R, config.hidden_size) if needs_hidden else None
        logits = torch.empty(R, config.vocab_size) if needs_logits else None
        step = self._c_step(batch, first=0, last=config.num_hidden_layers)
        step.ids = batch.ids.data_ptr()
        step.out_rows, step.num_out = out_rows.data_ptr(), R if needs_logits or needs_hidden else 0
        step.hidden = None if hidden is None else hidden.data_ptr()
        step.logits = None if logits is None else logits.data_ptr()
        step.chosen = None if chosen is None else chosen.data_ptr()
        check_status(self.library.ossia_forward(ctypes.byref(self._model), ctypes.byref(step)))
        return NativeOutput(hidden, logits)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states float32 [R, D], as `step` gives them, -> float32 [R, V], with lm_head as this model has it."""
        hidden = hidden.contiguous()
        out = torch.empty(hidden.shape[0], self.config.vocab_size)
        head = ctypes.byref(self._model.lm_head)
        check_status(self.library.ossia_matmul(head, hidden.data_ptr(), hidden.shape[0], 1, out.data_ptr()))
        return out

    def run_layers(self, x: Tensor, *, batch: NativeBatch, first: int, last: int) -> None:
        """Layers first to last (half open) on the residual stream x, float32 [T, D], in place."""
        if x.dtype != torch.float32 or not x.is_contiguous() or x.shape != (len(batch.ids), self.config.hidden_size):
            raise InvalidInputError(
                f"x is {x.dtype} {list(x.shape)}; allowed: contiguous float32 "
                f"[{len(batch.ids)}, {self.config.hidden_size}]",
                param="x",
            )
        step = self._c_step(batch, first=first, last=last)
        step.x = x.data_ptr()
        check_status(self.library.ossia_forward(ctypes.byref(self._model), ctypes.byref(step)))

    def attend(self, q: Tensor, *, batch: NativeBatch, layer: int) -> Tensor:
        """Attention of one layer alone, with that layer's sinks and window: q float32 [T, H, C] -> the same shape."""
        q = q.contiguous()
        out = torch.empty_like(q)
        step = self._c_step(batch, first=layer, last=layer)
        size = ctypes.sizeof(ctypes.c_void_p)
        step.keys = ctypes.addressof(batch.cache.keys) + layer * size
        step.values = ctypes.addressof(batch.cache.values) + layer * size
        which = self._layers[layer]
        status = self.library.ossia_attention(
            ctypes.byref(self._model),
            ctypes.byref(step),
            q.data_ptr(),
            which.sinks,
            which.window,
            which.group,
            out.data_ptr(),
        )
        check_status(status)
        return out

    def next_logits(self, token_ids: Sequence[int], *, cache: Any) -> Tensor:
        """Append tokens to a `ossia.model.attention.KVCache` and return the logits after the last, float32 [1, V].

        The counterpart of `ossia.model.generate.next_logits`.
        """
        start, T = cache.length, len(token_ids)
        cache.reserve(start + T)
        if self._contiguous is None or self._contiguous[0] is not cache.keys:
            self._contiguous = (cache.keys, NativeCache.contiguous(cache.keys, cache.values))
        positions = torch.arange(start, start + T)
        table = torch.zeros(1, 1, dtype=torch.int32)
        batch = NativeBatch(
            ids=torch.tensor(token_ids, dtype=torch.int64),
            positions=positions,
            cu_seqlens=torch.tensor([0, T], dtype=torch.int32),
            block_tables=(table, table),
            slot_mappings=(positions, positions),
            cache=self._contiguous[1],
        )
        logits = self.step(batch).logits
        cache.length = start + T
        assert logits is not None
        return logits

    def _c_step(self, batch: NativeBatch, *, first: int, last: int) -> CStep:
        cache = batch.cache
        return CStep(
            num_tokens=batch.ids.shape[0],
            num_sequences=batch.cu_seqlens.shape[0] - 1,
            positions=batch.positions.data_ptr(),
            cu_seqlens=batch.cu_seqlens.data_ptr(),
            block_table=tuple(table.data_ptr() for table in batch.block_tables),
            slot_mapping=tuple(slots.data_ptr() for slots in batch.slot_mappings),
            num_blocks=tuple(table.shape[1] for table in batch.block_tables),
            page_size=cache.page_size,
            cache_kind=cache.kind,
            keys=ctypes.addressof(cache.keys),
            values=ctypes.addressof(cache.values),
            first_layer=first,
            last_layer=last,
        )

    def _layer(self, layer: Any) -> CLayer:
        attn, mlp = layer.attn, layer.mlp
        return CLayer(
            attn_norm=self._vector(layer.attn_norm.weight),
            mlp_norm=self._vector(layer.mlp_norm.weight),
            sinks=self._vector(attn.sinks),
            qkv=self._matrix("attn.qkv", attn.qkv.weight, attn.qkv.bias, may_quantize=True),
            out=self._matrix("attn.out", attn.out.weight, attn.out.bias, may_quantize=True),
            router=self._matrix("mlp.router", mlp.router.weight, mlp.router.bias),
            gate_up=self._matrix("gate_up", _experts(mlp.experts, "gate_up"), mlp.experts.gate_up_bias),
            down=self._matrix("down", _experts(mlp.experts, "down"), mlp.experts.down_bias),
            window=attn.window or 0,
            group=FULL if attn.window is None else SLIDING,
        )

    def _matrix(self, name: str, weight: Weight, bias: Tensor | None = None, *, may_quantize: bool = False) -> CMatrix:
        if may_quantize and isinstance(weight, Tensor):
            if self._quantize == "q8":
                rounded = quantize_q8(weight)
                self._rounded.append((weight, rounded))
                self._replaced.append(weight)
                weight = rounded
            elif self._quantize == "bf12" and weight.dtype == torch.bfloat16 and weight.shape[1] % BF12_GROUP == 0:
                self._replaced.append(weight)
                weight = pack_bf12(weight)
        wide = None if bias is None else self._widen(bias)
        self._kept += [weight, wide]
        return c_matrix(weight, wide, name=name)

    def _vector(self, tensor: Tensor) -> int:
        """The address of a float32 copy, or of the tensor itself if it is that already."""
        wide = self._widen(tensor)
        self._kept.append(wide)
        return wide.data_ptr()

    def _widen(self, tensor: Tensor) -> Tensor:
        wide = tensor.detach().float().contiguous()
        if wide.data_ptr() != tensor.data_ptr():
            self._copies.append((tensor, wide))
        return wide


def _experts(experts: Any, name: str) -> Weight:
    if experts.is_packed:
        return Mxfp4(getattr(experts, f"{name}_blocks"), getattr(experts, f"{name}_scales"))
    return getattr(experts, name)


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
