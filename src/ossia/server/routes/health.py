"""Whether the server lives, whether it takes work, and its counts."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from ossia.core.errors import EngineDeadError
from ossia.server.context import context_of
from ossia.server.metrics import CONTENT_TYPE, render_metrics

router = APIRouter(tags=["health"])


@router.get("/health")
async def get_health(request: Request) -> JSONResponse:
    """200 while the process and its engine live; else 503, and a supervisor should restart it."""
    context = context_of(request)
    is_alive = context.engine.is_alive or context.is_draining
    return JSONResponse({"status": "ok" if is_alive else "dead"}, status_code=200 if is_alive else 503)


@router.get("/ready")
async def get_ready(request: Request) -> JSONResponse:
    """200 while new work is taken; else 503, and a balancer should send it elsewhere."""
    context = context_of(request)
    is_ready = context.engine.is_alive and not context.is_draining
    return JSONResponse({"status": "ready" if is_ready else "draining"}, status_code=200 if is_ready else 503)


@router.get("/metrics")
async def get_metrics(request: Request) -> Response:
    """Counts, for Prometheus."""
    context = context_of(request)
    try:
        snapshot = await context.engine.metrics()
    except EngineDeadError:
        snapshot = None
    page = render_metrics(snapshot, context.metrics, is_alive=context.engine.is_alive)
    return Response(page, media_type=CONTENT_TYPE)
