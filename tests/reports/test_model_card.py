import dataclasses
import json
import pathlib
import re
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from nvae_tf.config import DataSpec, ExperimentConfig, ObjectiveConfig, TrainConfig
from nvae_tf.evaluation.likelihood import Likelihood
from nvae_tf.evaluation.table import interval
from nvae_tf.evaluation.task import EvaluationTask
from nvae_tf.latent_plan import latent_plan
from nvae_tf.progress import StatusLine
from nvae_tf.reports.evaluate import likelihood_metrics, write_evaluation
from nvae_tf.reports.model_card import MARKER, gather, update_model_card, write_model_card
from nvae_tf.runs.run_folder import Origin, open_for_training
from tests.tiny_model import tiny_config

SHA256 = "0123456789abcdef" * 4
IMPORTED = Origin("cifar10.pt", SHA256, "cc-by-nc-4.0", 60)
# What would end a quoted text, a table's cell, a comment, or a line.
AWKWARD = 'my "set": #1 | <b>\\ 100%\n---\n'
DATA = DataSpec(name="digits", source="bundled", source_name="digits", height=4, width=4, channels=1, num_bits=1)
CONFIG = ExperimentConfig(model=tiny_config(), data=DATA)
MODEL = SimpleNamespace(trainable_variables=[np.zeros((30, 40)), np.zeros(34)])


def new_folder(place, **changes):
    return open_for_training(place, dataclasses.replace(CONFIG, **changes))


def tuned(place, source):
    return new_folder(place, train=TrainConfig(initialize_from=str(source.path)))


def checkpoints(folder, *names):
    (folder.checkpoints / "best").mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder.checkpoints / f"{name}.index").touch()


def card(folder):
    write_model_card(folder)
    return folder.card_file.read_text("utf-8")


def metadata(folder):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", folder.card_file.read_text("utf-8"), re.DOTALL)[1])


def evaluate(folder, config=CONFIG, split="test", command=None, **measured):
    """Writes metrics of invented draws as train.evaluate does, the card too; returns those metrics."""
    random = np.random.default_rng(0)
    draws = random.uniform(5.0, 9.0, 40), random.uniform(0.0, 1.0, (40, 2, 2))
    draws += (1, 10, 50), random.uniform(4, 5, (40, 3)), random.uniform(1.0, 50.0, 40)
    likelihood = Likelihood(*draws)
    checkpoint = str(folder.checkpoints / "step-60")
    trained = SimpleNamespace(config=config, checkpoint=checkpoint, step=60, model=MODEL, has_ema=False)
    place = {"spec": config.data, "split": split, "source": SimpleNamespace(count=40), "data_sha256": "d"}
    devices = {"batch_size": 8, "seed": 3, "strategy": None, "workers": None, "status": StatusLine()}
    metrics = likelihood_metrics(likelihood, latent_plan(config.model), num_values=16)
    write_evaluation(EvaluationTask(folder, trained, SHA256, **place, **devices), metrics | measured, command)
    return json.loads(folder.evaluation_file(split).read_text())


def test_scores_are_those_of_the_file_and_say_how_they_were_made(tmp_path):
    folder = new_folder(tmp_path / "run")
    distance = dict(samples=5000, temperature=[0.7, 0.8], real_images=60, extractor="inception-2015-12-05 1a")
    distance |= dict(value=1e-05, extractor_is_published=False, batch_norm_iterations=9, batch_norm_shift="moved")
    # A file of another version lacks some of the provenance.
    old_metrics = evaluate(folder, split="train") | {"num_images": None, "step": None}
    folder.evaluation_file("train").write_text(json.dumps(old_metrics))
    private = dataclasses.replace(CONFIG, data=dataclasses.replace(DATA, source="folder", path="/home/me/digits"))
    commands = "nvae-evaluate --workdir=run", "nvae-evaluate --workdir=run --metrics=fid"
    for command in (commands[1], commands[0], commands[1]):
        metrics = evaluate(folder, private, fid=distance, command=command)
    (index,) = metadata(folder)["model-index"]
    test, train = index["results"]
    assert index["name"] == "run" and train["dataset"] == {"type": "digits", "name": "digits", "split": "train"}
    scores = {metric["type"]: metric for metric in test["metrics"]}
    for kind, name in (("nelbo", "nelbo_nats"), ("importance_weighted", "importance_weighted_nats")):
        assert scores[kind]["value"] == metrics[name]
    assert scores["fid"]["value"] == 1e-05 and "num_images" not in scores["fid"]["args"]
    how = {"importance_samples": 50, "seed": 3, "num_images": 40, "step": 60, "checkpoint_sha256": SHA256}
    assert how.items() <= scores["importance_weighted"]["args"].items()
    text, half_width = folder.card_file.read_text(), metrics["half_widths_95"]["nelbo_nats"]
    assert "/home/me" in metrics["data"] and "/home/me" not in text
    assert "2015-12-05 1a, not known as the published Inception graph" in text
    assert re.search(f"NELBO +{interval(metrics['nelbo_nats'], half_width)} nats per image", text)
    assert "by:\n\n```bash\n{}\n{}\n```\n".format(*commands) in text and "| parameters | 1,234 |" in text


def test_a_new_run_has_a_card_without_what_is_not_known_or_can_not_be_read(tmp_path):
    folder = new_folder(tmp_path / "new")
    text = card(folder)
    head = metadata(folder)
    assert head["library_name"] == "nvae_tf" and head["pipeline_tag"] == "unconditional-image-generation"
    assert not {"license", "datasets", "model-index"} & head.keys() and "nvae_tf.load('new')" in text
    assert "| latent groups | 2: 1 of 2x2, 1 of 4x4 |" in text and "4x4x1, 1 bit a channel" in text
    own = dict(binarize=False, likelihood="normal", file_bits=16, num_bits=8, range=(-1, 9.5))
    text_of_floats = card(new_folder(tmp_path / "floats", data=dataclasses.replace(DATA, **own)))
    assert "4x4x1, stored numbers from -1 to 9.5 as 0 to 1 |" in text_of_floats and "brought to" not in text_of_floats
    for absent in ("parameters", "newest checkpoint", "![", "KL weights", "free nats", "classes |", "labels="):
        assert absent not in text
    assert "None" not in text.replace("None yet", "").replace("None has", "")
    wrong = ('"nelbo_nats": "low"', '"nelbo_nats": 1, "num_values": 16, "seed": {"a": 1}')
    for content in ("{", "\xff", *(f'{{"dataset": "d", "split": "test", {values}}}' for values in wrong)):
        folder.evaluation_file().write_text(content, "latin1")
        assert "None yet: `nvae-evaluate` makes them." in card(folder)
    outliers = '{"calibrated": false, "sets": {"noise": {"num_images": 3, "auroc": {"kl": 0.875, "llr": 0.5}}}}'
    folder.evaluation_file().write_text(f'{{"dataset": "d", "split": "test", "outliers": {outliers}}}')
    # A score that there was before.
    assert "0.875 sum of KLs, 0.500 LLR" in card(folder)
    for content in ("{", '{"train": 9, "test": 3, "a_step": 0}'):
        folder.images_file.write_text(content)
        assert card(folder) and gather(folder).images is None


def test_the_card_of_a_conditional_model_with_weights_of_the_kl(tmp_path):
    data = dataclasses.replace(DATA, labels=True, num_classes=3)
    changes = {"data": data, "model": tiny_config(num_classes=3), "train": TrainConfig(label_dropout=0.2)}
    changes["objective"] = ObjectiveConfig(kl_scale_weights=(1, 0.5), free_nats=0.1)
    folder = new_folder(tmp_path / "run", **changes)
    folder.images_file.write_text('{"train": 9, "test": 3, "held_out": true, "class_names": ["cats", "a|b", "owls"]}')
    text = card(folder)
    assert r"| classes | 3, from 0 on: `cats`, `a\|b`, `owls`; label dropout 0.2 |" in text
    assert text.count("seed=1, labels=0)") == 3 and "| free nats a group | 0.1 |" in text
    assert "| KL weights of the scales | 1, 0.5 (the smallest scale first) |" in text
    assert "| parts | 0.1 of the images, drawn at random (seed 0), for testing, the others for training" in text


def test_the_commands_take_the_checkpoint_that_was_scored(tmp_path):
    folder = new_folder(tmp_path / "run")
    checkpoints(folder, "best/step-20")
    # There is no other, as in a folder that was published with the best alone.
    assert "nvae_tf.load('run', checkpoint=\"best\")" in card(folder)
    checkpoints(folder, "step-60")
    text = card(folder)
    assert "nvae_tf.load('run')" in text and "nvae-evaluate --workdir=run --checkpoint=latest\n" in text
    evaluate(folder)
    file = folder.evaluation_file()
    file.write_text(file.read_text().replace('"checkpoint": "latest"', '"checkpoint": "best"'))
    commands = re.findall("^nvae-.*", card(folder), re.MULTILINE)
    assert len(commands) == 4 and all("--workdir=run --checkpoint=best " in f"{command} " for command in commands)


def test_the_card_has_what_is_in_the_folder(tmp_path):
    folder = new_folder(tmp_path, data=DataSpec(num_bits=1, likelihood="bernoulli"))
    checkpoints(folder, "step-20", "step-1000", "best/step-20")
    folder.samples.mkdir()
    for name in ("step-00000900.png", "step-00001000.png", "step-mine.png"):
        (folder.samples / name).touch()
    folder.images_file.write_text('{"train": 1437, "test": 360, "a_step": 64}')
    for content in ("", "step\n10\n", "step,test_nelbo_nats\n10,high\n"):
        folder.metrics_file.write_text(content)
        assert "In training, after step" not in card(folder)
    folder.metrics_file.write_text("step,test_nelbo_nats,test_bits_per_dim\n950,41.0,0.3\n1000,39.25,0.25\n")
    text = card(folder)
    assert "| parts | `train` for training, `test` for testing |" in text
    assert "| step 1,000 |" in text and "| step 20 |" in text and "![samples](samples/step-00001000.png)" in text
    assert "1,437 for training, 360 for testing" in text and "| images a step | 64 |" in text
    assert "after step 1,000" in text and "39.25 nats an image, 0.25 bits per dimension" in text
    assert metadata(folder)["datasets"] == ["uoft-cs/cifar10"]


def test_any_name_makes_a_readable_card(tmp_path):
    name = f"{AWKWARD}\r\n{MARKER}\r\n\x85\u2028\x7f\U0001f600"
    data = dataclasses.replace(DATA, name=name, source_name=name, train_split=name)
    folder = new_folder(tmp_path / f'it\'s: "a" # folder \udcff\r\n{MARKER.replace("/", "")}', data=data)
    evaluate(folder, dataclasses.replace(CONFIG, data=data), command="nvae-evaluate ```\r\u2028")
    assert folder.card_file.read_text("utf-8").count("```") == 10
    (index,) = metadata(folder)["model-index"]
    dataset = index["results"][0]["dataset"]
    assert (index["name"], dataset["name"]) == (folder.path.name, name)
    assert dataset["type"] == "my-set-1-b-100-yours-what-stands-below-this-line-is-kept"
    before = folder.card_file.read_bytes() + b"mine\n"
    # The marker in the name is not the file's marker.
    folder.card_file.write_bytes(before)
    write_model_card(folder, 1234)
    assert folder.card_file.read_bytes() == before


def test_what_a_person_has_written_is_kept(tmp_path):
    folder = new_folder(tmp_path)
    card(folder)
    own = f"\r\n# Mine\n{MARKER}\n---\nlicense: mine\n".encode() + b"\xff\n"
    folder.card_file.write_bytes(folder.card_file.read_bytes().rstrip() + own)
    before = folder.card_file.stat().st_mtime_ns
    write_model_card(folder)
    assert folder.card_file.stat().st_mtime_ns == before
    evaluate(folder)
    content = folder.card_file.read_bytes()
    assert content.endswith(MARKER.encode() + own) and b"type: nelbo" in content and content.count(b"# Mine") == 1


def test_a_card_that_is_not_ours_is_not_touched_but_the_origin_is_noted(tmp_path):
    source = new_folder(tmp_path / "source")
    source.origin_file.write_text(IMPORTED.text())
    folder, content = tuned(tmp_path / "tuned", source), f"\xff see {MARKER}".encode("latin1")
    folder.card_file.write_bytes(content)
    write_model_card(folder)
    assert folder.card_file.read_bytes() == content
    source.origin_file.unlink()
    folder.card_file.unlink()
    assert card(folder) and metadata(folder)["license"] == "cc-by-nc-4.0"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("MIT", {"license": "mit"}),
        ("NVIDIA Source Code License", {"license": "other", "license_name": "nvidia-source-code-license"}),
        (None, {}),
    ],
)
def test_the_license_of_imported_weights_stays(tmp_path, given, expected):
    folder = new_folder(tmp_path / "imported")
    checkpoints(folder, "step-60")
    folder.origin_file.write_text(Origin("cifar10.pt", SHA256, given, 60).text())
    text = card(folder)
    assert {name: value for name, value in metadata(folder).items() if name.startswith("license")} == expected
    assert f"imported from `cifar10.pt` (SHA-256 `{SHA256}`)" in text and (given or "None is recorded") in text
    # How they were trained is not known, whatever the settings say.
    assert "learning rate" not in text
    checkpoints(folder, "step-61")
    assert "Imported weights were trained further (imported from `cifar10.pt`" in card(folder)


def test_a_fine_tuned_run_names_its_source_and_keeps_its_license(tmp_path):
    source = new_folder(tmp_path / "source")
    source.origin_file.write_text(IMPORTED.text())
    text = card(tuned(tmp_path / "tuned_import", source))
    assert f"started from the weights of `{source.path}` (imported from `cifar10.pt`" in text
    # A license that a person has stated for the source's own weights.
    source.origin_file.write_text('{"license": "mit"}')
    assert "The weights are under: mit." in card(source)
    folder = tuned(tmp_path / "tuned", source)
    for _ in range(2):
        assert "The weights that training started from are under: mit. It may apply to what was made" in card(folder)
        source.origin_file.unlink(missing_ok=True)
    text = card(tuned(tmp_path / "again", folder))
    assert f"the weights of `{folder.path}` (made from the weights of `{source.path}`)" in text
    folder.origin_file.write_text('{"license": 4}')
    with pytest.raises(ValueError, match="origin.json: `license` is 4; it must be a text; fix or delete it"):
        write_model_card(folder)


def test_a_card_that_cannot_be_written_does_not_end_the_work(tmp_path, monkeypatch):
    folder, lines = new_folder(tmp_path), []
    update_model_card(folder, MODEL, lines.append)
    before = folder.card_file.read_bytes()
    folder.images_file.write_text('{"train": 9, "test": 3}')

    def full(path, content):
        raise OSError("No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    update_model_card(folder, MODEL, lines.append)
    assert lines == [f"the model card was not written: {folder.card_file}: can't be written (No space left on device)"]
    assert folder.card_file.read_bytes() == before and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["digits, seed 3\nNELBO       1.00 nats per image", "digits\r\u2028\u202e\x1b[2J"])
def test_a_data_set_of_an_evaluation_file_looks_like_nothing_else(tmp_path, name):
    folder = new_folder(tmp_path / "run")
    metrics = evaluate(folder)
    lines = card(folder).partition("\n---\n")[2].splitlines()
    folder.evaluation_file().write_text(json.dumps(metrics | {"dataset": name}))
    with_name = card(folder).partition("\n---\n")[2]
    assert len(with_name.splitlines()) == len(lines) and with_name.replace("\n", "").isprintable()
