"""The HTTP API: items and catalogs to VA points, search over what is published; Ray Serve around a plain FastAPI app.

    client -> front (keys, limits, routes) -> model replicas (batches, decoding, inference)
                    |-> the queue of jobs in storage <- the runner, which annotates catalogs on the cluster

app.py builds the application from `Services`, so that tests run it without Ray; deployments.py is where Ray begins.
"""
