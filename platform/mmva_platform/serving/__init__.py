"""The HTTP API: annotates items and catalogs and searches published annotations. Ray Serve around a FastAPI app.

    client -> Serve's proxy -> api (keys, limits, routes) -> model (batches, inference) -> decoders (child processes)
                                 |-> job queue in storage <- jobs (submits them to the bulk cluster)

app.py builds the application from a `Context`, so that tests run it without Ray; deploy.py binds it to Ray Serve.
"""
