"""Tables of labels: reading, checking, splitting."""
