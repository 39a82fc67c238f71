"""The export gives the model's numbers, whatever the batch.

A row alone and in a batch may differ in the last bit: kernels add in another order for another batch size.
"""

import dataclasses
import json
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from export import run_saved_model
from nvae_tf.data.pipeline import images_of_files
from nvae_tf.layers import FoldedPass, folded_weights
from nvae_tf.models.latents import image_seeds, noise_per_image
from nvae_tf.models.passes import inference_pass
from nvae_tf.models.reweighted_prior import ReweightedPrior, made_ratios
from nvae_tf.serving.signatures import Signatures
from nvae_tf.serving.verification import TOLERANCE, all_differences, recorded, side_of_record
from tests import ROOT, refuses
from tests.command_fixtures import assert_shown, output_of
from tests.serving.conftest import CONFIG, model_of
from tests.serving.model_servers import IMAGES, SEEDS
from tests.tiny_model import assert_near


def assert_same(found, expected, tolerance=1e-5):
    assert found.shape == np.shape(expected)
    assert_near([np.float64(found)], [np.float64(expected)], rtol=0, atol=tolerance, floor=0.0)


def test_every_signature_gives_the_numbers_of_the_models_methods(run, model):
    sampled = run("sample", seed=SEEDS, temperature=np.float32([1, 1, 0.6, 1]))["image"]
    latent, again = (run(name, image=IMAGES, seed=SEEDS) for name in ("encode", "reconstruct"))
    latent, again = latent["latent"], again["image"]
    # Seed s is image 0 of the series s, and s + i * 2**32 is image i.
    assert_same(sampled[[0]], model.generate(1, seed=5))
    assert_same(sampled[[1]], model.generate(1, seed=6))
    assert_same(sampled[[3]], model.generate(3, seed=5)[2:])
    assert_same(sampled[[2]], model.generate(1, temperature=0.6, seed=5))
    assert np.abs(sampled[2] - sampled[0]).max() > 1e-3
    for row, seed in [(0, 5), (1, 6)]:
        latents = model.encode(IMAGES[[row]], seed=seed)
        assert_same(latent[row], np.concatenate([np.ravel(z) for z in latents]))
        assert_same(again[[row]], model.call(tf.constant(IMAGES[[row]]), seed=seed))
        assert_same(again[[row]], model.decode(latents))
    assert_same(run("decode", latent=latent)["image"], again)


def test_score_is_the_bound_and_its_parts_add_up(run, model):
    found = run("score", image=IMAGES, seed=SEEDS)
    noise = noise_per_image(model.plan.latent_shapes(), image_seeds(5, 1))
    decoded = inference_pass(model, tf.constant(IMAGES[:1]), noise)
    # With flows the KL is a one-sample estimate, so the bound is of one importance sample.
    # Differences of elements: differences of sums would be rounded to 1e-5.
    pairs = [(z.posterior.log_prob(z.z_before_flows), z.prior.log_prob(z.z)) for z in decoded.latents]
    kl = sum(tf.reduce_sum(log_q - log_p) for log_q, log_p in pairs)
    assert_same(found["nats"][:1], kl - decoded.likelihood.log_prob(IMAGES[:1]))
    assert_same(found["kl_per_group"][0].sum(), kl)
    assert_same(found["bits_per_dim"], found["nats"] / np.log(2) / (8 * 8 * 3))
    assert found["kl_per_group"].shape == (4, 2)
    assert_same(run("encode", image=IMAGES, seed=SEEDS)["kl"], found["kl_per_group"])


def test_a_row_does_not_depend_on_its_neighbors_or_the_batch_size(run):
    temperatures, latent = np.float32([1, 0.5, 2, 1]), run("encode", image=IMAGES, seed=SEEDS)["latent"]
    keep = np.int32([[0, 1], [1, 0], [1, 1], [0, 0]])
    for signature, inputs in {
        "score": {"image": IMAGES, "seed": SEEDS},
        "compose": {"latent": latent, "keep": keep, "seed": SEEDS, "temperature": np.tile(temperatures[:, None], 2)},
    }.items():
        together = run(signature, **inputs)
        for rows in ([1, 3, 2], [0]):
            some = run(signature, **{name: array[rows] for name, array in inputs.items()})
            for name, array in together.items():
                # A value that lies between two levels may be rounded to either.
                assert_same(some[name], array[rows], 1 / array.max() if array.dtype == np.uint8 else 1e-5)


def test_a_model_of_one_bit_gets_one_bit_from_files_and_scores_no_grays(vanilla_model):
    pixels = np.arange(36, dtype=np.uint8).reshape(1, 6, 6, 1) * 7
    images, are_right = images_of_files(tf.reshape(tf.io.encode_png(pixels[0]), [1]), vanilla_model.config)
    assert are_right.numpy().all()
    np.testing.assert_array_equal(images, pixels >= 128)
    signatures, images = Signatures(vanilla_model), np.zeros([2, 6, 6, 1], np.float32)
    images[1] = 0.5
    valid = {name: signatures.function(name)(images, SEEDS[:2])["valid"].numpy() for name in ("score", "reconstruct")}
    assert valid["score"].tolist() == [True, False] and valid["reconstruct"].all()


@pytest.mark.slow
def test_the_plain_script_draws_the_models_images_where_the_package_cannot_be_imported(folder, model, tmp_path):
    output, script = tmp_path / "new" / "samples.png", ROOT / "export" / "run_saved_model.py"
    program = (
        "import runpy, sys; sys.modules.update(dict.fromkeys(['nvae_tf', 'export']))\n"
        f"sys.argv[1:] = ['--saved_model={folder}', '--output={output}', '--count=5', '--seed=4']\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    output_of(["-I", "-c", program], cwd=tmp_path)
    assert_shown(np.asarray(Image.open(output)), model.generate(5, seed=4).numpy(), None)


def test_the_plain_script_reports_errors(tmp_path, capsys, monkeypatch):
    for flag, message in (
        ("--saved_model=missing", "no saved_model.pb in it"),
        ("--temperature=0", "must be above 0"),
        ("--seed=4", "a damaged or foreign export"),
    ):
        (tmp_path / "saved_model.pb").write_bytes(b"no protocol buffer")
        places = [f"--saved_model={tmp_path}", f"--output={tmp_path / 'x.png'}"]
        monkeypatch.setattr(sys, "argv", ["run_saved_model.py", *places, flag])
        refuses("2", run_saved_model.main, error=SystemExit)
        assert message in capsys.readouterr().err
        assert [file.name for file in tmp_path.iterdir()] == ["saved_model.pb"]


ONES = np.ones(2, np.float32)
PICTURE = tf.io.encode_png(np.zeros([8, 8, 3], np.uint8)).numpy()
WIDE = tf.io.encode_png(np.zeros([8, 9, 3], np.uint8)).numpy()
# Nothing behind the header could be decoded.
HEADER = PICTURE[:16] + np.array([2000, 1000], ">i4").tobytes()
# Not found before it is decoded.
DAMAGED = PICTURE[:45] + b"\xff\xff" + PICTURE[47:]


def wrong_rows():
    """Signature, input, its value in a wrong row, and what is wrong with it."""
    for value in (0.0, np.nan):
        yield "sample", "temperature", value, "temperature: values must be finite and above 0"
    yield "sample", "temperature", 3e38, "the result is not finite; a temperature or a latent is too large"
    for value in (-0.01, 255.0, np.nan):
        yield "encode", "image", value, r"image: values must be finite and in \[0, 1\]"
    for content in (b"", WIDE, HEADER, DAMAGED, PICTURE[:40]):
        yield "encode_png", "image_bytes", content, "image_bytes: must be whole PNG files of height 8 and width 8"
    yield "decode_upper_groups", "num_groups", 3, "num_groups: values must be from 0 to 2"
    yield "decode", "latent", np.inf, "latent: values must be finite"
    yield "compose_png", "keep", 2, r"keep: values must be 1 \(taken\) or 0 \(drawn\)"


@pytest.mark.slow
def test_a_wrong_row_is_marked_and_fails_no_other(run, model):
    given = {"seed": SEEDS[:2], "temperature": ONES, "image": IMAGES[:2], "num_groups": np.int32([1, 1])}
    given |= {"image_bytes": np.array([PICTURE, PICTURE], object), "keep": np.int32([[1, 0]] * 2)}
    given["latent"] = run("encode", image=IMAGES[:2], seed=SEEDS[:2])["latent"]
    for signature, name, value, message in wrong_rows():
        names = [spec.name for spec in Signatures(model).input_specs(signature)]
        inputs = {key: given[key].copy() for key in names}
        if signature.startswith("compose"):
            inputs["temperature"] = np.ones([2, 2], np.float32)
        alone = run(signature, **{key: array[:1] for key, array in inputs.items()})
        if inputs[name].ndim > 1:
            inputs[name][1].flat[1] = value
        else:
            inputs[name][1] = value
        found = run(signature, **inputs)
        assert found["valid"].tolist() == [True, False]
        for key, array in found.items():
            if array.dtype.kind == "f":
                assert_same(array[:1], alone[key])
                assert np.isnan(array[1]).all()
        assert found.get("image_bytes", [b"", b""])[1] == b"" and not np.any(found.get("image_uint8", [0, 0])[1])
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"(?s){message}"):
            run(signature, **{key: array[1:] for key, array in inputs.items()})


def test_a_request_of_wrong_rows_altogether_is_refused(run, folder):
    most = json.loads((folder / "assets.extra" / "source.json").read_text())["most_rows"]
    many = {"seed": np.zeros(most + 1, np.int64), "temperature": np.ones(most + 1, np.float32)}
    for signature, inputs, message in (
        ("sample", {"seed": SEEDS[:2], "temperature": ONES[:1]}, "temperature: there must be one for each row of seed"),
        ("encode", {"image": IMAGES[:2], "seed": SEEDS[:1]}, "seed: there must be one for each row of image"),
        ("reconstruct", {"image": IMAGES[:0], "seed": SEEDS[:0]}, "image: a request must have 1 to .* rows"),
        ("sample", many, f"seed: a request must have 1 to {most} rows"),
    ):
        refuses(f"(?s){message}", run, signature, **inputs, error=tf.errors.InvalidArgumentError)


def test_groups_are_taken_and_drawn_as_asked_each_at_its_temperature(run, model):
    inputs = {"latent": run("encode", image=IMAGES[:3], seed=SEEDS[:3])["latent"], "seed": SEEDS[[0, 0, 0]]}
    keep, temperature = np.int32([[0, 0], [0, 1], [1, 1]]), np.float32([[0.5, 0.9]] * 3)
    composed = run("compose", keep=keep, temperature=temperature, **inputs)
    assert_same(composed["image"][:1], model.generate(1, [0.5, 0.9], seed=5))
    # The top group is drawn, and the other taken: no signature but this one does so.
    top, latent = np.prod(model.plan.latent_shapes()[0]), inputs["latent"]
    assert_same(composed["latent"][1], np.concatenate([composed["latent"][0, :top], latent[1, top:]]))
    assert_same(composed["image"][1:], run("decode", latent=composed["latent"][1:])["image"])
    assert_same(composed["latent"][2], latent[2])
    upper = run("decode_upper_groups", num_groups=np.int32([0, 1, 2]), temperature=temperature[:, 0], **inputs)["image"]
    top_group = latent[[1], :top].reshape(1, *model.plan.latent_shapes()[0])
    assert_same(upper[[0]], model.generate(1, 0.5, seed=5))
    assert_same(upper[[1]], model.decode([top_group], temperature=0.5, seed=5))
    assert_same(upper[2:], run("decode", latent=latent[2:])["image"])


@pytest.mark.slow
def test_guidance_proposals_and_outlier_scores_are_those_of_the_models_methods(conditional_model, conditional_folder):
    model = conditional_model
    labels, total = np.int32([2, 2, 2, -1]), sum(map(np.prod, model.plan.latent_shapes()))
    given = {"seed": np.int64([5, 5 + 2**32, 5, 5]), "label": labels}
    with run_saved_model.session_of(str(conditional_folder)) as run:
        drawn = run("sample", **given, temperature=np.ones(4, np.float32), proposals=np.int32([9, 9, 1, 1]))["image"]
        assert_same(drawn[:2], model.generate(2, seed=5, labels=2, prior="reweighted"))
        assert_same(drawn[[2]], model.generate(1, seed=5, labels=2))
        assert_same(drawn[[3]], model.generate(1, seed=5))
        assert np.abs(drawn[2] - drawn[0]).max() > 1e-3

        latents, rows = np.zeros([4, total], np.float32), {"temperature": np.ones([4, 2], np.float32)}
        composed = given | rows | {"latent": latents, "keep": np.int32([[0, 0], [0, 0], [1, 0], [0, 0]])}
        # Guidance is toward a class, and not of the reweighted prior. Rows of all kinds are what each is alone.
        mixed = composed | {"guidance": np.float32([2, 2, 1, 1.5]), "proposals": np.int32([1, 9, 9, 1])}
        together = run("compose", **mixed)
        assert together["valid"].tolist() == [True, False, True, False]
        assert_same(together["image"][:1], model.generate(1, seed=5, labels=2, guidance=2.0))
        for row in (0, 2):
            alone = run("compose", **{name: array[row : row + 1] for name, array in mixed.items()})
            assert_same(alone["image"], together["image"][row : row + 1])
        # With the top group taken, the next one is drawn given that: whoever draws the top group.
        plain = composed | {"keep": np.zeros([4, 2], np.int32), "guidance": np.ones(4, np.float32)}
        plain["proposals"] = np.int32([9, 9, 1, 1])
        first = run("compose", **plain)["latent"]
        kept = run("compose", **plain | {"latent": first, "keep": np.int32([[1, 0]] * 4)})["latent"]
        assert_same(kept, first)

        scores, of_model = run("outlier_score", image=IMAGES, label=labels), model.outlier_score(IMAGES, labels=labels)
        assert_same(scores["kl_sum"], of_model.kl)
        assert_same(scores["kl_map"], of_model.parts.kl_map)
        for name in ("nelbo_at_mean", "mahalanobis", "kl_p_value", "mahalanobis_p_value"):
            assert_same(scores[name], getattr(of_model, name))


def deep_signatures(groups):
    """Of a model as it is, and as it is exported."""
    cells = dict(num_preprocess_cells=4, num_postprocess_cells=4, num_latent_scales=1, num_groups_per_scale=groups)
    model = model_of(dataclasses.replace(CONFIG, **cells, num_classes=3))
    model.reweighted_prior = ReweightedPrior(made_ratios("classifier", 1, model.plan, 3), 20, 3)
    folded = folded_weights(model._stacks())
    return Signatures(model), Signatures(model, lambda: FoldedPass(scanned=True, folded=folded))


def nodes_of(signatures):
    networks = signatures.compose_network, signatures.infer_network
    graphs = [network.get_concrete_function().graph.as_graph_def() for network in networks]
    functions = [function for graph in graphs for function in graph.library.function]
    return sum(len(graph.node) for graph in graphs) + sum(len(function.node_def) for function in functions)


@pytest.mark.slow
def test_an_export_has_equal_groups_and_cells_as_loops():
    signatures, exported = deep_signatures(4)
    record = recorded(signatures)
    other = recorded(exported, side_of_record(record, "inputs"))
    differences = all_differences(*(side_of_record(each, "outputs") for each in (other, record)))
    assert max(differences.values()) < TOLERANCE and len(differences) > 40
    few, many = nodes_of(exported), nodes_of(deep_signatures(5)[1])
    # The group more has its noise, latent, temperature and choice.
    assert 0 < many - few < 20
