"""Reports people look at: one self-contained HTML file about an annotated catalog and the model that annotated it."""
