"""A model file: its weights, and what it says about them."""

from dataclasses import dataclass, replace
from pathlib import Path

from federation.description import ModelDescription
from federation.labels import LABELS
from federation.manifest import Model, load_description, load_model

from site_client.calibration.command import load_calibration
from site_client.calibration.model import CalibratedNet, Calibrations
from site_client.errors import EvaluationRefused
from site_client.model.inputs import PIPELINE_VERSION
from site_client.model.network import Network
from site_client.model.registry import ARCHITECTURES, build, load_weights, manifest_of


@dataclass(frozen=True)
class LoadedModel:
    """A model with all that its answers depend on.

    Attributes:
        description: Of the file, with image size and slices filled in.
        digest: Of the weights, in hex.
        net: The network with its weights.
        calibrations: Of the file or of `--calibration`; None for neither.
    """

    description: ModelDescription
    digest: str
    net: Network
    calibrations: Calibrations | None

    @property
    def calibrated(self) -> Network:
        """The network under its calibration, if it has one."""
        return self.net if self.calibrations is None else CalibratedNet(self.net, self.calibrations)

    @property
    def size_px(self) -> int:
        """Side of a slice in pixels."""
        # `load` fills it in
        assert self.description.image_size_px is not None
        return self.description.image_size_px

    @property
    def slices_max(self) -> int:
        """Most slices of a study."""
        # `load` fills it in
        assert self.description.slices_max is not None
        return self.description.slices_max

    def slices_per_study(self, given: int | None) -> int:
        """Return the slices of a study in a training step, which decide the offsets of a calibration.

        Args:
            given: Of a file that has no plan; None takes the file's.

        Raises:
            EvaluationRefused: It contradicts the plan.
        """
        stated = self.description.slices_per_study
        if given is not None and self.description.plan_digest and given != stated:
            raise EvaluationRefused(
                f"expected --slices-per-study {stated}, as the model was trained, got {given}; leave it out"
            )
        return stated if given is None else given

    def as_json(self) -> dict[str, object]:
        """Return plain values for json.dumps."""
        return {
            "architecture": self.description.architecture,
            "digest": self.digest,
            "image_size_px": self.size_px,
            "slices_max": self.slices_max,
            "pipeline": PIPELINE_VERSION,
            "origin": self.description.origin,
            "run_id": self.description.run_id,
            "plan_digest": self.description.plan_digest,
            "round": self.description.round,
            "calibrated": self.calibrations is not None,
        }


def load(
    path: Path, size_px: int | None = None, slices_max: int | None = None, calibration: Path | None = None
) -> LoadedModel:
    """Read a model file and build its network.

    Args:
        path: As the aggregator, `benchmark` or `init-weights` writes it.
        size_px: Of a file that does not say its image size.
        slices_max: Of a file that does not say it.
        calibration: Of `hemofed-site calibrate`, in place of the file's own.

    Raises:
        EvaluationRefused: There is no file, its tensors are of no known architecture, it went through another image
            pipeline or has other labels, a size is not known, or an argument contradicts it.
    """
    if not path.is_file():
        raise EvaluationRefused(f"expected a model file, got no file {path.name!r}; export one from the run")
    model, stated = load_model(path), load_description(path)
    architecture, net = _network(model, None if stated is None else stated.architecture)
    description = ModelDescription(architecture) if stated is None else stated
    if description.pipeline not in (None, PIPELINE_VERSION):
        raise EvaluationRefused(
            f"expected a model of image pipeline {PIPELINE_VERSION}, got one of {description.pipeline}; "
            "use the hemofed that trained it"
        )
    if description.labels != LABELS:
        raise EvaluationRefused(f"expected the labels {', '.join(LABELS)}, got {', '.join(description.labels)}")
    description = replace(
        description,
        image_size_px=_stated("--image-size", description.image_size_px, size_px),
        slices_max=_stated("--slices-max", description.slices_max, slices_max),
    )
    digest = model.digest.hex()
    own = _own_calibration(description, digest) if calibration is None else load_calibration(calibration, digest)
    return LoadedModel(description, digest, net, own)


def load_initial(path: Path) -> tuple[str, Model]:
    """Read initial weights: the name of their architecture, and the model.

    Raises:
        EvaluationRefused: See `load`.
    """
    if not path.is_file():
        raise EvaluationRefused(f"expected initial weights, got no file {path.name!r}; run `hemofed-site init-weights`")
    model, stated = load_model(path), load_description(path)
    architecture, _ = _network(model, None if stated is None else stated.architecture)
    return architecture, model


def _network(model: Model, stated: str | None) -> tuple[str, Network]:
    if stated is not None and stated not in ARCHITECTURES:
        raise EvaluationRefused(f"expected an architecture of {', '.join(ARCHITECTURES)}, got {stated[:80]!r}")
    for architecture in ARCHITECTURES if stated is None else (stated,):
        net = build(architecture, seed=0)  # any seed: the file replaces all weights
        # By all names and shapes: a file without a description does not name its architecture.
        if manifest_of(net) == model.manifest:
            load_weights(net, model.named())
            return architecture, net
    expected = ", ".join(ARCHITECTURES) if stated is None else stated
    raise EvaluationRefused(f"expected a model of one of {expected}, got other tensors; update hemofed")


def _stated(option: str, stated: int | None, given: int | None) -> int:
    if stated is None and given is None:
        raise EvaluationRefused(f"expected the model file to say its {option[2:]}, got none; give {option} of its plan")
    if stated is not None and given not in (None, stated):
        raise EvaluationRefused(f"expected {option} {stated}, as the model was trained, got {given}; leave it out")
    # one of the two is not None: checked above
    return stated if given is None else given  # type: ignore[return-value]


def _own_calibration(description: ModelDescription, digest: str) -> Calibrations | None:
    if not description.calibration:
        return None
    try:
        calibrations = Calibrations.from_json(description.calibration)
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationRefused("expected a calibration in the model file, got another text; write it anew") from error
    if calibrations.model != digest:
        raise EvaluationRefused(
            f"expected a calibration of model {digest[:16]} in its file, got one of {calibrations.model[:16]}"
        )
    return calibrations
