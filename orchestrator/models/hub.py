"""A Hugging Face hub: what it lists of a model, and its files, each fetched from where it was cut off.

huggingface_hub does the talking and makes the cache; its own downloads begin anew in a new process, ours go on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.errors import HubError, ModelNotFoundError, StorageError, UserError
from orchestrator.models.lock import REMEDY
from orchestrator.models.manifest import digest

DEFAULT_ENDPOINT = "https://huggingface.co"
# Of formats of the same weights, engines read the first that is there. The rest of the second row none of them reads.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_OTHER_WEIGHTS = frozenset({".h5", ".msgpack", ".onnx", ".onnx_data", ".tflite", ".ot", ".gguf", ".mlmodel"})
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_TRUE = frozenset({"1", "true", "yes", "on"})


@dataclass(frozen=True)
class HubFile:
    """One file at the hub.

    Attributes:
        path: Below the top of the repository.
        size: In bytes.
        etag: Its name in the cache's folder of blobs: the SHA-256 of a large file, git's SHA-1 of a small one.
    """

    path: str
    size: int
    etag: str

    def digest(self, content: Path, step: Callable[[int], None]) -> str:
        """Return the hash of ``content``, which is ``etag`` if it is this file's.

        Source: "Git Internals", Git Objects: the SHA-1 of a header ``blob SIZE``, a zero byte, and the content.
        """
        if len(self.etag) == 64:
            return digest(content, "sha256", b"", step)
        return digest(content, "sha1", f"blob {content.stat().st_size}\0".encode(), step)


@dataclass(frozen=True)
class Listing:
    """A revision of a model at the hub.

    Attributes:
        commit: The revision's own name.
        name: The model's name there, another one if it was renamed.
        files: Those that an engine may read.
        is_all: Whether there are no others.
    """

    model: str
    revision: str
    commit: str
    name: str
    files: tuple[HubFile, ...]
    is_all: bool


def is_switched_off() -> bool:
    """Return whether the user's environment forbids the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE


def read_token(path: Path) -> str:
    """Return the token in a file.

    Raises:
        UserError: there is none.
    """
    try:
        token = path.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--token-file {path}: cannot be read: {error}") from error
    if len(token.split()) != 1:
        raise UserError(f"--token-file {path}: holds no token.\nWrite the hub's token into it, and nothing else.")
    return token


class Hub:
    """The hub of HF_ENDPOINT."""

    def __init__(self, token: str | None = None) -> None:
        """Take a token; without one it is that of HF_TOKEN, or of ``hf auth login``."""
        self.endpoint = os.environ.get("HF_ENDPOINT", DEFAULT_ENDPOINT).rstrip("/")
        self._token = token

    def look(self, model: str, revision: str) -> Any:
        """Return what huggingface_hub says of a model's revision.

        Raises:
            ModelNotFoundError: the hub has no such model or revision for this user, or is switched off.
            HubError: it cannot be reached, or does not answer as it should.
        """
        if is_switched_off():
            raise ModelNotFoundError(f"'{model}' is not here, and HF_HUB_OFFLINE is set.\n{_ELSEWHERE}")
        with self._in_words(model, revision):
            return self._api().model_info(model, revision=revision)

    def list_files(self, model: str, revision: str) -> Listing:
        """Return the files of a model's revision; see look."""
        info = self.look(model, revision)
        with self._in_words(model, revision):
            tree = list(self._api().list_repo_tree(model, recursive=True, revision=info.sha))
        files = [
            HubFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id)
            for entry in tree
            if hasattr(entry, "size")
        ]
        # They become names of files here.
        for name in (info.sha, *(file.etag for file in files)):
            if not _HASH.fullmatch(name):
                raise HubError(f"{self.endpoint} lists '{model}' with '{name}', which is no hash: it is no hub.")
        for file in files:
            if not _is_below(file.path):
                raise HubError(f"{self.endpoint} lists '{model}' with the path '{file.path}', which leads out of it.")
        wanted = tuple(file for file in files if _is_wanted(file.path, [each.path for each in files]))
        return Listing(model, revision, info.sha, info.id, wanted, len(wanted) == len(files))

    def fetch(self, listing: Listing, file: HubFile, part: Path, step: Callable[[int], None]) -> None:
        """Bring ``part`` to the whole content of ``file``, going on behind what is in it.

        Raises:
            ModelNotFoundError: the hub does not give it to this user.
            HubError: the connection was cut, or what came is not what the hub lists; in that case it is removed.
            StorageError: there is no space.
        """
        library = _library()
        url = library.hf_hub_url(listing.model, file.path, revision=listing.commit, endpoint=self.endpoint)
        headers = library.utils.build_hf_headers(token=self._token)
        with self._in_words(listing.model, listing.revision, part), part.open("ab") as content:
            there = content.tell()
            if there > file.size:
                content.truncate(0)
                there = 0
            step(there)
            library.file_download.http_get(
                url,
                content,
                resume_size=there,
                headers=headers,
                expected_size=file.size,
                tqdm_class=lambda **_: _Steps(step),
            )
        if file.digest(part, lambda _: None) != file.etag:
            part.unlink()
            raise HubError(
                f"{listing.model}: what {self.endpoint} gave as {file.path} has another checksum than it lists.\n"
                "It was thrown away. Try again; if it comes again, something on the way changes it."
            )

    def lay_out(self, listing: Listing, cache: Path) -> None:
        """Let huggingface_hub make the snapshot of blobs that are there; what only it can fetch is fetched.

        Raises:
            ModelNotFoundError, HubError, StorageError: see fetch.
        """
        patterns = [escape(file.path) for file in listing.files]
        with self._in_words(listing.model, listing.revision, cache), _library().utils.disable_progress_bars():
            self._api().snapshot_download(
                listing.model, revision=listing.revision, cache_dir=cache, allow_patterns=patterns
            )

    def _api(self) -> Any:
        library = _library()
        library.utils.logging.set_verbosity_error()
        return library.HfApi(endpoint=self.endpoint, token=self._token)

    @contextmanager
    def _in_words(self, model: str, revision: str, path: Path | None = None) -> Iterator[None]:
        errors = _library().errors
        try:
            yield
        # The first base is the root of all errors of the HTTP library underneath, whichever it is.
        except (*errors.HfHubHTTPError.__bases__, OSError, ValueError) as error:
            cause: BaseException = error
            # What the hub said may be wrapped in that the file is not in the cache either.
            while cause.__cause__ is not None and not isinstance(cause, errors.HfHubHTTPError):
                cause = cause.__cause__
            is_of_disk = isinstance(error, OSError) and not isinstance(error, (ConnectionError, TimeoutError))
            if is_of_disk and path is not None and getattr(error, "errno", None) is not None:
                raise StorageError(path, error, REMEDY) from error
            raise self._refusal(cause, model, revision) from error

    def _refusal(self, error: BaseException, model: str, revision: str) -> ModelNotFoundError | HubError:
        errors = _library().errors
        answer = getattr(error, "response", None)
        code = answer.status_code if answer is not None else None
        who = "with your token" if self._has_token() else "without a token"
        if isinstance(error, errors.HFValidationError):
            return ModelNotFoundError(f"'{model}' is no id of a hub's model (OWNER/NAME): {error}")
        if isinstance(error, errors.RevisionNotFoundError):
            return ModelNotFoundError(f"{self.endpoint} has no revision '{revision}' of '{model}'.")
        if isinstance(error, errors.GatedRepoError):
            return ModelNotFoundError(
                f"'{model}' is gated: {self.endpoint} does not give it to you {who} (HTTP {code}).\n"
                f"Accept its terms at {self.endpoint}/{model}, and give your token: --token-file or HF_TOKEN."
            )
        if code == 401 and self._has_token() and not isinstance(error, errors.RepositoryNotFoundError):
            return ModelNotFoundError(f"{self.endpoint} does not take your token (HTTP 401).\nMake a new one there.")
        if code in {401, 403, 404}:
            # The hub answers 401 for a repository that does not exist as well as for one that is closed.
            return ModelNotFoundError(
                f"{self.endpoint} has no model '{model}' for you {who} (HTTP {code}).\n"
                "Check the spelling; a private one wants a token: --token-file or HF_TOKEN."
            )
        if code is not None:
            return HubError(f"{self.endpoint} answered HTTP {code} for '{model}'.\nTry again later.")
        return HubError(
            f"'{model}': {self.endpoint} cannot be reached, or cut the connection ({type(error).__name__}: {error}).\n"
            f"The same command goes on where it stopped. {_ELSEWHERE}"
        )

    def _has_token(self) -> bool:
        return bool(self._token or _library().get_token())


_ELSEWHERE = "Without a network here, pull it where there is one (`orch.py models pull`), or give a directory."


def _library() -> Any:
    """Return huggingface_hub, which takes a third of a second to be imported."""
    import huggingface_hub.errors
    import huggingface_hub.file_download
    import huggingface_hub.utils.logging

    return huggingface_hub


class _Steps:
    """Stands for a progress bar; what ``step`` raises ends the download."""

    def __init__(self, step: Callable[[int], None]) -> None:
        self.update = step

    def __enter__(self) -> _Steps:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing was opened."""


def _is_below(path: str) -> bool:
    return not path.startswith("/") and ".." not in path.split("/")


def _is_wanted(path: str, others: list[str]) -> bool:
    """Return whether an engine may read a file, given all of the repository."""
    suffix = PurePosixPath(path).suffix.lower()
    if suffix in _OTHER_WEIGHTS:
        return False
    if suffix not in _WEIGHTS:
        return True
    there = [known for known in _WEIGHTS if any(other.lower().endswith(known) for other in others)]
    return suffix == there[0]
