"""OMNIGLOT as Burda et al. 2016 published it ("Importance weighted autoencoders"): a MATLAB file, `chardata.mat`."""

import math
import pathlib

import numpy as np
import scipy.io

from nvae_tf.data.geometry import check_array, fit_array
from nvae_tf.data.image_sources import ArraySource, ImageSource, check_memory
from nvae_tf.data.picture_files import PictureHeader
from nvae_tf.data.reports import Report
from nvae_tf.data_spec import DataSpec
from nvae_tf.errors import first_line

_FILE_NAME = "chardata.mat"
_VARIABLES = {"train": "data", "test": "testdata"}
_SIZE = 28


def first_image(spec: DataSpec) -> PictureHeader:
    """What the images are like: 28x28, gray, 8 bits."""
    del spec
    return PictureHeader(_SIZE, _SIZE, 1, 8)


def load(spec: DataSpec, split: str, report: Report) -> ImageSource:
    """Reads one part into memory.

    The file has an image a column, with intensities from 0 to 1; they are multiplied by 255 and cut to whole numbers,
    as in the published model.

    Args:
        spec: a spec with source "mat"; `path` is the file, or the folder where `chardata.mat` lies.
        split: "train" or "test".
        report: not used; reading takes a moment.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a MATLAB file, or has other contents.
    """
    del report
    path = pathlib.Path(spec.path)
    file = path / _FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; docs/data.md says where it comes from")
    variable = _VARIABLES[split]
    shape = _shape(file, variable)
    form = f"{file}: variable {variable!r} is {list(shape)}; it must be [{_SIZE**2}, images], from 0 to 1"
    if len(shape) != 2 or shape[0] != _SIZE**2 or not shape[1]:
        raise ValueError(form)
    check_memory(math.prod(shape) * 8, f"{file}: its images", "get the file anew")
    try:
        columns = scipy.io.loadmat(file, variable_names=[variable])[variable]
    except Exception as error:
        raise _damaged(file, error) from None
    is_plain = isinstance(columns, np.ndarray) and columns.shape == shape and columns.dtype.kind in "fiu"
    if not is_plain or not (columns.min() >= 0.0 and columns.max() <= 1.0):
        raise ValueError(form)
    images = columns.reshape(_SIZE, _SIZE, -1).transpose(2, 1, 0)
    images = (images * 255).astype(np.uint8)[..., np.newaxis]
    check_array(images, spec, file)
    return ArraySource(fit_array(images, spec))


def _shape(file, variable):
    """The shape of a variable by its header, before anything is unpacked."""
    try:
        shapes = {name: shape for name, shape, _ in scipy.io.whosmat(file)}
    # SciPy raises many kinds of errors for damaged files.
    except Exception as error:
        raise _damaged(file, error) from None
    if variable not in shapes:
        raise ValueError(f"{file}: has no variable {variable!r}; it is not the {_FILE_NAME} of Burda et al.")
    return tuple(shapes[variable])


def _damaged(file, error):
    return ValueError(f"{file}: not a whole MATLAB file ({first_line(error)}); get it anew")
