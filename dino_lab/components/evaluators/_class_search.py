"""Retrieval among labelled images; images of the query's class are right."""

from __future__ import annotations

from typing import Any, Literal

import torch

from dino_lab.components.evaluators._average_precision import (
    average_precision,
    mean_of_queries,
    precision_at,
)
from dino_lab.components.evaluators._picture import Found, draw, of_split, spread
from dino_lab.components.evaluators._search import rankings
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.protocols import class_names

QUERIES = RESULTS = 8  # of a picture
Database = Literal["train", "test"]
SPLITS: dict[Database, Literal["bank", "test"]] = {"train": "bank", "test": "test"}


def scores(encode: Encoder, data: Any, database: Database, k: tuple[int, ...]) -> dict[str, float]:
    """`mAP` and `mP_at_k` of the test images as queries."""
    test, bank = encode.split(data, "test"), encode.split(data, SPLITS[database])
    without_itself = database == "test"
    if max(k) > len(bank.labels) - without_itself:
        rest = " that remain without the query" if without_itself else ""
        raise UserError(
            f"evaluator retrieval: k = {max(k)} is more than the {len(bank.labels) - without_itself} images "
            f"of the database{rest}"
        )
    averages = []
    precisions: dict[int, list[torch.Tensor]] = {at: [] for at in k}
    for rows, order in rankings(test.features, bank.features, without_itself=without_itself):
        relevant = bank.labels[order] == test.labels[rows, None]  # [B, M]
        relevant = relevant[relevant.any(1)]
        averages.append(average_precision(relevant))
        for at, values in precisions.items():
            values.append(precision_at(relevant, at))
    if not sum(map(len, averages)):
        raise UserError("evaluator retrieval: no test image has another image of its class in the database")
    return {"mAP": mean_of_queries(averages)} | {
        f"mP_at_{at}": mean_of_queries(values) for at, values in precisions.items()
    }


def picture(encode: Encoder, data: Any, database: Database) -> bytes:
    """Some test images and their first results."""
    test, bank = encode.split(data, "test"), encode.split(data, SPLITS[database])
    queries = spread(QUERIES, len(test.labels))
    ranked = torch.cat([order for _, order in rankings(test.features[queries], bank.features)])
    if database == "test":
        ranked = torch.stack([row[row != query] for row, query in zip(ranked, queries, strict=True)])
    ranked = ranked[:, :RESULTS].cpu()
    shown = of_split(data.test(256), queries)
    batches = data.bank(256) if database == "train" else data.test(256)
    found = of_split(batches, ranked.flatten().tolist())
    names = class_names(data)
    rows = []
    for query, results in zip(queries, ranked.tolist(), strict=True):
        label, labels = int(test.labels[query]), bank.labels[results].tolist()
        rows.append(
            Found(
                [(shown[query], names[label])],
                [(found[row], its == label) for row, its in zip(results, labels, strict=True)],
                [names[its] for its in labels],
            )
        )
    return draw(
        rows, f"test images, and the nearest of the {'training' if database == 'train' else 'test'} split"
    )
