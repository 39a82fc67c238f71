"""One small export and one server for all tests of this folder: writing and checking an export takes some seconds."""

import dataclasses
import pathlib
import types

import numpy as np
import pytest

from export import run_saved_model
from nvae_tf.config import ModelConfig
from nvae_tf.evaluation.outliers import calibrate
from nvae_tf.models import NVAE
from nvae_tf.models.reweighted_prior import ReweightedPrior, made_ratios
from nvae_tf.serving import verification
from nvae_tf.serving.saved_model import Origin, export_saved_model
from tests import forked
from tests.command_fixtures import made_once
from tests.serving.model_servers import PROTOCOLS, REAL_SERVER, real_servers, save_texts, served, with_few_warm_ups
from tests.tiny_model import shaken

SMALL = dict(num_groups_per_scale=1, num_channels_encoder=4, num_channels_decoder=4)
SMALL |= dict(num_preprocess_cells=1, num_postprocess_cells=1)
CELLS = dict(num_cells_per_group_encoder=1, num_cells_per_group_decoder=1, num_flows=1)
SIZE = dict(image_height=8, image_width=8, num_mixtures=2)
CONFIG = ModelConfig(**SIZE, **SMALL, **CELLS, num_latent_scales=2, num_latent_per_group=3)
PADDED = dict(image_height=6, image_width=6, image_channels=1, padded_height=8, padded_width=8)
EXAMPLES = np.random.default_rng(1).integers(0, 256, [16, 8, 8, 3], np.uint8)
CONDITIONAL_EXAMPLES = {"images": EXAMPLES, "labels": np.arange(16) % 3, "classes": np.array(["cat", "dog", "eel"])}
VANILLA_CONFIG = ModelConfig(**PADDED, **SMALL, num_bits=1, likelihood="bernoulli", num_latent_per_group=2)


def model_of(config, seed=1):
    """A model none of whose weights, running statistics included, is as it was initialized."""
    return shaken(NVAE(config, seed=seed, label_dropout=0.1))


def exported(*arguments, **settings):
    """Exports; what checks the numbers is a fork here, test_benchmarks.py has it as a process that starts anew."""

    def run(command, cwd, env, **_):
        (program := pathlib.Path(cwd, "program.py")).write_text(command[3])
        return forked.run([program, *command[4:]], cwd, env)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification, "subprocess", types.SimpleNamespace(run=run))
        export_saved_model(*arguments, **settings)


@pytest.fixture(scope="session")
def model():
    return model_of(CONFIG)


@pytest.fixture(scope="session")
def folder(model, tmp_path_factory):
    def export(folder):
        origin = Origin({"step": 1200}, {"nelbo_nats": 3.5}, examples={"images": EXAMPLES})
        exported(model, folder / "tiny" / "all", 3, origin=origin)

    return made_once(tmp_path_factory, "models", export) / "tiny" / "all" / "3"


@pytest.fixture(scope="session")
def run(folder):
    """`run(signature, **inputs)` through the session loader, in this process."""
    with run_saved_model.session_of(str(folder)) as run:
        yield run


@pytest.fixture(scope="session")
def conditional_model():
    """With classes, a reweighted prior and calibrated outlier scores."""
    model, rng = model_of(dataclasses.replace(CONFIG, num_classes=3, num_flows=0)), np.random.default_rng(0)
    ratios = made_ratios("classifier", 2, model.plan, 3)
    # Keras draws first weights anew in each process, and one process writes the export for all.
    for weight in (weight for ratio in ratios for weight in ratio.weights):
        weight.assign(rng.uniform(-0.1, 0.1, weight.shape))
    model.reweighted_prior = ReweightedPrior(ratios, 20, 3)
    calibrate(model, *(rng.random([count, 8, 8, 3], np.float32) for count in (60, 20)))
    return model


@pytest.fixture(scope="session")
def conditional_folder(conditional_model, tmp_path_factory):
    def export(folder):
        exported(conditional_model, folder / "all", 1, origin=Origin(examples=CONDITIONAL_EXAMPLES))

    return made_once(tmp_path_factory, "pets", export) / "all" / "1"


@pytest.fixture(scope="session")
def vanilla_model():
    return model_of(VANILLA_CONFIG)


@pytest.fixture(scope="session")
def texts_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts") / "1"
    save_texts(folder)
    return folder


@pytest.fixture(scope="session")
def local(folder, texts_folder, tmp_path_factory):
    """The server of this repository."""
    names = "sample", "encode", "decode", "reconstruct", "score", "encode_png"
    export = with_few_warm_ups(folder, tmp_path_factory.mktemp("local"), *names)
    with served("texts", texts_folder.parent) as texts, served("tiny", export.parent) as servers:
        yield servers._replace(texts=texts)


@pytest.fixture(scope="session", params=["local", "real"] if REAL_SERVER else ["local"])
def servers(request, folder, texts_folder, tmp_path_factory):
    if request.param == "local":
        yield request.getfixturevalue("local")
        return
    assert pathlib.Path(REAL_SERVER).is_file(), f"TF_MODEL_SERVER={REAL_SERVER}: no such file"
    with real_servers(folder.parent, texts_folder.parent, tmp_path_factory.mktemp("serving")) as servers:
        yield servers


@pytest.fixture(params=PROTOCOLS)
def protocol(request):
    return request.param


@pytest.fixture
def client(servers, protocol):
    with servers.client(protocol) as client:
        yield client
