"""The description of a model in its file: architecture, inputs, labels, origin, run and calibration.

A description is JSON in the metadata of a safetensors file, beside the manifest. It is no part of the model's digest,
so a federation exchanges models without one: `init-weights`, an export and a benchmark write it, and `predict` reads
it.
"""

import json
from dataclasses import asdict, dataclass, fields
from typing import Final

from federation.errors import Malformed
from federation.labels import LABELS

# Of the parts of a network: heads, reader, norms, trunk. A plan's `trainable` moves all parts up to one of them.
PART_LETTERS: Final = "hrnt"
_BYTES_MAX: Final = 1 << 20


@dataclass(frozen=True)
class ModelDescription:
    """The description of a model. A value that is not known is None or empty.

    Attributes:
        architecture: Its name in the sites' registry.
        image_size_px: Side of a slice in pixels, as in the plan.
        slices_max: Most slices of a study, as in the plan.
        slices_per_study: Of a study in a training step, as in the plan; 0 for all.
        pipeline: Version of the image pipeline that the inputs went through.
        labels: In the order of the outputs.
        origin: Of the initial weights, one line.
        run_id: 16 bytes in hex.
        plan_digest: 32 bytes in hex.
        round: The model is the result of this round.
        calibration: JSON text of `hemofed-site calibrate`.
        packing: "refused" when the plan does not permit `hemofed-site pack`.
        parts: A letter of PART_LETTERS for each tensor, in the order of the manifest.
    """

    architecture: str
    image_size_px: int | None = None
    slices_max: int | None = None
    slices_per_study: int = 0
    pipeline: int | None = None
    labels: tuple[str, ...] = LABELS
    origin: str = ""
    run_id: str = ""
    plan_digest: str = ""
    round: int | None = None
    calibration: str = ""
    packing: str = ""
    parts: str = ""

    def to_json(self) -> str:
        """Return one line of JSON. Equal descriptions give equal text."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "ModelDescription":
        """Read a description. Keys that this version does not know are skipped.

        Raises:
            Malformed: The text is no description, has more than 2^20 characters, or its types are different.
        """
        try:
            # Bounded before it is parsed: the file may come from outside.
            content = json.loads(text) if len(text) <= _BYTES_MAX else None
        except ValueError:
            content = None
        if not isinstance(content, dict) or not isinstance(content.get("architecture"), str):
            raise Malformed(
                "expected a description of a model as a JSON object with its architecture, got another text"
            )
        known = {field.name: content[field.name] for field in fields(cls) if field.name in content}
        for name, value in known.items():
            numeric = name in ("image_size_px", "slices_max", "slices_per_study", "pipeline", "round")
            if name == "labels":
                valid = isinstance(value, list) and all(isinstance(label, str) for label in value)
            else:
                valid = value is None or type(value) is int if numeric else isinstance(value, str)
            if not valid:
                raise Malformed(f"expected {name} of a model's description in its own type, got {type(value).__name__}")
        return cls(**known | {"labels": tuple(known.get("labels", LABELS))})
