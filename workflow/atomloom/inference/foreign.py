"""Files that other programs wrote by `torch.save`, read without running code."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from atomloom.errors import AtomloomError


def read_torch_file(path: Path, program: str, allowed: Sequence[Any] = ()) -> Mapping[str, Any]:
    """Read a checkpoint by PyTorch's restricted reader, which makes tensors and plain values.

    Args:
        path: of the file.
        program: that it is to be of, for messages.
        allowed: further classes and functions that may occur in it.

    Raises:
        AtomloomError: when it cannot be read so, or holds no dict.
    """
    try:
        with torch.serialization.safe_globals(list(allowed)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files that it goes on to refuse
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader of foreign bytes may raise anything
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines and not isinstance(error, LookupError) else repr(error)
        raise AtomloomError(f"cannot be read as data: {reason}", where=path) from None
    if not isinstance(content, Mapping):
        raise AtomloomError(f"is not a checkpoint of {program}", where=path)
    return content
