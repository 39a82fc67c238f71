"""Evaluates a trained model: likelihood bounds, FID, use of the latents, outlier scores.

    nvae-evaluate --workdir=runs/digits
    nvae-evaluate --workdir=runs/cifar10 --metrics=elbo,iw,latents --checkpoint=best

--metrics says what to measure, in nats per image and in bits per real value, with 95% intervals of the means:

    elbo      NELBO, the negative evidence lower bound: reconstruction + KL, and the KL of every scale and group
    iw        the importance-weighted bound with --importance_samples an image (the papers' test score), the bounds with
              1, 10, 100 ... on the way, and the effective number of samples; elbo is measured with it
    fid       the Fréchet inception distance of --fid_samples samples at --temperature from the training images, with
              TensorFlow's Inception graph of 2015: downloaded once, or --inception=PATH
    frechet   the same distance in the features of --extractor, beside fid in the file
    latents   active units of every group, the reconstruction with a tenth of the channels, and figures: the KL of
              groups and channels, and samples that share the latents of their upper groups; elbo is measured with it
    probe     how well simple classifiers tell the classes by the model's features, beside pixels and their principal
              components, with 50, 200, 500 and all labels of training images, and a figure; the data need labels
    outliers  how well outlier scores separate the images of the folders --outliers from the data set's: the area
              under the ROC curve of each, and figures; run nvae-calibrate before. See docs/outliers.md
    noise     of a model of noisy images (data.noise), how much of the noise is left in the signal; with --references,
              clean images of the same names or in the same order, the PSNR and SSIM of the signal

The metrics go to evaluation.json in the run folder (evaluation-train.json for the training part) and as a table to
evaluation.txt. What is there already of the same checkpoint, images and seed is kept. --scores=FILE.csv has the scores
of every image. All GPUs share the work, and so do several machines that see the run folder and have TF_CONFIG set as
for training. For a first look take --importance_samples=10. See docs/evaluation.md.

Exit code: 0 done, 2 a mistake in the command, 75 another worker has ended, 130 interrupted.
"""

import re
import shlex
import sys
from collections.abc import Sequence
from typing import Annotated

from absl import flags

from nvae_tf import command_line, config, errors, progress

_METRICS = ("elbo", "iw", "fid", "frechet", "latents", "probe", "outliers", "noise")
_SAMPLES_HELP = "Samples an image of the importance-weighted bound, metric iw."
_INCEPTION_HELP = "File of the Inception graph for metric fid, classify_image_graph_def.pb or the .tgz it is in."
_EXTRACTOR_HELP = "Other features than Inception's, of fid or frechet: MODULE:FUNCTION of yours makes the extractor."
_OUTLIERS_HELP = "Folders of pictures of another kind, or files of arrays, for metric outliers."
_REFERENCES_HELP = "Folder or file of clean images of all images of the part, for metric noise."
# The metrics that a flag belongs to; a flag that is not here belongs to all.
_FLAGS_OF_METRICS = {
    ("fid", "frechet"): ("fid_samples", "temperature", "inception", "extractor", "prior", "batch_norm_iterations"),
    ("outliers",): ("outliers",),
    ("noise",): ("references",),
    ("iw",): ("importance_samples",),
    ("elbo", "iw", "latents"): ("scores",),
}


def main(
    workdir: Annotated[str, "Run folder of nvae-train."],
    checkpoint: Annotated[str, config.CHECKPOINT_HELP, *config.CHECKPOINTS] = config.CHECKPOINTS[0],
    metrics: Annotated[Sequence[str], f"What to measure, of {', '.join(_METRICS)}."] = ("elbo", "iw"),
    importance_samples: Annotated[int, _SAMPLES_HELP, 1, config.MOST_IMPORTANCE_SAMPLES] = 1000,
    split: Annotated[str, "Part of the data set.", "test", "train"] = "test",
    batch_size: Annotated[int | None, "Images at a time on each replica; by default the training's number.", 1] = None,
    replicas: Annotated[int, "Number of GPUs, all for 0; without GPUs, of virtual CPU devices.", 0] = 0,
    seed: Annotated[int, "Of the binarization and of the samples.", 0, config.LARGEST_SEED] = 0,
    fid_samples: Annotated[int, "Samples of metric fid or frechet.", 2] = 50_000,
    temperature: Annotated[float | Sequence[float], config.TEMPERATURE_HELP] = 1.0,
    inception: Annotated[str | None, _INCEPTION_HELP] = None,
    extractor: Annotated[str | None, _EXTRACTOR_HELP] = None,
    prior: Annotated[str, config.PRIOR_HELP, *config.PRIORS] = config.PRIORS[0],
    batch_norm_iterations: Annotated[int, config.BATCH_NORM_HELP, 0] = 0,
    outliers: Annotated[Sequence[str] | None, _OUTLIERS_HELP] = None,
    scores: Annotated[str | None, "CSV file to write, a line with the scores of each image."] = None,
    overwrite: Annotated[bool, "Replace what is at --scores already."] = False,
    data_path: Annotated[str | None, config.DATA_PATH_HELP] = None,
    references: Annotated[str | None, _REFERENCES_HELP] = None,
) -> None:
    """Evaluates, prints tables and writes the files."""
    _check_metrics(metrics, extractor, inception)
    command_line.check_run_folder(workdir)
    if scores:
        command_line.output_place(scores, (".csv",), overwrite, "scores")
    errors.start_tensorflow_quietly()
    from nvae_tf.evaluation.fid import FidSettings
    from nvae_tf.reports.evaluate import evaluate_run
    from nvae_tf.runs.run_folder import RunFolder
    from nvae_tf.training.strategy import chosen_replicas

    chosen = chosen_replicas(config.TrainConfig(replicas=replicas))
    fid = FidSettings(fid_samples, temperature, inception, extractor, batch_norm_iterations, prior)
    how = {"outliers": outliers or (), "scores": scores, "workers": chosen, "references": references}
    # For others to read, as in a model card: folders without the path to them on this machine.
    words = [re.sub(r"(^|[=,])[^=,]*/(?=[^/=,])", r"\1", word) for word in sys.argv[1:]]
    how["command"] = shlex.join(["nvae-evaluate", *words])
    with chosen.raising_worker_lost():
        evaluate_run(workdir, metrics, importance_samples, fid, checkpoint, split, batch_size, seed, data_path, **how)
        chosen.leave()
    if not chosen.is_chief:
        progress.StatusLine().print(f"worker {chosen.shard.index}: done; worker 0 writes the metrics")
        return
    file = RunFolder(workdir).evaluation_file(split)
    progress.StatusLine().print(f"written to {file} and {file.with_suffix('.txt')}")


def _check_metrics(metrics: Sequence[str], extractor: str | None, inception: str | None) -> None:
    """ValueError for metrics that do not fit each other, or a flag without its metric."""
    for name in metrics:
        config.check_choice("--metrics", name, _METRICS)
    for its_metrics, names in _FLAGS_OF_METRICS.items():
        for name in names:
            if flags.FLAGS[name].present and {*its_metrics}.isdisjoint(metrics):
                raise ValueError(f"--{name} belongs to metric {' or '.join(its_metrics)}, which --metrics lacks")
    if {"fid", "frechet"} <= {*metrics} or (inception and extractor):
        raise ValueError("the features are Inception's or from --extractor; measure two by two commands")
    if "frechet" in metrics and not extractor:
        raise ValueError("--metrics=frechet: give --extractor=MODULE:FUNCTION, which makes what computes the features")


run = command_line.command(main)
