"""From an item's bytes to its rows: the one definition of an item's point, curve, embedding and interval."""
