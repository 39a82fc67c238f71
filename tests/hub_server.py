"""A Hugging Face Hub on the loopback interface, with what is asked of it to publish and to fetch a model.

All files go within the request of the commit: how large ones are stored is huggingface_hub's own.
"""

import base64
import hashlib
import json
import re
import threading
import time

import uvicorn
from huggingface_hub import constants
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

TOKEN = "hf_onlyForTheseTestsAndVerySecret"
# Of somebody who may read but not write.
READER = "hf_onlyForTheseTestsAndMayOnlyRead"
GATED = "somebody/gated"


class HubServer:
    """The commits of each repository, newest last: `repos[name]` is a list of `{path: bytes}`; `broken` answers 500."""

    def __init__(self):
        self.repos, self.requests, self.broken = {GATED: [{}]}, [], False
        application = Starlette(routes=[Route("/{path:path}", self._serve, methods=["GET", "POST"])])
        self._server = uvicorn.Server(uvicorn.Config(application, port=0, log_level="error"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self.endpoint = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def close(self):
        self._server.should_exit = True
        self._thread.join()

    def files(self, repo):
        return self.repos[repo][-1]

    def use_here(self, monkeypatch, home):
        """Lets this process, in which huggingface_hub has read its environment already, talk to this server alone."""
        template = self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": self.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)

    async def _serve(self, request):
        path, body, method = request.scope["path"], await request.body(), request.method
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        self.requests.append((method, path))
        if self.broken:
            return _error("out of order", 500)
        if token not in ("", TOKEN, READER):
            return _error("Invalid credentials in Authorization header", 401)
        if method == "POST" and path != "/api/validate-yaml" and token != TOKEN:
            return _error(*(("you may not write here", 403) if token else ("Invalid username or password.", 401)))
        for pattern, handle in _ROUTES[method.replace("HEAD", "GET")].items():
            if match := re.fullmatch(pattern, path):
                return handle(self, body, *match.groups())
        return _error(f"{method} {path}: not imitated", 404)

    def _create(self, body):
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        known = repo in self.repos
        self.repos.setdefault(repo, [{".gitattributes": b""}])
        return JSONResponse({"url": f"{self.endpoint}/{repo}"}, 409 if known else 200)

    def _validate(self, body):
        assert json.loads(body)["content"].startswith("---\n")
        return JSONResponse({"errors": [], "warnings": []})

    def _read(self, _, repo, what="revision", revision="main", path=None):
        """What a repository has at a revision: its number, the list of its files, or one of them."""
        if repo not in self.repos:
            return _error("Repository not found", 401, "RepoNotFound")
        if repo == GATED:
            return _error("Access is restricted", 403, "GatedRepo")
        commits = {commit_id(repo, number): files for number, files in enumerate(self.repos[repo])}
        newest = [*commits][-1]
        revision = newest if revision == "main" else revision
        if revision not in commits:
            return _error(f"Invalid rev id: {revision}", 404, "RevisionNotFound")
        if what == "revision":
            return JSONResponse({"id": repo, "sha": revision, "siblings": []})
        if what == "tree":
            sizes = {name: len(content) for name, content in commits[revision].items()}
            entries = [{"type": "file", "path": name, "size": size, "oid": name} for name, size in sizes.items()]
            return JSONResponse(entries)
        sha256 = hashlib.sha256(commits[revision][path]).hexdigest()
        return Response(commits[revision][path], headers={"ETag": f'"{sha256}"', "X-Repo-Commit": revision})

    def _preupload(self, body, repo):
        names = [file["path"] for file in json.loads(body)["files"]]
        return JSONResponse({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})

    def _commit(self, body, repo):
        files, latest = dict(self.files(repo)), commit_id(repo, len(self.repos[repo]) - 1)
        for line in body.decode().splitlines():
            key, value = json.loads(line).values()
            if key == "header" and value.get("parentCommit", latest) != latest:
                return _error("A commit has happened since. Please refresh and try again.", 412)
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "deletedFile":
                del files[value["path"]]
        self.repos[repo].append(files)
        oid = commit_id(repo, len(self.repos[repo]) - 1)
        return JSONResponse({"commitUrl": f"{self.endpoint}/{repo}/commit/{oid}", "commitOid": oid})


def commit_id(repo, number):
    """The revision of a repository's commit of this number."""
    return hashlib.sha1(f"{repo} {number}".encode()).hexdigest()


def _error(message, status, code=None):
    headers = {"X-Error-Code": code} if code else {"X-Error-Message": message}
    return JSONResponse({"error": message}, status, headers)


_REPO = r"([^/]+/[^/]+)"
_ROUTES = {
    "POST": {
        "/api/repos/create": HubServer._create,
        "/api/validate-yaml": HubServer._validate,
        f"/api/models/{_REPO}/preupload/[^/]+": HubServer._preupload,
        f"/api/models/{_REPO}/commit/[^/]+": HubServer._commit,
    },
    "GET": {
        f"/api/models/{_REPO}": HubServer._read,
        f"/api/models/{_REPO}/(revision)/(.+)": HubServer._read,
        f"/api/models/{_REPO}/(tree)/([^/]+)": HubServer._read,
        f"/{_REPO}/(resolve)/([^/]+)/(.+)": HubServer._read,
    },
}
