"""Decode untrusted bytes to images, audio and captions, with guards against hostile files.

Nothing here opens a path or a URL: callers fetch, and pass bytes. An unusable item raises a MediaError with a code of
`mmva.media.codes`.
"""
