"""Uses of a model's points without further training: retrieval, music prompts, video summaries.

    search.py    nearest neighbours in the VA plane, exact, with filters and pages
    query.py     one item's bytes or text -> its VA point
    prompts.py   a VA point -> a musical prompt; templates placed by the caption tower
    summary.py   a VA curve -> the segments that hold most of its change
    video.py     a video -> its curve, segments, clip and picture

Importing search, prompts and summary needs only numpy; the other two need decoders and encoders.
"""
