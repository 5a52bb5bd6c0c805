"""Reports for people: one self-contained HTML file about an annotated catalog and its model."""
