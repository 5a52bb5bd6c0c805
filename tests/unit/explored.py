"""The explorer over a published annotation, behind a key, without Ray and without the rest of the API."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Header, HTTPException

from mmva_platform.annotation.roots import AllowedRoots
from mmva_platform.search import AnnotationIndex, load_predictor, query_point
from mmva_platform.serving.explorer import ExplorerSources, JobRow, Placed, explorer_router
from mmva_platform.settings import Settings

KEY = "key-with-the-scope-read"
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script> & {{7*7}}"
JOBS: Sequence[JobRow] = (
    JobRow(id="2", state="running", catalog="s3://films/", done=40, items=160, eta_s=95.0, message=None),
    JobRow(id="1", state="failed", catalog=HOSTILE, done=1, items=None, eta_s=None, message=HOSTILE),
)


def requires_key(authorization: str = Header("")) -> None:
    """Stands for the API's own check."""
    if authorization != f"Bearer {KEY}":
        raise HTTPException(401, "no key")


def explorer_app(annotations: dict[str, str], roots: Sequence[str | Path], bundle: Path, settings: Settings) -> FastAPI:
    """What the API makes of the explorer; queries go through the bundle."""
    model = cache(lambda: load_predictor(str(bundle), settings))

    async def place(modality: str, data: Any) -> Placed:
        valence, arousal = query_point(model(), modality, data)
        return Placed(float(valence), float(arousal), str(model().digest))

    app = FastAPI()
    sources = ExplorerSources(
        annotations=lambda: annotations,
        open_index=cache(lambda uri: AnnotationIndex.open(uri, settings)),
        roots=AllowedRoots(map(str, roots)),
        place=place,
        jobs=lambda: JOBS,
    )
    app.state.router = explorer_router(sources, Depends(requires_key))
    app.include_router(app.state.router)
    return app
