"""Methods as settings of the tiny spec."""

from __future__ import annotations

# A head without prototypes, for losses on its outputs.
OUTPUTS = ["head={name: mlp, hidden: 32, dim: 16}", "targets={name: identity}", "optim.freeze_last_layer=0"]
TWO_VIEWS = "augment={name: two_view, size: 16}"
BOTH_SIDES = "teacher={name: siamese, stop_gradient: false}"

METHODS = {
    "dino": [],
    "dino accumulated": ["train.accumulate=2"],
    "dino without multi-crop": ["augment={name: two_view, size: 16}"],
    "dino without centring": ["targets={name: softmax}"],
    "dino with sinkhorn": ["targets={name: sinkhorn}"],
    "dino with batch softmax": ["targets={name: batch_softmax}"],
    "student copy": ["teacher={name: periodic, unit: step}"],
    "previous iteration": ["teacher={name: periodic, unit: step, lag: 1}"],
    "every third step": ["teacher={name: periodic, every: 3, unit: step, lag: 1}"],
    "every other epoch": ["teacher={name: periodic, every: 2, unit: epoch}"],
    "frozen": ["teacher={name: frozen, mode: train}"],
    "labels": [
        "augment={name: single, size: 16}",
        "head={name: linear, dim: 10}",
        "teacher={name: labels, smoothing: 0.1}",
        "targets={name: identity}",
        "loss={name: cross_entropy, temperature: 1.0}",
        "optim.freeze_last_layer=0",
    ],
    "byol": [
        "augment={name: two_view, size: 16}",
        "head={name: mlp, hidden: 32, dim: 16}",
        "predictor={name: mlp, hidden: 32, dim: 16}",
        "targets={name: identity}",
        "loss={name: mse}",
        "optim={name: lars, lr: 0.2}",
    ],
    "simsiam": [
        "augment={name: two_view, size: 16}",
        "head={name: mlp, hidden: 32, dim: 16}",
        "predictor={name: mlp, hidden: 32, dim: 16}",
        "teacher={name: siamese}",
        "targets={name: identity}",
        "loss={name: mse}",
        "optim={name: sgd, lr: 0.05}",
    ],
    "simclr": [*OUTPUTS, TWO_VIEWS, BOTH_SIDES, "loss={name: info_nce}"],
    "moco v2": [  # a queue that a batch does not divide
        *OUTPUTS,
        "augment={name: asymmetric, size: 16, one_way: true, local_views: 1, local_size: 8}",
        "loss={name: info_nce, in_batch: false, queue: 50}",
    ],
    "moco accumulated": [
        "head={name: mlp, hidden: 32, dim: 16, batch_norm: false}",
        *OUTPUTS[1:],
        TWO_VIEWS,
        "loss={name: info_nce, in_batch: false, queue: 70}",
        "train.accumulate=2",
    ],
    "moco v3": [
        *OUTPUTS,
        TWO_VIEWS,
        "predictor={name: mlp, hidden: 32, dim: 16}",
        "loss={name: info_nce, in_batch: paired, scale_by_temperature: true}",
    ],
    "patch discrimination": [
        *OUTPUTS,
        "augment={name: triplet, size: 16}",
        BOTH_SIDES,
        "loss={name: info_nce, in_batch: false}",
    ],
    "vicreg": [*OUTPUTS, TWO_VIEWS, BOTH_SIDES, "loss={name: vicreg}"],
    "barlow twins": [*OUTPUTS, TWO_VIEWS, BOTH_SIDES, "loss={name: barlow}"],
    "dino with koleo": ["regularizers=[{name: koleo}, {name: koleo, on: projections}]"],
    "dense distillation": [
        "head={name: linear, dim: 24}",
        "teacher={name: frozen}",
        "targets={name: identity}",
        "loss={name: mse}",
        "token_head={name: linear, dim: 24}",
        "token_targets={name: center, temperature: null}",
        "token_loss={name: mse}",
        "optim.freeze_last_layer=0",
    ],
    "dino and tokens": [
        "token_head={name: prototypes, hidden: 32, bottleneck: 16, dim: 32}",
        "token_targets={name: center}",
        "token_loss={name: cross_entropy}",
    ],
    "resnet": ["backbone={name: timm, model: resnet10t}", "teacher={name: ema, buffers: ema}"],
    "resnet before": [
        "backbone={name: timm, model: test_resnet}",
        "teacher={name: periodic, every: 3, unit: step, buffers: own}",
    ],
}
