"""The files beside a checkpoint that belong to its exact weights: a reweighted prior, and a calibration of scores.

Each is a `.npz` file with a digest of its weights, which is the same wherever these weights lie.
"""

import json
import pathlib
import shlex
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from nvae_tf import schemas
from nvae_tf.models import NVAE
from nvae_tf.models import reweighted_prior as priors
from nvae_tf.models.outlier_scores import OutlierCalibration
from nvae_tf.progress import counted


def write_prior(file: pathlib.Path, model: NVAE, step: int, reweighted: priors.ReweightedPrior) -> None:
    """Writes a reweighted prior: `about`, JSON, and the weights of group g as `g/00`, `g/01`, ..."""
    arrays = {"about": np.array(json.dumps(reweighted.about))}
    for group, ratio in enumerate(reweighted.ratios):
        arrays |= {f"{group}/{number:02d}": array for number, array in enumerate(ratio.get_weights())}
    _write(file, model, step, arrays)


def read_prior(file: pathlib.Path, model: NVAE, step: int) -> priors.ReweightedPrior | str:
    """The reweighted prior of a model of this step; a text says why there is none."""

    def made() -> priors.ReweightedPrior:
        about, classes = read_about(file)[1], model.config.num_classes
        priors.check_settings(model, about["groups"], about["kind"], about["steps"], about["proposals"])
        ratios = priors.made_ratios(about["kind"], about["groups"], model.plan, classes, about.get("components", 1))
        for group, ratio in enumerate(ratios):
            shapes = {f"{group}/{number:02d}": weight.shape for number, weight in enumerate(ratio.weights)}
            fields = {name: schemas.Field("number", shape, -1e6, 1e6) for name, shape in shapes.items()}
            ratio.set_weights(list(schemas.read_arrays(file, fields).values()))
        return priors.ReweightedPrior(ratios, about["proposals"], classes, about)

    if not file.is_file():
        return priors.NONE_LEARNED.replace("RUN", shlex.quote(str(file.parent)))
    return _read(file, model, step, "nvae-prior", made)


def read_about(file: pathlib.Path) -> tuple[int, dict[str, Any]]:
    """The step of the weights that a prior was learned for, and its `about`; raises what `read_arrays` raises."""
    arrays = schemas.read_arrays(file, schemas.PRIOR)
    return int(arrays["step"]), schemas.parsed(str(arrays["about"]), schemas.ABOUT)


def prior_text(about: dict[str, Any]) -> str:
    """One line for people: which prior was learned, and its measurements."""
    text = f"mixture of {about.get('components')} Gaussians of the top group"
    if about["kind"] != "mixture":
        proposals = priors.proposals_of_groups(about["proposals"], about["groups"])
        entropy, effective = _numbers(about["cross_entropy"]), _numbers(about["effective_proposals"], 1)
        text = f"classifier of the top {counted(about['groups'], 'group')}: cross-entropy of test images {entropy} "
        text += f"(chance {priors.CHANCE:.3f}); of {_numbers(proposals, 0)} proposals {effective} effective"
    if bounds := about.get("bounds"):
        measured = f"{counted(bounds['images'], 'test image')}, {counted(bounds['samples'], 'sample')}"
        log_z, error = (np.mean(about[name]) for name in ("log_normalizers", "log_normalizer_errors"))
        text += f"; importance-weighted bound of {measured}: {bounds['reweighted']:.2f} nats instead of "
        text += f"{bounds['model']:.2f}, log Z {log_z:.3f} with a standard error of {error:.3f}"
    return text


def _numbers(values: Iterable[float], places: int = 3) -> str:
    return ", ".join(f"{value:.{places}f}" for value in values)


def write_calibration(file: pathlib.Path, model: NVAE, step: int, calibration: OutlierCalibration) -> None:
    """Writes the arrays of a calibration by their names."""
    _write(file, model, step, vars(calibration))


def read_calibration(file: pathlib.Path, model: NVAE, step: int) -> OutlierCalibration | str | None:
    """The calibration of a model of this step; None without a file, and a text where it can't be used."""

    def made() -> OutlierCalibration:
        arrays = schemas.read_arrays(file, schemas.CALIBRATION, {"numbers": model.plan.num_groups + 1})
        types = {"mean": np.float64, "covariance": np.float64, "kl": np.float32, "mahalanobis": np.float32}
        arrays = {name: arrays[name].astype(kind) for name, kind in types.items()}
        if not np.allclose(arrays["covariance"], arrays["covariance"].T):
            raise ValueError("its covariance is not symmetric")
        np.linalg.cholesky(arrays["covariance"])  # a ValueError where it is not positive definite
        return OutlierCalibration(**arrays)

    return _read(file, model, step, "nvae-calibrate", made) if file.is_file() else None


def _write(file: pathlib.Path, model: NVAE, step: int, arrays: dict[str, np.ndarray]) -> None:
    schemas.write_arrays(file, arrays | {"step": np.array(step), "weights_sha256": np.array(model._weights_sha256())})


def _read(file: pathlib.Path, model: NVAE, step: int, command: str, make: Callable[[], Any]) -> Any:
    """The result of `make`, which reads a file; a text where the file is damaged or of other weights."""
    fix = f"make it anew by `{command} --workdir={file.parent}`, or delete it"
    try:
        with tf.init_scope():  # the file may be read while a graph is traced
            owner = schemas.read_arrays(file, schemas.OWNER)
            if str(owner["weights_sha256"]) == model._weights_sha256():
                return make()
    except (OSError, ValueError) as error:
        return f"{file}: damaged, or of another version of this package ({error}); {fix}"
    return f"{file}: of other weights, from step {int(owner['step']):,}; the model is of step {step:,}; {fix}"
