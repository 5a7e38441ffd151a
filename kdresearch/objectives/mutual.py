"""The objective of mutual learning."""

from __future__ import annotations

from kdresearch.objectives.logits import SoftLabel


class Mutual(SoftLabel):
    """KL from a peer's tempered probabilities (Zhang et al. 2018, eq. 3-4); peers stand in a teacher's place."""

    teacher_needs = frozenset()  # the strategy has the peers

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__(temperature)
        self.convex = False  # the peers change with the student
