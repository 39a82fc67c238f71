"""The fixtures of the tests with servers, one of each for all files: `pytest_plugins` in them names this one."""

import pathlib

import pytest

from tests.serving.model_servers import CLIENTS, REAL_SERVER, local_servers, real_servers, save_texts, served


@pytest.fixture(scope="session")
def texts_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts") / "1"
    save_texts(folder)
    return folder


@pytest.fixture(scope="session")
def local(folder, texts_folder):
    """The server of this repository, one request at a time and without batching."""
    models = served("tiny", folder.parent, labels={"stable": 3}), served("texts", texts_folder.parent)
    with local_servers(*models) as servers:
        yield servers


@pytest.fixture(scope="session", params=["local", "real"] if REAL_SERVER else ["local"])
def servers(request, folder, texts_folder, tmp_path_factory):
    if request.param == "local":
        yield request.getfixturevalue("local")
        return
    assert pathlib.Path(REAL_SERVER).is_file(), f"TF_MODEL_SERVER={REAL_SERVER}: no such file"
    with real_servers(folder.parent, texts_folder.parent, tmp_path_factory.mktemp("serving")) as found:
        yield found


@pytest.fixture(params=sorted(CLIENTS))
def protocol(request):
    return request.param


@pytest.fixture
def client(servers, protocol):
    with servers.client(protocol) as client:
        yield client
