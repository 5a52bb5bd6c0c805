"""Decode untrusted bytes to images, audio and captions, with guards against hostile files.

Nothing here opens a path or a URL: callers fetch, and pass bytes. An unusable item raises a MediaError; the meaning of
a code never changes, and docs/troubleshooting.md lists all of them.
"""
