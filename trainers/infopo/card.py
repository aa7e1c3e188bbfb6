"""The card of a model tuned on preferences."""

from __future__ import annotations

from typing import Any

from hf_ext.trainers.base.card import TrainerCard


class PreferenceCard(TrainerCard):
    """The card of InfoPO's trainers: also the bound's course, and the guard's verdict."""

    def facts(self) -> dict[str, Any]:
        """Rows of the settings that only a finished run knows."""
        course = [entry["infopo/mi"] for entry in self.trainer.state.log_history if "infopo/mi" in entry]
        quarters = [course[i * (len(course) - 1) // 4] for i in range(5)] if len(course) >= 5 else course
        facts = {}
        if quarters:
            facts["bound (nats) from first to last log"] = ", ".join(f"{value:.3f}" for value in quarters)
        if self.trainer.likelihood_guard is not None:
            facts["likelihood guard"] = self.trainer.likelihood_guard.verdict
        return facts
