"""Calls that say what is served: /models and what lies under it."""

from pathlib import Path
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from service import bundle, ode, operations
from service.api import context
from service.api.bodies import JSON
from service.api.documentation import problems
from service.api.schemas import MAX_COLUMNS
from service.engine import Engine
from service.errors import NotFound
from service.interface import ATTEMPTS
from service.manifest import Manifest
from service.settings import Settings
from service.shelf import Model

router = APIRouter()

_NO_MODEL = problems("model_not_found")


@router.head("/models", include_in_schema=False)
@router.get("/models", response_class=Response, summary="List the models")
async def models(request: Request) -> Response:
    """Return every model of the folder, in short."""
    here = context.of(request)
    known = here.repository.models.values()
    return _json(
        {
            "default": here.repository.default,
            "models": [_summary(model) for model in known],
        }
    )


@router.head("/models/{name}", include_in_schema=False)
@router.get("/models/{name}", response_class=Response, summary="Describe a model",
            responses=_NO_MODEL)  # fmt: skip
async def model(request: Request, name: str) -> Response:
    """Return all that is known of a model: shapes, capabilities, figures, device, provenance."""
    here = context.of(request)
    found = here.repository.find(name)
    details = _details(found.engine, here.settings) if found.engine else {}
    return _json(_summary(found) | details)


@router.get("/models/{name}/card", response_class=Response, summary="Read a model's card",
            responses=_NO_MODEL)  # fmt: skip
async def card(request: Request, name: str) -> Response:
    """Return the card of the served version, as Markdown."""
    return FileResponse(_file(request, name, "card.md"), media_type="text/markdown")


@router.get("/models/{name}/samples.png", response_class=Response, summary="See a model's samples",
            responses=_NO_MODEL)  # fmt: skip
@router.get("/models/{name}/curves.png", response_class=Response, summary="See how it was trained",
            responses=_NO_MODEL)  # fmt: skip
@router.get("/models/{name}/diagnostics.png", response_class=Response,
            summary="See what its samples leave out", responses=_NO_MODEL)  # fmt: skip
async def picture(request: Request, name: str) -> Response:
    """Return a picture of the served version's card."""
    file = request.url.path.rpartition("/")[2]  # one of the three above
    return FileResponse(_file(request, name, file))


def _file(request: Request, name: str, file: str) -> Path:
    repository = context.of(request).repository
    version = repository.engine(name).manifest.version
    path = bundle.locate(repository.folder / name / str(version), file)
    if path is None or not path.is_file():
        raise NotFound(f"{name} came without a {file}.")
    return path


def _summary(model: Model) -> dict[str, Any]:
    summary = {
        "name": model.name,
        "state": model.state,
        "version": model.engine.manifest.version if model.engine else None,
        "versions": model.versions,
        "loaded": list(model.engines),
        "problems": {str(version): why for version, why in model.problems.items()},
    }
    if not model.engine:
        return summary
    engine, manifest = model.engine, model.engine.manifest
    figures = [figure.model_dump(mode="json", exclude={"values"}) for figure in manifest.evaluation]
    about = (
        "title", "family", "event", "latent", "labels", "context", "observation", "posterior",
        "density",
    )  # fmt: skip
    return {
        **summary,
        **manifest.model_dump(mode="json", include=set(about)),
        "evaluation": figures,
        "capabilities": operations.capabilities(manifest),
        "estimators": operations.estimators(manifest),
        "refine": "refine" in manifest.graphs,
        "rejection": _rejection(manifest),
        "ode": _ode(manifest),
        "device": {
            "kind": engine.device.kind,
            "reason": engine.device.reason,
            "nodes": {role: sessions[0].nodes for role, sessions in engine.sessions.items()},
        },
    }


def _ode(manifest: Manifest) -> dict[str, Any] | None:
    """Return how a continuous flow is solved if nobody says otherwise."""
    own, method = manifest.ode, ode.usual(manifest)
    if own is None or method is None:
        return None
    return {
        "solver": method.solver,
        "steps": method.steps,
        "evaluations": method.evaluations,
        "guidance": own.guidance,
    }


def _rejection(manifest: Manifest) -> dict[str, Any] | None:
    """Return how samples are rejected if that is asked for; None where no critic is kept."""
    if manifest.rejection is None:
        return None
    return {**manifest.rejection.model_dump(mode="json"), "attempts": ATTEMPTS}


def _details(engine: Engine, settings: Settings) -> dict[str, Any]:
    manifest = engine.manifest
    graphs = manifest.graphs
    return {
        **manifest.model_dump(mode="json", include={"provenance", "licence"}),
        "golden": {
            "errors": {role: proof.errors for role, proof in engine.proofs.items()},
            "tolerance": {
                role: {name: each.model_dump() for name, each in graph.tolerance.items()}
                for role, graph in graphs.items()
            },
        },
        "rows_exact_at": {role: proof.rows_exact_at for role, proof in engine.proofs.items()},
        "limits": {
            "n": context.most_rows(engine, settings),
            "draws": settings.max_draws,
            "refine": settings.max_refine,
            "steps": settings.max_steps,
            "columns": MAX_COLUMNS,
            "body_bytes": settings.max_body_bytes,
        },
    }


def _json(value: object) -> Response:
    body = orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
    return Response(body, headers={"Cache-Control": "no-cache"}, media_type=JSON)
