"""Everything that is said of a study: its table with floors, what mattered, and its claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dino_lab.reports.study.ancestry import ancestry_notes
from dino_lab.reports.study.claims import Judgement, claim_notes, judge
from dino_lab.reports.study.effects import Effects, effects_of
from dino_lab.reports.study.floors import floor_lines, floor_notes, floor_warnings
from dino_lab.reports.study.results import ArmResult
from dino_lab.reports.study.table import ArmLine, lines, notes
from dino_lab.runs.study import Study


@dataclass(frozen=True)
class Findings:
    """The lines of a study's tables, and what stands before and after them."""

    study: Study
    lines: Sequence[ArmLine]  # one for each arm
    floors: Sequence[ArmLine] = ()  # untrained, raw pixels, chance: rows below the arms
    warnings: Sequence[str] = ()  # read before the table
    remarks: Sequence[str] = ()  # about the floors, and about runs that others begin with
    claims: Sequence[Judgement] = ()
    effects: Effects | None = None  # of the axes of a grid

    @property
    def notes(self) -> list[str]:
        """Explanations of the table's numbers, one sentence each."""
        return [*notes(self.study, self.lines), *self.remarks]

    @property
    def claim_notes(self) -> list[str]:
        """Explanations of the claims' numbers, one sentence each."""
        return claim_notes(self.claims)

    @property
    def effect_rows(self) -> list[list[str]]:
        """Main effects and interactions, texts for EFFECT_HEADERS."""
        return self.effects.rows() if self.effects is not None else []

    @property
    def effect_notes(self) -> list[str]:
        """Whether the axes depend on each other, and explanations of the effects' numbers."""
        return [*self.effects.sentences(), *self.effects.notes()] if self.effects is not None else []

    @property
    def unshown(self) -> int:
        """Claims that the runs do not show: not as expected, or nobody can tell."""
        return sum(not claim.is_shown for claim in self.claims)


def findings(study: Study, results: Sequence[ArmResult]) -> Findings:
    """What the runs of a study say."""
    floors = floor_lines(study, results)
    return Findings(
        study,
        lines(study, results),
        floors,
        floor_warnings(study, results, floors),
        [*floor_notes(study, results, floors), *ancestry_notes(study)],
        judge(study, results),
        effects_of(study, results),
    )
