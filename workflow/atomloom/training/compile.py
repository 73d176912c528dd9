"""torch.compile, tried before it is used.

It knows nothing of the loop.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from lightning_fabric import Fabric
from torch import nn

from atomloom.data.loader import Loader
from atomloom.models.common.outputs import Outputs


def compiled_model(
    model: nn.Module, loader: Loader, fabric: Fabric, log: Callable[[str], None]
) -> nn.Module:
    """Compile the model and try it on one batch; returns the model itself, with a warning, if that fails."""
    batch = loader.slice(loader.plan(0)[0])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compiled, reason = model, list[str]()
    for unbroken in (True, False):
        try:
            attempt = torch.compile(model, dynamic=True, fullgraph=unbroken)
            assert isinstance(attempt, nn.Module)  # it compiles a module to a module
            with fabric.autocast():
                said = Outputs.of(attempt(batch)).tensors()
                torch.stack([values.float().sum() for values in said]).sum().backward()
        except Exception as error:  # whatever the compiler rejects
            reason = str(error).strip().splitlines() or [type(error).__name__]
            torch._dynamo.reset()
            continue
        compiled = attempt
        break
    if compiled is model:
        log(f"warning: torch.compile failed, continuing without it: {reason[0]}")
    elif reason:
        log(f"warning: torch.compile: the graph is broken, which costs speed: {reason[0]}")
    model.zero_grad(set_to_none=True)
    model.load_state_dict(before)
    return compiled
