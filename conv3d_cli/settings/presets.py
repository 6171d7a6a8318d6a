"""Presets: another tool's padding, boundary, flip and Gaussian.

With them, a study can change the tool and nothing else. Each entry of `PRESETS` is a tool. A preset
only fills in values that are not given: the user's options and config keys always win, and `-v`
lists them. The tool's flip and normalize apply to kernel files, not to built-in kernels, whose
names state what they compute. `kernels/sampling.py` samples the tools' Gaussians.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from conv3d_cli.errors import unknown_name


@dataclass(frozen=True)
class Preset:
    """How another tool convolves.

    tool : str                  the tool's commands or functions, for people to read
    padding, boundary : str     values of the options of these names
    sampling : str              sampling of `gaussian` kernels: see kernels/sampling.py
    source : str                the source code or manual that these values come from
    nan : str                   value of --nan
    flip, normalize : bool      values for kernel files
    gaussian : bool             whether the tool has a Gaussian of its own
    by_pixdim : bool            the tool measures voxels by NIfTI's pixdim, even beside a sform
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
    by_pixdim: bool = False


PRESETS = {
    "fsl": Preset(
        tool="fslmaths -s, -kernel file -fmean",
        padding="same",
        boundary="renormalize",
        sampling="fsl",
        source="niimath 1e75bbf, core.c and coreFLT.c, made to equal fslmaths",
        by_pixdim=True,
    ),
    "spm": Preset(
        tool="spm_smooth",
        padding="same",
        boundary="renormalize-depth",
        sampling="spm",
        source="SPM12 spm_smooth.m, spm_smoothkern.m, spm_conv_vol.c",
        nan="zero",
    ),
    "afni": Preset(
        tool="3dmerge -1blur_fwhm",
        padding="same",
        boundary="mirror-one",
        sampling="afni",
        source="afni edt_blur.c (fir_gaussian_load, fir_blurx)",
    ),
    "mrtrix": Preset(
        tool="mrfilter smooth",
        padding="same",
        boundary="renormalize",
        sampling="mrtrix",
        source="MRtrix3 0547969, core/filter/smooth.h",
        nan="ignore",
    ),
    "nilearn": Preset(
        tool="nilearn.image.smooth_img",
        padding="same",
        boundary="symmetric",
        sampling="scipy",
        source="nilearn 59fffa2, image/image.py",
        nan="zero",
    ),
    "scipy": Preset(
        tool="scipy.ndimage.gaussian_filter, convolve",
        padding="same",
        boundary="symmetric",
        sampling="scipy",
        source="scipy 3dbf660, ndimage/_filters.py",
        flip=True,
    ),
    "itk": Preset(
        tool="itk::DiscreteGaussianImageFilter, ConvolutionImageFilter",
        padding="same",
        boundary="nearest",
        sampling="itk",
        source="ITK itkGaussianOperator.hxx, itkConvolutionImageFilter.hxx 0d6557e",
        flip=True,
    ),
    "keras": Preset(
        tool="keras.layers.Conv3D",
        padding="valid",
        boundary="zeros",
        sampling="scipy",
        source="keras 1353b11, layers/convolutional/conv3d.py",
        gaussian=False,
    ),
    "torch": Preset(
        tool="torch.nn.Conv3d",
        padding="valid",
        boundary="zeros",
        sampling="scipy",
        source="torch.nn.Conv3d: padding=0, padding_mode='zeros'",
        gaussian=False,
    ),
    "imagej": Preset(
        tool="ImageJ Gaussian Blur 3D, Convolve",
        padding="same",
        boundary="nearest",
        sampling="imagej",
        source="ImageJ GaussianBlur.java (makeGaussianKernel), Convolver.java",
        normalize=True,
    ),
    "wb": Preset(
        tool="wb_command -volume-smoothing",
        padding="same",
        boundary="renormalize",
        sampling="wb",
        source="Workbench 02ae441, AlgorithmVolumeSmoothing.cxx",
    ),
}


@dataclass(frozen=True)
class Applied:
    """Account of a preset that was applied to a job.

    name : str          the preset's name
    settings : dict     values that the preset set, by option name
    yours : dict        given values that differ from the preset's and were kept
    remark : str        where conv3d cannot follow the tool; "" if it can
    """

    name: str
    settings: dict[str, Any]
    yours: dict[str, Any]
    remark: str = ""

    def __str__(self) -> str:
        """The account on one line, for `-v`.

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
    """The preset of a tool; its name may be in any case.

    Raises: UnknownNameError.

    >>> find_preset("FSL").boundary
    'renormalize'
    """
    if name.lower() not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name.lower()]
