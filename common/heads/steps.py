"""A head's fit on a CPU core by compiled steps, an epoch per call, for any recipe.

With batches of 8, a step of torch reads and writes a layer's weights, gradients and moments one after the other, and waits
for memory; with a small head, most of its time is overhead of calls. Here the gradient of a few rows of weights is used
as soon as it is computed, while the weights and moments are in the L1 cache. With larger batches matrix products dominate,
and BLAS computes them. The formulas are those of torch's AdamW, with sums in another order. `common.heads.plain` is the
readable reference, which tests compare with this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from common.arrays import Array
from common.compiled import call, compiled, inlined
from common.heads.jobs import Batches, padded
from common.heads.recipes import Recipe

BETAS = (0.9, 0.999)
EPS = 1e-8
ROWS = 4  # rows of weights, and of a batch, that are computed together
# Measured with three-layer heads: up to this batch size, the fused loops are faster than BLAS.
LARGEST_FUSED = 16


class Layer(NamedTuple):
    """A linear layer."""

    # weights, means, squares: (P, O) float32 weights and their moments in Adam, changed in place; P is padded
    weights: Array
    means: Array
    squares: Array
    n_inputs: int  # used rows of weights, the last of which is the bias


class Regularisation(NamedTuple):
    """AdamW's weight decay; label smoothing; dropout of the embeddings, and after every ReLU."""

    weight_decay: float
    smoothing: np.float32
    input_dropout: np.float32
    dropout: np.float32


class Buffers(NamedTuple):
    """Buffers of a layer for a batch, B being a multiple of ROWS."""

    inputs: Array  # (B, P), every row followed by a 1, for the bias, and zeros
    outputs: Array  # (B, O), then their errors
    gradients: Array  # (P, O) of weights; fused steps use the first row
    products: Array  # (B, P) of inputs; fused steps do not use them


class _Adam(NamedTuple):
    """A step of AdamW: learning rate over the first bias correction, root of the second one, factor of weights (decay)."""

    rate: np.float32
    root: np.float32
    keep: np.float32


@compiled
def _forward(x, weights, n_inputs, out):  # type: ignore[no-untyped-def]
    """out (B, O) = x (B, I) @ weights (I, O), for the first `n_inputs` of I; B is even."""
    n_batch, n_outputs = out.shape
    out[:] = np.float32(0)
    whole = n_inputs // 4 * 4
    for i in range(0, whole, 4):
        w0, w1, w2, w3 = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
        for b in range(0, n_batch, 2):
            xa, xb, ya, yb = x[b], x[b + 1], out[b], out[b + 1]
            a0, a1, a2, a3 = xa[i], xa[i + 1], xa[i + 2], xa[i + 3]
            b0, b1, b2, b3 = xb[i], xb[i + 1], xb[i + 2], xb[i + 3]
            for o in range(n_outputs):
                ya[o] += a0 * w0[o] + a1 * w1[o] + a2 * w2[o] + a3 * w3[o]
                yb[o] += b0 * w0[o] + b1 * w1[o] + b2 * w2[o] + b3 * w3[o]
    for i in range(whole, n_inputs):
        w0 = weights[i]
        for b in range(n_batch):
            ya, a0 = out[b], x[b, i]
            for o in range(n_outputs):
                ya[o] += a0 * w0[o]


@inlined
def _adam(gradient, layer, i, adam):  # type: ignore[no-untyped-def]
    """A step of AdamW on row i of a layer's weights and moments, in place."""
    w, m, s = layer.weights[i], layer.means[i], layer.squares[i]
    rate, root, keep = adam.rate, adam.root, adam.keep if i < layer.n_inputs - 1 else np.float32(1)
    beta, gamma = np.float32(BETAS[0]), np.float32(BETAS[1])
    not_beta, not_gamma = np.float32(1) - beta, np.float32(1 - BETAS[1])
    eps = np.float32(EPS)
    for o in range(len(w)):
        g = gradient[o]
        mean = m[o] + not_beta * (g - m[o])
        square = gamma * s[o] + not_gamma * g * g
        m[o] = mean
        s[o] = square
        w[o] = w[o] * keep - rate * mean / (np.sqrt(square) / root + eps)


@compiled
def _backward(layer, buffer, below, adam, scale):  # type: ignore[no-untyped-def]
    """The error below a layer, and a step of AdamW on its weights, fused; for small batches. `below` (B, I - 1), unless it is
    empty, is filled with the error of the inputs that are not 0 (ReLU), which dropout has multiplied by `scale`."""
    x, error, gradient = buffer.inputs, buffer.outputs, buffer.gradients[0]
    n_batch, n_outputs = error.shape
    for i in range(layer.n_inputs):
        w = layer.weights[i]
        if below.shape[0] and i < layer.n_inputs - 1:
            for b in range(n_batch):
                total, e = np.float32(0), error[b]
                if x[b, i] > 0:
                    for o in range(n_outputs):
                        total += e[o] * w[o]
                below[b, i] = total * scale
        for b in range(0, n_batch, 4):
            x0, x1, x2, x3 = x[b, i], x[b + 1, i], x[b + 2, i], x[b + 3, i]
            e0, e1, e2, e3 = error[b], error[b + 1], error[b + 2], error[b + 3]
            if b == 0:
                for o in range(n_outputs):
                    gradient[o] = x0 * e0[o] + x1 * e1[o] + x2 * e2[o] + x3 * e3[o]
            else:
                for o in range(n_outputs):
                    gradient[o] += x0 * e0[o] + x1 * e1[o] + x2 * e2[o] + x3 * e3[o]
        _adam(gradient, layer, i, adam)


@compiled
def _backward_by_blas(layer, buffer, below, adam, scale):  # type: ignore[no-untyped-def]
    """As `_backward`, for large batches."""
    x = buffer.inputs
    if below.shape[0]:
        np.dot(buffer.outputs, layer.weights.T, buffer.products)
        for b in range(below.shape[0]):
            for i in range(below.shape[1]):
                below[b, i] = buffer.products[b, i] * scale if x[b, i] > 0 else np.float32(0)
    np.dot(x.T, buffer.outputs, buffer.gradients)
    for i in range(layer.n_inputs):
        _adam(buffer.gradients[i], layer, i, adam)


@compiled
def _cross_entropy(logits, labels, shares, smoothing):  # type: ignore[no-untyped-def]
    """Turn (B, C) logits into errors of weighted cross-entropies, in place; returns the sum of the cross-entropies of rows
    whose share is not 0. Rows beyond the labels are padding."""
    logits[len(labels) :] = np.float32(0)
    n_classes = logits.shape[1]
    even, summed = smoothing / np.float32(n_classes), 0.0
    for b in range(len(labels)):
        row = logits[b]
        if shares[b] == 0:
            row[:] = np.float32(0)
            continue
        highest = row[0]
        for c in range(1, n_classes):
            highest = max(highest, row[c])
        total, mean = np.float32(0), np.float32(0)
        chosen = row[labels[b]] - highest
        for c in range(n_classes):
            mean += row[c] - highest
            row[c] = math.exp(row[c] - highest)
            total += row[c]
        log_total = math.log(total)
        summed -= (1 - smoothing) * (chosen - log_total) + smoothing * (mean / n_classes - log_total)
        for c in range(n_classes):
            row[c] = (row[c] / total - even) * shares[b]
        row[labels[b]] -= (np.float32(1) - smoothing) * shares[b]
    return summed


@compiled
def _binary_cross_entropy(logits, labels, shares, smoothing):  # type: ignore[no-untyped-def]
    """As `_cross_entropy`, for (B, C) labels of 0 and 1: means over the classes of binary cross-entropies."""
    logits[len(labels) :] = np.float32(0)
    n_classes = logits.shape[1]
    even, summed = np.float32(0.5) * smoothing, 0.0
    for b in range(len(labels)):
        row, wanted = logits[b], labels[b]
        if shares[b] == 0:
            row[:] = np.float32(0)
            continue
        share, total = shares[b] / np.float32(n_classes), np.float32(0)
        for c in range(n_classes):
            logit, target = row[c], (np.float32(1) - smoothing) * np.float32(wanted[c]) + even
            small = math.exp(-abs(logit))  # never overflows
            total += max(logit, np.float32(0)) - logit * target + math.log1p(small)
            probability = (np.float32(1) if logit > 0 else small) / (np.float32(1) + small)
            row[c] = (probability - target) * share
        summed += total / n_classes
    return summed


@compiled
def _errors(logits, labels, shares, smoothing):  # type: ignore[no-untyped-def]
    """`_cross_entropy` of (B,) labels, `_binary_cross_entropy` of (B, C)."""
    if labels.ndim == 1:
        return _cross_entropy(logits, labels, shares, smoothing)
    return _binary_cross_entropy(logits, labels, shares, smoothing)


@compiled
def _relu(values, hidden):  # type: ignore[no-untyped-def]
    """(B, H) values -> the first H columns of `hidden`, whose next column stays 1."""
    for b in range(values.shape[0]):
        row, into = values[b], hidden[b]
        for h in range(values.shape[1]):
            into[h] = row[h] if not row[h] <= 0 else np.float32(0)


@compiled
def _drop(values, width, noise, start, n_rows, dropout):  # type: ignore[no-untyped-def]
    """Dropout of `width` columns of `n_rows` rows, in place, by the numbers from `noise[start]` on; returns where they end."""
    scale = np.float32(1 / (1 - dropout))
    for b in range(n_rows):
        row, numbers = values[b], noise[start + b * width : start + (b + 1) * width]
        for i in range(width):
            row[i] = row[i] * scale if numbers[i] >= dropout else np.float32(0)
    return start + n_rows * width


@compiled
def _forward_pass(layers, buffers, noise, n_rows, regularisation):  # type: ignore[no-untyped-def]
    """From the embeddings in the first buffer to the logits in the last, with dropout by the numbers `noise`."""
    place, dropout = 0, regularisation.dropout
    if regularisation.input_dropout > 0:
        place = _drop(buffers[0].inputs, layers[0].n_inputs - 1, noise, place, n_rows, regularisation.input_dropout)
    for number in range(len(layers)):
        layer, buffer = layers[number], buffers[number]
        if n_rows <= LARGEST_FUSED:
            _forward(buffer.inputs, layer.weights, layer.n_inputs, buffer.outputs)
        else:
            np.dot(buffer.inputs, layer.weights, buffer.outputs)
        if number < len(layers) - 1:
            hidden = buffers[number + 1].inputs
            _relu(buffer.outputs, hidden)
            if dropout > 0:
                place = _drop(hidden, layers[number + 1].n_inputs - 1, noise, place, n_rows, dropout)


@compiled
def _backward_pass(layers, buffers, n_rows, adam, scale):  # type: ignore[no-untyped-def]
    """Backpropagate the errors of the logits, and take a step of all layers."""
    nothing = np.zeros((0, 0), np.float32)
    for number in range(len(layers) - 1, -1, -1):
        below = buffers[number - 1].outputs if number else nothing
        if n_rows <= LARGEST_FUSED:
            _backward(layers[number], buffers[number], below, adam, scale)
        else:
            _backward_by_blas(layers[number], buffers[number], below, adam, scale)


def make_buffers(layers: Sequence[Layer], n_rows: int) -> tuple[Buffers, ...]:
    """Buffers for batches of `n_rows`."""
    n_batch, buffers = -(-n_rows // ROWS) * ROWS, []
    for layer in layers:
        n_inputs, n_outputs = layer.weights.shape
        shapes = (n_batch, n_inputs), (n_batch, n_outputs), (n_inputs, n_outputs), (n_batch, n_inputs)
        buffers.append(Buffers(*(np.zeros(shape, np.float32) for shape in shapes)))
        buffers[-1].inputs[:, layer.n_inputs - 1] = 1
    return tuple(buffers)


@compiled
def take_steps(rows, batches, layers, buffers, regularisation, done, rates):  # type: ignore[no-untyped-def]
    """Take a step of a head per batch of the (N, P) `rows`; returns the sum of the cross-entropies. Tuples of `Layer` and of
    `Buffers` begin at the embeddings; `done` steps came before; `rates` has a learning rate per batch."""
    order, labels, shares, noise = batches
    n_rows = order.shape[1]
    scale, total = np.float32(1 / (1 - regularisation.dropout)), 0.0
    for step in range(len(rates)):
        for b in range(n_rows):
            buffers[0].inputs[b] = rows[order[step, b]]
        _forward_pass(layers, buffers, noise[step], n_rows, regularisation)
        logits = buffers[len(layers) - 1].outputs
        total += _errors(logits, labels[step], shares[step], regularisation.smoothing)
        number = done + step + 1
        rate = np.float32(rates[step] / (1 - BETAS[0] ** number))
        root = np.float32(math.sqrt(1 - BETAS[1] ** number))
        adam = _Adam(rate, root, np.float32(1 - rates[step] * regularisation.weight_decay))
        _backward_pass(layers, buffers, n_rows, adam, scale)
    return total


class CompiledHead:
    """A head that is fitted on a CPU core."""

    def __init__(self, module: nn.Sequential, recipe: Recipe, n_steps: int) -> None:
        """Start from the weights of `module`; the whole fit takes `n_steps`."""
        self.recipe, self.n_steps, self.done = recipe, n_steps, 0
        linear = {name: layer for name, layer in module.named_children() if isinstance(layer, nn.Linear)}
        self.names, self.layers = list(linear), tuple(map(_layer_of, linear.values()))
        dropouts = np.array([recipe.label_smoothing, recipe.input_dropout, recipe.dropout], np.float32)
        self.regularisation = Regularisation(recipe.weight_decay, *dropouts)

    def epoch(self, rows: torch.Tensor, batches: Batches) -> float:
        """Take a step per batch of the (N, P) `rows`; returns the sum of the cross-entropies."""
        rates = np.array([self.recipe.rate(self.done + step, self.n_steps) for step in range(len(batches.order))])
        arrays = tuple(part.numpy() for part in batches)
        buffers = make_buffers(self.layers, batches.order.shape[1])
        total = call(take_steps, rows.numpy(), arrays, self.layers, buffers, self.regularisation, self.done, rates)
        self.done += len(rates)
        return float(total)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """(M, D) scaled embeddings -> (M, C), without dropout."""
        for number, layer in enumerate(self.layers):
            weights, width = torch.from_numpy(layer.weights), layer.n_inputs - 1
            x = torch.addmm(weights[width], x.relu_() if number else x, weights[:width])
        return x

    def state(self) -> dict[str, torch.Tensor]:
        """A copy of the layers as a module's state."""
        state: dict[str, torch.Tensor] = {}
        for name, layer in zip(self.names, self.layers, strict=True):
            weights, width = torch.from_numpy(layer.weights), layer.n_inputs - 1
            state |= {f"{name}.weight": weights[:width].t().contiguous(), f"{name}.bias": weights[width].clone()}
        return state


def _layer_of(linear: nn.Linear) -> Layer:
    """A linear layer before the first step: rows of weights, the bias, zeros up to `padded`."""
    shape = padded(linear.in_features), linear.out_features
    # torch's arrays begin at a cache line, NumPy's do not.
    rows, means, squares = (torch.zeros(shape).numpy() for _ in range(3))
    rows[: linear.in_features] = linear.weight.detach().t().numpy()
    rows[linear.in_features] = linear.bias.detach().numpy()
    return Layer(rows, means, squares, linear.in_features + 1)
