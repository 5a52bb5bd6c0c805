"""The HTTP API and the page that shows an annotated catalog."""
