"""Find the server to talk to and the key for it.

Searched in this order:

1. the arguments, then RETORT_URL and RETORT_API_KEY;
2. `client.json` of a server started here (`retort up`), in RETORT_DATA_DIR or ./retort-data;
3. `retort/client.json` in the user's configuration folder, written by `retort login`;
4. `retort/up.json` beside it, written by `retort up` while it runs: so that commands work from any
   folder.

A key found in a file belongs to the address in that file and is sent nowhere else.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from retort import errors, types

DEFAULT_URL = "http://127.0.0.1:8765"
FILE_NAME = "client.json"
UP_FILE_NAME = "up.json"


class Environment(BaseSettings):
    """The variables of the environment that the client reads."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True)

    url: str | None = Field(None, validation_alias="RETORT_URL")
    api_key: SecretStr | None = Field(None, validation_alias="RETORT_API_KEY")
    data_dir: Path = Field(Path("retort-data"), validation_alias="RETORT_DATA_DIR")
    columns: str | None = Field(None, validation_alias="COLUMNS")
    config_home: Path = Field(Path("~/.config"), validation_alias="XDG_CONFIG_HOME")

    @property
    def page_width(self) -> int | None:
        """Return COLUMNS as a number; None where it is no width, such as the 0 of some shells."""
        given = self.columns or ""
        return int(given) or None if given.isascii() and given.isdecimal() else None

    @property
    def user_file(self) -> Path:
        """Return where `retort login` keeps the address and key."""
        return self.config_home.expanduser() / "retort" / FILE_NAME

    @property
    def up_file(self) -> Path:
        """Return where a running `retort up` keeps its address and key."""
        return self.user_file.with_name(UP_FILE_NAME)


@dataclass(frozen=True)
class ServerConfig:
    """An address, the key for it, and where they come from."""

    url: str
    api_key: str
    source: str


class _Saved(types.Body):
    url: str
    api_key: str
    data_dir: Path | None = None


def find(url: str | None = None, api_key: str | None = None) -> ServerConfig:
    """Return the address and key to use.

    Raises: errors.NotConfigured, with how to get them.
    """
    environment = Environment()
    key = api_key or (environment.api_key.get_secret_value() if environment.api_key else None)
    address = url or environment.url
    if address and key:
        return ServerConfig(address, key, "options or environment")
    for path in (environment.data_dir / FILE_NAME, environment.user_file, environment.up_file):
        saved = _read(path)
        if saved is None:
            continue
        if address is None or _same(address, saved.url):
            return ServerConfig(address or saved.url, key or saved.api_key, str(path))
    if key:
        return ServerConfig(address or DEFAULT_URL, key, "options or environment")
    if address:
        raise errors.NotConfigured(
            f"no API key for {address}: give --api-key, set RETORT_API_KEY, or run `retort login`"
        )
    raise errors.NotConfigured(
        "no server is known here: start one with `retort up`, or name one with `retort login`"
    )


def address(url: str | None = None) -> str:
    """Return the address to use where no key of a file is needed.

    Raises: errors.NotConfigured, with how to give one.
    """
    environment = Environment()
    given = url or environment.url
    if given:
        return given
    for path in (environment.data_dir / FILE_NAME, environment.user_file):
        saved = _read(path)
        if saved is not None:
            return saved.url
    raise errors.NotConfigured("no server is known here: give --url, or set RETORT_URL")


def save(url: str, api_key: str) -> Path:
    """Write an address and key to the user's configuration, readable by the user alone."""
    return _write(Environment().user_file, url, api_key)


@contextlib.contextmanager
def running_here(url: str, api_key: str, data_dir: Path | None = None) -> Iterator[Path]:
    """Keep the address and key of a server of this machine for the user, while the block runs.

    `data_dir` is where its data is.
    """
    path = _write(Environment().up_file, url, api_key, data_dir)
    try:
        yield path
    finally:
        saved = _read(path)
        # Another server may have been started meanwhile.
        if saved is not None and _same(saved.url, url):
            path.unlink(missing_ok=True)


def data_dir_here() -> Path | None:
    """Return where the data is of the server that runs for this user on this machine, if any."""
    saved = _read(Environment().up_file)
    return None if saved is None else saved.data_dir


def _write(path: Path, url: str, api_key: str, data_dir: Path | None = None) -> Path:
    content = {"url": url, "api_key": api_key}
    if data_dir is not None:
        content["data_dir"] = str(data_dir.resolve())
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # mkstemp makes the file with mode 0600: the key is never readable by others, not even once.
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{FILE_NAME}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file)
        Path(temporary).replace(path)
    except OSError as error:
        raise errors.LocalFileProblem(path, error.strerror or str(error)) from error
    return path


def _read(path: Path) -> _Saved | None:
    try:
        return _Saved.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise errors.LocalFileProblem(path, error.strerror or str(error)) from error
    except ValidationError as error:
        raise errors.LocalFileProblem(path, "not a file of the form {url, api_key}") from error


def _same(one: str, other: str) -> bool:
    return one.rstrip("/").lower() == other.rstrip("/").lower()
