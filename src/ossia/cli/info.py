"""`ossia info`: what a model is made of, how many bytes it takes, and where it fits."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia.cli.options import examples
from ossia.cli.sizes import DEVICES, longest_context, measure

if TYPE_CHECKING:
    from ossia.model.loading import FoundModel

EXAMPLES = examples(
    "ossia info openai/gpt-oss-20b",
    "ossia info nano --json",
    "ossia info path/to/model",
)


GIB = 1 << 30


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help='"nano", openai/gpt-oss-20b, openai/gpt-oss-120b, or a folder.')
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a model's parameters, bytes, and what fits where.

    The published models need no download: their configs are built in.
    """
    from ossia.model.loading import find

    found = find(model)
    record = describe(model, found)
    typer.echo(json.dumps(record) if as_json else as_text(record))


def describe(name: str, found: FoundModel) -> dict[str, Any]:
    """All that is printed, as JSON types. Sizes are bytes."""
    config = found.config
    sizes = measure(config)
    return {
        "model": name,
        "folder": None if found.folder is None else str(found.folder),
        "format": found.format,
        "files_bytes": found.num_bytes,
        "parameters": sizes.num_parameters,
        "active_parameters": sizes.num_active_parameters,
        "context_length": config.max_position_embeddings,
        "shape": {
            "layers": config.num_hidden_layers,
            "hidden": config.hidden_size,
            "heads": config.num_attention_heads,
            "kv_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
            "experts": config.num_local_experts,
            "active_experts": config.num_experts_per_tok,
            "expert_hidden": config.intermediate_size,
            "vocabulary": config.vocab_size,
            "sliding_window": config.sliding_window,
            "sliding_layers": sum(config.window(layer) is not None for layer in range(config.num_hidden_layers)),
        },
        "bytes": {"hf-mxfp4": sizes.mxfp4_bytes, "original": sizes.mxfp4_bytes, "hf-bf16": sizes.bf16_bytes},
        "kv_cache_bytes": {
            "per_token": sizes.kv_bytes_per_token,
            "sliding_windows": sizes.kv_bytes_fixed,
            "full_context": sizes.kv_bytes(config.max_position_embeddings),
        },
        "fits": [
            {
                "device": device,
                "memory_bytes": memory,
                "mxfp4_context": longest_context(
                    sizes, sizes.mxfp4_bytes, memory=memory, limit=config.max_position_embeddings
                ),
                "bf16_context": longest_context(
                    sizes, sizes.bf16_bytes, memory=memory, limit=config.max_position_embeddings
                ),
            }
            for device, memory in [*DEVICES.items(), *this_machine().items()]
        ],
        "cpu": cpu_path(found),
    }


def cpu_path(found: FoundModel) -> dict[str, Any]:
    """How this computer's CPU would run the model, and how much memory that takes; empty where torch is not there."""
    try:
        from ossia.engine.memory import USUAL_CONTEXT, memory_need
    except ImportError:
        return {}
    from ossia.core.memory import free_memory
    from ossia.kernels import native

    used = native.info()
    need = memory_need(found.config, is_packed=found.format != "hf-bf16")
    return {
        "path": "native" if used.is_available else "torch",
        "reason": None if used.is_available else used.reason,
        "level": used.level or None,
        "levels": list(used.levels),
        "threads": used.num_threads or None,
        "context": min(USUAL_CONTEXT, found.config.max_position_embeddings),
        "needed_bytes": need.total,
        "free_bytes": free_memory(),
    }


def this_machine() -> dict[str, int]:
    """The memory of this computer, where the system tells it."""
    try:
        return {"this machine": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}
    except (AttributeError, ValueError, OSError):
        return {}


def as_text(record: dict[str, Any]) -> str:
    """The record for people."""
    shape, kv = record["shape"], record["kv_cache_bytes"]
    lines = [
        f"{record['model']}"
        + (f"  ({record['folder']})" if record["folder"] else "  (not on this machine; its config is built in)"),
        "",
        f"parameters   {record['parameters']:,} in all, {record['active_parameters']:,} at work for a token",
        f"layers       {shape['layers']}, hidden {shape['hidden']}; {shape['heads']} heads of {shape['head_dim']}, "
        f"{shape['kv_heads']} KV heads, window {shape['sliding_window']} in {shape['sliding_layers']} layers",
        f"experts      {shape['experts']} a layer, {shape['active_experts']} at work, hidden {shape['expert_hidden']}",
        f"vocabulary   {shape['vocabulary']:,}",
        f"context      {record['context_length']:,} tokens",
        f"weights      {human(record['bytes']['hf-mxfp4'])} as MXFP4 (hf-mxfp4, original), "
        f"{human(record['bytes']['hf-bf16'])} as bfloat16 (hf-bf16)",
        f"KV cache     {kv['per_token']:,} bytes a token, {human(kv['full_context'])} for a full context",
    ]
    if record["files_bytes"] is not None:
        lines.insert(-1, f"files        {human(record['files_bytes'])} of safetensors, {record['format']}")
    lines += cpu_lines(record["cpu"])
    lines += ["", "What fits where: the longest context beside the weights (one sequence, 16-bit KV cache)"]
    lines += [
        f"  {row['device']:24} {human(row['memory_bytes']):>10}   MXFP4 {context(row['mxfp4_context']):>9}   "
        f"bfloat16 {context(row['bf16_context']):>9}"
        for row in record["fits"]
    ]
    return "\n".join(lines)


def cpu_lines(cpu: dict[str, Any]) -> list[str]:
    """What is said of this computer's CPU; nothing where it is not known."""
    if not cpu:
        return []
    if cpu["path"] == "native":
        others = f" (of {', '.join(cpu['levels'])})" if len(cpu["levels"]) > 1 else ""
        kernels = f"C++ kernels, level {cpu['level']}{others}, {cpu['threads']} threads"
        if cpu["level"] == "generic" and len(cpu["levels"]) > 1:
            kernels += "; set by OSSIA_NATIVE, and slow"
        elif cpu["level"] == "generic":
            kernels += "; this CPU has no AVX2 or NEON that they know, so they are slow"
    else:
        kernels = f"torch, which is slow; the C++ kernels are not in use: {cpu['reason']}"
    free = "" if cpu["free_bytes"] is None else f", {human(cpu['free_bytes'])} free here"
    return [
        f"on this CPU  {kernels}",
        f"             {human(cpu['needed_bytes'])} of memory with a context of {cpu['context']:,} tokens{free}",
    ]


def context(num_tokens: int) -> str:
    return f"{num_tokens:,}" if num_tokens else "no"


def human(num_bytes: int) -> str:
    """``12.8 GiB``, ``23.5 MiB``."""
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes / (1 << 20):.1f} MiB"
