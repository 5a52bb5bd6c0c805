"""The quickstart: one command from nothing to an annotated catalog and a report."""
