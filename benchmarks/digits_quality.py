"""How much the digits that a model draws look like digits, to a classifier that knows only real ones.

    python -m benchmarks.digits_quality --workdir=runs/demo [--temperature=T] [--guidance=W] [--count=1000]

A support vector machine with calibrated probabilities is trained on the real training digits, which are bitmaps. Its
mean largest class probability says how sure it is: on real test digits, and on samples (the likelihood's mean images,
cut at one half). The histogram of the classes that it sees in the samples shows whether all ten are there. For a
conditional model (data.labels) all classes are asked for in turn: how often the machine sees the one that was asked
for, and how often the model's own Bayes' rule knows a test digit.
"""

from typing import Any

import numpy as np

from benchmarks import results
from nvae_tf.errors import start_tensorflow_quietly


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Bitmaps `[count, pixels]` of 0 and 1 and labels of a part of the digits."""
    start_tensorflow_quietly()
    from nvae_tf.data import data_spec
    from nvae_tf.data.sources import load_split

    source = load_split(data_spec("digits"), split)
    return source.images.reshape(source.count, -1) // 255, source.labels


def classifier() -> Any:
    """A support vector machine with calibrated probabilities, trained on the training digits."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.svm import SVC

    return CalibratedClassifierCV(SVC(C=10.0, gamma="scale"), ensemble=False, cv=5).fit(*digits("train"))


def measure(samples: np.ndarray, wanted: np.ndarray | None = None) -> dict:
    """Accuracy on real test digits, and confidence on them and on samples `[count, height, width, 1]` in [0, 1].

    Also, for samples of classes `wanted` `[count]`, in how many of them it sees those.
    """
    machine = classifier()
    test_images, test_labels = digits("test")
    on_real = machine.predict_proba(test_images)
    on_samples = machine.predict_proba(samples.reshape(len(samples), -1) > 0.5)
    agreement = {} if wanted is None else {"agreement": float((on_samples.argmax(axis=1) == wanted).mean())}
    return agreement | {
        "accuracy_on_real": float((on_real.argmax(axis=1) == test_labels).mean()),
        "confidence_on_real": float(on_real.max(axis=1).mean()),
        "confidence_on_samples": float(on_samples.max(axis=1).mean()),
        "samples_per_class": np.bincount(on_samples.argmax(axis=1), minlength=10).tolist(),
    }


def main() -> None:
    parser = results.benchmark_parser("digits_quality", __doc__)
    parser.add_argument("--workdir", required=True, help="run folder of a model of the digits")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--guidance", type=float, default=1.0, help="of a conditional model")
    parser.add_argument("--count", type=int, default=1000, help="number of samples")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    start_tensorflow_quietly()
    import nvae_tf
    from nvae_tf.generation.sampling import generate_images

    model = nvae_tf.load(options.workdir)
    classes = model.config.num_classes
    labels = np.arange(options.count) % classes if classes else None
    drawing = {"labels": labels, "guidance": options.guidance}
    measured = measure(generate_images(model, options.count, options.temperature, options.seed, **drawing), labels)
    if classes:
        images, truth = digits("test")
        shape = model.config.image_height, model.config.image_width, 1
        found = model.classify(images.reshape(-1, *shape).astype(np.float32), batch_size=90)
        measured["accuracy_of_model"] = float((np.argmax(found, axis=1) == truth).mean())
        print(f"samples in which the machine sees the class asked for {measured['agreement']:.3f}")
        print(f"test digits that the model classifies rightly {measured['accuracy_of_model']:.3f}")
    print(f"accuracy on real test digits {measured['accuracy_on_real']:.3f}")
    print(f"mean confidence on real test digits {measured['confidence_on_real']:.3f}")
    print(f"mean confidence on samples at temperature {options.temperature:g} {measured['confidence_on_samples']:.3f}")
    print(f"samples of each class 0-9: {measured['samples_per_class']}")
    results.write_json(measured | {"temperature": options.temperature}, options.json)


if __name__ == "__main__":
    main()
