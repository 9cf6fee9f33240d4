"""The page: static files, served as they are."""

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles

WEB = Path(__file__).parent.parent / "web"

router = APIRouter(include_in_schema=False)
files = StaticFiles(directory=WEB)


@router.get("/")
async def gallery() -> FileResponse:
    """Return the page on which a person sees what the models make."""
    return FileResponse(WEB / "index.html", headers={"Cache-Control": "no-cache"})
