"""Bytes of unknown origin to arrays: images, audio and captions, with every guard against hostile files.

One file a job (formats, limits, images, audio, windows, captions); import from there. Nothing here opens a path or a
URL: callers fetch, and hand over bytes. Whatever is wrong with an item is a MediaError whose code is listed in
`mmva.media.codes`.
"""
