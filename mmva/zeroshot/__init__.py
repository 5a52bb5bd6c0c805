"""Uses of a model's points without further training: retrieval, music prompts, video summaries.

    search.py    exact nearest neighbours in the VA plane, with filters and pages
    query.py     an item's bytes or text -> its VA point
    prompts.py   a VA point -> a musical prompt
    summary.py   a VA curve -> the segments with most of its change
    video.py     a video -> its curve, segments, clip and picture

search, prompts and summary only need numpy; the other two import decoders and encoders.
"""
