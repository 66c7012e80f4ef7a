"""What a group's parameters are: biases, norms and the like (for `no_decay`), and how deep they lie (`layer_decay`).

Decided by module types and dimensions, never by names: an LSTM's biases are called bias_ih_l0, and a 1-D gate
is neither a bias nor a norm.
"""

import re
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # _NormBase: Batch, Instance, Sync
# In these every 1-D parameter is a bias, for their weights have two dimensions or more; in a ParameterDict it is a
# vector that stands in for an embedding, as a class token does.
_WITH_1D_BIAS = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    nn.ParameterDict,
)
_WEIGHT_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_SEQUENCES = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def biases_and_norms(model: nn.Module) -> set[nn.Parameter]:
    """What `no_decay` leaves without weight decay: parameters of normalisation layers, biases of all others, and
    vectors of a ParameterDict."""
    found = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if isinstance(module, NORMS) or (isinstance(module, _WITH_1D_BIAS) and parameter.dim() == 1):
                found.add(parameter)
    return found


def layers_in_order(module: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of `module`, layer by layer, from its input to its output.

    A layer is a block as the architecture has them: a residual or dense block, one of a transformer, a downsampling,
    a convolution with its norm, one layer of a stacked LSTM. A norm, or a parameter that stands between blocks
    (position embedding) or in a ParameterDict, belongs to the layer that it follows; at the very start to the first.
    Order is that of definition, which for torchvision's networks is that of computation.

    Raises ValueError for modules side by side, which have no order.
    """
    layers: list[list[nn.Parameter]] = []
    waiting: list[nn.Parameter] = []  # for the first layer
    for parameters, is_layer in _blocks(module, is_root=True):
        if is_layer:
            layers.append(waiting + parameters)
            waiting = []
        elif layers:
            layers[-1] += parameters
        else:
            waiting += parameters
    return layers + ([waiting] if waiting else [])


def _blocks(module: nn.Module, is_root: bool = False) -> Iterator[tuple[list[nn.Parameter], bool]]:
    """Parameters in order, and whether they are a layer, or belong to one (norms, parameters between blocks)."""
    children = _children(module)
    if isinstance(module, nn.RNNBase):
        depth = {name: int(re.search(r"_l(\d+)", name).group(1)) for name, _ in module.named_parameters()}
        for layer in range(module.num_layers):
            yield [p for name, p in module.named_parameters() if depth[name] == layer], True
    elif type(module) is nn.ModuleDict and len(children) > 1:  # a subclass says in its forward what it does
        names = ", ".join(name for name, _ in module.named_children())
        raise ValueError(f"its modules ({names}) stand side by side and have no order of layers")
    elif children and (is_root or _is_sequence_of_layers(module, children)):
        if own := list(module.parameters(recurse=False)):
            yield own, False
        for child in children:
            yield from _blocks(child)
    elif parameters := list(module.parameters()):
        yield parameters, not (_is_norm(module) or isinstance(module, nn.ParameterDict))


def _children(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.children() if any(True for _ in child.parameters())]


def _is_norm(module: nn.Module) -> bool:
    """A normalisation layer, or a sequence with nothing else to learn."""
    return all(isinstance(m, NORMS) for m in module.modules() if any(True for _ in m.parameters(recurse=False)))


def _is_sequence_of_layers(module: nn.Module, children: list[nn.Module]) -> bool:
    """Several layers in a row, rather than one: a block, or a sequence such as convolution, norm, activation."""
    if any(isinstance(child, nn.RNNBase) for child in children):
        return True
    if isinstance(module, _SEQUENCES):
        composite = [child for child in children if _children(child)]
        weight_layers = [child for child in children if isinstance(child, _WEIGHT_LAYERS)]
        return bool(composite) or len(weight_layers) > 1
    # A module around a stack of blocks (ViT's Encoder, a stage of MaxViT), apart from which it has norms at most.
    stacks = [child for child in children if not _is_norm(child)]
    return len(stacks) == 1 and _is_stack(stacks[0])


def _is_stack(module: nn.Module) -> bool:
    """A sequence of blocks of one kind. What is inside a block (MobileNet's: three convolutions) differs in kind, or is
    itself a sequence."""
    blocks = _children(module)
    return (
        isinstance(module, _SEQUENCES)
        and len({type(block) for block in blocks}) == 1
        and not isinstance(blocks[0], _SEQUENCES)
        and bool(_children(blocks[0]))
    )
