"""Clusters of features, compared with the classes."""

from __future__ import annotations

import warnings
from typing import Annotated, Literal
from weakref import ReferenceType, ref

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dino_lab.components.evaluators._chance import CHANCE, PIXELS
from dino_lab.components.evaluators._figures import confusion_plot
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.evaluation.outputs import Split
from dino_lab.protocols import Data, class_names
from dino_lab.registry import EvaluatorOptions, Flat, register


def contingency(labels: Tensor, clusters: Tensor, classes: int, k: int) -> Tensor:
    """Number of images by class and cluster, int64 [classes, k], from int64 [N] each."""
    return torch.bincount(labels * k + clusters, minlength=classes * k).view(classes, k)


def matching(counts: Tensor) -> dict[int, int]:
    """The cluster of each class in the one-to-one matching with most images in it, from counts [classes, k].

    The Hungarian method; where there are more classes than clusters, some classes have none.
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(counts.numpy(), maximize=True)
    return dict(zip(rows.tolist(), columns.tolist(), strict=True))


def matched_order(counts: Tensor) -> list[int]:
    """All clusters: those of the classes, in the order of the classes, then the rest."""
    first = [cluster for _, cluster in sorted(matching(counts).items())]
    return first + [cluster for cluster in range(counts.shape[1]) if cluster not in first]


RESTARTS = 10  # of k-means, the tightest of which counts


@register("evaluator", "clusters")
class Clusters:
    """k-means on the test split's normalised features, compared with the classes: NMI, ARI and accuracy.

    Accuracy is that after the one-to-one matching of clusters and classes that makes it largest; images of a
    cluster without a class, or of a class without a cluster, count as wrong.
    """

    compares_labels: tuple[Literal["train", "test"], ...] = ("test",)

    def __init__(
        self,
        *,
        k: Annotated[int | None, Field(gt=0, description="number of clusters; null: that of classes")] = None,
        seed: Annotated[int, Field(ge=0, lt=2**32, description="of the first centres of the clusters")] = 0,
        options: Flat[EvaluatorOptions] = EvaluatorOptions(),
    ) -> None:
        self.k, self.seed = k, seed
        self.every, self.of = options.every, options.of
        self._last: tuple[ReferenceType[Split], Tensor] | None = None  # the picture is of the same clusters

    @property
    def protocol(self) -> str:
        """Everything that a score depends on."""
        return (
            f"clusters/2: k-means of L2-normalised features of the test split, of the {self.of} in "
            f"evaluation mode, k={self.k or 'classes of the test images'}, k-means++, best of {RESTARTS} "
            f"starts, seed={self.seed}; NMI with the arithmetic mean of the entropies, ARI, accuracy after "
            "one-to-one matching"
        )

    def forward(self, encode: Encoder, data: Data) -> dict[str, float]:
        """`nmi`, `ari` and `accuracy`, each 1 where clusters are the classes."""
        from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

        labels, clusters = self._cluster(encode, data)
        counts = contingency(labels, clusters, data.classes, self._clusters(labels))
        hits = sum(int(counts[row, column]) for row, column in matching(counts).items())
        return {
            "nmi": float(normalized_mutual_info_score(labels.numpy(), clusters.numpy())),
            "ari": float(adjusted_rand_score(labels.numpy(), clusters.numpy())),
            "accuracy": hits / len(labels),
        }

    def floors(self, pixels: Encoder, data: Data) -> dict[str, dict[str, float]]:
        """Chance, all images in one cluster, and clusters of pixels."""
        labels = pixels.split(data, "test").labels
        largest = labels.bincount().max().item() / len(labels)
        chance = {"nmi": 0.0, "ari": 0.0, "accuracy": largest}
        return {
            name: {CHANCE: chance[name], PIXELS: value} for name, value in self.forward(pixels, data).items()
        }

    def files(self, encode: Encoder, data: Data) -> dict[str, bytes]:
        """In which clusters the images of each class are; a class without test images is an empty row."""
        labels, clusters = self._cluster(encode, data)
        counts = contingency(labels, clusters, data.classes, self._clusters(labels))
        order = matched_order(counts)
        shares = counts[:, order] / counts.sum(1, keepdim=True).clamp_min(1)
        across = "cluster, first those matched, in the order of the classes"
        return {
            "confusion.png": confusion_plot(
                shares, class_names(data), [str(cluster) for cluster in order], across
            )
        }

    def _cluster(self, encode: Encoder, data: Data) -> tuple[Tensor, Tensor]:
        """Class and cluster of each test image, int64 [N], on the CPU."""
        test = encode.split(data, "test")
        if self._last is None or self._last[0]() is not test:
            self._last = ref(test), k_means(test.features, self._clusters(test.labels), self.seed)
        return test.labels.cpu(), self._last[1]

    def _clusters(self, labels: Tensor) -> int:
        """How many are sought: without `k` as many as there are classes among the test images."""
        return self.k or len(labels.unique())


def k_means(features: Tensor, k: int, seed: int) -> Tensor:
    """Cluster of each normalised feature [N, D], int64 [N] on the CPU; a UserError for k above N."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    if k > len(features):
        raise UserError(f"evaluator clusters: k = {k} is more than the {len(features)} test images")
    model = KMeans(k, n_init=RESTARTS, random_state=seed)
    with warnings.catch_warnings():
        # Features that drew together have fewer different values than k; the scores say so.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = model.fit_predict(F.normalize(features.double(), dim=1).cpu().numpy())
    return torch.from_numpy(found).long()
