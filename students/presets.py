"""The sizes a student is shipped in. Costs: ``python -m benchmarks.students``."""

from students.model import StudentConfig

NANO = StudentConfig()
"""For phones of today and yesterday, and for the judge: narrow, no squeeze-and-excitation, which some runtimes lack."""

SMALL = StudentConfig(
    channels=(16, 16, 24, 40, 80, 200),
    depths=(1, 2, 3, 5, 6),
    expansions=(1, 3, 3, 3, 4),
    kernels=(3, 3, 5, 5, 5),
    decoder=(48, 32, 24, 16),
)
"""For phones: a table like nano's with most of its weights at strides 16 and 32, no squeeze-and-excitation."""

BASE = StudentConfig(encoder="fbnetv3_b", decoder=(48, 32, 24, 16))
"""For laptops: timm's FBNetV3-B up to its fifth stage; ImageNet weights can be loaded."""

LARGE = StudentConfig(encoder="fbnetv3_g", decoder=(48, 32, 24, 16))
"""For desktops, or as the teacher of a smaller one: timm's FBNetV3-G; ImageNet weights can be loaded."""

PRESETS = {"nano": NANO, "small": SMALL, "base": BASE, "large": LARGE}
