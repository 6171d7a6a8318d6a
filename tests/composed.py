"""Operations made of convolutions that tests run: texts of each, and their kernels."""

from __future__ import annotations

# operation -> texts to try, each with the kernel of an operation that takes one
PSF = "gaussian:sigma=1.5,1,1vox:truncate=2"
CASES: dict[str, list[tuple[str, str | None]]] = {
    "deconvolve": [
        ("deconvolve:iterations=3", PSF),
        ("deconvolve:iterations=4:accelerate=yes:background=5:stop=1e-9", PSF),
        ("deconvolve:iterations=2:tv=0.005:start=data", PSF),
        ("deconvolve:method=butterworth", PSF),
        ("deconvolve:method=wiener:snr=20", PSF),
        ("deconvolve:method=wiener:snr=gcv", PSF),
    ],
    "local": [
        ("local:size=3", None),
        ("local:statistic=std:radius=4mm", None),
        ("local:statistic=zscore:sigma=2mm:ddof=1", None),
    ],
    "match": [("match", "expr:d+2*h-w*w:radius=2vox"), ("match:ignore=0", "log:sigma=1vox")],
    "ridges": [
        ("ridges:scales=2,4mm", None),
        ("ridges:scales=1,1.5vox:method=sato:polarity=dark", None),
        ("ridges:scales=3mm:method=jerman:tau=0.6", None),
        ("ridges:scales=0.8vox:method=meijering:c=120", None),
        ("ridges:scales=2mm:shape=plate:c=60:beta=0.7", None),
        ("ridges:scales=2,2.7,4mm:best_scale=yes", None),
    ],
    "tensor": [
        ("tensor:sigma=2mm:window=4mm", None),
        ("tensor:sigma=1vox:window=1.5vox:features=coherence,linearity,planarity", None),
        ("tensor:sigma=2mm:window=3mm:features=orientation,normal:orient=world", None),
        ("tensor:of=hessian:sigma=3mm:features=eigenvalues,orientation", None),
    ],
}


def words(text: str, kernel: str | None = None) -> list[str]:
    """A text as the command line of its command, without input and output.

    >>> words("local:size=3")
    ['local', '--size', '3']
    """
    name, *pairs = text.split(":")
    own = []
    for key, _, value in (pair.partition("=") for pair in pairs):
        own += [f"--{key.replace('_', '-')}", *([] if value == "yes" else [value])]
    return [name, *own, *(["-k", kernel] if kernel else [])]


# a command line for each
LINES = {name: words(*cases[0]) for name, cases in CASES.items()}
