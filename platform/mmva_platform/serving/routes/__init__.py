"""The API's routes by subject; each names the scope that it requires."""

from mmva_platform.serving.routes import annotate, explore, jobs, operations, search, zeroshot

ROUTERS = (annotate.router, jobs.router, search.router, zeroshot.router, explore.router, operations.router)
