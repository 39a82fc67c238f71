import pytest
from PIL import Image

from nvae_tf.data.pipeline import shuffled_index_batches
from nvae_tf.generation.image_grid import read_images
from tests.command_fixtures import config_flags
from tests.data.picture_factory import damaged_in_the_middle, png, random_pixels, write_files
from tests.tiny_model import ARCHITECTURE

COUNT, HEIGHT, WIDTH = 10, 7, 10
BATCH_SIZE = 4
MODEL = {f"model.{name}": value for name, value in ARCHITECTURE.items()}


def command(name, folder, **settings):
    flags = config_flags({**MODEL, "train.batch_size": BATCH_SIZE, "data.path": folder, **settings})
    return [name, "--config=configs/own_images.py", *flags]


def test_inspect_data_prints_counts_and_writes_a_picture(done, tmp_path):
    pictures = enumerate(map(png, random_pixels(COUNT, HEIGHT, WIDTH, 3)))
    write_files(tmp_path / "images", {f"{'dogs' if n < 4 else 'cats'}/{n}.png": picture for n, picture in pictures})
    output = tmp_path / "look.png"
    flags = [f"--output={output}", "--seconds=0.1", "--count=9", "--config.data.labels=True"]
    printed = done(*command("train.inspect_data", tmp_path / "images"), *flags)
    for text in (
        f"own_images, from folder {tmp_path / 'images'}",
        "7 x 10 (height x width), 3 channels, 8 bits",
        "zeros around them to 8 x 10",
        "classes      2 (training / test images): cats (",
        "train        9 images",
        "test         1 images",
        "An epoch is 2 steps of 4 images",
    ):
        assert text in printed
    shown = read_images(output, 10, 10)
    assert shown.shape == (10, 7, 10, 3) and "nvae-inspect-data" in Image.open(output).info["command"]
    done(*command("train.inspect_data", tmp_path / "images"), *flags, "--raw", "--overwrite")
    # A row for each class and one for the test image, enlarged until the shorter side is 70 pixels, with gaps of 6.
    with Image.open(output) as picture:
        assert picture.size == (5 * 100 + 4 * 6, 3 * 70 + 2 * 6)


@pytest.mark.slow
def test_a_run_that_meets_a_damaged_picture_is_saved_and_goes_on(commands, tmp_path):
    count, met_at_step = 32, 5
    folder, workdir = tmp_path / "images", tmp_path / "run"
    for part in ("train", "test"):
        write_files(folder / part, {f"{n:02d}.png": png(random_pixels(6, 7, 1, seed=n)) for n in range(count)})
    batches = shuffled_index_batches(count, BATCH_SIZE, seed=0, start_step=0)
    _, numbers = next(iter(batches.skip(met_at_step)))
    bad = folder / "train" / f"{int(numbers[0]):02d}.png"
    bad.write_bytes(damaged_in_the_middle(bad.read_bytes()))
    settings = {"train.steps": 12, "train.seed": 0, "data.num_bits": 1}
    line = commands.refused_process(["-m", *command("train.main", folder, **settings), f"--workdir={workdir}"])
    assert line.startswith(f"error: {bad}: a damaged or cut-off PNG file")
    assert (workdir / "checkpoints" / f"step-{met_at_step}.index").is_file()
    settings["data.on_bad_file"] = "skip"
    printed = commands.output_of(["-m", *command("train.main", folder, **settings), f"--workdir={workdir}"])
    assert f"Skipped 1 of 32 pictures of the train part of {folder}:\n    {bad}: a damaged" in printed
    assert f", from step {met_at_step} on" in printed and "has all its 12 steps" in printed
    assert " weights.\n" in printed
    assert (workdir / "checkpoints" / "step-12.index").is_file()
