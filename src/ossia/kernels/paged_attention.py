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

import itertools
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
    S, device, begins = page_size, torch.device(device), cu_seqlens_q[:-1].astype(np.int64)
    num_queries = np.diff(cu_seqlens_q).astype(np.int64)
    ends = context_lens.astype(np.int64)
    first_seen = np.zeros_like(ends) if window is None else np.maximum(ends - num_queries - window + 1, 0)
    first_block = first_seen // S
    num_blocks = (ends + S - 1) // S - first_block
    is_live = (num_queries > 0) & (ends > 0)
    spans = _Spans(begins, num_queries, ends - first_block * S, first_block, num_blocks)

    few = np.flatnonzero(is_live & (num_queries <= FEW_QUERIES))
    order, cuts = _cut_groups(few, num_blocks, max_blocks=GROUP_BYTES // (S * token_bytes))
    ordered = _Spans(*(column[order] for column in spans))
    groups = []
    for begin, end in itertools.pairwise(cuts):
        part = _Spans(*(column[begin:end] for column in ordered))
        pages = _pages(block_table, order[begin:end], part)
        groups.append(_group_reads(part, pages, window=window, page_size=S, device=device))
    chunks = []
    for n in np.flatnonzero(is_live & (num_queries > FEW_QUERIES)).tolist():
        begin, count, end, first, width = (int(column[n]) for column in spans)
        pages = block_table[n, first : first + width].astype(np.int64)
        chunks.append(ChunkReads(begin, begin + count, _on(pages, device), end))
    return PagedReads(tuple(groups), tuple(chunks), int(num_queries[is_live].sum()))


class _Spans(NamedTuple):
    """Each sequence's first row of q, its queries, and the blocks that some query of it sees: all [n].

    `local_ends` is its number of tokens, counted from the begin of `first_block`.
    """

    begins: Ints
    num_queries: Ints
    local_ends: Ints
    first_block: Ints
    num_blocks: Ints


def _cut_groups(members: Ints, num_blocks: Ints, *, max_blocks: int) -> tuple[Ints, list[int]]:
    """An order of these sequences, and where to cut it.

    A group of more than one sequence reads `max_blocks` at most, padding included.
    """
    sizes = num_blocks[members]
    if members.size == 0 or int(sizes.max()) * members.size <= max_blocks:
        return members, [0, members.size] if members.size else []
    order = np.argsort(sizes, kind="stable")
    cuts = [0]
    for place, size in enumerate(sizes[order].tolist()):  # ascending, so the latest is the largest
        if place > cuts[-1] and size * (place - cuts[-1] + 1) > max_blocks:
            cuts.append(place)
    return members[order], [*cuts, members.size]


def _pages(block_table: Ints, members: Ints, spans: _Spans) -> Ints:
    """The pages to read, int64 [n, blocks]; the null page behind a sequence's last block."""
    steps = np.arange(spans.num_blocks.max())
    columns = np.minimum(spans.first_block[:, None] + steps, block_table.shape[1] - 1)
    is_own = steps < spans.num_blocks[:, None]
    return block_table[members[:, None], columns] * is_own.astype(np.int64)


def _group_reads(spans: _Spans, pages: Ints, *, window: int | None, page_size: int, device: torch.device) -> GroupReads:
    counts, local_ends = spans.num_queries, spans.local_ends[:, None]
    Q = int(counts.max())
    keys = np.arange(pages.shape[1] * page_size)  # positions, counted from each sequence's first block
    is_unseen = keys >= local_ends
    unseen = np.flatnonzero(is_unseen)
    kept = None
    if Q == 1:
        rows = spans.begins
        hidden = is_unseen if window is None else is_unseen | (keys < local_ends - window)
        hidden = hidden[:, None] if window is not None or unseen.size else None
    else:
        queries = np.arange(Q)
        rows = (spans.begins[:, None] + np.minimum(queries, counts[:, None] - 1)).ravel()
        if int(counts.min()) < Q:
            kept = np.flatnonzero(queries < counts[:, None])
        positions = (local_ends - counts[:, None] + queries)[:, :, None]
        hidden = keys > positions
        if window is not None:
            hidden |= keys <= positions - window
    are_consecutive = kept is None and bool((rows[1:] - rows[:-1] == 1).all())
    return GroupReads(
        rows=_on(rows, device),
        first_row=int(rows[0]) if are_consecutive else None,
        kept=None if kept is None else _on(kept, device),
        pages=_on(pages.ravel(), device),
        hidden=None if hidden is None else _on(hidden[:, None, :, None, :], device),
        unseen=_on(unseen, device),
        num_seqs=pages.shape[0],
    )


def _on(array: NDArray[Any], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.to(device)


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
