"""What a Prometheus server asks for: the metrics."""

import asyncio

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.metrics import Metrics

router = APIRouter()


@router.get("/metrics", response_class=Response, summary="What is counted")
async def metrics(request: Request) -> Response:
    """Return all metrics in Prometheus' text format, or as OpenMetrics if Accept prefers it."""
    accept = ",".join(request.headers.getlist("accept"))
    counted: Metrics = request.app.state.metrics
    body, media_type = await asyncio.to_thread(counted.exposition, accept)
    headers = {"Cache-Control": "no-store", "Content-Type": media_type, "Vary": "Accept"}
    return Response(body, headers=headers)
