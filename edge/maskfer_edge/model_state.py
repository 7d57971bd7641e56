"""Which model of each kind runs, which ran before, and which is still to be proved; without any file.

A model that is taken into use is on trial until a run has proved it; until then the last good one can come back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace

from maskfer_edge.errors import InputError
from maskfer_edge.model_file import DETECTOR, EXPRESSION
from maskfer_edge.settings_file import check_types

BUNDLED = "bundled"
KINDS = (EXPRESSION, DETECTOR)
STATE_VERSION = 1
# Starts in a row that end before a model on trial was proved; then the last good one comes back.
MAX_TRIES = 3


@dataclass(frozen=True)
class Slot:
    """Which model of a kind runs: an ID, or `BUNDLED`.

    Attributes:
        in_use: Runs, or is to run from the next start on.
        last_good: The newest that was proved; it is `in_use` itself unless that is on trial.
        previous: The last good one before that; where `rollback` leads.
        on_trial: Whether `in_use` is still to be proved.
        tries: Starts of it that ended before it was proved.
        put_back: The one that was on trial and failed since the last switch; "" if none.
        reason: What it failed by.
    """

    in_use: str = BUNDLED
    last_good: str = BUNDLED
    previous: str = BUNDLED
    on_trial: bool = False
    tries: int = 0
    put_back: str = ""
    reason: str = ""

    def used(self, model: str) -> Slot:
        """Switched to a model, which is on trial unless it is known to be good."""
        if model == self.in_use:
            return self
        new = Slot(model, self.last_good, self.previous, on_trial=True)
        if model == self.last_good:
            return replace(new, on_trial=False)
        return new.proved() if model == BUNDLED else new

    def proved(self) -> Slot:
        """The model in use is good."""
        return Slot(self.in_use, self.in_use, self.last_good) if self.on_trial else self

    def failed(self, reason: str) -> Slot:
        """The model on trial is not; the last good one runs again."""
        return Slot(self.last_good, self.last_good, self.previous, put_back=self.in_use, reason=reason)

    def rolled_back(self) -> Slot:
        """Away from a model on trial to the last good one; else to the one before it, and the next time back."""
        if self.on_trial:
            return Slot(self.last_good, self.last_good, self.previous)
        return Slot(self.previous, self.previous, self.in_use)


@dataclass(frozen=True)
class State:
    """What `state.json` holds.

    Attributes:
        expression: Slot of the models that tell expressions apart.
        detector: Slot of the models that find faces.
        switched: The kind that was switched last.
        signed_by: ID to who signed it ("" if nobody), the newest installation last.
    """

    expression: Slot = field(default_factory=Slot)
    detector: Slot = field(default_factory=Slot)
    switched: str = EXPRESSION
    signed_by: Mapping[str, str] = field(default_factory=dict)

    def slot(self, kind: str) -> Slot:
        """The slot of a kind."""
        return self.detector if kind == DETECTOR else self.expression

    def with_slot(self, kind: str, slot: Slot) -> State:
        """This state with another slot of a kind."""
        return replace(self, detector=slot) if kind == DETECTOR else replace(self, expression=slot)

    def switched_to(self, kind: str, slot: Slot) -> State:
        """`with_slot`, by someone's wish; what is no change counts as none."""
        return self if slot == self.slot(kind) else replace(self.with_slot(kind, slot), switched=kind)

    def named(self) -> set[str]:
        """The models that a slot names."""
        return {model for kind in KINDS for s in (self.slot(kind),) for model in (s.in_use, s.last_good, s.previous)}

    def to_json(self) -> str:
        """As `read_state` reads it back."""
        return json.dumps({"version": STATE_VERSION, **asdict(self)}, indent=2) + "\n"


def read_state(content: bytes) -> State:
    """Raises ValueError if these are not the bytes of a state."""
    try:
        values = json.loads(content)
        if values.pop("version") != STATE_VERSION:
            raise ValueError("it is of another version")
        slots = {kind: Slot(**values.pop(kind)) for kind in KINDS}
        for slot in slots.values():
            check_types(slot)
        if set(values) != {f.name for f in fields(State)} - set(slots) or values["switched"] not in KINDS:
            raise ValueError("it has other keys")
        if not all(isinstance(signer, str) for signer in values["signed_by"].values()):
            raise ValueError("its signers are no texts")
        return State(slots[EXPRESSION], slots[DETECTOR], values["switched"], values["signed_by"])
    except (AttributeError, InputError, KeyError, RecursionError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())[:100]) from None
