"""Ray's schedulers, which end the weaker trials early."""

from __future__ import annotations

from typing import Any

from dino_lab.sweeps.plan.model import Scheduler


def choose_scheduler(scheduler: Scheduler | None, metric: str, mode: str, epochs: int) -> Any:
    """The one that a sweep asks for; None if it asks for none."""
    from ray.tune import schedulers

    if scheduler is None:
        return None
    most = max(epochs, scheduler.grace_epochs) + 1  # or ASHA would end the best ones with their last row
    common = {"time_attr": "epoch", "metric": metric, "mode": mode, "grace_period": scheduler.grace_epochs}
    if scheduler.name == "median":
        # Nothing is set aside for others to catch up: that would end it and start it again at every row.
        return _median(metric)(**common, min_samples_required=3, min_time_slice=most)
    return schedulers.ASHAScheduler(**common, max_t=most, reduction_factor=scheduler.reduction)


def _median(metric: str) -> Any:
    """Tune's rule, which would fail at a trial whose last report has no score."""
    from ray.tune import schedulers

    class Median(schedulers.MedianStoppingRule):  # type: ignore[misc]
        """Leaves such a report out."""

        def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
            if "epoch" in result and metric in result:
                super().on_trial_complete(tune_controller, trial, result)

    return Median
