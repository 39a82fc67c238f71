"""Evaluates a trained model: likelihood bounds, FID, use of the latents, outlier scores.

    nvae-evaluate --workdir=runs/digits
    nvae-evaluate --workdir=runs/cifar10 --metrics=elbo,iw,latents --checkpoint=best

--metrics says what to measure, in nats per image and in bits per real value, with 95% intervals of the means:

    elbo      NELBO, the negative evidence lower bound: reconstruction + KL, and the KL of every scale and group
    iw        the importance-weighted bound with --importance_samples an image (the papers' test score), the bounds with
              1, 10, 100 ... on the way, and the effective number of samples; elbo is measured with it
    fid       the Fréchet inception distance of --fid_samples samples at --temperature from the training images, with
              TensorFlow's Inception graph of 2015: downloaded once, or --inception=PATH; in other features with
              --extractor
    frechet   the same distance in the features of --extractor, beside fid in the file
    latents   active units of every group, the reconstruction with a tenth of the channels, and figures: the KL of
              every group and latent channel, and samples that share the latents of their upper groups; elbo is measured
              with it
    outliers  how well outlier scores separate the images of the folders --outliers from the data set's: the area
              under the ROC curve of each, and figures; run nvae-calibrate before. See docs/outliers.md

The metrics go to evaluation.json in the run folder (evaluation-train.json for the training part) and as a table to
evaluation.txt. What is there already of the same checkpoint, images and seed is kept. --scores=FILE.csv has the scores
of every image, after nvae-calibrate its outlier scores and p-values too.

Finished batches are kept in the run folder: the same command, interrupted or killed, goes on from there. All GPUs share
the work (--replicas), and so do several machines that see the run folder and have TF_CONFIG set as for training. The
time grows with the number of importance samples; for a first look take --importance_samples=10. See docs/evaluation.md.

Exit code: 0 done, 2 a mistake in the command, 130 interrupted.
"""

import pathlib
import re
import shlex
import sys

from absl import flags

from nvae_tf import command_line
from nvae_tf.command_line import parse_temperature
from nvae_tf.config import (
    BATCH_NORM_HELP,
    CHECKPOINT_HELP,
    CHECKPOINTS,
    DATA_PATH_HELP,
    LARGEST_SEED,
    MOST_IMPORTANCE_SAMPLES,
    PRIOR_HELP,
    PRIORS,
    TEMPERATURE_HELP,
    check,
    check_choice,
)
from nvae_tf.errors import start_tensorflow_quietly
from nvae_tf.files import check_writable
from nvae_tf.progress import StatusLine

_OF_SAMPLES = ("fid", "frechet")
_METRICS = ("elbo", "iw", *_OF_SAMPLES, "latents", "outliers")

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder of nvae-train.", required=True)
CHECKPOINT = flags.DEFINE_enum("checkpoint", CHECKPOINTS[0], CHECKPOINTS, CHECKPOINT_HELP)
METRICS = flags.DEFINE_list("metrics", ["elbo", "iw"], f"What to measure, of {', '.join(_METRICS)}.")
_SAMPLES_HELP = "Samples an image of the importance-weighted bound, metric iw."
IMPORTANCE_SAMPLES = flags.DEFINE_integer("importance_samples", 1000, _SAMPLES_HELP, 1, MOST_IMPORTANCE_SAMPLES)
SPLIT = flags.DEFINE_enum("split", "test", ["test", "train"], "Part of the data set.")
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Images at a time on each replica; that of the training if not given.", lower_bound=1
)
REPLICAS = flags.DEFINE_integer(
    "replicas", 0, "Number of GPUs, all for 0; without GPUs, of virtual CPU devices.", lower_bound=0
)
SEED = flags.DEFINE_integer(
    "seed", 0, "Of the binarization and of the samples.", lower_bound=0, upper_bound=LARGEST_SEED
)
FID_SAMPLES = flags.DEFINE_integer("fid_samples", 50_000, "Samples of metric fid or frechet.", lower_bound=2)
TEMPERATURE = flags.DEFINE_string("temperature", "1.0", TEMPERATURE_HELP)
INCEPTION = flags.DEFINE_string(
    "inception", None, "File of the Inception graph for metric fid, classify_image_graph_def.pb or the .tgz it is in."
)
_EXTRACTOR_HELP = "Other features than Inception's, of fid or frechet: MODULE:FUNCTION of yours makes the extractor."
EXTRACTOR = flags.DEFINE_string("extractor", None, _EXTRACTOR_HELP)
PRIOR = flags.DEFINE_enum("prior", PRIORS[0], PRIORS, PRIOR_HELP)
BATCH_NORM_ITERATIONS = flags.DEFINE_integer("batch_norm_iterations", 0, BATCH_NORM_HELP, lower_bound=0)
_OUTLIERS_HELP = "Folders of pictures of another kind, or files of arrays, for metric outliers."
OUTLIERS = flags.DEFINE_list("outliers", [], _OUTLIERS_HELP)
_LLR_HELP = "Importance samples of the likelihood ratio LLR>k, a further outlier score."
LLR_SAMPLES = flags.DEFINE_integer("llr_samples", 0, _LLR_HELP, 0, MOST_IMPORTANCE_SAMPLES)
LLR_GROUPS = flags.DEFINE_integer(
    "llr_groups", None, "Its k, how many groups are drawn from the prior; those of the largest scale if not given."
)
SCORES = flags.DEFINE_string("scores", None, "CSV file to write, a line with the scores of each image.")
OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Replace what is at --scores already.")
DATA_PATH = flags.DEFINE_string("data_path", None, DATA_PATH_HELP)


def main() -> None:
    """Evaluates, prints tables and writes the files."""
    check(bool(METRICS.value), f"--metrics is empty: give some of {', '.join(_METRICS)}")
    for name in METRICS.value:
        check_choice("--metrics", name, _METRICS)
    of_distance = FID_SAMPLES, TEMPERATURE, INCEPTION, EXTRACTOR, PRIOR, BATCH_NORM_ITERATIONS
    of_outliers = OUTLIERS, LLR_SAMPLES, LLR_GROUPS
    of_metrics = {_OF_SAMPLES: of_distance, ("outliers",): of_outliers, ("iw",): (IMPORTANCE_SAMPLES,)}
    of_metrics[("elbo", "iw", "latents")] = (SCORES,)
    for metrics, its_flags in of_metrics.items():
        for flag in its_flags:
            of_metric = f"--{flag.name} belongs to metric {' or '.join(metrics)}"
            without = f"{of_metric}, which --metrics={','.join(METRICS.value)} does not have"
            check(not flag.present or not {*metrics}.isdisjoint(METRICS.value), without)
    check(LLR_GROUPS.value is None or LLR_SAMPLES.value > 0, "--llr_groups is of LLR>k: give --llr_samples too")
    of_samples = [name for name in _OF_SAMPLES if name in METRICS.value]
    check(len(of_samples) < 2, "--metrics=fid,frechet: each has its own features; measure them by two commands")
    needed = "--metrics=frechet: give --extractor=MODULE:FUNCTION, which makes what computes the features"
    check(of_samples != ["frechet"] or bool(EXTRACTOR.value), needed)
    if INCEPTION.present and EXTRACTOR.present:
        raise ValueError("--inception and --extractor are both given; the distance is measured in one kind of features")
    command_line.check_run_folder(WORKDIR.value)
    for place in OUTLIERS.value:
        command_line.check_exists("outliers", place)
    check_writable(pathlib.Path(WORKDIR.value), f"--workdir={WORKDIR.value}")
    if SCORES.value:
        command_line.output_place(SCORES.value, (".csv",), OVERWRITE.value, "scores")
    temperature = parse_temperature(TEMPERATURE.value)
    start_tensorflow_quietly()
    from nvae_tf.evaluation.fid import FidSettings
    from nvae_tf.evaluation.outliers import OutlierSettings
    from nvae_tf.reports.evaluate import evaluate_run
    from nvae_tf.runs.run_folder import RunFolder

    drawing = INCEPTION, EXTRACTOR, BATCH_NORM_ITERATIONS, PRIOR
    written = evaluate_run(
        WORKDIR.value,
        METRICS.value,
        IMPORTANCE_SAMPLES.value,
        FidSettings(FID_SAMPLES.value, temperature, *(flag.value for flag in drawing)),
        *(flag.value for flag in (CHECKPOINT, SPLIT, BATCH_SIZE, SEED, DATA_PATH, REPLICAS)),
        OutlierSettings(*(flag.value for flag in of_outliers)),
        SCORES.value,
        # The model card shows the command to others, so it names no folders of this machine.
        shlex.join(["nvae-evaluate", *(re.sub(r"(^|[=,])[^=,]*/(?=[^/=,])", r"\1", word) for word in sys.argv[1:])]),
    )
    if written is not None:
        file = RunFolder(pathlib.Path(WORKDIR.value)).evaluation_file(SPLIT.value)
        StatusLine().keep(f"written to {file} and {file.with_suffix('.txt')}")


def run() -> None:
    """The command `nvae-evaluate`."""
    command_line.run(main, flags)


if __name__ == "__main__":
    run()
