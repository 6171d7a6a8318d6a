"""Presets: a known tool's edges, padding, flip and Gaussian, so that a study can change tools and nothing else.

One line of `PRESETS` is a tool. A preset fills in what was not asked for: an option or a config key of the user's always wins,
and `-v` says where. What a tool does to *kernels* (flip, normalize) concerns kernel files, not conv3d's built-in ones, which
are named after what they compute. How its Gaussian is sampled is `kernels/sampling.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from conv3d_cli.errors import unknown_name


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
        parts = [
            ", ".join(f"{key} {value}" for key, value in self.settings.items())
            or "nothing left to set"
        ]
        if self.yours:
            parts.append(
                "yours instead: " + ", ".join(f"{key} {value}" for key, value in self.yours.items())
            )
        return f"{self.name}: " + "; ".join([*parts, *([self.remark] if self.remark else [])])


def find_preset(name: str) -> Preset:
    """A preset by its tool's name.

    Raises: UnknownNameError.
    """
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name]
