"""Search in a published annotation, by an item of any modality, through its point in the plane.

from mmva_platform.search import AnnotationIndex, open_query_model, query_point
index = AnnotationIndex.open("annotations/photos", Settings())
model = open_query_model(index, Settings())
index.search(query_point(model, "caption", "a slow sad piano"), modality="music")
"""

from mmva.zeroshot.prompts import MusicPrompt, PromptBank, music_prompt
from mmva.zeroshot.query import query_point
from mmva.zeroshot.search import Region
from mmva_platform.search.index import AnnotationIndex, Hit
from mmva_platform.search.models import load_predictor, open_query_model

__all__ = [
    "AnnotationIndex", "Hit", "MusicPrompt", "PromptBank", "Region", "load_predictor", "music_prompt",
    "open_query_model", "query_point",
]  # fmt: skip
