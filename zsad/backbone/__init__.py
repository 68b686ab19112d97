"""open_clip vision transformers with dense features, and their text towers."""

from zsad.backbone.model import Backbone, ImageFeatures, Precision, load_backbone

__all__ = ["Backbone", "ImageFeatures", "Precision", "load_backbone"]
