"""The specs of the data sets, and what happens with wrong ones."""

import dataclasses
import pathlib
import subprocess
import sys

import pytest

from nvae_tf.data import DATA_SPECS, data_spec, specs


def test_the_binary_sets_and_cifar10_are_as_the_paper_has_them():
    digits, mnist, cifar10 = data_spec("digits"), data_spec("mnist"), data_spec("cifar10")
    assert digits.image_shape == (16, 16, 1) and digits.num_bits == 1 and digits.likelihood == "bernoulli"
    assert not digits.binarise
    assert mnist.image_shape == (28, 28, 1) and (mnist.padded_height, mnist.padded_width) == (32, 32)
    assert mnist.binarise and not mnist.horizontal_flip and mnist.likelihood == "bernoulli"
    assert cifar10.image_shape == (32, 32, 3) and cifar10.num_bits == 8 and cifar10.horizontal_flip
    assert not cifar10.binarise and cifar10.likelihood == "logistic_mixture"


def test_each_spec_is_found_under_its_own_name():
    for name, spec in DATA_SPECS.items():
        assert spec.name == name
        assert data_spec(name) is spec


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"no data set 'cifar' \(cifar10, digits, mnist\); did you mean 'cifar10'"):
        data_spec("cifar")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_bits": 9}, "num_bits is 9"),
        ({"num_bits": 0}, "num_bits is 0"),
        ({"padded_height": 27}, "padded size 27x32 is smaller than the image, 28x28"),
        ({"channels": 0}, "must be positive"),
        ({"likelihood": "bernouli"}, "'bernouli' .*; did you mean 'bernoulli'"),
    ],
)
def test_impossible_specs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(data_spec("mnist"), **change)


def test_specs_do_not_import_tensorflow():
    # Under an empty package in the place of `nvae_tf`, so that only what lies in `nvae_tf.data` is tested.
    code = """
import sys, types
package = types.ModuleType("nvae_tf")
package.__path__ = [sys.argv[1]]
sys.modules["nvae_tf"] = package
import nvae_tf.data.specs
sys.exit("tensorflow" in sys.modules)
"""
    package_folder = pathlib.Path(specs.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code, package_folder], check=False).returncode == 0
