"""Presets: a known tool's edges, padding, flip and Gaussian, so that a study can change tools and nothing else.

One line of `PRESETS` is a tool. A preset fills in what was not asked for: an option or a config key of the user's always wins,
and `-v` says where. What a tool does to *kernels* (flip, normalize) concerns kernel files, not conv3d's built-in ones, which
are named after what they compute. How its Gaussian is sampled is `kernels/sampling.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from conv3d_cli.errors import SpecError, unknown_name


@dataclass(frozen=True)
class Preset:
    """A tool's way of convolving.

    tool : str          what is followed, for people
    padding, boundary   as the options of these names
    nan : str           as --nan
    flip, normalize     of kernels from files
    sampling : str      of `gaussian` kernels: see kernels/sampling.py
    gaussian : bool     whether the tool has one of its own
    source : str        where it is stated
    """

    tool: str
    padding: str
    boundary: str
    sampling: str
    source: str
    nan: str = "propagate"
    flip: bool = False
    normalize: bool = False
    gaussian: bool = True


PRESETS = {
    "fsl": Preset(
        "fslmaths -s, -kernel file -fmean", "same", "renormalize", "fsl",
        "niimath 1e75bbf, core.c and coreFLT.c, made to equal fslmaths",
    ),
    "spm": Preset(
        "spm_smooth", "same", "renormalize-depth", "spm",
        "SPM12 spm_smooth.m, spm_smoothkern.m, spm_conv_vol.c", nan="zero",
    ),
    "afni": Preset(
        "3dmerge -1blur_fwhm", "same", "mirror-one", "afni",
        "afni edt_blur.c (fir_gaussian_load, fir_blurx)",
    ),
    "mrtrix": Preset(
        "mrfilter smooth", "same", "renormalize", "mrtrix",
        "MRtrix3 0547969, core/filter/smooth.h", nan="ignore",
    ),
    "nilearn": Preset(
        "nilearn.image.smooth_img", "same", "symmetric", "scipy",
        "nilearn 59fffa2, image/image.py", nan="zero",
    ),
    "scipy": Preset(
        "scipy.ndimage.gaussian_filter, convolve", "same", "symmetric", "scipy",
        "scipy 3dbf660, ndimage/_filters.py", flip=True,
    ),
    "itk": Preset(
        "itk::DiscreteGaussianImageFilter, ConvolutionImageFilter", "same", "nearest", "itk",
        "ITK itkGaussianOperator.hxx, itkConvolutionImageFilter.hxx 0d6557e", flip=True,
    ),
    "keras": Preset(
        "keras.layers.Conv3D", "valid", "zeros", "scipy",
        "keras 1353b11, layers/convolutional/conv3d.py", gaussian=False,
    ),
    "torch": Preset(
        "torch.nn.Conv3d", "valid", "zeros", "scipy",
        "torch.nn.Conv3d: padding=0, padding_mode='zeros'", gaussian=False,
    ),
    "imagej": Preset(
        "ImageJ Gaussian Blur 3D, Convolve", "same", "nearest", "imagej",
        "ImageJ GaussianBlur.java (makeGaussianKernel), Convolver.java", normalize=True,
    ),
    "wb": Preset(
        "wb_command -volume-smoothing", "same", "renormalize", "wb",
        "Workbench 02ae441, AlgorithmVolumeSmoothing.cxx",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Applied:
    """A preset as it was applied to a job.

    settings : dict     what it set, by the option's name
    yours : dict        what was asked for otherwise, and stayed
    remark : str        what the tool does not have
    """

    name: str
    settings: dict[str, Any]
    yours: dict[str, Any]
    remark: str = ""

    def __str__(self) -> str:
        """One line for `-v`.

        >>> str(Applied("wb", {"padding": "same"}, {"boundary": "zeros"}))
        'wb: padding same; yours instead: boundary zeros'
        """
        parts = [", ".join(f"{key} {value}" for key, value in self.settings.items()) or "nothing left to set"]
        if self.yours:
            parts.append("yours instead: " + ", ".join(f"{key} {value}" for key, value in self.yours.items()))
        return f"{self.name}: " + "; ".join([*parts, *([self.remark] if self.remark else [])])


def find_preset(name: str) -> Preset:
    """A preset by its tool's name.

    Raises: UnknownNameError.
    """
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name]


def apply_preset(
    name: str, stage: Mapping[str, Any], run: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], Applied]:
    """Arguments of a stage and of the run with what a preset sets beside them, and an account of it.

    stage, run : dict       what was asked for; a key that is there is the user's
    Raises: UnknownNameError.

    >>> stage, run, applied = apply_preset("fsl", {"kernel": "gaussian:fwhm=6mm", "padding": "valid"}, {})
    >>> stage["kernel"], stage["padding"], stage["boundary"]
    ('gaussian:fwhm=6mm:sampling=fsl', 'valid', 'renormalize')
    >>> applied.yours
    {'padding': 'valid'}
    """
    preset = find_preset(name)
    kernel = stage.get("kernel")
    wishes: dict[str, Any] = {"padding": preset.padding, "boundary": preset.boundary}
    remark = ""
    missing = run.get("mask") is not None or run.get("missing") is not None or run.get("nan") == "ignore"
    if preset.boundary == "renormalize-depth" and missing and "boundary" not in stage:
        wishes["boundary"], remark = "renormalize", "with a mask edges are renormalized along all axes"
    if _is_builtin(kernel):
        if preset.sampling != "scipy":
            wishes["sampling"] = preset.sampling
    else:
        # no tool here looks at the spacing of a kernel's file
        wishes |= {"flip": preset.flip, "normalize": preset.normalize, "kernel_spacing": "ignore"}
    new_stage, new_run = dict(stage), dict(run)
    settings: dict[str, Any] = {}
    yours: dict[str, Any] = {}
    for key, value in wishes.items():
        if key == "sampling":
            given = _gaussian_parameters(kernel)
            if given is None:
                continue
            kept = {k: v for k, v in given.items() if k in ("truncate", "sampling")}
            if kept:
                yours |= kept
                continue
            new_stage["kernel"] = f"{kernel}:sampling={value}"
        elif key in stage:
            if stage[key] != value:
                yours[key] = stage[key]
            continue
        else:
            new_stage[key] = value
        if value is not False:
            settings[key] = value
    if "nan" in run:
        if run["nan"] != preset.nan:
            yours["nan"] = run["nan"]
    elif preset.nan != "propagate" and "missing" not in run:
        new_run["nan"] = settings["nan"] = preset.nan
    if not preset.gaussian and _gaussian_parameters(kernel) is not None:
        remark = f"{name} has no Gaussian and no mm: it is sampled as conv3d does"
    return new_stage, new_run, Applied(name, settings, yours, remark)


def _is_builtin(kernel: Any) -> bool:
    from conv3d_cli.kernels import is_builtin  # late: it knows NumPy, and `--help` does without

    return isinstance(kernel, str) and is_builtin(kernel)


def _gaussian_parameters(kernel: Any) -> dict[str, str] | None:
    """Parameters of a `gaussian:...` text as written; None for another kernel."""
    if not isinstance(kernel, str):
        return None
    name, *pairs = (part.strip() for part in kernel.split(":"))
    if name != "gaussian":
        return None
    split = (pair.partition("=") for pair in pairs)
    return {key.strip(): value.strip() for key, _, value in split}


def refuse_stack(name: str, layers: int) -> None:
    """Raises: SpecError, since a preset is of one convolution."""
    if layers > 1:
        raise SpecError(f"--like {name} is for one convolution, and this is a stack of {layers} layers: leave it out")
