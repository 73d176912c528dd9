"""The config: one pydantic model per section, read from YAML, with nothing heavier imported.

`load_config` is the only way in. It knows nothing of torch or of the pipeline's stages.
"""

from atomloom.config.base import expand_variables
from atomloom.config.dataset import Checks, Chunks, Dataset, Labels, Split
from atomloom.config.graph import GraphSpec
from atomloom.config.model import ModelConfig, ModelSection
from atomloom.config.root import Config, Paths, dump_config, load_config, parse_config
from atomloom.config.training import Batching, Training

__all__ = [
    "Batching",
    "Checks",
    "Chunks",
    "Config",
    "Dataset",
    "GraphSpec",
    "Labels",
    "ModelConfig",
    "ModelSection",
    "Paths",
    "Split",
    "Training",
    "dump_config",
    "expand_variables",
    "load_config",
    "parse_config",
]
