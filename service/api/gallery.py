"""The page: static files, served as they are."""

import os
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

WEB = Path(__file__).parent.parent / "web"

router = APIRouter(include_in_schema=False)


class Assets(StaticFiles):
    """Files that a browser asks about again, so that an upgrade never mixes old and new."""

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        """Return the file, to be revalidated by its ETag."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Cache-Control"] = "no-cache"
        return response


files = Assets(directory=WEB)


@router.get("/")
async def gallery() -> FileResponse:
    """Return the page on which a person sees what the models make."""
    return FileResponse(WEB / "index.html", headers={"Cache-Control": "no-cache"})
