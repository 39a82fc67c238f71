import importlib
import json
import pkgutil

import numpy as np
import pytest

import examples
import nvae_tf
from examples import fashion, patches, score_per_hour
from tests.command_fixtures import output_of


def test_every_example_can_be_imported():
    for module in pkgutil.iter_modules(examples.__path__):
        if not module.name.startswith("unpack_"):  # these need packages of their own
            importlib.import_module(f"examples.{module.name}")


@pytest.mark.slow
def test_patches_of_12_bits_have_more_levels_than_photographs(tmp_path, monkeypatch):
    some = {part: images[::20] for part, images in patches.photographs(64).items()}
    monkeypatch.setattr(patches, "photographs", {64: some}.get)
    bits = patches.depth(str(tmp_path / "gray.npz"))["bits_a_value"]
    with np.load(tmp_path / "gray.npz") as arrays:
        assert arrays["train"].shape[1:] == arrays["test"].shape[1:] == (32, 32, 1)
        assert arrays["train"].dtype == np.uint16 and len(np.unique(arrays["train"])) > 2000
        assert arrays["train"].max() <= 4095
    assert 6.0 < bits["PNG"] < 12.0


@pytest.mark.slow
def test_a_model_learns_to_tell_classes_and_a_folder_that_is_not_empty_is_refused_first(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, [60, 28, 28, 1], np.uint8)
    monkeypatch.setattr(fashion, "fashion", lambda *_: (images, np.arange(60) % 10))
    fashion.tell_classes(str(tmp_path / "run"), steps=2)
    before, after = (nvae_tf.load(place) for place in ("fashion", tmp_path / "run"))
    assert (tmp_path / "run" / "checkpoints" / "step-27602.index").is_file()
    for part in ("trainable_weights", "statistics"):
        assert any(np.any(one != other) for one, other in zip(getattr(before, part), getattr(after, part), strict=True))
    with pytest.raises(ValueError, match="--output=.*: not an empty folder"):
        fashion.tell_classes(str(tmp_path / "run"), steps=2)


def test_a_recipe_is_the_published_one_with_its_changes_and_half_batches_mean_twice_the_steps():
    config = score_per_hour.settings_of("digits", "residual 0.3+latent 8+batch x0.5+rate x2+length x0.75", 5)
    assert config.model.residual_scale == 0.3 and config.model.num_latent_per_group == 8
    assert (config.train.batch_size, config.train.steps, config.train.seed) == (64, 1500, 5)
    assert config.optimizer.learning_rate == 0.06
    published = score_per_hour.settings_of("digits", "published", 0)
    assert (published.train.batch_size, published.train.steps) == (128, 1000)
    for wrong in ("residual 0.4", "groups x2"):
        with pytest.raises(ValueError, match=f"change .*{wrong.split(' x')[0]}"):
            score_per_hour.settings_of("digits", wrong, 0)


def test_the_table_pairs_the_runs_of_a_seed_and_says_when_a_recipe_is_as_good(tmp_path):
    def write(recipe, seed, seconds, final):
        curve = [{"step": 10, "processor_s": seconds / 2, "nelbo": 100.0}]
        curve += [{"step": 20, "processor_s": seconds, "nelbo": final}]
        made = {"data": "gray", "recipe": recipe, "seed": seed, "scored": "test", "bound_k100": 0.9 * final}
        (tmp_path / f"{recipe}-{seed}.json").write_text(json.dumps(made | {"curve": curve}))

    write("published", 3, 4000.0, 8.0)  # a seed that the others do not have
    write("quick", 4, 4000.0, 8.0)
    for seed in range(3):
        write("published", seed, 40.0, 80.0 + seed)
        write("quick", seed, 20.0, [60.0, 62.0, 61.0][seed])
    published, quick = score_per_hour.table(str(tmp_path), figure=str(tmp_path / "curves.png"))["rows"]
    assert published["seeds"] == 4 and published["NELBO, difference"] == "0.00 +- 0.00" and published["time"] == 1.0
    assert quick["NELBO"] == 61.0 and quick["processor_s"] == 20.0
    assert quick["NELBO, difference"] == "-20.00 +- 1.15" and quick["bound, difference"] == "-18.00 +- 1.04"
    # From 100 to 61 nats within the second half of 20 s: 81 after half of it and a little, of 40 s.
    assert quick["time"] == pytest.approx((10 + 10 * 19 / 39) / 40)
    assert (tmp_path / "curves.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="no run of gray, 'slow'"):
        score_per_hour.table(str(tmp_path), baseline="slow")


SMALLER = """
from dataclasses import replace
from examples import score_per_hour
from benchmarks import results
from tests.tiny_model import ARCHITECTURE
settings_of = score_per_hour.settings_of

def smaller(*given):
    config = settings_of(*given)
    return replace(config, model=replace(config.model, **ARCHITECTURE | {"num_latent_scales": 1}))

score_per_hour.settings_of = smaller
results.run_recipe("examples.score_per_hour", score_per_hour.__doc__, score_per_hour.run)
"""


@pytest.mark.slow
def test_a_run_is_scored_on_the_way_and_written(tmp_path):
    """In a process of its own, because it sets the number of threads."""
    (tmp_path / "smaller.py").write_text(SMALLER)
    words = "run", "digits", f"--output={tmp_path / 'runs'}", "--recipe=residual 0.3+length x0.005"
    (tmp_path / "runs").mkdir()
    output_of([tmp_path / "smaller.py", *words])
    (made,) = (json.loads(file.read_text()) for file in (tmp_path / "runs").iterdir())
    assert [point["step"] for point in made["curve"]] == [1, 2, 3, 4, 5] and made["scored"] == "validation"
    seconds = [point["processor_s"] for point in made["curve"]]
    assert seconds == sorted(seconds) and made["bound_k100"] < made["curve"][-1]["nelbo"] < 1000.0
