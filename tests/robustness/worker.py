"""What a process of its own does, which reads mutants one after another as the commands do.

Its answer is what was read, as sums over the numbers, or the error of a kind that commands report in a line, or a
traceback. A minute for one mutant ends the process, which then writes where it was.
"""

import faulthandler
import functools
import gc
import hashlib
import os
import pathlib
import resource
import shutil
import traceback
import warnings

from nvae_tf.errors import start_tensorflow_quietly
from tests.forked import without_stack_traces

SECONDS, GIGABYTES = 60, 3


def digest(named) -> str:
    total = hashlib.sha256()
    for name, value in sorted(named):
        total.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
    return total.hexdigest()


def numbered(step, variables) -> str:
    return f"{step} {digest((str(number), value.numpy()) for number, value in enumerate(variables))}"


def once(build):
    """Builds models of the same settings once, which takes the most time of a mutant, and gives them as they were."""

    @functools.lru_cache(8)
    def built(*settings, **others):
        result = build(*settings, **others)
        # A model, or what training makes.
        model = getattr(result, "model", result)
        if model is not result:
            model.optimizer.build(model.trainable_variables)
        variables = [*model.variables, *getattr(getattr(model, "optimizer", None), "variables", ())]
        return result, model, [(variable, variable.numpy()) for variable in variables]

    def as_new(*settings, **others):
        result, model, start = built(*settings, **others)
        for variable, value in start:
            variable.assign(value)
        # What is read when it is first used.
        for name in ("reweighted_prior", "outlier_calibration"):
            vars(model).pop(name, None)
        return result

    return as_new


def reader_of_published(base: pathlib.Path):
    import tensorflow as tf

    from nvae_tf.published import conversion as importing

    importing.model_for_training = once(importing.model_for_training)

    def read(path):
        output = path.parent / "imported"
        try:
            imported = importing.import_run(path, output)
            reader = tf.train.load_checkpoint(str(output / "checkpoints" / f"step-{imported.step}"))
            # Published files lack the spectral vectors.
            names = [name for name in reader.get_variable_to_shape_map() if name.startswith(("model/b", "model/t"))]
            return {"imported": digest((name, reader.get_tensor(name)) for name in names)}
        finally:
            shutil.rmtree(output, ignore_errors=True)

    return read


def reader_of_shared(base: pathlib.Path):
    """The weights and settings, what lies beside them, and what the model card says."""
    from nvae_tf.config import config_to_json
    from nvae_tf.generation.latents_file import load_latents
    from nvae_tf.reports.model_card import gather
    from nvae_tf.reports.page import read_curves
    from nvae_tf.runs import loading
    from nvae_tf.runs.run_folder import RunFolder

    loading.NVAE = once(loading.NVAE)

    def prior(model):
        reweighted = model.reweighted_prior
        if isinstance(reweighted, str):
            raise ValueError(reweighted)
        weights = [weight for ratio in reweighted.ratios for weight in ratio.weights]
        return numbered(f"{reweighted.proposals} {reweighted.about}", weights)

    def outliers(model):
        calibration = model.outlier_calibration
        if not hasattr(calibration, "kl"):
            raise ValueError(calibration or f"{model.read_calibration.args[0]}: missing")
        return digest(vars(calibration).items())

    def read(path):
        gather(RunFolder(path))
        read_curves(RunFolder(path))
        run = loading.load_run(path)
        networks = [*run.model.bottom_up.weights, *run.model.top_down.weights]
        return {
            "weights": numbered(run.step, networks),
            "settings": config_to_json(run.config),
            "prior": result_of(prior, run.model),
            "outliers": result_of(outliers, run.model),
            "latents": result_of(lambda: digest([("", load_latents(path / "latents.npz", run.model.plan).latents[0])])),
        }

    return read


def reader_of_exports(base: pathlib.Path):
    """What nvae-verify reads before it runs the export, and nvae-serving-files."""
    from nvae_tf.serving.outputs import DIGESTS, check_digests
    from nvae_tf.serving.server_files import _limits, explorer_facts
    from nvae_tf.serving.verification import read_record

    def read(path):
        check_digests(path)
        read_record(path)
        explorer_facts(path)
        _limits([path])
        files = sorted(file for file in path.rglob("*") if file.is_file() and file != path / DIGESTS)
        return {"": hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()}

    return read


def reader_of_run_folder(base: pathlib.Path):
    """What generation and evaluation, resumed training, the model card and the report read."""
    from nvae_tf.config import named_settings
    from nvae_tf.reports.model_card import gather, update_model_card
    from nvae_tf.reports.page import read_curves
    from nvae_tf.runs import loading
    from nvae_tf.runs.checkpoints import TrainingState
    from nvae_tf.runs.loading import model_for_training
    from nvae_tf.runs.run_folder import CHANGEABLE_SETTINGS, ImageCounts, MetricsFile, open_for_training

    loading.NVAE = once(loading.NVAE)
    config = loading.read_run_config(loading.RunFolder(base))
    made = model_for_training(config, steps_per_epoch=1, total_steps=config.objective.total_steps)
    made.model.optimizer.build(made.model.trainable_variables)

    def loaded(path, checkpoint):
        trained = loading.load_run(path, checkpoint)
        settings = named_settings(trained.config).items()
        kept = [setting for setting in settings if setting[0] not in CHANGEABLE_SETTINGS]
        return f"{numbered(trained.step, trained.model.weights)} {kept}"

    def resumed(path):
        folder = open_for_training(path, config)
        state = TrainingState(folder.checkpoints, made.model, 2, schedule=made.schedule)
        step = state.restore(warnings.warn)
        ImageCounts.read(folder.images_file)
        metrics = MetricsFile(folder.metrics_file)
        metrics.drop_after(step)
        if step in metrics.rows:
            float(metrics.rows[step]["test_nelbo_nats"])
        update_model_card(folder, made.model, warnings.warn)
        return numbered(step, [*made.model.weights, *made.model.optimizer.variables])

    def read(path):
        gather(loading.RunFolder(path))
        read_curves(loading.RunFolder(path))
        # In this order: training clears away what is damaged.
        results = {name: result_of(loaded, path, name) for name in ("latest", "best")}
        return results | {"resumed": result_of(resumed, path)}

    return read


def reader_of_pictures(base: pathlib.Path):
    import numpy as np
    import tensorflow as tf

    # Pipelines run eagerly: to make graphs of them takes the most time of a mutant.
    tf.data.experimental.enable_debug_mode()
    from nvae_tf.data.pipeline import evaluation_batches, iterate
    from nvae_tf.data.sources import load_split
    from tests.data.picture_factory import own_images

    def images_of(path, split, changes):
        spec = own_images(path, **changes)
        source = load_split(spec, split)
        batches = iterate(evaluation_batches(source, spec, 4, seed=0), source)
        images = np.concatenate([batch.numpy() for batch in batches])
        assert images.shape == (source.count, *spec.image_shape) and 0.0 <= images.min() <= images.max() <= 1.0
        return digest([("", images)])

    def read(path):
        # Scaled to the size that they have: then no size is refused by its header.
        ways = {"": {}, "scaled ": dict(resize="crop", height=12, width=12)}
        pairs = [(way, split) for way in ways for split in ("train", "test")]
        return {way + split: result_of(images_of, path, split, ways[way]) for way, split in pairs}

    return read


def result_of(read, *arguments):
    """What it returns, or, where that is an error which commands report in a line, `refused: ` and the line."""
    try:
        return read(*arguments)
    except (ValueError, OSError) as error:
        return f"refused: {error}"


def begin(kind: str, base: pathlib.Path, log: pathlib.Path) -> None:
    """Makes a new process one that reads mutants of a kind; what it writes goes into a file."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.dup2(2, 1)
    faulthandler.enable(2)
    gc.set_threshold(200_000, 20, 1000)
    start_tensorflow_quietly()
    without_stack_traces()
    global read
    read = globals()[f"reader_of_{kind}"](base)


def answer(path: pathlib.Path) -> dict:
    """What reading a mutant led to."""
    faulthandler.dump_traceback_later(SECONDS, exit=True, file=2)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", module="PIL")
        try:
            result = result_of(read, path)
            answered = {"results": result if isinstance(result, dict) else {"": result}}
        except BaseException:
            answered = {"traceback": traceback.format_exc()}
    faulthandler.cancel_dump_traceback_later()
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        # The first is sound and shows what the libraries reserve.
        most = (kilobytes("VmSize") << 10) + (GIGABYTES << 30)
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    warned_of = [str(warning.message) for warning in warned]
    return answered | {"warnings": warned_of, "gigabytes": kilobytes("VmHWM") / 2**20}


def kilobytes(name: str) -> int:
    return int(pathlib.Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0])
