"""Mutants of published files, runs (also as shared), exports, pictures and arrays: right numbers, or one line."""

import gzip
import shutil
import zipfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

from nvae_tf.evaluation.outliers import calibration_of
from nvae_tf.generation.latents_file import save_latents
from nvae_tf.models.outlier_scores import OutlierParts
from nvae_tf.models.reweighted_prior import ReweightedPrior, made_ratios
from nvae_tf.reports.publishing import write_shared_run
from nvae_tf.runs.companions import write_calibration, write_prior
from nvae_tf.runs.loading import load_run
from nvae_tf.runs.run_folder import RunFolder
from tests import FIXTURES
from tests.command_fixtures import TINY, config_flags, output_of
from tests.data.picture_factory import encoded, idx, png, random_pixels, write_files
from tests.forked import FORKS
from tests.robustness import mutations, worker

pytestmark = [pytest.mark.slow, pytest.mark.torch]

COUNTS = {"published": 225, "run_folder": 225, "pictures": 225, "shared": 165, "exports": 60}
BY_COMMAND = 3
READERS = 2
# Of a mutant; the libraries take the half of the smaller numbers.
LIMITS = dict.fromkeys(COUNTS, worker.GIGABYTES) | {"shared": 2, "exports": 2}
TRAINING = TINY | {f"train.{name}_every_steps": 2 for name in ("checkpoint", "evaluate", "log")}
# Each variable is read thrice of each mutant: of the network there is as little as can be.
TRAINING |= {"train.steps": 4, "train.keep_best": True, "model.num_groups_per_scale": 1, "model.squeeze_excite": False}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """What is changed: published files, a run folder, and data sets; `exact` are those whose format has checksums."""
    folder = tmp_path_factory.mktemp("bases")
    published, imported = folder / "published", folder / "imported"
    published.mkdir()
    for name in ("cifar10_tiny.pt", "normal_decoder_tiny.pt"):
        shutil.copy(FIXTURES / name, published)
    for command in (
        ("train.main", "--config=configs/digits.py", f"--workdir={folder / 'run_folder'}", *config_flags(TRAINING)),
        ("export.import_torch_checkpoint", f"--checkpoint={published / 'cifar10_tiny.pt'}", f"--output={imported}"),
        ("export.export_torch_checkpoint", f"--workdir={imported}", f"--output={published / 'own.pt'}"),
    ):
        output_of(["-m", *command])
    with zipfile.ZipFile(FIXTURES / "cifar10_tiny.pt") as stored:
        with zipfile.ZipFile(published / "deflated.pt", "w", zipfile.ZIP_DEFLATED) as deflated:
            for name in stored.namelist():
                deflated.writestr(name, stored.read(name))
    data_sets(folder / "pictures")
    shutil.copytree(FIXTURES / "first_layout" / "saved_model" / "1", folder / "exports")
    share(folder / "run_folder", folder / "shared")
    return folder


def share(run, output):
    """Writes the run as it is published, with a reweighted prior and a calibration that nobody has learned."""
    write_shared_run(run, output, "hf://me/tiny")
    folder, model = RunFolder(output), load_run(output).model
    kl, random = model.plan.num_groups, np.random.default_rng(0)
    about = {"kind": "classifier", "groups": 1, "proposals": 10, "steps": 5, "seed": 0, "images": 60}
    about |= {"cross_entropy": [1.0], "effective_proposals": [3.0]}
    about |= {"log_normalizers": [0.5], "log_normalizer_errors": [0.1]}
    ratios = made_ratios("classifier", 1, model.plan, 0)
    write_prior(folder.prior_file, model, 4, ReweightedPrior(ratios, 10, 0, about))
    parts = OutlierParts(np.float32(random.normal(size=60)), np.float32(random.normal(size=(60, kl))), None)
    write_calibration(folder.outliers_file, model, 4, calibration_of(parts, parts))
    shapes = model.plan.latent_shapes()
    save_latents(output / "latents.npz", [random.normal(size=(3, *shape)) for shape in shapes], ["a", "b", "c"])


def data_sets(folder):
    images = random_pixels(6, 12, 12, 3)
    gray = images[..., 0]
    files = {"exact-png": {f"{number}.png": png(image) for number, image in enumerate(images)}}
    files["exact-png-16"] = {f"{number}.png": png(image.astype(np.uint16) * 257) for number, image in enumerate(images)}
    for kind in ("jpeg", "bmp", "gif", "webp", "tiff"):
        files[kind] = {f"{number}.{kind}": encoded(image, kind) for number, image in enumerate(images)}
    files["idx"] = {f"{part}-images-idx3-ubyte": idx(gray) for part in ("train", "t10k")}
    files["exact-gzip"] = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in files["idx"].items()}
    for name, content in files.items():
        write_files(folder / name, content)
    for name in ("exact-npz", "exact-npz-parts", "npy"):
        (folder / name).mkdir()
    np.savez_compressed(folder / "exact-npz" / "images.npz", images=images)
    np.savez(folder / "exact-npz-parts" / "images.npz", train=images, test=images[:3])
    np.save(folder / "npy" / "images.npy", images)


class Reader:
    """A process that reads mutants; after one that it has died of, or that took much memory, another process."""

    def __init__(self, *how):
        self._how, self._process = how, None

    def read(self, path):
        self._process = self._process or ProcessPoolExecutor(1, FORKS, worker.begin, self._how)
        try:
            answer = self._process.submit(worker.answer, path).result()
        except BrokenProcessPool:
            answer = {"died": f"its process has died: see {self._how[-1]}"}
        if "died" in answer or answer["gigabytes"] > worker.GIGABYTES:
            self.close()
        return answer

    def close(self):
        process, self._process = self._process, None
        if process is not None:
            process.shutdown()


def faults(answer, mutant, canary, known, gigabytes):
    """What is wrong with what a mutant led to; `known` are the results of the base, the first the newest."""
    wrong = [answer[name] for name in ("died", "traceback") if name in answer]
    if canary.exists():
        wrong.append("its code was run")
    if answer.get("gigabytes", 0) > gigabytes:
        wrong.append(f"{answer['gigabytes']:.1f} GB")
    lines = list(answer.get("warnings", []))
    for name, result in answer.get("results", {}).items():
        if result.startswith("refused: "):
            lines.append(result)
            wrong += [f"{name}: {result}"] if mutant.is_sound else []
            wrong += [] if str(mutant.path) in result else [f"{name} does not name the file: {result}"]
        elif mutant.is_exact and result not in [results.get(name) for results in known]:
            wrong.append(f"{name}: wrong numbers")
        elif mutant.is_exact and result != known[0].get(name) and "step-" not in " ".join(lines):
            wrong.append(f"{name}: older numbers without a word")
    return wrong + [f"more than a line: {line!r}" for line in lines if len(line.splitlines()) > 1]


def known_results(base, place, reader):
    """What is read of what nobody has damaged, by the name of the base; of a run also without its latest checkpoint."""
    if base.name in ("published", "pictures"):
        files = {entry.name: next(entry.glob("*.npz"), entry) for entry in base.iterdir()}
        return {name: [reader.read(file)["results"]] for name, file in files.items()}
    copies = [shutil.copytree(base, place / name) for name in ("whole", "earlier")]
    if base.name == "run_folder":
        for file in copies[1].glob("checkpoints/step-4.*"):
            file.unlink()
    known = [reader.read(copy)["results"] for copy in copies]
    assert not any(result.startswith("refused: ") for result in known[0].values()), known
    return {base.name: known}


COMMANDS = {
    "published": ("export.import_torch_checkpoint", "--checkpoint={path}", "--output={folder}/imported"),
    "run_folder": ("train.generate", "--workdir={path}", "--output={folder}/samples.png"),
    "shared": ("train.generate", "--workdir={path}", "--output={folder}/samples.png"),
    "exports": ("export.verify", "{path}"),
    "pictures": ("train.inspect_data", "--config=own_images", "--config.data.path={path}", "--output={folder}/x.png"),
}


def try_all(kind, bases, folder):
    """What is wrong with mutants, in words, and the seeds of the mutants from which nothing can be read."""
    base, readers = bases / kind, [Reader(kind, bases / kind, folder / f"log-{number}") for number in range(READERS)]
    known, wrong, unread = known_results(base, folder, readers[0]), [], []

    def try_some(number):
        for seed in range(number, COUNTS[kind], READERS):
            place, canary = folder / str(seed), folder / f"canary-{seed}"
            place.mkdir()
            mutant = mutations.mutant(kind, base, place, seed, canary)
            answer = readers[number].read(mutant.path)
            shutil.rmtree(place)
            faulty = faults(answer, mutant, canary, known[mutant.base], LIMITS[kind])
            wrong.extend(f"seed {seed}: {mutant.base}, {mutant.how}: {fault}" for fault in faulty)
            if all(result.startswith("refused: ") for result in answer.get("results", {"": ""}).values()):
                unread.append(seed)

    with ThreadPoolExecutor(READERS) as threads:
        list(threads.map(try_some, range(READERS)))
    for reader in readers:
        reader.close()
    return wrong, sorted(unread)


@pytest.mark.parametrize("kind", COMMANDS)
def test_right_numbers_or_one_line(bases, kind, refused, tmp_path):
    wrong, unread = try_all(kind, bases, tmp_path)
    assert not wrong, "\n".join(wrong)
    for seed in unread[:: len(unread) // BY_COMMAND][:BY_COMMAND]:
        place, canary = tmp_path / str(seed), tmp_path / f"canary-{seed}"
        place.mkdir()
        path = mutations.mutant(kind, bases / kind, place, seed, canary).path
        before = sorted(place.iterdir())
        assert str(path) in refused(*(part.format(path=path, folder=place) for part in COMMANDS[kind])), f"seed {seed}"
        assert sorted(place.iterdir()) == before and not canary.exists(), f"seed {seed}"
