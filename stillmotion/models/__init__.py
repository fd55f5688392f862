"""Networks: every one takes (B, T, C, H, W) and returns a dict with `logits` and `embedding`."""

from stillmotion.models.encoder import Encoder, StoredFeatures
from stillmotion.models.factory import ModelInfo, create_model, list_models, load_model

__all__ = ["Encoder", "ModelInfo", "StoredFeatures", "create_model", "list_models", "load_model"]
