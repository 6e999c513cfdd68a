"""Causal attention of many sequences at once over keys and values that lie in pages.

Two ways, by how many queries a sequence has:
- one or a few (decoding, drafts to verify): sequences of like length together, padded, in one batched computation;
- many (a chunk of a prompt): sequence by sequence, as `kernels.attention` does it.

Only pages that a query can see are read. Which those are is the same for all layers of a step that share a window, so
`plan_reads` says it once and `paged_attention` takes it ready-made. What lies in a page beyond its sequence's tokens
never counts, not even if it is NaN: it is what the page's last owner wrote.
"""

# T queries of all sequences, N sequences, n of them in a group, Q queries a sequence of a group, H heads, K KV heads,
# M = H / K heads a KV head, C head dim, P pages, S page size, B blocks of the longest sequence, L = S * blocks read

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ossia.kernels.attention import attention

FEW_QUERIES = 8
"""Sequences with so many queries at most are computed together."""
GROUP_BYTES = 1 << 20
"""Keys copied at a time for such a group: they should still be in the cache when they are multiplied."""
FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0

Ints = NDArray[np.integer[Any]]


class GroupReads(NamedTuple):
    """Sequences that are computed together.

    Attributes:
        rows: int64 [n * Q], the query of each place; places without one repeat the last of their sequence.
        first_row: the first of `rows` if those are consecutive, so that a slice serves; else None.
        kept: int64, the places that are no repetitions; None for all.
        pages: int64 [n * blocks].
        hidden: bool [n, 1, Q, 1, L], True where a query does not see a key; None if all see all.
        unseen: int64, the keys (of n * L) that no query sees.
        num_seqs: n.
    """

    rows: Tensor
    first_row: int | None
    kept: Tensor | None
    pages: Tensor
    hidden: Tensor | None
    unseen: Tensor
    num_seqs: int


class ChunkReads(NamedTuple):
    """One sequence with many queries: the rows [begin, end) of q, and the first `num_keys` tokens of these pages."""

    begin: int
    end: int
    pages: Tensor
    num_keys: int


class PagedReads(NamedTuple):
    """What a step reads of the pages, for all layers with one window; `num_rows` queries have something to see."""

    groups: tuple[GroupReads, ...]
    chunks: tuple[ChunkReads, ...]
    num_rows: int


def write_kv(k: Tensor, v: Tensor, *, keys: Tensor, values: Tensor, slot_mapping: Tensor) -> None:
    """Put k and v [T, K, C] into the pages [P, S, K, C], in place.

    Args:
        k: keys of this step's tokens.
        v: their values.
        keys: the layer's pages, in k's dtype, or float8_e4m3fn: then rounded, and clamped to +-448.
        values: likewise.
        slot_mapping: int64 [T], page * S + offset of each token.
    """
    _write(k, keys, slot_mapping)
    _write(v, values, slot_mapping)


def _write(x: Tensor, pages: Tensor, slot_mapping: Tensor) -> None:
    flat = pages.view(-1, *pages.shape[2:])
    if pages.dtype == FP8:
        x = x.float().clamp(-FP8_MAX, FP8_MAX).to(FP8).view(torch.uint8)
        flat = flat.view(torch.uint8)
    flat.index_copy_(0, slot_mapping, x)


def paged_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    block_table: Tensor,
    cu_seqlens_q: Tensor,
    context_lens: Tensor,
    sinks: Tensor,
    window: int | None = None,
    reads: PagedReads | None = None,
) -> Tensor:
    """Let each sequence's last tokens attend to their past.

    Args:
        q: [T, H, C].
        keys: [P, S, K, C], in q's dtype or float8_e4m3fn; this step's keys are in it already.
        values: likewise.
        block_table: int32 [N, B], the page of each block of S tokens; blocks that no query sees may hold anything.
        cu_seqlens_q: int32 [N + 1]; sequence n's queries are rows cu[n] to cu[n + 1] of q, its last tokens.
        context_lens: int32 [N], tokens of each sequence, its queries included; 0 for padding.
        sinks: [H].
        window: a query at position p sees keys in (p - window, p]; None for all up to p.
        reads: `plan_reads` of these, if at hand.

    Returns:
        [T, H, C] in q's dtype, 0 for rows of no sequence and of padding; the softmax is float32.
    """
    if reads is None:
        reads = plan_reads(
            block_table.cpu().numpy(),
            cu_seqlens_q=cu_seqlens_q.cpu().numpy(),
            context_lens=context_lens.cpu().numpy(),
            window=window,
            page_size=keys.shape[1],
            token_bytes=keys.shape[2] * keys.shape[3] * q.element_size(),
            device=q.device,
        )
    if len(reads.groups) == 1 and reads.groups[0].first_row == 0 and reads.groups[0].rows.shape[0] == q.shape[0]:
        return _attend_group(q, keys, values, sinks=sinks, group=reads.groups[0])
    out = torch.empty_like(q) if reads.num_rows == q.shape[0] else torch.zeros_like(q)
    for group in reads.groups:
        if group.first_row is not None:
            place = slice(group.first_row, group.first_row + group.rows.shape[0])
            out[place] = _attend_group(q[place], keys, values, sinks=sinks, group=group)
            continue
        attended = _attend_group(q[group.rows], keys, values, sinks=sinks, group=group)
        if group.kept is None:
            out[group.rows] = attended
        else:
            out[group.rows[group.kept]] = attended[group.kept]
    for chunk in reads.chunks:
        k = _read(keys, chunk.pages, q.dtype).flatten(0, 1)[: chunk.num_keys]
        v = _read(values, chunk.pages, q.dtype).flatten(0, 1)[: chunk.num_keys]
        out[chunk.begin : chunk.end] = attention(q[chunk.begin : chunk.end], k, v, sinks=sinks, window=window)
    return out


def _read(pages: Tensor, numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Copies of some pages, [n, S, K, C], in a dtype to compute with."""
    if pages.dtype == FP8:
        return pages.view(torch.uint8).index_select(0, numbers).view(FP8).to(dtype)
    return pages.index_select(0, numbers)


def _attend_group(q: Tensor, keys: Tensor, values: Tensor, *, sinks: Tensor, group: GroupReads) -> Tensor:
    """q [n * Q, H, C] -> [n * Q, H, C]."""
    (R, H, C), K, n = q.shape, keys.shape[2], group.num_seqs
    Q, M = R // n, H // K
    k = _read(keys, group.pages, q.dtype).view(n, -1, K, C)
    v = _read(values, group.pages, q.dtype)
    v.view(-1, K * C).index_fill_(0, group.unseen, 0)
    L = k.shape[1]
    scaled = q * C**-0.5
    by_head = scaled.view(n, K, M, C) if Q == 1 else scaled.view(n, Q, K, M, C).transpose(1, 2)
    scores = torch.bmm(by_head.reshape(n * K, Q * M, C), k.permute(0, 2, 3, 1).reshape(n * K, C, L)).float()
    scores = scores.view(n, K, Q, M, L)
    if group.hidden is not None:
        scores = scores.masked_fill_(group.hidden, float("-inf"))
    sink = sinks.float().view(K, 1, M, 1).expand(n, K, Q, M, 1)
    weights = torch.softmax(torch.cat((scores, sink), dim=-1), dim=-1).view(n * K, Q * M, L + 1)[..., :-1]
    out = torch.bmm(weights.to(q.dtype), v.view(n, L, K, C).transpose(1, 2).reshape(n * K, L, C))
    return out.view(n, K, Q, M, C).transpose(1, 2).reshape(R, H, C)


def plan_reads(
    block_table: Ints,
    *,
    cu_seqlens_q: Ints,
    context_lens: Ints,
    window: int | None,
    page_size: int,
    token_bytes: int,
    device: torch.device | str = "cpu",
) -> PagedReads:
    """Say which pages a step reads, from its inputs on the host.

    Args:
        block_table: as for `paged_attention`, likewise the next three.
        cu_seqlens_q: [N + 1].
        context_lens: [N].
        window: of the layers that share this plan.
        page_size: S.
        token_bytes: bytes of one token's keys in one layer, in the dtype of the computation.
        device: where the indices go.
    """
    S, begins = page_size, cu_seqlens_q[:-1].astype(np.int64)
    num_queries = np.diff(cu_seqlens_q).astype(np.int64)
    ends = context_lens.astype(np.int64)
    first_seen = np.zeros_like(ends) if window is None else np.maximum(ends - num_queries - window + 1, 0)
    first_block = first_seen // S
    num_blocks = -(-ends // S) - first_block
    is_live = (num_queries > 0) & (ends > 0)
    is_few = is_live & (num_queries <= FEW_QUERIES)
    spans = _Spans(block_table, begins, num_queries, ends, first_block, num_blocks)
    groups = tuple(
        _group_reads(spans, members, window=window, page_size=S, device=device)
        for members in _cut_groups(np.flatnonzero(is_few), num_blocks, max_blocks=GROUP_BYTES // (S * token_bytes))
    )
    chunks = []
    for n in np.flatnonzero(is_live & ~is_few).tolist():
        first = int(first_block[n])
        pages = block_table[n, first : first + int(num_blocks[n])].astype(np.int64)
        begin, num_keys = int(begins[n]), int(ends[n]) - first * S
        chunks.append(ChunkReads(begin, begin + int(num_queries[n]), _on(pages, device), num_keys))
    return PagedReads(groups, tuple(chunks), int(num_queries[is_live].sum()))


class _Spans(NamedTuple):
    """Each sequence's first row of q, queries, tokens, and the blocks that some query of it sees: all [N]."""

    block_table: Ints
    begins: Ints
    num_queries: Ints
    ends: Ints
    first_block: Ints
    num_blocks: Ints


def _cut_groups(members: Ints, num_blocks: Ints, *, max_blocks: int) -> list[Ints]:
    """Split sequences into groups that read `max_blocks` at most, padding included, if a group has more than one."""
    if members.size == 0:
        return []
    sizes = num_blocks[members]
    if int(sizes.max()) * members.size <= max_blocks:
        return [members]
    order = np.argsort(sizes, kind="stable")
    members, ordered = members[order], sizes[order].tolist()
    groups, begin = [], 0
    for place, size in enumerate(ordered):  # ascending, so the latest is the largest
        if place > begin and size * (place - begin + 1) > max_blocks:
            groups.append(members[begin:place])
            begin = place
    return [*groups, members[begin:]]


def _group_reads(
    spans: _Spans, members: Ints, *, window: int | None, page_size: int, device: torch.device | str
) -> GroupReads:
    n, S = members.size, page_size
    table, begins, counts, ends, first_block, num_blocks = spans
    begins, counts, ends, first_block = begins[members], counts[members], ends[members], first_block[members]
    num_blocks = num_blocks[members]
    Q, widest = int(counts.max()), int(num_blocks.max())

    steps = np.arange(widest)
    columns = np.minimum(first_block[:, None] + steps, table.shape[1] - 1)
    pages = np.where(steps < num_blocks[:, None], table[members[:, None], columns], 0).astype(np.int64)

    queries = np.arange(Q)
    rows = begins[:, None] + np.minimum(queries, counts[:, None] - 1)
    is_kept = (queries < counts[:, None]).ravel()
    are_all_kept = bool(is_kept.all())
    flat = rows.ravel()
    are_consecutive = are_all_kept and bool((np.diff(flat) == 1).all())

    key_positions = first_block[:, None] * S + np.arange(widest * S)
    unseen = np.flatnonzero((key_positions >= ends[:, None]).ravel())
    positions = ((ends - counts)[:, None] + queries)[:, :, None]
    hidden = key_positions[:, None, :] > positions
    if window is not None:
        hidden |= key_positions[:, None, :] <= positions - window
    return GroupReads(
        rows=_on(flat, device),
        first_row=int(flat[0]) if are_consecutive else None,
        kept=None if are_all_kept else _on(np.flatnonzero(is_kept), device),
        pages=_on(pages.ravel(), device),
        hidden=_on(hidden[:, None, :, None, :], device) if hidden.any() else None,
        unseen=_on(unseen, device),
        num_seqs=n,
    )


def _on(array: NDArray[Any], device: torch.device | str) -> Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)


def paged_attention_torch(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    block_table: Tensor,
    cu_seqlens_q: Tensor,
    context_lens: Tensor,
    sinks: Tensor,
    window: int | None = None,
) -> Tensor:
    """The reference: query by query, the visible tokens picked one by one, all of it in float32."""
    (_, H, C), (S, K) = q.shape, keys.shape[1:3]
    out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    starts, lengths = cu_seqlens_q.tolist(), context_lens.tolist()
    for n, length in enumerate(lengths):
        for row in range(starts[n], starts[n + 1]):
            position = length - (starts[n + 1] - row)
            first = 0 if window is None else max(0, position - window + 1)
            if position < first:
                continue  # padding
            seen = torch.arange(first, position + 1, device=q.device)
            pages, offsets = block_table[n].long()[seen // S], seen % S
            k = keys[pages, offsets].float().repeat_interleave(H // K, dim=1)
            v = values[pages, offsets].float().repeat_interleave(H // K, dim=1)
            scores = torch.einsum("hc,shc->hs", q[row].float(), k) / C**0.5
            largest = torch.maximum(scores.amax(dim=-1), sinks.float())
            powers = torch.exp(scores - largest[:, None])
            total = powers.sum(dim=-1) + torch.exp(sinks.float() - largest)
            out[row] = torch.einsum("hs,shc->hc", powers / total[:, None], v)
    return out.to(q.dtype)
