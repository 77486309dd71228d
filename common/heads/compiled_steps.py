"""The steps of one head's fit on a CPU core, compiled: backward pass and Adam in one pass over the weights.

At batches of 8, a step by torch reads and writes a layer's weights, gradients and moments one after the other, and waits
for memory; of small heads, most of its time goes into calling torch. Here the gradient of a few rows of weights is used as
soon as it is computed, while the weights and moments are in the core's first cache, and a whole epoch is one call. The
formulas are those of torch's fused AdamW; sums are in another order.
"""

from __future__ import annotations

import math

import numpy as np

from common.compiled import compiled

BETAS = (0.9, 0.999)
EPS = 1e-8
ROWS = 4  # rows of weights, and of a batch, that are computed together


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


@compiled
def _backward(x, error, weights, means, squares, n_inputs, below, gradient, rate, root, decay):  # type: ignore[no-untyped-def]
    """One layer: the error below it, and one step of AdamW on its weights.

    Args:
        x: (B, I) the layer's inputs, the last of `n_inputs` being 1, for the bias; B is a multiple of 4.
        error: (B, O) of its outputs.
        weights, means, squares: (I, O), changed in place.
        below: (B, I - 1), to be filled with the error of the inputs where they are not 0 (ReLU); empty: not wanted.
        gradient: (O,) to work in.
        rate, root: the step size over the first bias correction, and the root of the second one.
        decay: what weights, not biases, are multiplied by.
    """
    n_batch, n_outputs = error.shape
    one, beta, gamma = np.float32(1), np.float32(BETAS[0]), np.float32(BETAS[1])
    not_beta, not_gamma, eps = one - beta, np.float32(1 - BETAS[1]), np.float32(EPS)
    for i in range(n_inputs):
        w, m, s = weights[i], means[i], squares[i]
        if below.shape[0] and i < n_inputs - 1:
            for b in range(n_batch):
                total, e = np.float32(0), error[b]
                if x[b, i] > 0:
                    for o in range(n_outputs):
                        total += e[o] * w[o]
                below[b, i] = total
        for b in range(0, n_batch, 4):
            x0, x1, x2, x3 = x[b, i], x[b + 1, i], x[b + 2, i], x[b + 3, i]
            e0, e1, e2, e3 = error[b], error[b + 1], error[b + 2], error[b + 3]
            if b == 0:
                for o in range(n_outputs):
                    gradient[o] = x0 * e0[o] + x1 * e1[o] + x2 * e2[o] + x3 * e3[o]
            else:
                for o in range(n_outputs):
                    gradient[o] += x0 * e0[o] + x1 * e1[o] + x2 * e2[o] + x3 * e3[o]
        keep = decay if i < n_inputs - 1 else one
        for o in range(n_outputs):
            g = gradient[o]
            mean = m[o] + not_beta * (g - m[o])
            square = gamma * s[o] + not_gamma * g * g
            m[o] = mean
            s[o] = square
            w[o] = w[o] * keep - rate * mean / (np.sqrt(square) / root + eps)


@compiled
def _cross_entropy(logits, labels, shares, smoothing):  # type: ignore[no-untyped-def]
    """Turn (B, C) logits into the error of their weighted cross-entropies, in place; returns the sum of those of the rows
    whose share is not 0."""
    n_classes = logits.shape[1]
    even, summed = smoothing / np.float32(n_classes), 0.0
    for b in range(logits.shape[0]):
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
def _take_batch(rows, order, labels, shares, step, x, batch_labels, batch_shares):  # type: ignore[no-untyped-def]
    """Copy the inputs, labels and shares of a batch."""
    for b in range(order.shape[1]):
        x[b] = rows[order[step, b]]
        batch_labels[b] = labels[step, b]
        batch_shares[b] = shares[step, b]


@compiled
def _corrections(done, learning_rate):  # type: ignore[no-untyped-def]
    """Adam's step size over its first bias correction, and the root of the second one, after `done` steps."""
    return np.float32(learning_rate / (1 - BETAS[0] ** done)), np.float32(math.sqrt(1 - BETAS[1] ** done))


@compiled
def _relu(values, hidden):  # type: ignore[no-untyped-def]
    """(B, H) values -> the first H columns of `hidden`, whose last one stays 1."""
    for b in range(values.shape[0]):
        row, into = values[b], hidden[b]
        for h in range(values.shape[1]):
            into[h] = row[h] if not row[h] <= 0 else np.float32(0)


@compiled
def linear_steps(rows, n_inputs, order, labels, shares, layer, mean, square, done, rates, decay, smoothing):  # type: ignore[no-untyped-def]
    """Steps of a linear head, each on one batch.

    Args:
        rows: (N, padded width) float32 embeddings as `append_one` gives them.
        n_inputs: numbers of an embedding and the 1 after them.
        order, labels, shares: (S, B) int64, int64 and float32: row numbers of S batches, their labels, and the weight of each
            row in its batch's loss; a row of weight 0 is padding.
        layer, mean, square: (padded width, classes) float32 weights and Adam's moments, changed in place.
        done: steps of this head before.
        rates: (S,) float64 learning rates.
        decay: AdamW's weight decay.
        smoothing: of the labels.

    Returns:
        The sum of the cross-entropies.
    """
    n_batch = -(-order.shape[1] // ROWS) * ROWS
    x, error = np.zeros((n_batch, rows.shape[1]), np.float32), np.zeros((n_batch, layer.shape[1]), np.float32)
    batch_labels, batch_shares = np.zeros(n_batch, np.int64), np.zeros(n_batch, np.float32)
    nothing, gradient = np.zeros((0, 0), np.float32), np.zeros(layer.shape[1], np.float32)
    total = 0.0
    for step in range(len(order)):
        _take_batch(rows, order, labels, shares, step, x, batch_labels, batch_shares)
        _forward(x, layer, n_inputs, error)
        total += _cross_entropy(error, batch_labels, batch_shares, smoothing)
        rate, root = _corrections(done + step + 1, rates[step])
        _backward(
            x, error, layer, mean, square, n_inputs, nothing, gradient, rate, root, np.float32(1 - rates[step] * decay)
        )
    return total


@compiled
def three_layer_steps(  # type: ignore[no-untyped-def]
    rows, n_inputs, order, labels, shares, layers, means, squares, done, rates, decay, smoothing
):
    """Steps of a three-layer head; `layers`, `means` and `squares` are tuples of three arrays, all else as for
    `linear_steps`."""
    n_batch = -(-order.shape[1] // ROWS) * ROWS
    hidden, n_classes = layers[0].shape[1], layers[2].shape[1]
    x, error = np.zeros((n_batch, rows.shape[1]), np.float32), np.zeros((n_batch, n_classes), np.float32)
    batch_labels, batch_shares = np.zeros(n_batch, np.int64), np.zeros(n_batch, np.float32)
    # The outputs of the hidden layers, each row followed by a 1 for the next bias; then the errors there.
    first, second = np.ones((n_batch, hidden + 1), np.float32), np.ones((n_batch, hidden + 1), np.float32)
    values, above = np.zeros((n_batch, hidden), np.float32), np.zeros((n_batch, hidden), np.float32)
    nothing, gradient = np.zeros((0, 0), np.float32), np.zeros(max(hidden, n_classes), np.float32)
    total = 0.0
    for step in range(len(order)):
        _take_batch(rows, order, labels, shares, step, x, batch_labels, batch_shares)
        _forward(x, layers[0], n_inputs, values)
        _relu(values, first)
        _forward(first, layers[1], hidden + 1, values)
        _relu(values, second)
        _forward(second, layers[2], hidden + 1, error)
        total += _cross_entropy(error, batch_labels, batch_shares, smoothing)
        rate, root = _corrections(done + step + 1, rates[step])
        keep = np.float32(1 - rates[step] * decay)
        _backward(second, error, layers[2], means[2], squares[2], hidden + 1, above, gradient, rate, root, keep)
        _backward(first, above, layers[1], means[1], squares[1], hidden + 1, values, gradient, rate, root, keep)
        _backward(x, values, layers[0], means[0], squares[0], n_inputs, nothing, gradient, rate, root, keep)
    return total
