import hashlib
import json
import pathlib
import re
import shutil

import huggingface_hub
import numpy as np
import pytest
import tensorflow as tf
from huggingface_hub import constants

import nvae_tf
from nvae_tf import command_line
from nvae_tf.config import DataSpec, ExperimentConfig, OptimizerConfig, TrainConfig
from nvae_tf.evaluation.outliers import calibration_of
from nvae_tf.files import beside_package
from nvae_tf.generation.image_grid import read_images
from nvae_tf.models.outlier_scores import OutlierParts
from nvae_tf.optimization import average_of_weights, start_averages
from nvae_tf.reports import publishing
from nvae_tf.reports.evaluate import evaluate_run
from nvae_tf.reports.publishing import publish_run, write_shared_run
from nvae_tf.runs import sharing
from nvae_tf.runs.checkpoints import TrainingState, checkpoint_sha256, named_weights
from nvae_tf.runs.companions import write_calibration
from nvae_tf.runs.loading import load_run, model_for_training
from nvae_tf.runs.run_folder import Origin, RunFolder, open_for_training, origin_of_run, read_run_config
from nvae_tf.runs.sharing import find_run_folder
from nvae_tf.training.run import initialize
from tests import refuses
from tests.command_fixtures import output_of, quiet
from tests.hub_server import GATED, READER, TOKEN, HubServer, commit_id
from tests.tiny_model import assert_same, tiny_config

# Where things lie on somebody's machine.
PRIVATE = "/home/somebody"


def network_of(model):
    """Its weights and running statistics."""
    weights = named_weights(model).items()
    return {name: weight.numpy() for name, weight in weights if name.startswith(("bottom_up/", "top_down/"))}


def save(folder, config, step):
    """Writes a checkpoint of random weights; the moving averages are others."""
    model = model_for_training(config, steps_per_epoch=10, total_steps=100).model
    model.optimizer.build(model.trainable_variables)
    start_averages(model)
    random = np.random.RandomState(step)
    for variable in [*model.weights, *average_of_weights(model).values()]:
        variable.assign(random.uniform(0.1, 1.0, variable.shape))
    TrainingState(folder.checkpoints, model, 1).save(step)
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder as training and evaluation leave it, with places of a machine wherever there may be some."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "mine")
    config = ExperimentConfig(
        model=tiny_config(num_latent_scales=1, num_flows=1),
        optimizer=OptimizerConfig(ema_momentum=0.9, warmup_epochs=1.0),
        data=DataSpec(name="mine", source="folder", path=f"{PRIVATE}/pictures", cache=f"{PRIVATE}/cache"),
        train=TrainConfig(initialize_from=f"{PRIVATE}/runs/first", steps=100),
    )
    open_for_training(folder.path, config)
    save(folder, config, 7)
    folder.samples.mkdir()
    for step in (3, 7):
        (folder.samples / f"step-{step:08d}.png").write_bytes(b"picture %d" % step)
    folder.images_file.write_text('{"train": 9, "test": 2}\n')
    folder.metrics_file.write_text("step,learning_rate\n7,0.01\n")
    (folder.path / "report.html").write_text(PRIVATE)
    (folder.path / ".lock").write_text(PRIVATE)
    scores = {"dataset": "mine", "data": f"{PRIVATE}/pictures", "split": "test", "checkpoint": "latest", "seed": 0}
    scores |= {"step": 7, "nelbo_nats": 5.0, "num_images": 2}
    scores["checkpoint_sha256"] = checkpoint_sha256(str(folder.checkpoints / "step-7"))
    folder.evaluation_file("test").write_text(json.dumps(scores))
    folder.evaluation_file("train").write_text(json.dumps(scores | {"split": "train", "checkpoint_sha256": "another"}))
    parts = OutlierParts(np.random.rand(50), np.random.rand(50, 1).astype(np.float32), None)
    write_calibration(folder.outliers_file, load_run(folder.path).model, 7, calibration_of(parts, parts))
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = HubServer()
    server.use_here(monkeypatch, tmp_path / "home")
    yield server
    server.close()


def digests(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_command_that_copies_a_shared_run_can_be_typed(tmp_path, monkeypatch):
    (tmp_path / "a b" / "digits").mkdir(parents=True)
    monkeypatch.setattr(sharing, "_BUNDLED", tmp_path / "a b")
    assert sharing.copy_command("digits") == f"cp -r '{tmp_path}/a b/digits' runs/digits"
    assert sharing.copy_command("hf://me/x@v 2") == "hf download me/x --local-dir=runs/x '--revision=v 2'"


@pytest.mark.slow
def test_there_and_back(run, hub, monkeypatch, tmp_path):
    written = {}

    def noting(*arguments):
        result = write_shared_run(*arguments)
        written.update(digests(arguments[1]))
        return result

    monkeypatch.setattr(publishing, "write_shared_run", noting)
    published = publish_run(run.path, "me/tiny")
    assert (published.url, published.step, published.has_scores) == (f"{hub.endpoint}/me/tiny", 7, True)
    on_hub = {name: hashlib.sha256(content).hexdigest() for name, content in hub.files("me/tiny").items()}
    assert written == {name: digest for name, digest in on_hub.items() if name != ".gitattributes"}
    assert len(written) == published.num_files > 8
    folder = find_run_folder("hf://me/tiny")
    assert digests(folder) == written
    commits = [path for method, path in hub.requests if "/commit/" in path]
    assert commits == ["/api/models/me/tiny/commit/main"]
    # What was published meanwhile is not overwritten.
    listed = huggingface_hub.HfApi.list_repo_files

    def another_publishes(self, *arguments, **settings):
        names = listed(self, *arguments, **settings)
        hub.repos["me/tiny"].append(hub.files("me/tiny") | {"checkpoints/step-8.index": b"newer"})
        return names

    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub.HfApi, "list_repo_files", another_publishes)
        assert "A commit has happened since" in fault_of(publish_run, run.path, "me/tiny")
    assert hub.repos["me/tiny"].pop()["checkpoints/step-8.index"] == b"newer"
    # Training begins with these weights, but does not go on.
    made = model_for_training(read_run_config(run), steps_per_epoch=10, total_steps=100).model
    made.optimizer.build(made.trainable_variables)
    with pytest.raises(ValueError, match=f"can't continue from it; .*initialize_from={folder}"):
        TrainingState(RunFolder(folder).checkpoints, made, 1).restore()
    _, report = initialize(made, "hf://me/tiny")
    assert report.startswith("Starts from hf://me/tiny, step 7, moving averages (EMA) of the weights: all ")
    assert_same(network_of(made), network_of(nvae_tf.load(run.path)))
    # It can be shared from the cache of the Hub, whose files are links.
    publish_run("hf://me/tiny", "me/again")
    assert hub.files("me/again")["samples/step-00000007.png"] == b"picture 7"
    # No connection is needed from now on.
    hub.broken = True
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert find_run_folder("hf://me/tiny") == folder


def test_what_is_shared(run, tmp_path, monkeypatch):
    shared, hashed = RunFolder(tmp_path / "tiny"), []

    def noting(prefix):
        hashed.append(prefix)
        return checkpoint_sha256(prefix)

    monkeypatch.setattr(publishing, "checkpoint_sha256", noting)
    write_shared_run(run.path, shared.path, "hf://me/tiny")
    # Each once: they may be gigabytes.
    assert len(hashed) == len({*hashed}) == 2
    names = "README.md checkpoints/config.json checkpoints/step-7.data-00000-of-00001 checkpoints/step-7.index"
    others = "config.json evaluation.json images.json metrics.csv origin.json outliers.npz samples/step-00000007.png"
    assert sorted(digests(shared.path)) == f"{names} {others}".split()
    assert shared.recorded_config_file.read_bytes() == shared.config_file.read_bytes()
    assert not [name for name in digests(shared.path) if PRIVATE.encode() in (shared.path / name).read_bytes()]
    config = read_run_config(shared)
    assert (config.data.path, config.data.cache, config.train.initialize_from) == (None, None, None)
    assert config.model == read_run_config(run).model
    assert json.loads(shared.origin_file.read_text()) == {"source_file": "first"}
    scores, shared_run = json.loads(shared.evaluation_file().read_text()), load_run(shared.path)
    # The calibration of outlier scores holds for the weights, whichever files they are in.
    assert len(shared_run.model.outlier_calibration.kl) == 50
    assert scores["checkpoint_sha256"] == checkpoint_sha256(shared_run.checkpoint) and scores["nelbo_nats"] == 5.0
    card = shared.card_file.read_text()
    assert "nvae_tf.load('hf://me/tiny')" in card and "nvae-generate --workdir=hf://me/tiny" in card
    assert "`first`" in card and "(samples/step-00000007.png)" in card and "The license of the weights" in card
    # What the run says of its weights holds: they are the moving averages.
    assert shared_run.has_ema
    keys = tf.train.load_checkpoint(str(shared.checkpoints / "step-7")).get_variable_to_shape_map()
    assert {key.partition("/")[0] for key in keys} == {"model", "step", "_CHECKPOINTABLE_OBJECT_GRAPH"}


@pytest.mark.parametrize(
    ("name", "target"),
    [("samples/step-00000009.png", "/dev/null"), ("metrics.csv", "../../secret"), ("checkpoints", "secret.d")],
)
def test_no_link_out_of_a_run_is_followed_and_no_device_read(run, tmp_path, name, target):
    (tmp_path / "secret").write_text(PRIVATE)
    copy = RunFolder(tmp_path / "runs" / "copy")
    shutil.copytree(run.path, copy.path)
    shutil.copytree(run.checkpoints, tmp_path / "secret.d")
    link = copy.path / name
    if link.is_dir():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path / target if target.startswith("secret") else target)
    with pytest.raises((ValueError, FileNotFoundError), match=str(copy.path)) as error:
        write_shared_run(copy.path, tmp_path / "shared", "hf://me/tiny")
    assert "\n" not in str(error.value) and not (tmp_path / "shared").exists()


@pytest.mark.slow
def test_publishing_again_replaces_the_run_and_nothing_else(run, hub, tmp_path):
    later = RunFolder(tmp_path / "later")
    shutil.copytree(run.path, later.path)
    publish_run(later.path, "me/tiny")
    own = {"LICENSE", "notes.json", "mine/config.json", "samples/mine/step-1.png", "samples/mine.png"}
    own |= {"checkpoints/mine.txt", "checkpoints/step-7/notes.txt"}
    hub.files("me/tiny").update(dict.fromkeys(own, b"mine"))
    save(later, read_run_config(later), 9)
    (later.samples / "step-00000009.png").write_bytes(b"picture 9")
    assert not publish_run(later.path, "me/tiny").has_scores
    files = hub.files("me/tiny")
    assert own | {"checkpoints/step-9.index", "samples/step-00000009.png"} <= files.keys()
    assert not [name for name in files.keys() - own if "7" in name or name.startswith("evaluation")]
    assert load_run("hf://me/tiny").step == 9
    # The first one is still there, by its revision.
    assert load_run(f"hf://me/tiny@{commit_id('me/tiny', 1)}").step == 7


def fault_of(function, *arguments):
    """The one line of an error."""
    text = refuses("", function, *arguments, error=(OSError, ValueError))
    assert "\n" not in text and "hf_only" not in text
    return text


def test_what_can_not_be_fetched_is_said_in_one_line(hub, monkeypatch):
    hub.repos["me/other"] = [{"config.json": b"{}"}]
    for name, reason in (
        ("me/none", "Repository Not Found"),
        (GATED, "Access is restricted|Cannot access gated repo"),
        ("me/other@v2", "Revision Not Found"),
        ("me", "form is user/name"),
        ("a/b--c", "-- or .."),
    ):
        assert re.match(f"hf://{name}: .*{reason}", fault_of(nvae_tf.load, f"hf://{name}"))
    assert "no checkpoint in" in fault_of(nvae_tf.load, "hf://me/other")
    hub.repos["me/page"] = [{"README.md": b"a model"}]
    not_a_run = "--workdir=hf://me/page: not a run folder, it has no config.json"
    assert not_a_run in fault_of(command_line.run_folder, "hf://me/page")
    hub.broken = True
    for endpoint, reason in ((hub.endpoint, "answers with an error"), ("http://127.0.0.1:9", "can't be reached")):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        assert f"hf://me/none: the Hub {reason}" in fault_of(nvae_tf.load, "hf://me/none")


@pytest.mark.slow
def test_what_the_hub_does_not_take_is_said_in_one_line_without_the_token(run, hub, monkeypatch, tmp_path):
    for token, reason in (
        (READER, ".*you may not write here"),
        ("hf_onlyKnownToNobody", ".*log in by `hf auth login`, or set HF_TOKEN"),
        # One that the HTTP library can't send.
        (f"{TOKEN}\x0b{TOKEN}", "the token can't be sent"),
    ):
        monkeypatch.setenv("HF_TOKEN", token)
        assert re.match(f"hf://me/tiny: {reason}", fault_of(publish_run, run.path, "me/tiny"))
    assert "hf://me/tiny: the token can't be sent" in fault_of(find_run_folder, "hf://me/tiny")
    assert "its form is user/name" in fault_of(publish_run, run.path, "tiny")
    assert hub.repos.keys() == {GATED}
    # What is wrong with this machine is not blamed on the Hub.
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    hub.repos["me/tiny"] = [{"config.json": b"{}"}]
    fault = fault_of(find_run_folder, "hf://me/tiny")
    assert f"hf://me/tiny: {tmp_path}/file/hub" in fault and ": Not a directory; HF_HOME names another" in fault


def test_a_run_that_began_with_shared_weights_keeps_their_license(run, hub, tmp_path):
    hub.repos["me/first"] = [{"origin.json": b'{"license": "mit"}'}]
    tuned = RunFolder(tmp_path / "tuned")
    assert origin_of_run(tuned, "hf://me/first") == Origin("hf://me/first", license="mit")
    assert origin_of_run(tuned, "digits") == Origin("digits", license="apache-2.0")
    assert origin_of_run(tuned, "hf://me/none") is None


@pytest.mark.slow
def test_the_bundled_model_of_clothes_draws_a_class_from_its_reweighted_prior():
    place = find_run_folder("fashion")
    assert sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) <= 8_000_000
    run = load_run(place)
    assert run.class_names[7:] == ("sneaker", "bag", "ankle boot") and run.config.model.residual_scale == 0.3
    sneakers, bags = np.split(run.model.generate(8, labels=[7] * 4 + [8] * 4, seed=1, prior="reweighted").numpy(), 2)
    # A sneaker is in the lower half of the image, a bag fills it.
    assert sneakers[:, :10].mean() < 0.05 < bags[:, :10].mean()
    noise = np.random.default_rng(0).random([4, 28, 28, 1], np.float32)
    likely, unlikely = np.split(run.model.outlier_score(np.concatenate([sneakers, noise])).mahalanobis_p_value, 2)
    assert likely.min() > 0.1 and unlikely.max() < 0.01


@pytest.mark.slow
def test_the_bundled_model_is_as_good_as_its_scores_and_small(tmp_path, monkeypatch):
    place = find_run_folder("digits")
    assert place == beside_package("nvae_tf") / "pretrained" / "digits"
    assert sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) <= 1_500_000
    assert read_run_config(RunFolder(place)).train.steps == 1000
    shutil.copytree(place, tmp_path / "copy")
    recorded = json.loads((place / "evaluation.json").read_text())["nelbo_nats"]
    evaluate_run(tmp_path / "copy", ["elbo"])
    assert abs(json.loads((tmp_path / "copy" / "evaluation.json").read_text())["nelbo_nats"] - recorded) < 0.1
    assert_same([nvae_tf.load("digits").generate(2, seed=1)], [nvae_tf.load(tmp_path / "copy").generate(2, seed=1)])
    # It is no folder to write into.
    with pytest.raises(FileNotFoundError, match="digits: no such folder; give a run folder"):
        evaluate_run("digits", ["elbo"])
    # A folder of that name comes first.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert find_run_folder("digits") == pathlib.Path("digits")


@pytest.mark.slow
def test_a_run_goes_to_the_hub_and_back_and_the_token_is_in_no_file_or_output(finished_run, hub, done, tmp_path):
    workdir, home = finished_run[0], tmp_path / "home"
    of_hub = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_TOKEN": TOKEN}
    words = ["-m", "train.publish", f"--workdir={workdir}", "--repo=me/tiny"]
    printed = output_of(words, env=quiet() | of_hub, anew=True)
    assert f"Published {workdir}, step 60: {hub.endpoint}/me/tiny (" in printed
    assert 'without scores: nvae-evaluate has not measured this checkpoint). nvae_tf.load("hf://me/tiny")' in printed
    names = set(hub.files("me/tiny"))
    assert {"config.json", "README.md", "metrics.csv", "environment.json", "checkpoints/step-60.index"} <= names
    assert [name for name in names if name.startswith("samples/")] == ["samples/step-00000060.png"]
    drawing = ["--count=4", "--raw", "--seed=3"]
    for place, name in (("hf://me/tiny", "hub"), (workdir, "own")):
        printed += done("train.generate", f"--workdir={place}", f"--output={tmp_path / name}.png", *drawing)
    one, other = (read_images(tmp_path / f"{name}.png", 4, 2).astype(int) for name in ("hub", "own"))
    assert one.shape == (4, 4, 4, 1) and np.abs(one - other).max() <= 1
    files = [*home.rglob("*"), *tmp_path.glob("*.png"), *workdir.rglob("*")]
    contents = [file.read_bytes() for file in files if file.is_file()] + list(hub.files("me/tiny").values())
    assert len(contents) > 20 and not [content for content in contents if TOKEN.encode() in content]
    assert TOKEN not in printed
