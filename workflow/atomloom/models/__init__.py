"""Networks from GraphBatch to numbers; found by name, imported on demand.

`build_model(config, outputs)` is the way in. Models know nothing of training.
"""

from atomloom.models.registry import MODELS, build_model, model_class

__all__ = ["MODELS", "build_model", "model_class"]
