"""The model that places a query in the plane: the annotation's own, checked by digest."""

from mmva.backbones import BackboneSpec
from mmva.errors import CheckFailed, UsageError
from mmva.models.bundle import read_bundle
from mmva.models.predictor import Predictor
from mmva_platform.annotation.plan.plan import ModelInfo
from mmva_platform.datasets.embedding.worker import EncoderLoader
from mmva_platform.search.index import AnnotationIndex
from mmva_platform.settings import Settings
from mmva_platform.tracking.resolve import STARTER, resolve_model


def load_predictor(model: str, settings: Settings) -> Predictor:
    """A model in fp32 torch, the reference; the encoder of a modality is loaded on first use.

    `model` is a bundle's folder, runs:/RUN/model, models:/NAME@ALIAS or models:/NAME/VERSION. Raises UsageError if
    there is no such model, CheckFailed if its files are not the logged or registered ones.
    """
    info, files = read_bundle(resolve_model(model, settings).bundle_dir)
    load = EncoderLoader.of(settings)
    specs = {modality: backbone["spec"] for modality, backbone in info.backbones.items()}
    return Predictor(info, files["model.safetensors"], lambda name: load(BackboneSpec.from_json(specs[name])))


def open_query_model(index: AnnotationIndex, settings: Settings, model: str | None = None) -> Predictor:
    """The model of an annotation, to place queries among its items.

    No other model can be used, because two models put the same item at different points. `model` is its place; default:
    the version that the annotation names. Raises UsageError if there is no such model, or none is given and the
    annotation's was never registered, CheckFailed if it is not the annotation's model.
    """
    own = index.model
    uri = model or uri_of(own)
    if uri is None:
        raise UsageError(
            f"{index.uri}: annotated with {own.name!r}, which is not registered; say where it is with --model "
            f"(its digest is {own.digest[:16]})"
        )
    predictor = load_predictor(uri, settings)
    check_same_model(index, predictor, uri)
    return predictor


def uri_of(model: ModelInfo) -> str | None:
    """The URI of an annotation's model for resolve_model; None for a bundle that was never registered."""
    if model.version is None:
        return STARTER if model.name == STARTER else None
    return f"models:/{model.name}/{model.version}"


def check_same_model(index: AnnotationIndex, predictor: Predictor, uri: str) -> None:
    """Raises CheckFailed unless the annotation was made with this model."""
    own = index.model
    if predictor.digest != own.digest:
        raise CheckFailed(
            f"model {uri!r} has digest {predictor.digest[:16]}, {index.uri} was annotated with {own.name!r}, digest "
            f"{own.digest[:16]}: points of two models cannot be compared; use that one, or annotate again"
        )
