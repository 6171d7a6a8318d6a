"""Words of other tools, and what to write here instead: `--force` is `--overwrite`.

Messages about unknown names look here first: the nearest name by its letters may be that of
another operation. To add a word, add it to its line, or a line. Standard library only.

Words are in lower case, with "-" for "_" and without leading dashes.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping


def _each(lines: Mapping[str, str]) -> dict[str, str]:
    """A table by word, from lines of several words that have the same cure."""
    return {word: cure for words, cure in lines.items() for word in words.split()}


# What to write instead of an option of another tool, then a remark in brackets. Braces hold an
# example of its value, for which messages put the value that was typed; behind a bar stands what
# the value names, if its words differ, too (see VALUES).
OPTIONS = _each(
    {
        "force f clobber y yes replace overwrite-existing exist-ok rewrite": "--overwrite",
        "s sigma-mm stdev stddev std sd sigmas": (
            "--sigma {2}mm or --sigma {2}vox (fslmaths and mrfilter count in mm, scipy in voxels)"
        ),
        "smooth smoothing smoothing-fwhm smooth-fwhm blur 1blur-fwhm blur-fwhm blur-sigma": (
            "--fwhm {6}mm or --sigma {2}vox"
        ),
        "gaussian gauss": "--fwhm {6}mm or -k gaussian:fwhm={6}mm",
        "truncate": "-k gaussian:sigma=2vox:truncate={4}",
        "voxel-size voxelsize vox-size vox pixel-size pixelsize zooms sampling calibration": (
            "--spacing {0.3,0.1,0.1um} (in depth,height,width order)"
        ),
        "background bg subtract-bg background-subtraction pedestal": (
            "--subtract-background {border}"
        ),
        "radius": "-k ball:radius={3}mm or -k box:size={3}",
        "mean box uniform fmean": "-k box:size={3}",
        "filter psf kernel-file kfile filter-file": "-k {FILE}",
        "mode edge edges border borders boundary-mode boundary-condition pad-mode extend bc": (
            "--boundary {nearest|boundary}"
        ),
        "padding-mode border-mode edge-mode": "--boundary {nearest|boundary}",
        "cval fill fill-value constant constant-values pad-value": "--boundary constant={0}",
        "pad pads pad-width": (
            "--padding {N} or --boundary nearest (how many voxels, and what they hold)"
        ),
        "output-dir outdir output-folder out-folder output-directory outputdir odir dest-dir d": (
            "--out-dir {DIR}"
        ),
        "out outfile output-file dest destination out-file save to": "-o {OUT}",
        "postfix append out-suffix": "--suffix {TEXT}",
        "nthreads n-threads num-threads numthreads omp-nthreads nt cpus ncpus cores n-cores": (
            "-j {N}"
        ),
        "n-jobs njobs n-procs nprocs num-workers n-workers parallel processes p": (
            "--jobs {N} or -j {N} (volumes at a time, and threads)"
        ),
        "mem memory ram max-mem mem-mb mem-gb memory-limit memory-gb limit-memory": (
            "--max-memory {2G}"
        ),
        "type odt ot dt datatype data-type out-type output-type output-dtype out-dtype": (
            "--dtype {float32|dtype}"
        ),
        "stride step steps subsample downsample shrink": "--strides {N}",
        "dilation dilations dilate atrous": "--dilation-rate {N}",
        "convolve true-convolution flip-kernel rotate-kernel": "--flip",
        "norm normalise normalize-kernel kernel-norm unit-sum": "--normalize",
        "roi fmask 1fmask brain-mask mask-file mas mask-img m": "--mask {FILE}",
        "nan-policy nan-treatment nan-mode nans": "--nan {ignore|nan}",
        "ignore-nan skipna skip-nan ignore-nans": "--nan ignore",
        "nodata no-data missing-value": "--missing {-1}",
        "recurse recursively": "-r",
        "include pattern match": "--glob {PATTERN}",
        "skip if-newer no-clobber nc no-overwrite": "--skip-existing",
        "continue restart": "--resume",
        "n dryrun simulate just-print check-only test": "--dry-run",
        "silent": "-q",
        "debug info verbosity": "-v",
        "compress codec": "--compression {deflate|compression}",
        "gzip": "-o OUT.nii.gz or --compression deflate (of NIfTI, and of TIFF pages)",
        "compression-level compress-level clevel complevel level gzip-level": "--gz-level {N}",
        "chunk chunk-size chunksize chunk-shape": "--chunks {N}",
        "pyramid multiscale nlevels n-levels num-levels max-layer": "--levels {N}",
        "downsampling downsample-method downsampling-method scaler": "--levels-by {mean}",
        "out-format output-format oformat ext extension": "--format {.nii.gz}",
        "preset compat compatible as software tool": "--like {fsl|preset}",
        "method algo engine": "--algorithm {fft|algorithm}",
        "fft use-fft": "--algorithm fft",
        "float64 double fp64": "--precision float64",
        "act": "--activation {NAME}",
        "group": "--groups {N}",
        "out-channels output-channels nfilters n-filters num-filters": "--filters {N}",
        "size ksize": "-k box:size={3} or --kernel-size {3} (of a layer)",
        "label": "--desc {LABEL}",
        "html": "--report {PAGE}",
        "provenance": "--sidecar",
        "validate check": "--verify {N}",
        "random-state random-seed rng": "--seed {N}",
        "params parameters settings yaml toml": "-c {FILE}",
        "axis dims dimension-order axis-order": "--axes {LETTERS}",
        "filelist file-list list csv tsv table input-list": "--manifest {FILE}",
        "dask cluster client address": "--scheduler {ADDRESS}",
        "channel select-channels": "--channels {N}",
        "arg-max segment segmentation": "--argmax",
        "roi-size patch-size window-size sliding-window": "--patch {D,H,W}",
        "tile-step-size step-size": "--overlap {F}",
        "sigma-scale blend-mode": "--blend gaussian",
        "output-layer output-node head": "--output-name {NAME}",
        "zscore z-score standardize standardise": "--normalize-input zscore",
        "minmax min-max": "--normalize-input minmax",
    }
)

# Options of other tools for which there is nothing here, and what to do.
ABSENT = _each(
    {
        "i in input infile input-file in-file": "write the volume's name alone, without an option",
        "gpu cuda device": "there is no engine for GPUs; see `conv3d help gpu`",
        "version": "`conv3d --version` tells the version",
        "citation cite": "`conv3d --cite` tells how to cite",
    }
)

# What to type instead of `conv3d WORD`.
COMMANDS = _each(
    {
        "smooth convolve conv conv3d filter blur run smoothing gaussian mrfilter": "apply",
        "header headers stats stat identify mrinfo fslinfo fslhd ls meta": "info",
        "diff cmp difference": "compare",
        "show plot display image png mrview": "view",
        "plan estimate dry-run cost": "explain",
        "kernels": "kernel list",
        "make": "kernel make",
        "copy cp export translate": "convert",
        "like preset tools": "presets",
        "repeat redo replay reproduce": "rerun",
        "benchmark time timeit": "bench",
        "compile cache precompile": "warmup",
        "man manual docs doc": "help",
        "version": "--version",
        "cite citation": "--cite",
    }
)

# Words for a value, by what the value is. Each names one value here.
VALUES: dict[str, dict[str, str]] = {
    "boundary": _each(
        {
            "edge replicate clamp border nn repeat extrapolate zero-flux": "nearest",
            "zero 0 black zero-padding zeropad fill": "zeros",
            "periodic circular grid-wrap cyclic": "wrap",
            "grid-mirror half-sample reflect-half": "symmetric",
            "whole-sample reflect101 reflect-101": "mirror",
            "grid-constant const value": "constant=0",
            "normalize normalized renormalise": "renormalize",
        }
    ),
    "normalize_input": _each(
        {
            "z-score standard standardize standardise": "zscore",
            "min-max range": "minmax",
            "percentiles quantile quantiles": "percentile",
        }
    ),
    "blend": _each({"gauss gaussian-weights": "gaussian", "uniform mean average": "constant"}),
    "padding": _each({"same-upper upper": "same", "lower": "same_lower", "none no": "valid"}),
    "preset": _each(
        {
            "fslmaths niimath": "fsl",
            "spm12 spm8 spm25": "spm",
            "3dmerge": "afni",
            "mrtrix3 mrfilter": "mrtrix",
            "smooth-img": "nilearn",
            "ndimage scipy.ndimage": "scipy",
            "simpleitk sitk": "itk",
            "tensorflow tf": "keras",
            "pytorch": "torch",
            "fiji": "imagej",
            "workbench wb-command connectome hcp": "wb",
        }
    ),
    "kernel": _each(
        {
            "gauss blur smooth smoothing gaussian-blur gaussian-filter gaussian3d": "gaussian",
            "mean average uniform cube boxcar uniform-filter": "box",
            "sphere disk disc spherical": "ball",
            "laplace": "laplacian",
            "gaussian-laplace laplacian-of-gaussian marr mexican-hat": "log",
            "difference-of-gaussians difference-of-gaussian": "dog",
            "delta dirac impulse": "identity",
            "diff grad": "gradient",
            "unsharp-mask": "unsharp",
            "formula expression": "expr",
        }
    ),
    "parameter": _each(
        {
            "std stdev stddev sd s sig": "sigma",
            "width full-width": "fwhm",
            "r": "radius",
            "k ksize kernel-size": "size",
            "axes dim direction": "axis",
            "trunc": "truncate",
        }
    ),
    "dtype": _each(
        {
            "float single f4 float-32 fp32": "float32",
            "double f8 float-64 fp64": "float64",
            "half f2 fp16 float16": "float32",
            "uchar byte char u1 ubyte": "uint8",
            "short i2": "int16",
            "ushort u2": "uint16",
            "int i4 int-32": "int32",
            "uint u4 uint-32": "uint32",
            "input as-input keep original src native": "same",
        }
    ),
    "precision": _each({"single float f4": "float32", "double f8": "float64"}),
    "compression": _each(
        {"gzip gz zip zlib adobe-deflate lzw lossless yes": "deflate", "zst": "zstd", "no": "none"}
    ),
    "nan": _each(
        {"skip omit interpolate drop": "ignore", "fill zeros 0": "zero", "raise": "error"}
    ),
    "algorithm": _each({"fftconvolve overlap-save": "fft", "best fastest": "auto"}),
    "unit": _each(
        {"px pixel pixels voxel voxels v": "vox", "micron microns": "um", "millimeter": "mm"}
    ),
}


def plain_word(word: object) -> str:
    """A word as the tables write it.

    >>> plain_word("--n_jobs"), plain_word("Edge")
    ('n-jobs', 'edge')
    """
    return str(word).strip().lstrip("-").lower().replace("_", "-")


def own_option(word: str, value: str = "") -> str:
    """What to write instead of an option of another tool; "" if it is in no table.

    value : str     the value that was typed with it; "" if there was none

    >>> own_option("--mode", "edge"), own_option("-s", "3"), own_option("--force")[:11]
    ('--boundary nearest', '--sigma 3mm or --sigma 3vox (fslmaths and ...', '--overwrite')
    """

    def fill(found: re.Match[str]) -> str:
        example, kind = found[1], found[3] or ""
        typed = own_value(kind, value) or value
        fits = value and not (example[-1].isdigit() and not typed[-1].isdigit())
        return typed if fits else example

    return re.sub(r"\{([^}|]+)(\|(\w+))?\}", fill, OPTIONS.get(plain_word(word), ""))


def own_key(word: object, known: Container[str]) -> str:
    """The key of a config, or the column of a manifest, that another tool's option stands for.

    >>> own_key("mode", ["boundary"]), own_key("force", ["boundary"])
    ('boundary', '')
    """
    found = re.match(r"--([a-z-]+)", OPTIONS.get(plain_word(word), ""))
    key = found[1].replace("-", "_") if found else ""
    return key if key in known else ""


def own_value(kind: str, word: object, known: Container[str] | None = None) -> str:
    """The value here that another tool's word stands for; "" if there is none.

    kind : str      what the value is: "boundary", "kernel", ...; one of `VALUES`
    known : names that are allowed, or None for any

    >>> own_value("boundary", "edge"), own_value("kernel", "psf")
    ('nearest', '')
    """
    found = VALUES.get(kind, {}).get(plain_word(word), "")
    return found if known is None or found.partition("=")[0] in known else ""
