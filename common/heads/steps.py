"""The steps of one head's fit on a CPU core, compiled: any recipe, an epoch in one call.

At batches of 8, a step by torch reads and writes a layer's weights, gradients and moments one after the other, and
waits for memory; with a small head, most of its time goes into calling torch. Here the gradient of a few rows of
weights is used as soon as it is computed, while the weights and moments are in the L1 cache. At larger batches matrix
products dominate, and BLAS computes them. The formulas are those of torch's AdamW; sums are in another order.
`common.heads.plain` is the same without haste, and tests compare the two.
"""

from __future__ import annotations

import math

import numpy as np

from common.compiled import compiled, inlined

BETAS = (0.9, 0.999)
EPS = 1e-8
ROWS = 4  # rows of weights, and of a batch, that are computed together
# Measured with three-layer heads: up to this batch size, the fused loops are faster than BLAS.
LARGEST_FUSED = 16


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
def _adam(gradient, w, m, s, rate, root, keep):  # type: ignore[no-untyped-def]
    """One step of AdamW on a row of weights `w`, with its moments `m` and `s`, in place."""
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
def _backward(  # type: ignore[no-untyped-def]
    x, error, weights, means, squares, n_inputs, below, gradient, rate, root, keep, scale
):
    """The error below a layer and one step of AdamW on its weights, fused; for small batches.

    Args:
        x: (B, I) the layer's inputs, the last of `n_inputs` being 1, for the bias; B is a multiple of 4.
        error: (B, O) of its outputs.
        weights, means, squares: (I, O), changed in place.
        below: (B, I - 1), to be filled with the error of the inputs that are not 0 (ReLU); empty: not wanted.
        gradient: (O,) to work in.
        rate, root: the step size over the first bias correction, and the root of the second one.
        keep: what weights, not biases, are multiplied by (weight decay).
        scale: what dropout has multiplied the inputs by.
    """
    n_batch, n_outputs = error.shape
    for i in range(n_inputs):
        w = weights[i]
        if below.shape[0] and i < n_inputs - 1:
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
        _adam(gradient, w, means[i], squares[i], rate, root, keep if i < n_inputs - 1 else np.float32(1))


@compiled
def _backward_by_blas(  # type: ignore[no-untyped-def]
    x, error, weights, means, squares, n_inputs, below, gradients, products, rate, root, keep, scale
):
    """As `_backward`, for large batches; `gradients` (I, O) and `products` (B, I) are to work in."""
    if below.shape[0]:
        np.dot(error, weights.T, products)
        for b in range(below.shape[0]):
            for i in range(below.shape[1]):
                below[b, i] = products[b, i] * scale if x[b, i] > 0 else np.float32(0)
    np.dot(x.T, error, gradients)
    for i in range(n_inputs):
        last = i == n_inputs - 1
        _adam(gradients[i], weights[i], means[i], squares[i], rate, root, np.float32(1) if last else keep)


@compiled
def _cross_entropy(logits, labels, shares, smoothing):  # type: ignore[no-untyped-def]
    """Turn (B, C) logits into the error of their weighted cross-entropies, in place; returns the sum of those of the
    rows whose share is not 0."""
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
def take_steps(  # type: ignore[no-untyped-def]
    rows, n_inputs, order, labels, shares, drawn, layers, means, squares, done, rates, decay, smoothing, dropouts
):
    """Steps of one head, each on one batch.

    Args:
        rows: (N, P) float32 scaled embeddings, each followed by a 1, for the bias, and zeros.
        n_inputs: numbers of an embedding and the 1 after them.
        order, labels, shares: (S, B) int64, int64 and float32: row numbers of S batches, their labels, and the weight
            of each row in its batch's loss; a row of weight 0 is padding.
        drawn: (S, n) float32 random numbers for dropout, for each layer in turn.
        layers, means, squares: tuples of (P, O) float32 weights and Adam's moments, changed in place.
        done: steps of this head before.
        rates: (S,) float64 learning rates.
        decay, smoothing: AdamW's weight decay; label smoothing.
        dropouts: of the embeddings, and after each ReLU.

    Returns:
        The sum of the cross-entropies.
    """
    n_rows, n_layers = order.shape[1], len(layers)
    n_batch = -(-n_rows // ROWS) * ROWS
    is_fused = n_rows <= LARGEST_FUSED
    batch_labels, batch_shares = np.zeros(n_batch, np.int64), np.zeros(n_batch, np.float32)
    # A layer's inputs, each row followed by a 1 and zeros; its outputs, then their errors; and room to work in.
    inputs = [np.zeros((n_batch, layer.shape[0]), np.float32) for layer in layers]
    outputs = [np.zeros((n_batch, layer.shape[1]), np.float32) for layer in layers]
    gradients = [np.zeros((1 if is_fused else layer.shape[0], layer.shape[1]), np.float32) for layer in layers]
    products = [np.zeros((0 if is_fused else n_batch, layer.shape[0]), np.float32) for layer in layers]
    nothing = np.zeros((0, 0), np.float32)
    widths = [n_inputs]
    for number in range(1, n_layers):
        widths.append(layers[number - 1].shape[1] + 1)
        inputs[number][:, widths[number] - 1] = np.float32(1)
    drops_inputs, drops = dropouts[0] > 0, dropouts[1] > 0
    scale = np.float32(1 / (1 - dropouts[1]))
    total = 0.0
    for step in range(len(order)):
        for b in range(n_rows):
            inputs[0][b] = rows[order[step, b]]
            batch_labels[b] = labels[step, b]
            batch_shares[b] = shares[step, b]
        place = 0
        if drops_inputs:
            place = _drop(inputs[0], n_inputs - 1, drawn[step], place, n_rows, dropouts[0])
        for number in range(n_layers):
            if is_fused:
                _forward(inputs[number], layers[number], widths[number], outputs[number])
            else:
                np.dot(inputs[number], layers[number], outputs[number])
            if number < n_layers - 1:
                hidden = inputs[number + 1]
                _relu(outputs[number], hidden)
                if drops:
                    place = _drop(hidden, widths[number + 1] - 1, drawn[step], place, n_rows, dropouts[1])
        total += _cross_entropy(outputs[n_layers - 1], batch_labels, batch_shares, smoothing)
        # Adam's step size over its first bias correction, and the root of the second one.
        rate = np.float32(rates[step] / (1 - BETAS[0] ** (done + step + 1)))
        root = np.float32(math.sqrt(1 - BETAS[1] ** (done + step + 1)))
        keep = np.float32(1 - rates[step] * decay)
        for number in range(n_layers - 1, -1, -1):
            below = outputs[number - 1] if number else nothing
            x, error, layer = inputs[number], outputs[number], layers[number]
            if is_fused:
                _backward(
                    *(x, error, layer, means[number], squares[number], widths[number], below),
                    *(gradients[number][0], rate, root, keep, scale),
                )
            else:
                _backward_by_blas(
                    *(x, error, layer, means[number], squares[number], widths[number], below),
                    *(gradients[number], products[number], rate, root, keep, scale),
                )
    return total
