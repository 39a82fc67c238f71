import pytest

from nvae_tf.generation.arguments import FOLDER, output_place, parse_temperature


def test_where_nothing_can_be_written_is_an_error(tmp_path):
    file, full = tmp_path / "file", tmp_path / "full"
    file.touch()
    full.mkdir()
    (full / "x.png").touch()
    kinds = (".png", ".gif", FOLDER)
    assert output_place(f"{tmp_path}/a/b.GIF", kinds, False).kind == ".gif"
    assert output_place(f"{tmp_path}/a/", kinds, False).kind == FOLDER
    assert output_place(f"{full}", kinds, overwrite=True).kind == FOLDER
    assert output_place(f"{full}/x.png", kinds, overwrite=True).path == full / "x.png"
    for value, allowed, message in (
        (f"{full}", kinds, "there are files in this folder"),
        (f"{full}", (".png",), "a folder; give the name of a file that ends in .png"),
        (f"{tmp_path}/a.jpg", kinds, "give a name that ends in .png or .gif, or a folder that ends in /"),
        (f"{file}/a.png", kinds, "is a file, not a folder"),
        (f"{file}/", kinds, "this is a file, not a folder"),
        (f"{full}/x.png", kinds, "there is such a file"),
    ):
        with pytest.raises(ValueError, match=message):
            output_place(value, allowed, False)


def test_temperatures_are_numbers():
    assert parse_temperature("0.7") == 0.7
    assert parse_temperature("0.7,1") == [0.7, 1.0]
    for wrong in ("", "warm", "0.7,", "0.7,0", "nan", "inf", "-1"):
        with pytest.raises(ValueError, match="--temperature"):
            parse_temperature(wrong)
