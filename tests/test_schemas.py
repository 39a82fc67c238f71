import json

import pytest

from nvae_tf.schemas import ABOUT, LATENT_SHAPES, OWNER, parsed

GOOD = {"step": 3, "weights_sha256": "ab"}


def error_of(text, schema):
    with pytest.raises(ValueError) as error:
        parsed(text, schema, "file: ")
    assert str(error.value).startswith("file: ") and "\n" not in str(error.value) and len(str(error.value)) < 200
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((json.dumps(GOOD | {"step": step}), "`step`") for step in (True, 1.5, "3", None, -1, 10**30, "x" * 10**6)),
        ('{"step": NaN, "weights_sha256": ""}', "`step` is nan; it must be a whole number"),
        (json.dumps({"step": 1}), "it has step, and no entry `weights_sha256`"),
        ("[[1, 2]]", "must be an object"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_values_of_json_that_can_not_be(text, message):
    assert message in error_of(text, OWNER)


def test_lists_are_as_arrays():
    assert parsed('{"latent_shapes": [[1, 2, 3]], "x": 1}', LATENT_SHAPES) == {"latent_shapes": [[1, 2, 3]]}


def test_named_sizes_and_objects_in_objects():
    about = dict.fromkeys(("groups", "proposals", "steps", "seed", "images"), 2)
    about |= {"kind": "classifier", "log_normalizers": [], "log_normalizer_errors": [0]}
    about |= {
        "cross_entropy": [1, 2.5],
        "effective_proposals": [1, 1],
        "bounds": {"samples": 1, "images": 2, "model": 1.5, "reweighted": 3},
    }
    assert parsed(json.dumps(about), ABOUT) == about
    message = error_of(json.dumps(about | {"groups": 3}), ABOUT)
    assert "`cross_entropy` is [1, 2.5]; it must be a number of shape [3]" in message
    without = {name: value for name, value in about.items() if name != "cross_entropy"}
    assert "no entry `components`" in error_of(json.dumps(without), ABOUT)
    assert "cross_entropy" not in parsed(json.dumps(without | {"components": 2}), ABOUT)
    del about["bounds"]["model"]
    assert "`bounds`: it has images, reweighted, samples, and no entry `model`" in error_of(json.dumps(about), ABOUT)
