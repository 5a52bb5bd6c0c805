"""Reports: one self-contained HTML file about an annotated catalog and its model."""
