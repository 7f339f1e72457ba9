"""The ConvNet's gradient, and the gradient of a derivative of its loss, derived by hand: for the CPU, exactly.

Autograd builds the second derivative of norm, ReLU and pooling from dozens of passes over whole feature maps, which the
memory serves slowly; here each block is a few, on pieces of the mini-batch that stay in the cache. `loss_gradient` is
∇_θ ℓ. `gradient_along` takes a direction λ and returns s = λᵀ∇_θ ℓ with ∂s/∂x and ∂s/∂θ: s is the derivative of ℓ in
the direction λ, so tangents (ȧ, ż, …) are carried forwards beside the values, and one pass goes back through both.

Of one feature map (one image, one channel, N pixels) with n = r (z - mean z), r = 1/sqrt(var z + ε), y = γ n + β and
P(v) = v - mean v - n mean(v n), the tangent is ṅ = r P(ż), ẏ = γ̇ n + γ ṅ + β̇. With h, k the cotangents of y, ẏ:
    cotangent of ż = r γ P(k)
    cotangent of z = r γ P(h) + r (γ̇ - γ r mean(ż n)) P(k) - r γ (mean(k n) ṅ + mean(k ṅ) n)
A convolution's bias does not reach n: its derivatives are zero.

The cotangents of the tangents are those that ∇_θ ℓ has of the values: `loss_gradient` can keep them, and n, for a
`gradient_along` at the same place, which then saves two of its eight passes of convolutions.

Shape suffixes: P flat network parameters, B mini-batch, D the mini-batch twice (values, then tangents), C H W channel
height width, K classes, F features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5  # of nn.GroupNorm
PIECE = (
    2**19
)  # numbers of a feature tensor worked on at once: four such tensors fit the cache of a core


class Room:
    """Memory that steps of the same shapes use one after the other: new pages cost more than the arithmetic in them."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return room of that shape under a name, with whatever was left there; without a name, new room."""
        if not name:
            return like.new_empty(shape)
        needed = math.prod(shape)
        kept = self._kept.get(name)
        if kept is None or kept.numel() < needed or kept.dtype != like.dtype:
            kept = self._kept[name] = like.new_empty(needed)
        return kept[:needed].view(*shape)


@dataclass(frozen=True, slots=True)
class _Layer:
    """Parameters of a block; γ and β as [1, C, 1, 1]."""

    weight: Tensor
    gamma: Tensor
    beta: Tensor


@dataclass(frozen=True, slots=True)
class _Layers:
    blocks: Sequence[_Layer]
    weight_KF: Tensor
    bias_K: Tensor

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor]) -> _Layers:
        """Return the parameters of a ConvNet by what they do; they come in the module's order."""
        parts = list(parameters.values())
        blocks = [
            _Layer(weight, gamma.view(1, -1, 1, 1), beta.view(1, -1, 1, 1))
            for weight, _bias, gamma, beta in zip(*(parts[i:-2:4] for i in range(4)), strict=True)
        ]
        return cls(blocks, parts[-2], parts[-1])


@dataclass(slots=True)
class Block:
    """What is known of a block: for the way back, and afterwards for a derivative along a direction."""

    input_BCHW: Tensor
    n_BCHW: Tensor
    r: Tensor  # [B, C, 1, 1]
    out_BCHW: Tensor
    back_BCHW: Tensor | None = None  # the cotangent of `out_BCHW`


Kept = list[Block]


def kept_bytes(width: int, depth: int, x_BCHW: Tensor) -> int:
    """Return the memory of what `loss_gradient` keeps: n of every block, half as much of outputs and cotangents."""
    batch, _, height, width_px = x_BCHW.shape
    pixels = sum((height >> block) * (width_px >> block) for block in range(depth))
    return batch * width * pixels * x_BCHW.element_size() * 3 // 2


def loss_gradient(
    parameters: Mapping[str, Tensor],
    x_BCHW: Tensor,
    targets_BK: Tensor,
    room: Room,
    *,
    keep: bool = False,
) -> tuple[Tensor, Tensor, Kept]:
    """Return ℓ, ∇_θ ℓ [P] and, where `keep` is set, what `gradient_along` can use."""
    net = _Layers.of(parameters)
    kept: Kept = []
    a_BCHW = x_BCHW
    for number, block in enumerate(net.blocks):
        z_BCHW = _first(a_BCHW, block.weight) if number == 0 else _convolved(a_BCHW, block.weight)
        n_BCHW, r = _normed(z_BCHW)
        out_BCHW = room.take("" if keep else f"out {number}", _halved(z_BCHW), z_BCHW)
        for rows in _pieces(z_BCHW):
            _pool(_activated(block, n_BCHW[rows]), out_BCHW[rows])
        kept.append(Block(a_BCHW, n_BCHW, r, out_BCHW))
        a_BCHW = out_BCHW
    f_BF = a_BCHW.flatten(1)
    log_p_BK = torch.addmm(net.bias_K, f_BF, net.weight_KF.T).log_softmax(1)
    left_BK = targets_BK.sum(1, keepdim=True) * log_p_BK.exp() - targets_BK
    gradient = [left_BK.sum(0), left_BK.T @ f_BF]  # backwards, turned at the end
    back_BCHW = (left_BK @ net.weight_KF).view_as(a_BCHW)
    for number in reversed(range(len(kept))):
        block, one = net.blocks[number], kept[number] if keep else kept.pop()
        one.back_BCHW = back_BCHW
        zbar_BCHW = room.take("bars", one.n_BCHW.shape, one.n_BCHW)
        sums = _Sums(one)
        for rows in _pieces(zbar_BCHW):
            n, r = one.n_BCHW[rows], one.r[rows]
            h = _spread(back_BCHW[rows], _activated(block, n))
            h_mean, h_n = _mean(h), _mean(h, n)
            sums.add(h_n, h_mean)
            scale = r * block.gamma
            z_piece = torch.addcmul(-scale * h_mean, h, scale, out=zbar_BCHW[rows])
            z_piece.addcmul_(n, -scale * h_n)
        gradient += [sums.beta, sums.gamma, torch.zeros_like(sums.beta)]
        if number == 0:
            gradient.append(_first_weight(one.input_BCHW, zbar_BCHW, block.weight))
        else:
            back_BCHW, weight = _back(zbar_BCHW, one.input_BCHW, block.weight)
            gradient.append(weight)
    loss = -(targets_BK * log_p_BK).sum()
    return loss, torch.cat([part.reshape(-1) for part in reversed(gradient)]), kept


def gradient_along(
    parameters: Mapping[str, Tensor],
    direction: Mapping[str, Tensor],
    x_BCHW: Tensor,
    targets_BK: Tensor,
    room: Room,
    kept: Kept,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return s = λᵀ∇_θ ℓ, a scalar, ∂s/∂x [B, C, H, W], ∂s/∂θ [P] and ∂s/∂t [B, K]; `direction` is λ by name.

    `kept` is what `loss_gradient` kept at the same θ, x and t; empty: everything is computed.
    """
    net, dot = _Layers.of(parameters), _Layers.of(direction)
    batch, held = len(x_BCHW), list(kept)
    ways: list[_Way] = []
    a_DCHW = x_BCHW  # the image does not move: no tangent behind it
    for number, (block, along) in enumerate(zip(net.blocks, dot.blocks, strict=True)):
        if kept:
            known = held[number]
            zdot_BCHW = _tangent(number, a_DCHW, block.weight, along.weight, batch)
        else:
            z_BCHW, zdot_BCHW = _both(number, a_DCHW, block.weight, along.weight, batch)
            known = Block(a_DCHW[:batch], *_normed(z_BCHW), a_DCHW)
            del z_BCHW
        channels, height, width = _halved(known.n_BCHW)[1:]
        out_DCHW = room.take(f"out {number}", (2 * batch, channels, height, width), known.n_BCHW)
        if kept:
            out_DCHW[:batch] = known.out_BCHW
        way = _Way(known, a_DCHW, zdot_BCHW, torch.empty_like(known.r), torch.empty_like(known.r))
        for rows in _pieces(known.n_BCHW):
            n, zdot, r = known.n_BCHW[rows], zdot_BCHW[rows], known.r[rows]
            mean, with_n = _mean(zdot), _mean(zdot, n)
            way.zdot_mean[rows], way.zdot_n[rows] = mean, with_n
            y = _activated(block, n)
            if not kept:
                _pool(y, out_DCHW[:batch][rows])
            scale = r * block.gamma
            ydot = torch.addcmul(along.beta - scale * mean, zdot, scale)
            ydot.addcmul_(n, along.gamma - scale * with_n)
            _pool(_through(ydot, y), out_DCHW[batch:][rows])
        ways.append(way)
        a_DCHW = out_DCHW
    f_BF, fdot_BF = a_DCHW[:batch].flatten(1), a_DCHW[batch:].flatten(1)
    odot_BK = fdot_BF @ net.weight_KF.T + torch.addmm(dot.bias_K, f_BF, dot.weight_KF.T)
    p_BK = torch.addmm(net.bias_K, f_BF, net.weight_KF.T).softmax(1)
    total_B1 = targets_BK.sum(1, keepdim=True)
    left_BK = total_B1 * p_BK - targets_BK  # cotangent of ȯ
    s = (left_BK * odot_BK).sum()
    away_BK = odot_BK - (p_BK * odot_BK).sum(1, keepdim=True)
    obar_BK = total_B1 * p_BK * away_BK
    gradient = [obar_BK.sum(0), obar_BK.T @ f_BF + left_BK.T @ fdot_BF]
    back_BCHW = (obar_BK @ net.weight_KF + left_BK @ dot.weight_KF).view_as(a_DCHW[:batch])
    dotback_BCHW = (left_BK @ net.weight_KF).view_as(back_BCHW)
    for number in reversed(range(len(ways))):
        block, along, way = net.blocks[number], dot.blocks[number], ways.pop()
        bars_DCHW, sums = _norm_back(way, block, along, back_BCHW, dotback_BCHW, room)
        gradient += [sums.beta, sums.gamma, torch.zeros_like(sums.beta)]
        zbar_BCHW, zdotbar_BCHW = bars_DCHW[:batch], bars_DCHW[batch:]
        if number == 0:
            gradient.append(_first_weight(way.input_DCHW, zbar_BCHW, block.weight))
            xbar_BCHW = _first_input(zbar_BCHW, block.weight)
            xbar_BCHW += _first_input(zdotbar_BCHW, along.weight)
        elif kept:
            gradient.append(_back_weight(bars_DCHW, way.input_DCHW, block.weight))
            back_BCHW = _back_input(zbar_BCHW, way.known.input_BCHW, block.weight)
            back_BCHW += _back_input(zdotbar_BCHW, way.known.input_BCHW, along.weight)
            dotback_BCHW = _known_back(held[number - 1])
        else:
            back_DCHW, weight = _back(bars_DCHW, way.input_DCHW, block.weight)
            gradient.append(weight)
            back_BCHW, dotback_BCHW = back_DCHW[:batch], back_DCHW[batch:]
            back_BCHW += _back_input(zdotbar_BCHW, way.known.input_BCHW, along.weight)
    grad_P = torch.cat([part.reshape(-1) for part in reversed(gradient)])
    return s, xbar_BCHW, grad_P, -away_BK


@dataclass(slots=True)
class _Way:
    """What a block keeps for the way back of both, values and tangents."""

    known: Block
    input_DCHW: Tensor  # values, and tangents behind them where there are any
    zdot_BCHW: Tensor
    zdot_mean: Tensor  # [B, C, 1, 1]
    zdot_n: Tensor  # mean(ż n), [B, C, 1, 1]


def _known_back(known: Block) -> Tensor:
    assert known.back_BCHW is not None
    return known.back_BCHW


# ------------------------------------------------------------------------------------ norm, ReLU, pooling


class _Sums:
    """The gradients of γ and β, [C], summed over pieces of the mini-batch."""

    def __init__(self, one: Block) -> None:
        self.pixels = one.n_BCHW[0, 0].numel()
        self.gamma = one.r.new_zeros(one.r.shape[1])
        self.beta = torch.zeros_like(self.gamma)

    def add(self, gamma: Tensor, beta: Tensor) -> None:
        self.gamma += gamma.sum(0).view(-1) * self.pixels
        self.beta += beta.sum(0).view(-1) * self.pixels


def _norm_back(
    way: _Way, block: _Layer, along: _Layer, back_BCHW: Tensor, dotback_BCHW: Tensor, room: Room
) -> tuple[Tensor, _Sums]:
    """Return the cotangents of z and, behind them, of ż, and those of γ and β."""
    one = way.known
    batch = len(one.n_BCHW)
    bars_DCHW = room.take("bars", (2 * batch, *one.n_BCHW.shape[1:]), one.n_BCHW)
    sums = _Sums(one)
    for rows in _pieces(one.n_BCHW):
        n, r, zdot = one.n_BCHW[rows], one.r[rows], way.zdot_BCHW[rows]
        mean, with_n = way.zdot_mean[rows], way.zdot_n[rows]
        y = _activated(block, n)
        h = _spread(back_BCHW[rows], y)
        k = _spread(dotback_BCHW[rows], y)
        h_mean, k_mean = _mean(h), _mean(k)
        h_n, k_n = _mean(h, n), _mean(k, n)
        k_ndot = r * (_mean(k, zdot) - mean * k_mean - with_n * k_n)
        sums.add(h_n + k_ndot, h_mean)
        scale = r * block.gamma
        slope = r * (along.gamma - scale * with_n)
        zdotbar = torch.addcmul(-scale * k_mean, k, scale, out=bars_DCHW[batch:][rows])
        zdotbar.addcmul_(n, -scale * k_n)
        turn = scale * r * k_n  # of ż, within mean(k n) ṅ
        constant = turn * mean - scale * h_mean - slope * k_mean
        zbar = torch.addcmul(constant, h, scale, out=bars_DCHW[:batch][rows])
        zbar.addcmul_(k, slope).addcmul_(zdot, -turn)
        zbar.addcmul_(n, turn * with_n - scale * (h_n + k_ndot) - slope * k_n)
    return bars_DCHW, sums


def _normed(z_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return n and r, the latter [B, C, 1, 1]."""
    batch, channels, height, width = z_BCHW.shape
    n_BCHW, _, r_BC = torch.native_group_norm(
        z_BCHW, None, None, batch, channels, height * width, channels, EPS
    )
    return n_BCHW, r_BC.view(batch, channels, 1, 1)


def _activated(block: _Layer, n_BCHW: Tensor) -> Tensor:
    """Return y after the ReLU; made again rather than kept, of a piece that is in the cache."""
    return torch.addcmul(block.beta, n_BCHW, block.gamma).clamp_min_(0)


def _halved(z_BCHW: Tensor) -> tuple[int, int, int, int]:
    batch, channels, height, width = z_BCHW.shape
    return batch, channels, height // 2, width // 2


def _pieces(feature_BCHW: Tensor) -> Iterator[slice]:
    """Yield slices of the mini-batch that fit the cache together with what is made of them."""
    batch = len(feature_BCHW)
    size = max(1, PIECE // feature_BCHW[0].numel())
    return (slice(start, start + size) for start in range(0, batch, size))


def _mean(v_BCHW: Tensor, w_BCHW: Tensor | None = None) -> Tensor:
    """Return the mean of v, or of v w, over the pixels, [B, C, 1, 1]."""
    v = v_BCHW.flatten(2)
    total = v.sum(-1) if w_BCHW is None else torch.linalg.vecdot(v, w_BCHW.flatten(2))
    return (total / v.shape[-1])[..., None, None]


def _pool(y_BCHW: Tensor, out_BCHW: Tensor) -> None:
    """Write the 2x2 averages; an odd last row or column is left out."""
    height, width = out_BCHW.shape[2] * 2, out_BCHW.shape[3] * 2
    rows = y_BCHW[:, :, 0:height:2] + y_BCHW[:, :, 1:height:2]
    torch.add(rows[..., 0:width:2], rows[..., 1:width:2], out=out_BCHW).mul_(0.25)


def _spread(back_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """Return the way back through pooling and ReLU."""
    height, width = back_BCHW.shape[2:]
    quarter = (back_BCHW * 0.25)[:, :, :, None, :, None]
    spread = quarter.expand(-1, -1, -1, 2, -1, 2).reshape(
        *back_BCHW.shape[:2], 2 * height, 2 * width
    )
    left_out = (y_BCHW.shape[3] - 2 * width, y_BCHW.shape[2] - 2 * height)
    if any(left_out):
        spread = F.pad(spread, (0, left_out[0], 0, left_out[1]))
    return _through(spread, y_BCHW)


def _through(v_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """Return v where the ReLU lets it through."""
    found: Tensor = torch.ops.aten.threshold_backward(v_BCHW, y_BCHW, 0)
    return found


# ------------------------------------------------------------------------------------------- convolutions


def _both(
    number: int, a_DCHW: Tensor, weight: Tensor, along: Tensor, batch: int
) -> tuple[Tensor, Tensor]:
    """Return z and ż of a block."""
    if number == 0:  # nothing moves the image
        return _first(a_DCHW, weight), _first(a_DCHW, along)
    z_DCHW = _convolved(a_DCHW, weight)
    zdot_BCHW = z_DCHW[batch:]
    zdot_BCHW += _convolved(a_DCHW[:batch], along)
    return z_DCHW[:batch], zdot_BCHW


def _tangent(number: int, a_DCHW: Tensor, weight: Tensor, along: Tensor, batch: int) -> Tensor:
    """Return ż of a block whose z is known."""
    if number == 0:
        return _first(a_DCHW, along)
    zdot_BCHW = _convolved(a_DCHW[batch:], weight)
    zdot_BCHW += _convolved(a_DCHW[:batch], along)
    return zdot_BCHW


def _convolved(x_BCHW: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x_BCHW, weight, padding=1)


def _back(bars_BCHW: Tensor, x_BCHW: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cotangents of a convolution's input and weight."""
    back_BCHW, weight_bar, _ = _convolution_back(bars_BCHW, x_BCHW, weight, (True, True, False))
    return back_BCHW, weight_bar


def _back_input(bars_BCHW: Tensor, x_BCHW: Tensor, weight: Tensor) -> Tensor:
    return _convolution_back(bars_BCHW, x_BCHW, weight, (True, False, False))[0]


def _back_weight(bars_BCHW: Tensor, x_BCHW: Tensor, weight: Tensor) -> Tensor:
    return _convolution_back(bars_BCHW, x_BCHW, weight, (False, True, False))[1]


def _convolution_back(
    bars_BCHW: Tensor, x_BCHW: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        bars_BCHW, x_BCHW, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, list(wanted)
    )
    return found


def _first(x_BCHW: Tensor, weight: Tensor) -> Tensor:
    """Return the first convolution. With one channel it is a product of small matrices, which libraries do badly."""
    if x_BCHW.shape[1] > 1:
        return _convolved(x_BCHW, weight)
    out = torch.matmul(weight.flatten(1), F.unfold(x_BCHW, 3, padding=1))
    return out.view(len(x_BCHW), len(weight), *x_BCHW.shape[2:])


def _first_weight(x_BCHW: Tensor, bars_BCHW: Tensor, weight: Tensor) -> Tensor:
    if x_BCHW.shape[1] > 1:
        return _back_weight(bars_BCHW, x_BCHW, weight)
    columns = F.unfold(x_BCHW, 3, padding=1)
    found: Tensor = torch.matmul(bars_BCHW.flatten(2), columns.transpose(1, 2)).sum(0)
    return found.view_as(weight)


def _first_input(bars_BCHW: Tensor, weight: Tensor) -> Tensor:
    size = bars_BCHW.shape[2:]
    if weight.shape[1] > 1:
        x_BCHW = bars_BCHW.new_empty(len(bars_BCHW), weight.shape[1], *size)
        return _back_input(bars_BCHW, x_BCHW, weight)
    columns = torch.matmul(weight.flatten(1).T, bars_BCHW.flatten(2))
    return F.fold(columns, size, 3, padding=1)
