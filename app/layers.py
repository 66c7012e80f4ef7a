"""What a group's parameters are: biases and norms (for `no_decay`), and how deep they lie (for `layer_decay`).

Decided by module types and dimensions, never by names: an LSTM's biases are called bias_ih_l0, and a 1-D gate
is neither a bias nor a norm.
"""

import re

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # _NormBase: Batch, Instance, Sync
# In these every 1-D parameter is a bias: their weights have two dimensions or more.
_WITH_1D_BIAS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
_WEIGHT_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


def biases_and_norms(model: nn.Module) -> set[nn.Parameter]:
    """The parameters that `no_decay` spares: those of normalisation layers, and the biases of all others."""
    spared = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if isinstance(module, NORMS) or (isinstance(module, _WITH_1D_BIAS) and parameter.dim() == 1):
                spared.add(parameter)
    return spared


def layers_in_order(module: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of `module`, layer by layer, from its input to its output.

    A layer is a block as the architecture has them (a residual block, a convolution with its norm, one layer
    of a stacked LSTM). Order is that of definition, which for torchvision's CNNs is that of computation.
    """
    layers: list[list[nn.Parameter]] = []
    for parameters, only_norms in _blocks(module, is_root=True):
        if only_norms and layers:
            layers[-1] += parameters  # a norm belongs to the layer that it follows
        else:
            layers.append(parameters)
    return layers


def _blocks(module: nn.Module, is_root: bool = False) -> list[tuple[list[nn.Parameter], bool]]:
    if isinstance(module, nn.RNNBase):
        depth = {name: int(re.search(r"_l(\d+)", name).group(1)) for name, _ in module.named_parameters()}
        return [
            ([p for name, p in module.named_parameters() if depth[name] == layer], False)
            for layer in range(module.num_layers)
        ]
    children = [child for child in module.children() if any(True for _ in child.parameters())]
    if not children or not (is_root or _is_container(module, children)):
        parameters = list(module.parameters())
        holders = [m for m in module.modules() if any(True for _ in m.parameters(recurse=False))]
        return [(parameters, all(isinstance(m, NORMS) for m in holders))] if parameters else []
    own = list(module.parameters(recurse=False))
    return ([(own, False)] if own else []) + [block for child in children for block in _blocks(child)]


def _is_container(module: nn.Module, children: list[nn.Module]) -> bool:
    """A sequence of layers, rather than one layer written as a sequence (convolution, norm, activation)."""
    if any(isinstance(child, nn.RNNBase) for child in children):
        return True
    composite = [child for child in children if any(True for _ in child.children())]
    weight_layers = [child for child in children if isinstance(child, _WEIGHT_LAYERS)]
    return isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict) and (
        bool(composite) or len(weight_layers) > 1
    )
