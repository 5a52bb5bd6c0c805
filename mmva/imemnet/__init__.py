"""The published IMEMNet-C files: reading, checking, splitting, and a generator of a small look-alike."""
