"""A Hugging Face Hub on the loopback interface, with what is asked of it to publish and to fetch a model."""

import base64
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

from huggingface_hub import constants

TOKEN = "hf_onlyForTheseTestsAndVerySecret"
# Of somebody who may read but not write.
READER = "hf_onlyForTheseTestsAndMayOnlyRead"
GATED = "somebody/gated"


class HubServer(http.server.ThreadingHTTPServer):
    """The commits of each repository, newest last: `repos[name]` is a list of `{path: bytes}`; `broken` answers 500."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos, self.uploads, self.requests, self.broken = {GATED: [{}]}, {}, [], False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, repo):
        return self.repos[repo][-1]

    def environment(self, home, token=TOKEN):
        """What a process of its own must have to talk to this server alone."""
        found = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        return found | ({"HF_TOKEN": token} if token else {})

    def use_here(self, monkeypatch, home, token=TOKEN):
        """The same for this process, in which huggingface_hub has read its environment already."""
        monkeypatch.setattr(constants, "ENDPOINT", self.endpoint)
        template = self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", token or "")


def commit_id(repo, number):
    """The revision of a repository's commit of this number."""
    return hashlib.sha1(f"{repo} {number}".encode()).hexdigest()


def _is_large(path):
    """Whether a file goes by LFS, as those of checkpoints do on the Hub."""
    return ".data-" in path or path.endswith((".index", ".png"))


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _answer(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _serve(self):
        server, body, path = self.server, self._body(), urllib.parse.unquote(self.path.partition("?")[0])
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        server.requests.append((self.command, path))
        if server.broken:
            return self._answer({"error": "out of order"}, 500)
        if token not in ("", TOKEN, READER):
            message = "Invalid credentials in Authorization header"
            return self._answer({"error": message}, 401, X_Error_Message=message)
        if self.command == "PUT":
            # As to a store of files: the address is the permission.
            server.uploads[hashlib.sha256(body).hexdigest()] = body
            return self._answer({})
        if self.command == "POST" and path != "/api/validate-yaml" and token != TOKEN:
            status, message = (403, "you may not write here") if token else (401, "Invalid username or password.")
            return self._answer({"error": message}, status, X_Error_Message=message)
        for method, pattern, handle in _ROUTES:
            if method == self.command.replace("HEAD", "GET") and (match := re.fullmatch(pattern, path)):
                return handle(self, body, *match.groups())
        return self._answer({"error": f"{self.command} {path}: not imitated"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _commit(self, repo, revision):
        """The number of a commit; None, with an answer, where there is none."""
        if repo not in self.server.repos:
            self._answer({"error": "Repository not found"}, 401, X_Error_Code="RepoNotFound")
        elif repo == GATED:
            self._answer({"error": "Access is restricted"}, 403, X_Error_Code="GatedRepo")
        else:
            commits = len(self.server.repos[repo])
            numbers = {commit_id(repo, number): number for number in range(commits)} | {"main": commits - 1}
            if revision in numbers:
                return numbers[revision]
            self._answer({"error": f"Invalid rev id: {revision}"}, 404, X_Error_Code="RevisionNotFound")
        return None

    def create(self, body):
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        known = repo in self.server.repos
        self.server.repos.setdefault(repo, [{".gitattributes": b""}])
        self._answer({"url": f"{self.server.endpoint}/{repo}"}, 409 if known else 200)

    def validate(self, body):
        assert json.loads(body)["content"].startswith("---\n")
        self._answer({"errors": [], "warnings": []})

    def info(self, _, repo, revision="main"):
        number = self._commit(repo, revision)
        if number is not None:
            self._answer({"id": repo, "sha": commit_id(repo, number), "siblings": []})

    def tree(self, _, repo, revision):
        number = self._commit(repo, revision)
        if number is None:
            return
        entries = []
        for path, content in self.server.repos[repo][number].items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry = {"type": "file", "path": path, "size": len(content), "oid": blob}
            if _is_large(path):
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
            entries.append(entry)
        self._answer(entries)

    def preupload(self, body, repo, _):
        modes = [
            {"path": file["path"], "uploadMode": "lfs" if _is_large(file["path"]) else "regular", "shouldIgnore": False}
            for file in json.loads(body)["files"]
        ]
        self._answer({"files": modes})

    def lfs(self, body, repo):
        objects = json.loads(body)["objects"]
        for item in objects:
            item["actions"] = {"upload": {"href": f"{self.server.endpoint}/store/{item['oid']}"}}
        self._answer({"transfer": "basic", "objects": objects})

    def commit(self, body, repo, _):
        files, latest = dict(self.server.files(repo)), commit_id(repo, len(self.server.repos[repo]) - 1)
        for line in body.decode().splitlines():
            key, value = json.loads(line).values()
            if key == "header" and value.get("parentCommit", latest) != latest:
                return self._answer({"error": "A commit has happened since. Please refresh and try again."}, 412)
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.uploads[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        self.server.repos[repo].append(files)
        oid = commit_id(repo, len(self.server.repos[repo]) - 1)
        self._answer({"commitUrl": f"{self.server.endpoint}/{repo}/commit/{oid}", "commitOid": oid})

    def resolve(self, _, repo, revision, path):
        number = self._commit(repo, revision)
        if number is None:
            return
        content = self.server.repos[repo][number][path]
        sha256 = hashlib.sha256(content).hexdigest()
        self._answer(content, ETag=f'"{sha256}"', X_Repo_Commit=commit_id(repo, number))


_REPO = r"([^/]+/[^/]+)"
_ROUTES = (
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("GET", f"/api/models/{_REPO}", _Handler.info),
    ("GET", f"/api/models/{_REPO}/revision/(.+)", _Handler.info),
    ("GET", f"/api/models/{_REPO}/tree/([^/]+)", _Handler.tree),
    ("POST", f"/api/models/{_REPO}/preupload/([^/]+)", _Handler.preupload),
    ("POST", f"/{_REPO}[.]git/info/lfs/objects/batch", _Handler.lfs),
    ("POST", f"/api/models/{_REPO}/commit/([^/]+)", _Handler.commit),
    ("GET", f"/{_REPO}/resolve/([^/]+)/(.+)", _Handler.resolve),
)
