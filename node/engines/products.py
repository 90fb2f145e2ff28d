"""A product with a matrix of weights, in few bits for one token and in bf16 for many.

Rule: one token is bound by reading the weights, so the fewer bits the better: a matrix whose values lie on a 4-bit grid
(as those that came from a 4-bit file do) is stored in 4 bits again, every other one in 8, with a scale for 32 weights
each. Many tokens are bound by arithmetic, and the processor's own bf16 products do that best.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

Product = Callable[[torch.Tensor], torch.Tensor]  # (tokens, in) -> (tokens, out)

GROUP = 32  # weights that share a scale and an offset on the 4-bit grid
TINY = 1e-8  # a scale for groups of zeros
GRID_ERROR = 0.1  # of a 4-bit step: what rounding to bf16 did to a value that was on the grid
TYPICAL_TOKENS = 16  # for which the order of the weights in memory is made


def in_half_precision(weight: torch.Tensor) -> Product:
    """The product with `weight` (out, in) in bf16, its weights in the order that this processor reads best."""
    half = weight.bfloat16()
    if half.device.type != "cpu":
        return as_it_is(half)
    try:
        ordered = torch.ops.mkldnn._reorder_linear_weight(half, TYPICAL_TOKENS)
    except (RuntimeError, AttributeError):  # a processor or a build without such products
        return lambda state: functional.linear(state, half)
    kernel = torch.ops.mkldnn._linear_pointwise.default
    return lambda state: kernel(state, ordered, None, "none", [], "")


def as_it_is(weight: torch.Tensor) -> Product:
    """The product with `weight` (out, in) itself, without a copy of it."""
    return lambda state: functional.linear(state, weight)


def in_full(weight: torch.Tensor) -> Product:
    """The product with `weight` (out, in) in fp32."""
    full = weight.float()
    return lambda state: functional.linear(state, full)


def packed_between_full(weight: torch.Tensor) -> Product:
    """`packed` from fp32 to fp32, for a processor without bf16's instructions: the packed kernel has its own way of
    multiplying, while everything else in bf16 takes ten times as long there."""
    product = packed(weight.bfloat16())
    return lambda state: product(state.bfloat16()).float()


def packed(weight: torch.Tensor) -> Product:
    """The product with `weight` (out, in), in as few bits as keep its values."""
    rows, columns = weight.shape
    if rows % 16 or columns % GROUP:  # what the kernel asks for
        return lambda state: functional.linear(state, weight)
    return in_four_bits(weight) or in_eight_bits(weight)


def in_four_bits(weight: torch.Tensor) -> Product | None:
    """weight = (level - 8) * scale + offset, levels 0 … 15, for each group of a row; None if that would change it."""
    groups = weight.float().view(len(weight), -1, GROUP)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = _kept_in_bf16((high - low) / 15)
    exact = 15 * (groups - low) / (high - low).clamp(min=TINY)
    levels = exact.round()
    if float((exact - levels).abs().mean()) > GRID_ERROR:  # values that lie anywhere are 0.25 away on average
        return None
    offset = (groups - (levels - 8) * scale).mean(-1, keepdim=True)  # makes up for the rounded scale
    return _product(levels, scale, offset)


def in_eight_bits(weight: torch.Tensor) -> Product:
    """weight = (level - 128) * scale, levels 0 … 255, as two products: of the levels' upper and lower four bits."""
    groups = weight.float().view(len(weight), -1, GROUP)
    scale = _kept_in_bf16(groups.abs().amax(-1, keepdim=True) / 127)
    levels = (groups / scale).round().clamp(-128, 127) + 128
    upper, lower = (levels / 16).floor(), levels % 16
    first = _product(upper, 16 * scale, torch.zeros_like(scale))
    second = _product(lower, scale, 8 * scale)
    return lambda state: first(state) + second(state)


def _kept_in_bf16(scale: torch.Tensor) -> torch.Tensor:
    """What the kernel will read: levels must be chosen for that, not for the exact value."""
    return scale.clamp(min=TINY).bfloat16().float()


def _product(levels: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor) -> Product:
    """torch's 4-bit kernel: (level - 8) * scale + offset."""
    stored = torch._convert_weight_to_int4pack_for_cpu(levels.to(torch.int32).flatten(1), 1)
    scales = torch.cat([scale, offset], dim=-1).bfloat16().transpose(0, 1).contiguous()  # (groups, rows, 2)
    kernel = torch.ops.aten._weight_int4pack_mm_for_cpu
    return lambda state: kernel(state, stored, GROUP, scales)
