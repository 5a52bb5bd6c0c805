"""The quickstart: one command from an empty folder to an annotated catalog and a report."""
