"""The annotation as a table: commits, versions, reading, checking, exporting."""
