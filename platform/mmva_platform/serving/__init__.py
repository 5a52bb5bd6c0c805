"""The HTTP API: items and catalogs to VA points, search over what is published; Ray Serve around a plain FastAPI app.

    client -> Serve's proxy -> api (keys, limits, routes) -> model (batches, inference) -> decoders (child processes)
                                 |-> the queue of jobs in storage <- jobs, which submits them to the bulk cluster

app.py builds the application from a `Context`, so that tests run it without Ray; deploy.py binds it to Ray Serve.
"""
