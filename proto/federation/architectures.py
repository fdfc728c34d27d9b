"""The architectures that a plan may name, and the tensors of each.

A site builds the network of that name and refuses a model with other tensors. The aggregator has no torch and cannot
build one. With this table it refuses the same plan before it is signed. A test compares the sites' registry.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from federation.manifest import Manifest

# Name -> SHA-256 of its manifest in hex. A name is forever: neither it nor its tensors change.
MANIFEST_DIGESTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "lite": "002cc0cbb512bb81750171214b7da2f351e200ece41c5cc2654c841c2f21cb2d",
        "lite-slices": "dbb51366d6eb1daec2b39b9548088ef0fedd6f6a074b10621168f785abf2f18a",
        "densenet121-gru": "5e3c801e6a3f0196dd7f0cb16471664b6837d758918b3b52fa6b8f10c2f045d9",
        "densenet121-lstm": "95681556e2bf306b2dcc983c9a8419c43a32975474a7e345280b800d76fb2cbd",
        "densenet121-mingru": "bbcb58feb93d81539f48ef554d28c6fbee8f7198be275f85fab8d69fa0f8f487",
        "densenet121-gru-sep": "bb602a567220cae4b4e1f2efbb326687f500535cdc3fd7ff564b205e9ae92541",
        "densenet121-3d": "e60b33ab8c54dcad2a42905959cdebea032150fce0164e881b9f319a9c8781ec",
        "densenet121": "7424e1a0987b5fc8154cbf9034f022e4abbb5b7eb3873dcaf794e1c9964023ed",
        "densenet169": "3500f2b2359795bb5f81725af6ebf9695e0b533819a24b5eb28095dd520bae94",
        "resnet50": "93535a71cb68193f9ed23dc9c5ddfe15b9985199e06647aaaa9a50c01c5a761d",
        "resnet101": "14553cc2c4ea5e3b9797be2737e5516f4ad415dd7feb8db00191b1d0c00ce1f9",
        "densenet121-affine-gru": "a24cd643941fd83c9cd515efc995071eba55c30fa0be5c1f7569abeb812cf232",
        "densenet121-affine": "28815c3899e54e2daff90bf8c316a7981f3a74a298776d377e0b95cea6e3c0b1",
        "densenet169-affine": "2113148a8d15b91976bac789dcb1a39057a2be074796dd79e3fb4386e3d83f2c",
        "resnet50-affine": "18f4a0f2d21a46a7b62c28436c10a716b4b178606166ac7599b79b1ebf34adb5",
        "resnet101-affine": "02518ab4452bab3a567056e323b5d84166234f0a21a19d2f0a51d62107464f38",
        "efficientnet-lite0-affine-gru": "c058fe6c61572222871cad35938d34951b0e9776451a1391fb29cc9980cbe415",
        "efficientnet-lite0-affine": "47a70f32627bcba2b3ccf47431b14e4118506a61c18ad4b8ac4879cd288e91cc",
    }
)


def tensors_objection(architecture: str, manifest: Manifest) -> str | None:
    """Say why no site could train a model of these tensors under this name; None when the two fit.

    Args:
        architecture: As a plan names it.
        manifest: Of the initial model.
    """
    digest = MANIFEST_DIGESTS.get(architecture)
    if digest is None:
        return f"expected an architecture of {', '.join(sorted(MANIFEST_DIGESTS))}, got {architecture!r}"
    if manifest.digest.hex() == digest:
        return None
    fitting = [name for name, other in MANIFEST_DIGESTS.items() if other == manifest.digest.hex()]
    of = f"those of {fitting[0]}" if fitting else "others"
    return (
        f"expected the tensors of {architecture} in the initial model, got {of}: name another file, or make one with "
        f"`hemofed-site init-weights --architecture {architecture}`"
    )
