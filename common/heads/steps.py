"""The steps of one head's fit on a CPU core, compiled: any recipe, an epoch in one call.

At batches of 8, a step by torch reads and writes a layer's weights, gradients and moments one after the other, and
waits for memory; with a small head, most of its time goes into calling torch. Here the gradient of a few rows of
weights is used as soon as it is computed, while the weights and moments are in the L1 cache. At larger batches matrix
products dominate, and BLAS computes them. The formulas are those of torch's AdamW; sums are in another order.
`common.heads.plain` is the same without haste, and tests compare the two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from common.arrays import Array
from common.compiled import compiled, inlined

BETAS = (0.9, 0.999)
EPS = 1e-8
ROWS = 4  # rows of weights, and of a batch, that are computed together
# Measured with three-layer heads: up to this batch size, the fused loops are faster than BLAS.
LARGEST_FUSED = 16


class Layer(NamedTuple):
    """A linear layer that is being fitted.

    Attributes:
        weights, means, squares: (P, O) float32 weights and Adam's moments of them, changed in place; P is padded.
        n_inputs: rows of weights that are used, the last of which is the bias.
    """

    weights: Array
    means: Array
    squares: Array
    n_inputs: int


class Regularisation(NamedTuple):
    """AdamW's weight decay; label smoothing; dropout of the embeddings, and after each ReLU."""

    weight_decay: float
    smoothing: np.float32
    input_dropout: np.float32
    dropout: np.float32


class Room(NamedTuple):
    """Memory that a batch needs at a layer, B being a multiple of ROWS.

    Attributes:
        inputs: (B, P), each row followed by a 1, for the bias, and zeros.
        outputs: (B, O), then their errors.
        gradients, products: of weights (P, O), of which fused steps use one row; of inputs (B, P), if not fused.
    """

    inputs: Array
    outputs: Array
    gradients: Array
    products: Array


class _Adam(NamedTuple):
    """A step of AdamW: its size over the first bias correction, the root of the second one, and what weights, not
    biases, are multiplied by (weight decay)."""

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
    """One step of AdamW on row i of a layer's weights, and on its moments, in place."""
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
def _backward(layer, room, below, adam, scale):  # type: ignore[no-untyped-def]
    """The error below a layer and one step of AdamW on its weights, fused; for small batches.

    Args:
        below: (B, I - 1), to be filled with the error of the inputs that are not 0 (ReLU); empty: not wanted.
        scale: what dropout has multiplied the inputs by.
    """
    x, error, gradient = room.inputs, room.outputs, room.gradients[0]
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
def _backward_by_blas(layer, room, below, adam, scale):  # type: ignore[no-untyped-def]
    """As `_backward`, for large batches."""
    x = room.inputs
    if below.shape[0]:
        np.dot(room.outputs, layer.weights.T, room.products)
        for b in range(below.shape[0]):
            for i in range(below.shape[1]):
                below[b, i] = room.products[b, i] * scale if x[b, i] > 0 else np.float32(0)
    np.dot(x.T, room.outputs, room.gradients)
    for i in range(layer.n_inputs):
        _adam(room.gradients[i], layer, i, adam)


@compiled
def _cross_entropy(logits, labels, shares, smoothing):  # type: ignore[no-untyped-def]
    """Turn (B, C) logits into the errors of their weighted cross-entropies, in place; returns the sum of those of the
    rows whose share is not 0. Rows beyond the labels are padding."""
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
def _relu(values, hidden):  # type: ignore[no-untyped-def]
    """(B, H) values -> the first H columns of `hidden`, whose next one stays 1."""
    for b in range(values.shape[0]):
        row, into = values[b], hidden[b]
        for h in range(values.shape[1]):
            into[h] = row[h] if not row[h] <= 0 else np.float32(0)


@compiled
def _drop(values, width, drawn, start, n_rows, dropout):  # type: ignore[no-untyped-def]
    """Dropout of the first `width` columns of `n_rows` rows, in place, by random numbers from `drawn[start]` on;
    returns where the next ones begin."""
    scale = np.float32(1 / (1 - dropout))
    for b in range(n_rows):
        row, numbers = values[b], drawn[start + b * width : start + (b + 1) * width]
        for i in range(width):
            row[i] = row[i] * scale if numbers[i] >= dropout else np.float32(0)
    return start + n_rows * width


@compiled
def _forward_pass(layers, rooms, drawn, n_rows, regularisation):  # type: ignore[no-untyped-def]
    """From the embeddings in the first room to the logits in the last one, with dropout by the `drawn` numbers."""
    place, dropout = 0, regularisation.dropout
    if regularisation.input_dropout > 0:
        place = _drop(rooms[0].inputs, layers[0].n_inputs - 1, drawn, place, n_rows, regularisation.input_dropout)
    for number in range(len(layers)):
        layer, room = layers[number], rooms[number]
        if n_rows <= LARGEST_FUSED:
            _forward(room.inputs, layer.weights, layer.n_inputs, room.outputs)
        else:
            np.dot(room.inputs, layer.weights, room.outputs)
        if number < len(layers) - 1:
            hidden = rooms[number + 1].inputs
            _relu(room.outputs, hidden)
            if dropout > 0:
                place = _drop(hidden, layers[number + 1].n_inputs - 1, drawn, place, n_rows, dropout)


@compiled
def _backward_pass(layers, rooms, n_rows, adam, scale):  # type: ignore[no-untyped-def]
    """From the errors of the logits to a step of all layers."""
    nothing = np.zeros((0, 0), np.float32)
    for number in range(len(layers) - 1, -1, -1):
        below = rooms[number - 1].outputs if number else nothing
        if n_rows <= LARGEST_FUSED:
            _backward(layers[number], rooms[number], below, adam, scale)
        else:
            _backward_by_blas(layers[number], rooms[number], below, adam, scale)


def make_room(layers: Sequence[Layer], n_rows: int) -> tuple[Room, ...]:
    """Memory for batches of `n_rows`."""
    n_batch, is_fused = -(-n_rows // ROWS) * ROWS, n_rows <= LARGEST_FUSED
    rooms = []
    for layer in layers:
        n_inputs, n_outputs = layer.weights.shape
        shapes = ((n_batch, n_inputs), (n_batch, n_outputs), (1 if is_fused else n_inputs, n_outputs))
        arrays = [np.zeros(shape, np.float32) for shape in (*shapes, (0 if is_fused else n_batch, n_inputs))]
        rooms.append(Room(*arrays))
        rooms[-1].inputs[:, layer.n_inputs - 1] = 1
    return tuple(rooms)


@compiled
def take_steps(rows, batches, layers, rooms, regularisation, done, rates):  # type: ignore[no-untyped-def]
    """Steps of one head, each on one batch.

    Args:
        rows: (N, P) float32 scaled embeddings, each followed by a 1, for the bias, and zeros.
        batches: the arrays of `common.heads.batches.Batches`, of S batches.
        layers, rooms: tuples of `Layer` and of `Room`, from the embeddings on.
        done: steps of this head before.
        rates: (S,) float64 learning rates.

    Returns:
        The sum of the cross-entropies.
    """
    order, labels, shares, drawn = batches
    n_rows = order.shape[1]
    scale, total = np.float32(1 / (1 - regularisation.dropout)), 0.0
    for step in range(len(rates)):
        for b in range(n_rows):
            rooms[0].inputs[b] = rows[order[step, b]]
        _forward_pass(layers, rooms, drawn[step], n_rows, regularisation)
        logits = rooms[len(layers) - 1].outputs
        total += _cross_entropy(logits, labels[step], shares[step], regularisation.smoothing)
        number = done + step + 1
        rate = np.float32(rates[step] / (1 - BETAS[0] ** number))
        root = np.float32(math.sqrt(1 - BETAS[1] ** number))
        adam = _Adam(rate, root, np.float32(1 - rates[step] * regularisation.weight_decay))
        _backward_pass(layers, rooms, n_rows, adam, scale)
    return total
