"""The refusals of the contract. No retry makes one of them succeed.

FederationError
├── Malformed          bytes that are not what they claim to be: a message, a model file, a published sum
├── PlanRefused        a training plan with a value outside its bounds
├── RosterRefused      a roster with a bad entry, or older than the one already held
├── TokenRefused       an enrolment token or a site name that is not well formed
├── ManifestMismatch   tensors or a vector that are not those of the manifest
├── EncodingRefused    a value that cannot be encoded, or words that no honest cohort can have summed to
├── ChainRefused       a sum that leads from this model to no next one
├── CertificateRefused  a model certificate that proves nothing to this site
├── SealRefused        sealed bytes that do not open under this key and name
└── BadSignature       bytes that the expected key did not sign
"""


class FederationError(Exception):
    """Anything two machines that keep the contract would both refuse."""


class Malformed(FederationError):
    """Bytes that are not what they claim to be."""


class PlanRefused(FederationError):
    """A plan outside its bounds; `field` names the value, as in plan.proto."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"plan.{field}: {message}")
        self.field = field


class RosterRefused(FederationError):
    """A roster with a bad entry, or older than the one already held."""


class TokenRefused(FederationError):
    """An enrolment token or a site name that is not well formed. Never says the token itself."""


class ManifestMismatch(FederationError):
    """Tensors or a vector that are not those of the manifest."""


class EncodingRefused(FederationError):
    """A value that cannot be encoded, or words that no honest cohort can have summed to."""


class ChainRefused(FederationError):
    """A sum that leads from this model to no next one."""


class CertificateRefused(FederationError):
    """A model certificate that proves nothing to this site."""


class SealRefused(FederationError):
    """Sealed bytes that do not open under this key and name."""


class BadSignature(FederationError):
    """Bytes that the expected key did not sign."""
