"""Which part of a backbone is trained."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from cvgl_data.errors import RecipeError

_TOKENS = ("cls_token", "reg_token", "pos_embed")


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of a ViT, ConvNeXt, Swin, ResNet or the like, first to last; none for other networks."""
    stages = [child for name in ("blocks", "stages") for child in _children(model, name)]
    stages += [child for child in _children(model, "layers") if hasattr(child, "blocks")]
    stages += [child for number in range(1, 5) for child in _children(model, f"layer{number}")]
    blocks: list[nn.Module] = []
    for stage in stages:
        inner = list(_children(stage, "blocks"))
        if not inner and isinstance(stage, nn.Sequential):
            inner = list(stage.children())
        blocks += inner or [stage]
    return [block for block in blocks if any(True for _ in block.parameters())]


def freeze_before_last_blocks(model: nn.Module, train_blocks: int, train_tokens: bool, name: str) -> list[nn.Module]:
    """Freeze everything that comes before the last ``train_blocks`` blocks, and return the frozen modules.

    What follows the blocks (the final norm) is trained. As nothing upstream of the first trained block has a gradient,
    autograd keeps none of its activations, unless the tokens are trained.

    Args:
        model: A network whose parameters are registered in the order they are used in.
        train_blocks: Number of blocks; 0 leaves only what follows them.
        train_tokens: Train class token, registers and a learned positional embedding all the same.
        name: For messages.

    Raises:
        RecipeError: If the network has no blocks, or not so many.
    """
    blocks = blocks_of(model)
    if train_blocks > len(blocks) or not blocks:
        has = f"{len(blocks)} blocks" if blocks else "no list of blocks"
        raise RecipeError(f"recipe key 'encoder.train_blocks' is {train_blocks}, but backbone '{name}' has {has}")
    trained = _from_block(model, blocks, train_blocks)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(id(parameter) in trained or (train_tokens and key in _TOKENS))
    return [module for module in model.modules() if _is_frozen(module)]


def _from_block(model: nn.Module, blocks: list[nn.Module], train_blocks: int) -> set[int]:
    """Return the ids of the parameters of the last blocks and of what comes after them."""
    order = [id(parameter) for parameter in model.parameters()]
    starts = [order.index(id(next(block.parameters()))) for block in blocks]
    end = order.index(id(list(blocks[-1].parameters())[-1])) + 1
    return set(order[[*starts, end][len(blocks) - train_blocks] :])


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def _children(module: nn.Module, name: str) -> Iterator[nn.Module]:
    child = getattr(module, name, None)
    if isinstance(child, nn.Module):
        yield from child.children()
